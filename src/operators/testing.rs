//! Testing: drives an operator row by row, as the engine does, with a function that fakes the
//! model.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::{
    Build, BuildError, Drawn, Half, Input, ModelRef, Operator, Out, Predicate, Reject, Step, build,
    made_id,
};
use crate::model::{Answer, Prompt, Request, Task};
use crate::record::{Batch, BatchBuilder, Cell, Id, KeyHasher, Message, Origin, Relation};
use crate::spec::{self, Constitution, Model, Op};

/// A model of a transcript, as it is written.
pub(super) fn transcript() -> String {
    "{ checkpoint: m, format: transcript }".to_owned()
}

/// A model of a chat, as it is written.
pub(super) fn chat() -> String {
    "{ endpoint: 'http://localhost', name: m, format: chat }".to_owned()
}

/// The constitution that tests use, but for its templates.
const CONSTITUTION: &str = r#"
principles:
  - { id: kind, critique: "Is it rude?", revise: "Make it kind.", judge: "Which is kinder?" }
  - { id: honest, critique: "Is it false?", revise: "Make it true.", judge: "Which is truer?" }
few_shot:
  critique_revise:
    - "\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: c?\n\nCritique: c.\n\nRevisionRequest: r?\n\nRevision: r.\n\nHuman:"
  judge:
    - { prompt: "\n\nHuman: q1\n\nAssistant:", chosen: good1, rejected: bad1 }
    - { prompt: "\n\nHuman: q2\n\nAssistant:", chosen: good2, rejected: bad2 }
  judge_cot:
    - "\nHuman: Consider:\n\nH: q\n\n{}\n (A) [[[x]]]\n (B) [[[y]]]\n\nAssistant: Let's think step by step: x is ok.\n\nHuman:\nSo the answer is: (A)"
"#;

fn load(node: &str, model: &str, more: &str) -> (Op, Option<Model>, Constitution) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    let models =
        if model.is_empty() { String::new() } else { format!("models: {{ m: {model} }}\n") };
    let text = format!("name: test\nconstitution: c.yaml\n{models}nodes:\n  node: {{ {node} }}\n");
    std::fs::write(&path, &text).unwrap();
    std::fs::write(folder.path().join("c.yaml"), format!("{CONSTITUTION}{more}\n")).unwrap();
    let none = |_: &str| None;
    let (loaded, mistakes) = spec::load_partly(Path::new(&path), &[], &none);
    let loaded = loaded.unwrap_or_else(|| panic!("{mistakes:?}"));
    let mut pipeline = loaded.pipeline;
    let op = pipeline.nodes.swap_remove("node").unwrap_or_else(|| panic!("{text}: {mistakes:?}"));
    let constitution = loaded.constitution.unwrap_or_else(|| panic!("{mistakes:?}"));
    (op, pipeline.models.swap_remove("m"), constitution)
}

/// A node, as it is written.
pub(super) fn op(node: &str) -> Op {
    load(node, "", "").0
}

/// An entry of `models`, as it is written.
pub(super) fn model(model: &str) -> Model {
    load("sample: { from: p, model: m }", model, "").1.unwrap()
}

/// One node to be tried on rows.
pub(super) struct Bench {
    node: String,
    model: String,
    more: String,
    source: String,
    part: String,
    round: u32,
    rounds: u32,
    half: Half,
    drawn: usize,
    predicate: Option<Arc<dyn Predicate>>,
}

/// A request, as a fake model sees it.
pub(super) struct Asked<'a> {
    request: &'a Request,
    text: String,
    /// Its place among the row's.
    pub(super) index: usize,
}

impl Asked<'_> {
    /// What is read: the text, or the turns a line each.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn seed(&self) -> Option<u64> {
        match &self.request.task {
            Task::Generate(sampling) => sampling.seed,
            Task::Score { .. } => None,
        }
    }
}

/// What came of the rows.
pub(super) struct Table {
    pub(super) rows: Batch,
    pub(super) dropped: usize,
    rejects: Vec<Reject>,
}

