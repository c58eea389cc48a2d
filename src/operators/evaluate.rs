//! `evaluate`: one score a row.
//!
//! `responses | revisions -> scores`: the label of the first pattern that a completion matches.
//! `prompts -> scores`: the choice that a model finds likeliest as the prompt's continuation.
//!
//! With a truth the score is named `correct` and is 1 or 0; without one it is named `label`, or
//! `choice` with the probability of the choice.

use regex::Regex;

use crate::model::{Answer, Estimator, Prompt, Request, Task};
use crate::record::{Cell, Id, KeyHasher, Kind, Part, Relation, Row};
use crate::spec::model::Format;
use crate::spec::op;

use super::prompt::{self, Prefix, Style};
use super::{Build, BuildError, Input, Operator, Out, Reason, Reject, Step};

const ROLE: &str = "evaluate";

/// One input of an `evaluate` node.
pub struct Evaluate {
    node: String,
    form: Form,
    truth: Option<String>,
    group: String,
    ordinal: u64,
    /// The node that the rows come from: rows of two nodes may share an id.
    source: String,
}

enum Form {
    Labels(Vec<(String, Regex)>),
    Choices { style: Style, format: Format, choices: Vec<String>, estimator: Estimator },
}

impl Evaluate {
    /// The operator of one input of a node.
    pub fn new(op: &op::Evaluate, build: &Build<'_>) -> Result<Evaluate, BuildError> {
        let form = if let Some(choices) = &op.choices {
            Form::Choices {
                style: Style::new(build.model()),
                format: build.model().format,
                choices: choices.iter().map(|choice| choice.value.clone()).collect(),
                estimator: build.estimator(),
            }
        } else {
            let label = |(name, pattern): (&crate::spec::Name, _)| {
                Ok((name.value.clone(), super::pattern(pattern)?))
            };
            Form::Labels(op.labels.iter().map(label).collect::<Result<_, BuildError>>()?)
        };
        Ok(Evaluate {
            node: build.node.to_owned(),
            form,
            truth: op.truth.as_ref().map(|name| name.value.clone()),
            group: op.group.value.clone(),
            ordinal: build.ordinal as u64,
            source: build.source.to_owned(),
        })
    }

    /// The hash of what is asked and how the answer is read.
    fn definition(&self) -> KeyHasher {
        let mut hasher = KeyHasher::new("amend/operator/1").text(ROLE);
        hasher.add_u64(u64::from(op::Evaluate::VERSION));
        match &self.form {
            Form::Labels(labels) => {
                for (name, pattern) in labels {
                    hasher.add_text(name);
                    hasher.add_text(pattern.as_str());
                }
            }
            Form::Choices { style, choices, estimator, .. } => {
                style.hash_into(&mut hasher);
                hasher.add_text(estimator.name());
                choices.iter().for_each(|choice| hasher.add_text(choice));
            }
        }
        hasher.add_text(self.truth.as_deref().unwrap_or(""));
        hasher.add_text(&self.group);
        hasher
    }

    fn row(&self, input: Input<'_>, score: Score<'_>, out: &mut dyn Out) {
        let truth = self.truth.as_ref().and_then(|name| find(input, name));
        let correct = truth.as_ref().map(|truth| is_one_of(score.label, truth));
        let (name, value) = match correct {
            Some(correct) => ("correct", Some(f64::from(u8::from(correct)))),
            None => (score.name, score.value),
        };
        let same = |name: &'static str| {
            if input.row.has(name) { input.row.cell(name) } else { Cell::Null }
        };
        let (model, fingerprint) = match input.model {
            Some(model) => (Cell::text(&*model.name), Cell::id(model.fingerprint)),
            None => (same("model"), same("model_fingerprint")),
        };
        out.row(&[
            ("subject_id", Cell::id(input.row_id)),
            ("evaluator", Cell::text(&*self.node)),
            ("source", Cell::text(&*self.source)),
            ("evaluator_fingerprint", Cell::id(self.definition().id())),
            ("name", Cell::text(name)),
            ("value", Cell::or_null(value, Cell::Float)),
            ("label", Cell::text(score.label)),
            ("truth", Cell::or_null(truth, Cell::text)),
            ("group", Cell::or_null(find(input, &self.group), Cell::text)),
            ("model", model),
            ("model_fingerprint", fingerprint),
            ("principle_id", same("principle_id")),
            ("warnings", prompt::warnings(input.turns.iter().flatten())),
        ]);
    }

    fn label(&self, labels: &[(String, Regex)], input: Input<'_>, out: &mut dyn Out) -> Step {
        let text = super::content(input.row.turns("completion"));
        let label = labels.iter().find(|(_, pattern)| pattern.is_match(&text));
        let label = label.map_or("other", |(name, _)| name);
        self.row(input, Score { name: "label", label, value: None }, out);
        Step::Done
    }

    fn choose(
        &self,
        choices: &[String],
        answer: &Answer,
        input: Input<'_>,
        out: &mut dyn Out,
    ) -> Step {
        let logprobs = answer.choice_logprobs.as_deref().unwrap_or(&[]);
        let known = logprobs.len() == choices.len() && !logprobs.iter().any(|x| x.is_nan());
        let best = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !known || best == f64::NEG_INFINITY {
            return Step::Reject(Reject {
                reason: Reason::Unparseable,
                detail: "the answer has no log-probability for each choice".to_owned(),
                answer: Some(answer.text.clone()),
            });
        }
        let at = logprobs.iter().position(|x| *x >= best).expect("the best is one of them");
        let mass: f64 = logprobs.iter().map(|x| libm::exp(x - best)).sum();
        let label = choices[at].trim();
        self.row(input, Score { name: "choice", label, value: Some(1.0 / mass) }, out);
        Step::Done
    }
}

