//! Checks of models with `api: messages`, Anthropic's: what that interface does not take of their
//! settings and of those of the nodes that ask them.

use super::Check;
use crate::spec::Mistakes;
use crate::spec::model::{Api, Model, Scoring, Thinking};
use crate::spec::op::{Critiquing, Op, SamplingWritten};
use crate::spec::pipeline::Pipeline;
use crate::spec::place::{Name, Place, Spanned};

/// The highest temperature.
const TEMPERATURE_MAX: f64 = 1.0;
/// The least nucleus of a model that thinks.
const THINKING_TOP_P: f64 = 0.95;
/// The least tokens that a model is given to think.
const BUDGET_TOKENS: u32 = 1024;

/// Whether a model is asked by the Messages API.
fn is_messages(model: &Model) -> bool {
    model.endpoint.is_some() && model.api.is_some_and(|api| api.value == Api::Messages)
}

/// Checks the settings of a model.
pub(super) fn model(name: &Name, model: &Model, check: &mut Check<'_>) {
    if !is_messages(model) {
        if let Some(thinking) = &model.thinking {
            let help = "leave it out, or use `api: messages`";
            let text = "has \"thinking\", which only `api: messages` takes";
            check.says(thinking.place, text, help);
        }
        return;
    }
    if !matches!(model.scoring, Scoring::Auto | Scoring::Votes) {
        let text = "has `api: messages`, which gives no log-probabilities, and another \"scoring\" than `votes`";
        check.says(name.place, text, "use `scoring: votes`, or leave `scoring` out");
    }
    for (setting, is_set) in [
        ("chat_template", model.chat_template.is_some()),
        ("template_args", !model.template_args.is_empty()),
    ] {
        if is_set {
            let text = format!("has `api: messages`, where \"{setting}\" has no effect");
            check.says(name.place, &text, "leave it out, or use `api: chat`");
        }
    }
    if let Some(Thinking::BudgetTokens(budget)) = model.thinking.map(|thinking| thinking.value)
        && budget.value < BUDGET_TOKENS
    {
        check.wrong(
            "thinking.budget_tokens",
            budget.place,
            &format!("at least {BUDGET_TOKENS}, not {budget}"),
        );
    }
}

/// What a node asks of one model.
struct Asked<'a> {
    model: &'a Name,
    written: SamplingWritten,
    top_k: u32,
}

fn asked(op: &Op) -> Vec<Asked<'_>> {
    let plain = |temperature, max_tokens| SamplingWritten {
        temperature,
        top_p: Spanned::nowhere(1.0),
        min_p: Spanned::nowhere(0.0),
        repetition_penalty: Spanned::nowhere(1.0),
        max_tokens,
    };
    macro_rules! sampled {
        ($op:expr) => {
            Asked { model: &$op.model, written: $op.sampling_written(), top_k: $op.top_k }
        };
    }
    match op {
        Op::Sample(op) => vec![sampled!(op)],
        Op::Critique(op) => vec![sampled!(op)],
        Op::Revise(op) => vec![sampled!(op)],
        Op::Repeat(op) => match &op.critique {
            Critiquing::Asked(critic) => vec![sampled!(critic), sampled!(op.revise)],
            Critiquing::None => vec![sampled!(op.revise)],
        },
        Op::PairwiseJudge(op) => match &op.cot {
            Some(cot) => {
                let written = plain(cot.temperature, cot.max_tokens);
                vec![Asked { model: &op.model, written, top_k: 0 }]
            }
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Checks what the nodes ask of such models.
pub(super) fn nodes(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    for (name, node) in &pipeline.nodes {
        for asked in asked(node) {
            let model = pipeline.models.get(asked.model.as_str());
            if let Some(model) = model.filter(|model| is_messages(model)) {
                let owner = format!("node \"{name}\"");
                node_of(&asked, model, &mut Check { owner, mistakes });
            }
        }
    }
}

fn node_of(asked: &Asked<'_>, model: &Model, check: &mut Check<'_>) {
    let Asked { model: name, written, top_k } = asked;
    // A default has no place of its own.
    let at = |place: Place| if place.is_somewhere() { place } else { name.place };
    let by = format!("and asks the model \"{name}\" by `api: messages`");
    for (setting, place, is_set) in [
        ("min_p", written.min_p.place, written.min_p.value > 0.0),
        (
            "repetition_penalty",
            written.repetition_penalty.place,
            (written.repetition_penalty.value - 1.0).abs() > 0.0,
        ),
    ] {
        if is_set {
            let text = format!("has \"{setting}\" {by}, which does not take it");
            check.says(at(place), &text, "leave it out, or ask another model");
        }
    }
    if written.temperature.value > TEMPERATURE_MAX {
        let temperature = &written.temperature;
        let text =
            format!("has the \"temperature\" {temperature} {by}, which takes one from 0 to 1");
        check.says(at(temperature.place), &text, "use at most 1");
    }
    let thinking = model.thinking.map(|thinking| thinking.value);
    let Some(thinking) = thinking.filter(|thinking| *thinking != Thinking::Disabled) else {
        return;
    };
    let thinks = format!("and asks the model \"{name}\", which has \"thinking\"");
    if (written.temperature.value - 1.0).abs() > 0.0 {
        let text = format!("has the \"temperature\" {} {thinks}", written.temperature);
        check.says(at(written.temperature.place), &text, "a model that thinks takes only 1");
    }
    if written.top_p.value < THINKING_TOP_P {
        let text = format!("has the \"top_p\" {} {thinks}", written.top_p);
        let help = format!("a model that thinks takes one from {THINKING_TOP_P} to 1");
        check.says(at(written.top_p.place), &text, &help);
    }
    if *top_k > 0 {
        let text = format!("has \"top_k\" {thinks}");
        check.says(name.place, &text, "a model that thinks does not take it: leave it out");
    }
    if let Thinking::BudgetTokens(budget) = thinking
        && written.max_tokens.value <= budget.value
    {
        let max_tokens = &written.max_tokens;
        let text = format!("has the \"max_tokens\" {max_tokens} {thinks}: {budget} tokens of them");
        let help = format!("use a \"max_tokens\" above {budget}: what is thought is part of it");
        check.says(at(max_tokens.place), &text, &help);
    }
}
