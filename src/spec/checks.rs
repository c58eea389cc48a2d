//! What types cannot say: ranges, choices that exclude each other, patterns that must compile, ids that must be unique.

mod constitution;
mod messages;
mod op;
mod reserved;

use super::mistake::Mistakes;
use super::model::{Api, Device, Dtype, Format, Model, Scoring};
use super::pipeline::Pipeline;
use super::place::{Name, Place, Spanned};

pub(super) use constitution::{constitution, no_constitution, selectors};

/// Checks the pipeline's own values, its models and its nodes.
pub(super) fn pipeline(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    reserved::names(pipeline, mistakes);
    let mut check = Check { owner: "the pipeline".to_owned(), mistakes };
    check.word("name", &pipeline.name);
    check.above("limits.timeout_s", &pipeline.limits.timeout_s, 0.0);
    for (name, declared) in &pipeline.models {
        let mut check = Check { owner: format!("model \"{name}\""), mistakes };
        check.word("name", name);
        model(name, declared, &mut check);
        if pipeline.budget.usd.is_some() && declared.is_unpriced() {
            let help = "add `price: { input: …, output: … }`, in dollars per million tokens, or 0";
            check.says(name.place, "has no \"price\", and \"budget\" counts its dollars", help);
        }
    }
    for (name, node) in &pipeline.nodes {
        let mut check = Check { owner: format!("node \"{name}\""), mistakes };
        check.word("name", name);
        if pipeline.models.contains_key(name.as_str()) {
            let help = "give one of them another name";
            check.mistakes.push(name.place, format!("\"{name}\" is both a node and a model"), help);
        }
        op::op(name.place, node, &mut check);
    }
    messages::nodes(pipeline, mistakes);
}

fn model(name: &Name, model: &Model, check: &mut Check<'_>) {
    match (&model.checkpoint, &model.endpoint, &model.name) {
        (Some(_), Some(endpoint), _) => {
            check.says(
                endpoint.place,
                "has both a checkpoint and an endpoint",
                "leave one of them out",
            );
        }
        (None, None, _) => {
            let help = "add `checkpoint: DIRECTORY` or `endpoint: URL`";
            check.says(name.place, "has neither a checkpoint nor an endpoint", help);
        }
        (None, Some(endpoint), None) => {
            let help = "add `name: …`, the model's name at the endpoint";
            check.says(endpoint.place, "has an endpoint and no \"name\"", help);
        }
        _ => {}
    }
    if let Some(endpoint) = &model.endpoint
        && !endpoint.is_empty()
        && !endpoint.starts_with("http://")
        && !endpoint.starts_with("https://")
    {
        let help = "such as `http://localhost:8000/v1`";
        check.says(endpoint.place, "has an endpoint that is not a URL", help);
    }
    if let Some(price) = model.price
        && ![price.input, price.output].iter().all(|usd| (0.0..f64::INFINITY).contains(usd))
    {
        let help = "dollars for a million tokens, 0 or above";
        check.says(name.place, "has a \"price\" below 0, or one that is no number", help);
    }
    without_effect(name, model, check);
    messages::model(name, model, check);
    check.count("max_in_flight", &model.max_in_flight);
    check.count("votes", &model.votes);
    if let Some(timeout_s) = &model.timeout_s {
        check.above("timeout_s", timeout_s, 0.0);
    }
    if let Some(cache_mib) = &model.cache_mib {
        check.count("cache_mib", cache_mib);
    }
    if let Some(replicas) = &model.replicas {
        check.count("replicas", replicas);
    }
    if let Some(threads) = &model.threads {
        check.count("threads", threads);
    }
}

