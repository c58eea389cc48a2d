//! `amend explain`: where a row comes from, as a tree.

use std::fmt::Write as _;

use super::args::{Common, ExplainArgs};
use super::failure::Status;
use super::files;
use super::screen::Screen;
use super::shorten::{one_line, said};
use crate::query::explain::{Call, Explained, explain};

/// Characters of a text that are shown; `-v` shows all.
const CHARS: usize = 160;

/// Columns that say what a row says, in the order of interest.
const SAYS: [&str; 25] = [
    "round",
    "sample_index",
    "prompt",
    "response",
    "response_a",
    "response_b",
    "critique",
    "completion",
    "p",
    "label",
    "group",
    "value",
    "reason",
    "detail",
    "finish_reason",
    "category",
    "source",
    "source_line",
    "answer",
    "policy",
    "rows_changed",
    "warm_from",
    "dataset_rows",
    "kind",
    "step",
];

/// Explains a row.
pub(super) fn run(args: &ExplainArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let reader = files::reader(&args.which, common)?;
    let explained = explain(&reader, &reader.snapshot(&args.at)?, &args.row)?;
    if screen.json {
        screen.json(&explained)?;
    } else {
        let mut text = String::new();
        Tree { screen }.row(&explained, "", "", &mut text);
        screen.text(&text)?;
    }
    Ok(Status::Done)
}

struct Tree {
    screen: Screen,
}

impl Tree {
    /// A row: its name at `first`, all below it at `rest`.
    fn row(&self, row: &Explained, first: &str, rest: &str, text: &mut String) {
        let Some(node) = &row.node else {
            let _ = writeln!(text, "{first}{} is not in this snapshot", row.row_id);
            return;
        };
        let op = row.op.as_deref().unwrap_or_default();
        let name = self.screen.bold(&format!("{node}/{}", row.row_id));
        let _ = writeln!(text, "{first}{name}  {}", self.screen.dim(op));
        let bar = if row.parents.is_empty() { "  " } else { "│ " };
        let inner = format!("{rest}{bar}");
        if !row.passed_on {
            self.says(row, &inner, text);
        }
        for (at, parent) in row.parents.iter().enumerate() {
            let (branch, below) =
                if at + 1 == row.parents.len() { ("└─", "  ") } else { ("├─", "│ ") };
            self.row(parent, &format!("{rest}{branch} "), &format!("{rest}{below} "), text);
        }
    }

    fn says(&self, row: &Explained, at: &str, text: &mut String) {
        if !row.marks.is_empty() {
            self.line(at, "marks", &row.marks.join(", "), text);
        }
        if let Some(principle) = &row.principle {
            let part = |name: &str| said(&principle[name]);
            let stage = if principle["stage"].is_null() {
                String::new()
            } else {
                format!(" ({})", part("stage"))
            };
            self.line(at, "principle", &format!("{}{stage}", part("id")), text);
        }
        if let Some(model) = &row.model {
            let fingerprint = said(&model["fingerprint"]);
            let fingerprint: String = fingerprint.chars().take(12).collect();
            self.line(at, "model", &format!("{} {fingerprint}", said(&model["name"])), text);
        }
        for column in SAYS {
            if let Some(value) = row.row.get(column).filter(|value| !value.is_null()) {
                self.line(at, column, &said(value), text);
            }
        }
        for call in &row.calls {
            self.call(call, at, text);
        }
    }

    fn call(&self, call: &Call, at: &str, text: &mut String) {
        let key: String = call.call_key.chars().take(12).collect();
        let kind = call.kind.as_deref().unwrap_or_default();
        let model = call.model.as_deref().unwrap_or_default();
        self.line(at, "call", &format!("{key} {kind} {model}"), text);
        if !call.request.is_null() {
            self.line(at, "  request", &said(&call.request), text);
        }
        if let Some(answer) = call.answer.as_ref().filter(|answer| !answer.is_empty()) {
            self.line(at, "  answer", answer, text);
        }
        if let Some(logprobs) = &call.choice_logprobs {
            let logprobs: Vec<String> = logprobs.iter().map(|one| format!("{one:.3}")).collect();
            self.line(at, "  log-probs", &logprobs.join(", "), text);
        }
        if let Some(error) = &call.error {
            self.line(at, "  error", error, text);
        }
        if let Some(answer) = &call.later_answer {
            self.line(at, "  since", &format!("a later call was answered: {answer}"), text);
        }
    }

    fn line(&self, at: &str, name: &str, value: &str, text: &mut String) {
        let most = if self.screen.verbose { usize::MAX } else { CHARS };
        let name = self.screen.dim(&format!("{name:<13}"));
        let _ = writeln!(text, "{at}{name} {}", one_line(value, most));
    }
}
