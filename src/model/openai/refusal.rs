//! Refused parameters: which of what was sent a server does not take, by what it says.

use super::failure::{Failure, Refusal, mentions};
use super::wire::{Body, Parameter};

/// What a server does not take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Objection {
    /// The parameter, whatever its value.
    Parameter(Parameter),
    /// The value of the parameter; the largest that it takes, where it names one.
    Value(Parameter, Option<u32>),
}

/// Signs that a parameter is not known or not taken at all.
const UNKNOWN: &[&str] = &[
    "not supported",
    "unsupported",
    "not support",
    "unrecognized",
    "unrecognised",
    "unknown",
    "extra_forbidden",
    "extra inputs",
    "extra fields",
    "not permitted",
    "not allowed",
    "cannot find field",
    "unexpected",
    "no such",
    "not available",
    "cannot both be specified",
    "cannot be used",
    "incompatible",
    "not enabled",
    "is disabled",
    "is deprecated",
    "only the default",
    "refused",
    "invalid argument name",
    "not implemented",
];

/// Signs that it is the value that is not taken.
const VALUE: &[&str] = &[
    "more than",
    "less than",
    "greater than",
    "at most",
    "at least",
    "maximum",
    "minimum",
    "between",
    "must be",
    "should be",
    "too large",
    "too many",
    "too high",
    "out of range",
    "exceeds",
    "exceed",
    "<=",
    "invalid value",
    "up to",
    "limit",
];

/// What of a body a refusal is about; none where it is about something else.
pub(super) fn objection(failure: &Failure, body: &Body<'_>) -> Option<Objection> {
    let Failure::Status(refusal @ Refusal { status: 400 | 422 | 500 | 501, .. }) = failure else {
        return None;
    };
    let message = &refusal.message;
    if mentions(message, &["max_completion_tokens"]) && body.max_tokens.is_some() {
        return (!failure.is_too_long()).then_some(Objection::Parameter(Parameter::MaxTokens));
    }
    if failure.is_too_long() || refusal.status >= 500 && !mentions(message, UNKNOWN) {
        return None;
    }
    let sent: Vec<Parameter> = Parameter::ALL.into_iter().filter(|one| body.has(*one)).collect();
    let names = |parameter: &&Parameter| {
        let names = parameter.names();
        let param = refusal.param.as_deref();
        param.is_some_and(|param| names.contains(&param.split(['.', '[']).next().unwrap_or(param)))
    };
    let named = sent.iter().find(names).copied();
    let says =
        |parameter: &&Parameter| parameter.names().iter().any(|name| has_word(message, name));
    // The longest name first: `top_logprobs` also says `logprobs`.
    let mut parameter = named.or_else(|| sent.iter().find(says).copied())?;
    // Of two that exclude each other the one goes that only states a default.
    if !body.is_default(parameter) && mentions(message, &["cannot both"]) {
        let other = sent.iter().filter(says).find(|other| body.is_default(**other));
        parameter = other.copied().unwrap_or(parameter);
    }
    // "Only the default (1) value is supported" is no refusal of one value but of all.
    if !mentions(message, UNKNOWN) {
        let is_value = mentions(message, VALUE) || named.is_some();
        let most = largest_below(message, body.number(parameter));
        return is_value.then_some(Objection::Value(parameter, most));
    }
    Some(Objection::Parameter(parameter))
}

/// Whether a text names a parameter. A name that is also an English word counts only where it stands
/// as a name does: in quotes, or after "parameter".
fn has_word(text: &str, word: &str) -> bool {
    const BEFORE: &[&str] = &["'", "\"", "`", "[", ".", ": ", "parameter ", "argument ", "field "];
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_english = ["seed", "stop", "echo", "temperature"].contains(&word);
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let is_name = !is_english || BEFORE.iter().any(|sign| before.ends_with(sign));
        is_name && !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

/// The largest number in a text that is less than the one that was sent.
fn largest_below(text: &str, sent: Option<u32>) -> Option<u32> {
    let numbers =
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    numbers.filter(|number| *number > 0 && sent.is_some_and(|sent| *number < sent)).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::openai::wire::Switch;

    const STOP: &[String] = &[];

    fn check(status: u16, reply: &str, expected: Option<Objection>) {
        let body = Body {
            max_tokens: Some(64),
            temperature: Some(0.0),
            top_p: Some(1.0),
            seed: Some(7),
            logprobs: Some(Switch::On(true)),
            top_logprobs: Some(20),
            stop: STOP,
            ..Body::default()
        };
        let failure = Failure::from_status(status, reply.as_bytes(), None);
        assert_eq!(objection(&failure, &body), expected, "{reply}");
    }

    #[test]
    fn a_parameter_that_is_not_taken_is_known_by_what_servers_say() {
        let seed = Some(Objection::Parameter(Parameter::Seed));
        check(422, r#"{"detail":[{"type":"extra_forbidden","loc":["body","seed"]}]}"#, seed);
        check(400, r#"[{"error":{"message":"Unknown name \"seed\": Cannot find field."}}]"#, seed);
        check(400, r#"{"error":{"message":"Unsupported parameter","param":"seed"}}"#, seed);
        let top_p = Some(Objection::Parameter(Parameter::TopP));
        let both = "`temperature` and `top_p` cannot both be specified for this model";
        check(400, both, Some(Objection::Parameter(Parameter::TopP)));
        check(400, "unrecognized request argument supplied: top_p", top_p);
        check(
            400,
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'.",
            Some(Objection::Parameter(Parameter::MaxTokens)),
        );
    }

    #[test]
    fn of_two_parameters_that_exclude_each_other_the_default_goes() {
        let both = "`temperature` and `top_p` cannot both be specified for this model.";
        let of = |temperature, top_p| {
            let body = Body { temperature, top_p, ..Body::default() };
            objection(&Failure::from_status(400, both.as_bytes(), None), &body)
        };
        let top_p = Some(Objection::Parameter(Parameter::TopP));
        assert_eq!(of(Some(0.5), Some(1.0)), top_p);
        assert_eq!(of(Some(1.0), Some(1.0)), top_p);
        assert_eq!(of(Some(1.0), Some(0.9)), Some(Objection::Parameter(Parameter::Temperature)));
        assert_eq!(of(Some(0.5), Some(0.9)), top_p, "and is an error that names it");
    }

    #[test]
    fn a_value_that_is_not_taken_is_told_from_a_parameter_that_is_not() {
        let value = |parameter, most| Some(Objection::Value(parameter, most));
        check(400, "Cannot request more than 5 logprobs.", value(Parameter::Logprobs, Some(5)));
        check(
            400,
            r#"{"error":{"message":"Invalid value: 'top_logprobs' must be <= 11","param":"top_logprobs"}}"#,
            value(Parameter::TopLogprobs, Some(11)),
        );
        let only = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.";
        check(400, only, Some(Objection::Parameter(Parameter::Temperature)));
        check(400, "max_tokens is too large: 64", value(Parameter::MaxTokens, None));
    }

    #[test]
    fn what_is_about_the_prompt_is_about_no_parameter() {
        check(400, "This model's maximum context length is 10 tokens; reduce max_tokens", None);
        check(400, "the prompt was flagged", None);
        check(400, "unknown category: they want to stop a seed from growing", None);
        check(429, "seed is not supported", None);
        check(500, "boom: seed", None);
    }
}