/// Settings that a model of this kind does not read: each would be taken and do nothing.
fn without_effect(name: &Name, model: &Model, check: &mut Check<'_>) {
    let is_endpoint = model.endpoint.is_some();
    let is_transcript = model.format == Format::Transcript;
    let is_messages = model.api.is_some_and(|api| api.value == Api::Messages);
    if is_endpoint == model.checkpoint.is_some() {
        return;
    }
    let only_checkpoint = [
        ("dtype", model.dtype != Dtype::Auto),
        ("device", model.device != Device::Auto),
        ("threads", model.threads.is_some()),
        ("replicas", model.replicas.is_some()),
        ("cache_mib", model.cache_mib.is_some()),
    ];
    let only_endpoint = [
        ("name", model.name.is_some()),
        ("revision", model.revision.is_some()),
        ("api_key", model.api_key.is_some()),
        ("api", model.api.is_some()),
        ("votes", model.votes != Model::from_scratch().votes),
        ("retries", model.retries.is_some()),
        ("timeout_s", model.timeout_s.is_some()),
    ];
    let (kind, settings) = match is_endpoint {
        true => ("an endpoint", &only_checkpoint[..]),
        false => ("a checkpoint", &only_endpoint[..]),
    };
    for (setting, _) in settings.iter().filter(|(_, is_set)| *is_set) {
        let text = format!("is {kind}, where \"{setting}\" has no effect");
        check.says(name.place, &text, "leave it out");
    }
    if is_transcript {
        for (setting, is_set) in [
            ("chat_template", model.chat_template.is_some()),
            ("template_args", !model.template_args.is_empty()),
        ] {
            if is_set {
                let text = format!("has `format: transcript`, where \"{setting}\" has no effect");
                check.says(name.place, &text, "leave it out, or use `format: chat`");
            }
        }
    }
    match (is_endpoint, model.scoring) {
        (true, Scoring::Echo) if !is_transcript && !is_messages => check.says(
            name.place,
            "has `scoring: echo`, which scores texts, and `format: chat`",
            "use `format: transcript`, or `scoring: auto`",
        ),
        (false, Scoring::PromptLogprobs | Scoring::TopLogprobs | Scoring::Votes) => check.says(
            name.place,
            "is a checkpoint, whose log-probabilities are computed, and has another \"scoring\"",
            "leave `scoring` out",
        ),
        _ => {}
    }
    let needs = if is_transcript { Api::Completions } else { Api::Chat };
    let fits = |api: Api| api == needs || api == Api::Messages && !is_transcript;
    if let Some(api) = model.api.filter(|api| is_endpoint && !fits(api.value)) {
        let written = if api.value == Api::Messages { "messages" } else { "chat" };
        let (text, help) = match needs {
            Api::Completions => (
                format!("has `format: transcript`, a text to continue, which `api: {written}` does not take"),
                "use `api: completions`, or `format: chat`",
            ),
            _ => (
                "has `format: chat`, messages that the server renders, which `api: completions` does not take".to_owned(),
                "use `api: chat`, or `format: transcript`",
            ),
        };
        check.says(api.place, &text, help);
    }
}

/// Checks of one owner, "node "drafts"".
struct Check<'a> {
    owner: String,
    mistakes: &'a mut Mistakes,
}

impl Check<'_> {
    /// A sentence about the owner. What has no place could not be read, and is a mistake already.
    fn says(&mut self, place: Place, text: &str, help: &str) {
        if place.is_somewhere() {
            self.mistakes.push(place, format!("{} {text}", self.owner), help);
        }
    }

    /// `"key" of owner must be …`.
    fn wrong(&mut self, key: &str, place: Place, text: &str) {
        if place.is_somewhere() {
            self.mistakes.add(place, format!("\"{key}\" of {} must be {text}", self.owner), None);
        }
    }

    /// A number in a closed range.
    fn within(&mut self, key: &str, value: &Spanned<f64>, low: f64, high: f64) {
        if !(low..=high).contains(&value.value) {
            self.wrong(key, value.place, &format!("from {low} to {high}, not {value}"));
        }
    }

    /// A finite number at least so great.
    fn least(&mut self, key: &str, value: &Spanned<f64>, low: f64) {
        if !(value.value >= low && value.value.is_finite()) {
            self.wrong(key, value.place, &format!("at least {low}, not {value}"));
        }
    }

    /// A finite number above another.
    fn above(&mut self, key: &str, value: &Spanned<f64>, low: f64) {
        if !(value.value > low && value.value.is_finite()) {
            self.wrong(key, value.place, &format!("above {low}, not {value}"));
        }
    }

    /// A share: above 0, at most 1.
    fn share(&mut self, key: &str, value: &Spanned<f64>) {
        if !(value.value > 0.0 && value.value <= 1.0) {
            self.wrong(key, value.place, &format!("above 0 and at most 1, not {value}"));
        }
    }

    /// A share that leaves something: at least 0, below 1.
    fn part(&mut self, key: &str, value: &Spanned<f64>) {
        if !(0.0..1.0).contains(&value.value) {
            self.wrong(key, value.place, &format!("at least 0 and below 1, not {value}"));
        }
    }

    /// A count from 1.
    fn count(&mut self, key: &str, value: &Spanned<u32>) {
        if value.value == 0 {
            self.wrong(key, value.place, "from 1, not 0");
        }
    }

    /// A name that can be a folder, a table and a word of a path.
    fn word(&mut self, key: &str, name: &Name) {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || !name.bytes().all(fits) {
            self.wrong(key, name.place, "made of letters, digits, `_` and `-`");
        } else if name.starts_with('-') {
            let text = "a name that begins with a letter, a digit or `_`: `-` begins a flag";
            self.wrong(key, name.place, text);
        } else if name.len() > reserved::LETTERS_MAX {
            let text =
                format!("at most {} letters long, not {}", reserved::LETTERS_MAX, name.len());
            self.wrong(key, name.place, &text);
        }
    }

    /// A regular expression.
    fn pattern(&mut self, key: &str, pattern: &Name) {
        if let Err(error) = regex::Regex::new(pattern) {
            let reason = error.to_string();
            let reason =
                reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            self.wrong(key, pattern.place, &format!("a regular expression: {reason}"));
        }
    }
}
