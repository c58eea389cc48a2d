//! `filter`: fewer rows.
//!
//! `relation -> the same`; rows that stay keep their ids. What leaves is a reject with its reason,
//! or counted as dropped.
//!
//! `dedupe` compares rows with each other, so the engine does it, by the operator's key and rank.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use regex::Regex;

use crate::model::Finish;
use crate::record::{Batch, Id, KeyHasher, Relation, Row};
use crate::spec::op::{Dedupe, Filter as Spec, Flaw, KeepRow, OnDrop};

use super::{Build, BuildError, Input, Operator, Out, Reason, Reject, Step};

/// A condition over the columns of a row, which `query` compiles.
pub trait Predicate: Send + Sync {
    /// For each row whether it stays; where it is null, it does not.
    fn keep(&self, batch: &Batch) -> Result<Vec<bool>, String>;

    /// The hash of the condition.
    fn fingerprint(&self) -> Id;
}

/// The running form of a `filter` node.
pub struct Filter {
    reads: Relation,
    flaws: Vec<Flaw>,
    max_tokens: i64,
    predicate: Option<Arc<dyn Predicate>>,
    dedupe: Option<Dedupe>,
    on_drop: OnDrop,
    leaked: Regex,
    /// The last batches that the predicate was asked about: it is fast on many rows, not on one.
    answered: Mutex<Vec<(RecordBatch, Vec<bool>)>>,
}

/// Batches whose answers are kept.
const ANSWERED: usize = 8;