impl Table {
    /// Some columns as a printed table, then the rejects.
    pub(super) fn show(&self, columns: &[&str]) -> String {
        let mut lines: Vec<Vec<String>> =
            vec![columns.iter().map(|name| (*name).to_owned()).collect()];
        let format = FormatOptions::default();
        for at in 0..self.rows.len() {
            let cell = |name: &&str| {
                let column = self.rows.rows().column(self.rows.relation().position(name));
                let text = ArrayFormatter::try_new(column, &format).unwrap().value(at).to_string();
                match column.data_type() {
                    arrow::datatypes::DataType::List(_) => spoken(&text),
                    _ => text.replace('\n', "\\n"),
                }
            };
            lines.push(columns.iter().map(cell).collect());
        }
        let width =
            |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "| {cell:width$} ");
            }
            text.push_str("|\n");
        }
        text.truncate(text.trim_end().len());
        for reject in &self.rejects {
            let _ = write!(text, "\nreject {}: {}", reject.reason.name(), reject.detail);
        }
        text
    }
}

/// Messages without the names of their fields, on one line.
fn spoken(text: &str) -> String {
    let text = text.replace("{role: ", "").replace(", content: ", ": ").replace('}', "");
    text.replace('\n', "\\n")
}

struct Sink<'a>(&'a mut BatchBuilder, Id);

impl Out for Sink<'_> {
    fn row(&mut self, cells: &[(&'static str, Cell<'_>)]) {
        let origin = Origin { row_id: self.1, root_id: self.1, parents: vec![], call_keys: vec![] };
        self.0.push(&origin, cells);
    }
}

impl Bench {
    pub(super) fn new(node: &str, model: &str) -> Bench {
        Bench {
            node: node.to_owned(),
            model: model.to_owned(),
            more: String::new(),
            source: "source".to_owned(),
            part: String::new(),
            round: 1,
            rounds: 1,
            half: Half::Critique,
            drawn: 1,
            predicate: None,
        }
    }

    /// Adds to the constitution file.
    pub(super) fn with(mut self, more: &str) -> Bench {
        more.clone_into(&mut self.more);
        self
    }

    pub(super) fn from(mut self, source: &str) -> Bench {
        source.clone_into(&mut self.source);
        self
    }

    pub(super) fn part(mut self, part: &str) -> Bench {
        part.clone_into(&mut self.part);
        self
    }

    pub(super) fn round(mut self, round: u32) -> Bench {
        self.round = round;
        self
    }

    pub(super) fn rounds(mut self, rounds: u32) -> Bench {
        self.rounds = rounds;
        self
    }

    pub(super) fn revising(mut self) -> Bench {
        self.half = Half::Revise;
        self
    }

    pub(super) fn drawn(mut self, drawn: usize) -> Bench {
        self.drawn = drawn;
        self
    }

    pub(super) fn predicate(mut self, predicate: impl Predicate + 'static) -> Bench {
        self.predicate = Some(Arc::new(predicate));
        self
    }

    /// The operator on rows of a relation, or the mistake.
    pub(super) fn build(&self, reads: Relation) -> Result<Arc<dyn Operator>, BuildError> {
        let (op, model, constitution) = load(&self.node, &self.model, &self.more);
        build(
            &op,
            &Build {
                model: model.as_ref(),
                constitution: Some(&constitution),
                round: self.round,
                rounds: self.rounds,
                half: self.half,
                source: &self.source,
                part: &self.part,
                predicate: self.predicate.clone(),
                ..Build::new("node", 17, reads)
            },
        )
    }

