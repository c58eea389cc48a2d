//! Warnings about entries of `models`: two endpoints that count as one model, and arguments of chat
//! templates that are texts where a flag is likely.

use serde_json::Value;

use crate::spec::{Mistakes, Model, Name, Pipeline};

/// Warns of entries that can be asked and are hardly meant as they stand.
pub(super) fn warn(pipeline: &Pipeline, warnings: &mut Mistakes) {
    for (name, model) in &pipeline.models {
        for (argument, value) in &model.template_args {
            flags(name, argument, value, warnings);
        }
    }
    for (at, (name, model)) in pipeline.models.iter().enumerate() {
        let before = pipeline.models.iter().take(at);
        let mut alike = before.filter(|(_, other)| is_one_model_elsewhere(model, other));
        if let Some((other, _)) = alike.find(|(other, _)| !are_said_same(pipeline, name, other)) {
            let called = model.name.as_ref().map_or("", |called| called.as_str());
            let place = model.name.as_ref().map_or(name.place, |called| called.place);
            warnings.push(
                place,
                format!(
                    "models \"{other}\" and \"{name}\" have one name, \"{called}\", at different endpoints: they count as one model, and each is given the answers of the other"
                ),
                format!(
                    "if they are different models, give each a `revision`; if they are the same, write `same_as: {other}`"
                ),
            );
        }
    }
}

/// Whether both are the same model by name and revision, and are asked at different endpoints.
fn is_one_model_elsewhere(model: &Model, other: &Model) -> bool {
    let (Some(here), Some(there)) = (&model.endpoint, &other.endpoint) else { return false };
    (&model.name, &model.revision) == (&other.name, &other.revision) && plain(here) != plain(there)
}

/// A URL without what makes no difference.
fn plain(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url).to_ascii_lowercase()
}

/// Whether `same_as` leads from both to one entry.
fn are_said_same(pipeline: &Pipeline, a: &Name, b: &Name) -> bool {
    last_of(pipeline, a) == last_of(pipeline, b)
}

/// The entry that `same_as` leads to; of entries in a circle, the first by name.
fn last_of<'a>(pipeline: &'a Pipeline, name: &'a Name) -> &'a str {
    let (mut at, mut passed) = (name.as_str(), Vec::new());
    loop {
        passed.push(at);
        let of = pipeline.models.get(at).and_then(|model| model.same_as.as_ref());
        match of {
            Some(next) if passed.contains(&next.as_str()) => {
                let first = passed.iter().position(|one| *one == next.as_str()).unwrap_or(0);
                return passed[first..].iter().min().copied().unwrap_or(at);
            }
            Some(next) => at = next.as_str(),
            None => return at,
        }
    }
}

/// Warns of texts that a template takes for true, whatever they say.
fn flags(model: &Name, argument: &str, value: &Value, warnings: &mut Mistakes) {
    match value {
        Value::String(text) => {
            let words = ["true", "false", "yes", "no", "on", "off"];
            if let Some(word) = words.iter().find(|word| text.trim().eq_ignore_ascii_case(word)) {
                let flag = ["true", "yes", "on"].contains(word);
                let key = argument.rsplit('.').next().unwrap_or(argument);
                warnings.push(
                    model.place,
                    format!(
                        "\"template_args.{argument}\" of model \"{model}\" is the text \"{text}\", which a template takes for true"
                    ),
                    format!("for a flag write `{key}: {flag}`, without quotes"),
                );
            }
        }
        Value::Array(items) => items.iter().for_each(|item| flags(model, argument, item, warnings)),
        Value::Object(entries) => {
            for (key, value) in entries {
                flags(model, &format!("{argument}.{key}"), value, warnings);
            }
        }
        _ => {}
    }
}