/// Words that speak about the task instead of doing it.
const LEAKED: &str = r"(?ix)
    \b(critique|revision) \s? request \s? : |
    ^ \s* (critique|revision) \s* : |
    ^ \W* ((sure|certainly|of \s course|okay|ok|absolutely) \b [^a-z]* )?
        here (\s is|['’]s|\s are) \s (the|a|my|an) \s (\w+ \s){0,3}? (revis|rewrit|critique|updated) |
    \b(revised|rewritten) \s (response|answer|version) \b [^.\n]{0,40} : |
    ^ \W* i (\s have|['’]ve)? \s (revised|rewritten) \b";

impl Filter {
    /// The operator of a node.
    pub fn new(op: &Spec, build: &Build<'_>) -> Result<Filter, BuildError> {
        if let (Some(condition), None) = (&op.condition, &build.predicate) {
            return Err(BuildError::at(
                condition.place,
                "`where` needs SQL, which this amend was built without".to_owned(),
                "build it with the feature `sql`",
            ));
        }
        for name in op.dedupe.iter().flat_map(|dedupe| dedupe.by.iter()) {
            let columns = build.reads.columns();
            if !columns.iter().any(|column| column.name == name.value) {
                let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
                return Err(BuildError::at(
                    name.place,
                    format!("{} have no column \"{}\"", build.reads, name.value),
                    format!("their columns are {}", names.join(", ")),
                ));
            }
        }
        Ok(Filter {
            reads: build.reads,
            flaws: op.drop.clone(),
            max_tokens: i64::from(op.max_tokens.value),
            predicate: build.predicate.clone(),
            dedupe: op.dedupe.clone(),
            on_drop: op.on_drop,
            leaked: Regex::new(LEAKED).expect("the pattern is a regular expression"),
            answered: Mutex::default(),
        })
    }

    fn flaw(&self, row: Row<'_>, flaw: Flaw) -> Option<(Reason, String)> {
        let made = Made::of(row);
        match flaw {
            Flaw::Empty => made
                .texts()
                .any(|text| text.trim().is_empty())
                .then(|| (Reason::Empty, "it is empty".to_owned())),
            Flaw::Identical => made
                .is_identical()
                .then(|| (Reason::IdenticalPair, "it equals what it is compared to".to_owned())),
            Flaw::TooLong => {
                let tokens = made.tokens().filter(|tokens| *tokens > self.max_tokens)?;
                Some((Reason::TooLong, format!("{tokens} tokens, above {}", self.max_tokens)))
            }
            Flaw::LeakedMeta => {
                let leak = made.texts().find_map(|text| {
                    self.leaked.find(&text).map(|found| found.as_str().trim().to_owned())
                })?;
                Some((Reason::Filtered, format!("it speaks about the task: \"{leak}\"")))
            }
            Flaw::NotStopped => {
                let cut = row.has("finish_reason")
                    && Finish::from_name(row.str("finish_reason")) == Some(Finish::Length);
                cut.then(|| (Reason::Truncated, "it was cut by max_tokens".to_owned()))
            }
        }
    }

    /// Whether the predicate keeps a row. It is asked about the whole batch that the row is in,
    /// and about the row alone where another row makes it fail.
    fn keeps(&self, predicate: &dyn Predicate, row: Row<'_>) -> Result<bool, String> {
        let (batch, at) = (row.batch(), row.index());
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        // The batches are held, so equal columns are the same ones and not others in their place.
        let same = |held: &RecordBatch| {
            held.num_rows() == batch.len()
                && Arc::ptr_eq(&held.columns()[0], &batch.rows().columns()[0])
        };
        if let Some((_, keep)) = answered.iter().find(|(held, _)| same(held)) {
            return Ok(keep[at]);
        }
        let Ok(keep) = predicate.keep(batch) else {
            let alone = Batch::new(batch.relation(), batch.rows().slice(at, 1));
            return predicate.keep(&alone).map(|keep| keep[0]);
        };
        assert_eq!(keep.len(), batch.len(), "a predicate answers for every row");
        let kept = keep[at];
        if answered.len() == ANSWERED {
            answered.remove(0);
        }
        answered.push((batch.rows().clone(), keep));
        Ok(kept)
    }

    fn fault(&self, row: Row<'_>) -> Option<(Reason, String)> {
        if let Some(fault) = self.flaws.iter().find_map(|flaw| self.flaw(row, *flaw)) {
            return Some(fault);
        }
        match self.keeps(self.predicate.as_deref()?, row) {
            Ok(true) => None,
            Ok(false) => Some((Reason::Filtered, "`where` does not hold".to_owned())),
            Err(error) => Some((Reason::Filtered, format!("`where` fails: {error}"))),
        }
    }
}

/// What a row says that was made: the columns in which flaws are looked for.
struct Made<'a> {
    row: Row<'a>,
    columns: &'static [&'static str],
}

impl<'a> Made<'a> {
    fn of(row: Row<'a>) -> Made<'a> {
        let columns: &[&str] = match row.relation() {
            Relation::Comparisons => &["response_a", "response_b"],
            Relation::Critiques => &["critique"],
            Relation::Prompts => &["prompt"],
            _ => &["completion"],
        };
        Made { row, columns }
    }

    fn texts(&self) -> impl Iterator<Item = String> {
        let text = |name: &&'static str| match self.row.relation() {
            Relation::Critiques => self.row.str(name).to_owned(),
            _ => super::content(self.row.turns(name)).into_owned(),
        };
        self.columns.iter().map(text)
    }

    fn is_identical(&self) -> bool {
        let (row, text) = (self.row, |name| super::content(self.row.turns(name)));
        match row.relation() {
            Relation::Comparisons => text("response_a") == text("response_b"),
            Relation::Revisions => row.bool("unchanged") == Some(true),
            _ => false,
        }
    }

    fn tokens(&self) -> Option<i64> {
        self.row.has("completion_tokens").then(|| self.row.int("completion_tokens")).flatten()
    }
}

impl Operator for Filter {
    fn relation(&self) -> Relation {
        self.reads
    }

    fn role(&self) -> Option<&'static str> {
        None
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        match (self.fault(input.row), self.on_drop) {
            (None, _) => {
                out.row(&super::copy(input.row));
                Step::Done
            }
            (Some(_), OnDrop::Drop) => Step::Drop,
            (Some((reason, detail)), OnDrop::Reject) => {
                Step::Reject(Reject { reason, detail, answer: None })
            }
        }
    }

    fn calls_max(&self) -> u64 {
        0
    }

    /// The rank by which the smallest id stays, or the largest.
    fn rank(&self, row: Id) -> u64 {
        let high = (row.bits() >> 64) as u64;
        match self.dedupe.as_ref().map(|dedupe| dedupe.keep) {
            Some(KeepRow::Last) => u64::MAX - high,
            _ => high,
        }
    }

    fn dedupe_key(&self, row: Row<'_>) -> Option<Id> {
        let dedupe = self.dedupe.as_ref()?;
        let mut hasher = KeyHasher::new("amend/dedupe/1");
        for name in dedupe.by.iter() {
            let relation = row.relation();
            let column = relation.columns()[relation.position(&name.value)];
            row.cell(column.name).hash_into(&mut hasher);
        }
        Some(hasher.id())
    }

    fn drops_duplicates(&self) -> bool {
        self.on_drop == OnDrop::Drop
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text("filter");
        hasher.add_u64(u64::from(Spec::VERSION));
        hasher.add_text(self.reads.name());
        self.flaws.iter().for_each(|flaw| hasher.add_text(&format!("{flaw:?}")));
        hasher.add_u64(self.max_tokens as u64);
        hasher
            .add_id(self.predicate.as_ref().map_or(Id::ZERO, |predicate| predicate.fingerprint()));
        hasher.add_u64(u64::from(self.on_drop == OnDrop::Drop));
        if let Some(dedupe) = &self.dedupe {
            dedupe.by.iter().for_each(|name| hasher.add_text(&name.value));
            hasher.add_u64(u64::from(dedupe.keep == KeepRow::Last));
        }
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, responses, revisions};

    #[test]
    fn a_row_that_speaks_about_the_task_is_a_reject() {
        let bench = Bench::new("filter: { from: drafts, drop: [leaked_meta, empty] }", "");
        let rows = responses(&[
            ("hi", "Here is the revised response: hello"),
            ("hi", "Sure! Here's a rewritten version of it."),
            ("hi", "Hello.\n\nCritiqueRequest: what is wrong"),
            ("hi", "  "),
            ("hi", "Here is a recipe for bread: flour, water."),
            ("hi", "The critique of pure reason is a book."),
        ]);
        let (table, _) = bench.run(&rows, |_| unreachable!());
        insta::assert_snapshot!(table.show(&["completion"]), @r#"
        | completion                                             |
        | [assistant: Here is a recipe for bread: flour, water.] |
        | [assistant: The critique of pure reason is a book.]    |
        reject filtered: it speaks about the task: "Here is the revis"
        reject filtered: it speaks about the task: "Sure! Here's a rewrit"
        reject filtered: it speaks about the task: "CritiqueRequest:"
        reject empty: it is empty
        "#);
    }

    #[test]
    fn a_revision_that_changed_nothing_is_dropped_when_asked() {
        let node = "filter: { from: revisions, drop: [identical, not_stopped], on_drop: drop }";
        let rows = revisions(&[("hi", "same", 1), ("hi", "other", 2)]);
        let (table, _) = Bench::new(node, "").run(&rows, |_| unreachable!());
        assert_eq!((table.rows.len(), table.dropped), (1, 1));
    }

    /// Keeps rows with a short completion, and fails on an empty one.
    struct FakeShort;

    impl Predicate for FakeShort {
        fn keep(&self, batch: &Batch) -> Result<Vec<bool>, String> {
            batch
                .iter()
                .map(|row| match super::super::content(row.turns("completion")).len() {
                    0 => Err("empty".to_owned()),
                    bytes => Ok(bytes < 4),
                })
                .collect()
        }

        fn fingerprint(&self) -> Id {
            Id::ZERO
        }
    }

    #[test]
    fn a_condition_that_fails_on_one_row_rejects_that_row_alone() {
        let bench = Bench::new("filter: { from: drafts, where: 'length(completion) < 4' }", "")
            .predicate(FakeShort);
        let (table, _) =
            bench.run(&responses(&[("a", "yes"), ("b", "no way"), ("c", "")]), |_| unreachable!());
        insta::assert_snapshot!(table.show(&["completion"]), @r"
        | completion       |
        | [assistant: yes] |
        reject filtered: `where` does not hold
        reject filtered: `where` fails: empty
        ");
    }

    #[test]
    fn rows_that_agree_in_the_columns_have_one_key() {
        let rows = responses(&[("a", "yes"), ("b", "yes"), ("a", "no")]);
        let key = |at, by: &str| {
            let node = format!("filter: {{ from: drafts, dedupe: {{ by: {by} }} }}");
            Bench::new(&node, "").operator(rows.relation()).dedupe_key(rows.row(at))
        };
        assert_eq!(key(0, "completion"), key(1, "completion"));
        assert_ne!(key(0, "[prompt, completion]"), key(1, "[prompt, completion]"));
        assert_eq!(key(0, "prompt"), key(2, "prompt"));
    }
}