    pub(super) fn operator(&self, reads: Relation) -> Arc<dyn Operator> {
        self.build(reads).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Runs every row, with a fake model that writes.
    pub(super) fn run(&self, rows: &Batch, fake: impl Fn(&Asked<'_>) -> String) -> (Table, usize) {
        self.answer(rows, &|asked| Answer { text: fake(asked), ..Answer::default() })
    }

    /// Runs every row, with a fake model that scores.
    pub(super) fn score(
        &self,
        rows: &Batch,
        fake: impl Fn(&Asked<'_>) -> Vec<f64>,
    ) -> (Table, usize) {
        self.answer(rows, &|asked| Answer {
            choice_logprobs: Some(fake(asked)),
            ..Answer::default()
        })
    }

    /// Runs every row (every two, for pairs) with a fake model; gives the number of requests too.
    pub(super) fn answer(
        &self,
        rows: &Batch,
        fake: &dyn Fn(&Asked<'_>) -> Answer,
    ) -> (Table, usize) {
        let operator = self.operator(rows.relation());
        let (_, _, constitution) = load(&self.node, &self.model, &self.more);
        let drawn: Vec<Drawn> =
            constitution.principles.iter().take(self.drawn).map(drawn).collect();
        let model = (!self.model.is_empty())
            .then(|| ModelRef { name: "m".into(), fingerprint: Id::from_bits(7) });
        let mut builder = BatchBuilder::new(operator.relation());
        let (mut rejects, mut dropped, mut asked) = (Vec::new(), 0, 0);
        let paired = self.node.starts_with("pairwise");
        for at in (0..rows.len()).step_by(if paired { 2 } else { 1 }) {
            let row = rows.row(at);
            for index in 0..operator.fan_out() {
                let made = match operator.role() {
                    Some(role) => made_id(role, &[row.row_id()], operator.sibling(index)),
                    None => row.row_id(),
                };
                let (mut turns, mut sink) = (Vec::new(), Sink(&mut builder, made));
                loop {
                    let input = Input {
                        row,
                        other: paired.then(|| rows.row(at + 1)),
                        head: row,
                        row_id: row.row_id(),
                        made_id: made,
                        index,
                        drawn: &drawn,
                        model: model.as_ref(),
                        turns: &turns,
                    };
                    match operator.step(input, &mut sink) {
                        Step::Ask(requests) => {
                            let turn = requests.iter().enumerate().map(|(place, request)| {
                                let text = read(request);
                                let index = place + index as usize;
                                fake(&Asked { request, text, index })
                            });
                            turns.push(turn.collect::<Vec<_>>());
                            asked += requests.len();
                        }
                        Step::Done => break,
                        Step::Drop => {
                            dropped += 1;
                            break;
                        }
                        Step::Reject(reject) => {
                            rejects.push(reject);
                            break;
                        }
                    }
                }
                let calls: usize = turns.iter().map(Vec::len).sum();
                assert!(calls as u64 <= operator.calls_max(), "the plan says the most calls");
            }
        }
        (Table { rows: builder.finish().0, dropped, rejects }, asked)
    }
}

fn drawn(principle: &spec::Principle) -> Drawn {
    let text =
        |text: &Option<spec::Spanned<String>>| text.as_ref().map(|text| text.value.as_str().into());
    Drawn {
        id: principle.id.value.as_str().into(),
        hash: KeyHasher::new("amend/test/1").text(&principle.id.value).id(),
        critique: text(&principle.critique),
        revise: text(&principle.revise),
        judge: text(&principle.judge),
    }
}

fn read(request: &Request) -> String {
    match &request.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => {
            let turn = |turn: &Message| format!("{}: {}", turn.role, turn.content);
            messages.iter().map(turn).collect::<Vec<_>>().join("\n")
        }
    }
}

fn rows(relation: Relation, all: Vec<Vec<(&'static str, Cell<'_>)>>) -> Batch {
    let mut builder = BatchBuilder::new(relation);
    for (at, cells) in all.iter().enumerate() {
        let id = KeyHasher::new("amend/test/1").u64(at as u64).id();
        let origin = Origin { row_id: id, root_id: id, parents: vec![], call_keys: vec![] };
        builder.push(&origin, cells);
    }
    builder.finish().0
}

fn asks(text: &str) -> Cell<'static> {
    Cell::messages(vec![Message::user(text)])
}

fn says(text: &str) -> Cell<'static> {
    Cell::messages(vec![Message::assistant(text)])
}

/// Prompts of one turn.
pub(super) fn prompts(texts: &[&str]) -> Batch {
    rows(Relation::Prompts, texts.iter().map(|text| prompt(text, None)).collect())
}

/// One prompt with further columns, as JSON.
pub(super) fn prompts_with(text: &str, extra: &str) -> Batch {
    rows(Relation::Prompts, vec![prompt(text, Some(extra))])
}

fn prompt(text: &str, extra: Option<&str>) -> Vec<(&'static str, Cell<'static>)> {
    vec![
        ("prompt", asks(text)),
        ("conversation_id", Cell::id(KeyHasher::new("amend/test/1").text(text).id())),
        ("turn", Cell::Int(0)),
        ("tags", Cell::Texts(vec![])),
        ("source", Cell::text("test")),
        ("source_line", Cell::Int(1)),
        ("extra", Cell::or_null(extra.map(str::to_owned), Cell::text)),
    ]
}

fn made_by_fake() -> Vec<(&'static str, Cell<'static>)> {
    vec![
        ("model", Cell::text("fake")),
        ("model_fingerprint", Cell::id(Id::ZERO)),
        ("finish_reason", Cell::text("stop")),
        ("completion_tokens", Cell::Int(3)),
    ]
}

/// Responses: prompt and completion.
pub(super) fn responses(all: &[(&str, &str)]) -> Batch {
    let response = |(prompt, completion): &(&str, &str)| {
        let own = [
            ("prompt", asks(prompt)),
            ("completion", says(completion)),
            ("sample_index", Cell::Int(0)),
            ("prompt_tokens", Cell::Int(2)),
        ];
        own.into_iter().chain(made_by_fake()).collect()
    };
    rows(Relation::Responses, all.iter().map(response).collect())
}

fn under_principle() -> Vec<(&'static str, Cell<'static>)> {
    vec![
        ("principle_id", Cell::text("kind")),
        ("principle_hash", Cell::id(Id::ZERO)),
        ("stage", Cell::text("sl")),
        ("few_shot_ids", Cell::Texts(vec![])),
    ]
}

/// Critiques: prompt, response, critique.
pub(super) fn critiques(all: &[(&str, &str, &str)]) -> Batch {
    let critique = |(prompt, response, critique): &(&str, &str, &str)| {
        let own = [
            ("prompt", asks(prompt)),
            ("response", says(response)),
            ("round", Cell::Int(1)),
            ("critique", Cell::text((*critique).to_owned())),
        ];
        own.into_iter().chain(under_principle()).chain(made_by_fake()).collect()
    };
    rows(Relation::Critiques, all.iter().map(critique).collect())
}

/// Revisions: prompt, completion, round; unchanged where the completion is `same`.
pub(super) fn revisions(all: &[(&str, &str, i64)]) -> Batch {
    let revision = |(prompt, completion, round): &(&str, &str, i64)| {
        let own = [
            ("prompt", asks(prompt)),
            ("completion", says(completion)),
            ("previous", says("same")),
            ("initial", says("same")),
            ("round", Cell::Int(*round)),
            ("unchanged", Cell::Bool(*completion == "same")),
            ("skipped", Cell::Bool(false)),
        ];
        own.into_iter().chain(under_principle()).chain(made_by_fake()).collect()
    };
    rows(Relation::Revisions, all.iter().map(revision).collect())
}

/// Comparisons: prompt, two responses, P(first better).
pub(super) fn comparisons(all: &[(&str, &str, &str, f64)]) -> Batch {
    let comparison = |(prompt, a, b, p): &(&str, &str, &str, f64)| {
        vec![
            ("prompt", asks(prompt)),
            ("response_a", says(a)),
            ("response_b", says(b)),
            ("chosen", says(a)),
            ("rejected", says(b)),
            ("p", Cell::Float(*p)),
            ("estimator", Cell::text("human")),
            ("label_kind", Cell::text("human")),
            ("order", Cell::text("fixed")),
            ("source", Cell::text("test")),
            ("weight", Cell::Float(1.0)),
        ]
    };
    rows(Relation::Comparisons, all.iter().map(comparison).collect())
}