/// What is said of one row.
struct Score<'a> {
    name: &'static str,
    label: &'a str,
    value: Option<f64>,
}

/// What a multiple-choice question reads. A transcript model continues a single turn as it stands:
/// such questions are whole texts, with their own words for who speaks.
fn question(style: &Style, format: Format, row: Row<'_>) -> Prompt {
    let mut turns = row.turns("prompt");
    match (format, turns.next(), turns.next()) {
        (Format::Transcript, Some(("user", text)), None) => Prompt::Text(text.to_owned()),
        _ => style.begin(&Prefix::default(), row.turns("prompt")).cue("Assistant"),
    }
}

/// The value of a column by its name in the row, in the row at the head, or in their `extra`.
///
/// A row that a model is asked about stands for all that say the same: how it came to be is not
/// read.
fn find(input: Input<'_>, name: &str) -> Option<String> {
    let asked = !input.turns.is_empty();
    [input.row, input.head].into_iter().find_map(|row| {
        let mut columns = row.relation().columns().iter();
        let column = columns.find(|column| column.name == name);
        let column = column.filter(|column| !asked || column.part == Part::Content);
        let own = column.and_then(|column| match column.kind {
            Kind::Text | Kind::Id => row.text(name).map(str::to_owned),
            Kind::Int32 | Kind::Int64 => row.int(name).map(|number| number.to_string()),
            _ => None,
        });
        own.or_else(|| {
            let extra = if row.has("extra") { row.text("extra") } else { None }?;
            let extra: serde_json::Value = serde_json::from_str(extra).ok()?;
            match extra.get(name)? {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            }
        })
    })
}

/// Whether a label is the truth, or one of a JSON list of truths.
fn is_one_of(label: &str, truth: &str) -> bool {
    match serde_json::from_str::<Vec<String>>(truth) {
        Ok(truths) => truths.iter().any(|truth| truth.trim() == label.trim()),
        Err(_) => truth.trim() == label.trim(),
    }
}

impl Operator for Evaluate {
    fn relation(&self) -> Relation {
        Relation::Scores
    }

    fn role(&self) -> Option<&'static str> {
        Some(ROLE)
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        match (&self.form, input.turns.first()) {
            (Form::Labels(labels), _) => self.label(labels, input, out),
            (Form::Choices { choices, .. }, Some(answers)) => {
                self.choose(choices, &answers[0], input, out)
            }
            (Form::Choices { style, format, choices, estimator }, None) => {
                let task = Task::Score { choices: choices.clone(), estimator: *estimator };
                Step::Ask(vec![Request { prompt: question(style, *format, input.row), task }])
            }
        }
    }

    fn calls_max(&self) -> u64 {
        u64::from(matches!(self.form, Form::Choices { .. }))
    }

    fn sibling(&self, _index: u64) -> u64 {
        self.ordinal
    }

    fn fingerprint(&self) -> Id {
        self.definition().text(&self.node).text(&self.source).u64(self.ordinal).id()
    }
}

#[cfg(test)]
mod tests {
    use crate::operators::testing::{Bench, prompts, prompts_with, responses, transcript};

    #[test]
    fn a_response_gets_the_first_label_that_matches() {
        let bench = Bench::new(
            "evaluate: { from: drafts, labels: { refused: \"(?i)i can't help\", greeted: hello } }",
            "",
        );
        let rows =
            responses(&[("a", "Sorry, I can't help: hello"), ("b", "hello"), ("c", "bread")]);
        let (table, _) = bench.run(&rows, |_| unreachable!());
        insta::assert_snapshot!(table.show(&["evaluator", "name", "value", "label", "model"]), @r"
        | evaluator | name  | value | label   | model |
        | node      | label |       | refused | fake  |
        | node      | label |       | greeted | fake  |
        | node      | label |       | other   | fake  |
        ");
    }

    const CHOICES: &str =
        "evaluate: { from: questions, model: m, choices: [' (A)', ' (B)'], truth: corrects }";

    #[test]
    fn a_question_goes_to_the_likeliest_choice_and_is_read_as_it_stands() {
        let bench = Bench::new(CHOICES, &transcript());
        let rows = prompts_with("The answer is:", r#"{"corrects":[" (B)"]}"#);
        let (table, _) = bench.score(&rows, |request| {
            assert_eq!(request.text(), "The answer is:");
            vec![-2.0, -1.0]
        });
        insta::assert_snapshot!(table.show(&["name", "value", "label", "truth", "model"]), @r#"
        | name    | value | label | truth    | model |
        | correct | 1.0   | (B)   | [" (B)"] | m     |
        "#);
    }

    #[test]
    fn without_a_truth_the_score_is_the_probability_of_the_choice() {
        let bench = Bench::new(&CHOICES.replace(", truth: corrects", ""), &transcript());
        let (table, _) = bench.score(&prompts(&["q"]), |_| vec![0.75_f64.ln(), 0.25_f64.ln()]);
        insta::assert_snapshot!(table.show(&["name", "value", "label", "truth"]), @r"
        | name   | value              | label | truth |
        | choice | 0.7499999999999999 | (A)   |       |
        ");
    }

    #[test]
    fn an_answer_without_log_probabilities_is_a_reject() {
        let bench = Bench::new(CHOICES, &transcript());
        let (table, _) = bench.score(&prompts(&["q"]), |_| vec![]);
        insta::assert_snapshot!(table.show(&["name"]), @r"
        | name |
        reject unparseable: the answer has no log-probability for each choice
        ");
    }
}
