//! Small snapshots made by hand, for tests.

use std::sync::Arc;

use tempfile::TempDir;

use super::Reader;
use crate::record::{Batch, BatchBuilder, CallKey, Cell, Id, KeyHasher, Message, Origin, Relation};
use crate::store::{CallKind, Entry, Inputs, NodeAbout, Outcome, Store, Table, TableRow};

/// A store with one pipeline.
pub(super) struct Lab {
    dir: TempDir,
}

/// A row of responses.
#[derive(Clone)]
pub(super) struct Response {
    pub(super) id: u64,
    pub(super) says: &'static str,
    pub(super) parents: Vec<Id>,
    pub(super) call: Option<CallKey>,
}

/// A response without parents and calls.
pub(super) fn row(id: u64, says: &'static str) -> Response {
    Response { id, says, parents: Vec::new(), call: None }
}

/// The id of a numbered row.
pub(super) fn id(n: u64) -> Id {
    KeyHasher::new("amend/test/1").u64(n).id()
}

/// A numbered call.
pub(super) fn call(n: u64) -> CallKey {
    KeyHasher::new("amend/test/call").u64(n).call_key()
}

impl Response {
    /// The same row, made of another by a call.
    pub(super) fn made_of(mut self, parent: u64, by: u64) -> Response {
        self.parents = vec![id(parent)];
        self.call = Some(call(by));
        self
    }
}

impl Lab {
    pub(super) fn new() -> Lab {
        Lab { dir: TempDir::new().unwrap() }
    }

    pub(super) fn store(&self) -> Store {
        Store::new(self.dir.path())
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::new(&self.store(), "lab")
    }

    /// Commits tables of responses; each node reads the one before it.
    pub(super) fn commit(&self, tables: &[(&str, &[Response])]) {
        let tables: Vec<(&str, Table)> =
            tables.iter().map(|(name, rows)| (*name, table(rows))).collect();
        self.commit_tables(tables);
    }

    /// Commits tables; each node reads the one before it.
    pub(super) fn commit_tables(&self, tables: Vec<(&str, Table)>) {
        let mut draft = self.store().snapshots("lab").begin().unwrap();
        let mut inputs = Vec::new();
        for (name, table) in tables {
            let about = NodeAbout {
                op: "sample".to_owned(),
                fingerprint: Id::ZERO,
                inputs: std::mem::take(&mut inputs),
                rejects: 0,
                dropped: 0,
                checkpoint: None,
                marks: std::collections::BTreeSet::new(),
            };
            draft.add(name, about, &table).unwrap();
            inputs.push(name.to_owned());
        }
        draft.commit(1_700_000_000_000_000, Inputs::default()).unwrap();
    }

    /// Remembers a call.
    pub(super) fn remember(&self, n: u64, request: &str, answer: &str) {
        let memo = self.store().memo().unwrap();
        #[expect(clippy::default_trait_access, reason = "a layer above `model` does not name it")]
        let mut outcome = Outcome::Ok(Default::default());
        if let Ok(said) = &mut outcome {
            said.text = answer.to_owned();
        }
        let entry = Entry {
            key: call(n),
            kind: CallKind::Generate,
            model: "assistant".to_owned(),
            model_fingerprint: Id::ZERO,
            request_json: request.to_owned(),
            outcome,
            seed: None,
            cost_usd: None,
        };
        memo.append(entry, Box::new(|written| written.unwrap()));
        memo.close().unwrap();
    }
}

/// A table of responses.
pub(super) fn table(rows: &[Response]) -> Table {
    let batch = Arc::new(batch(rows));
    Table::new(Relation::Responses, (0..batch.len()).map(|at| TableRow::of(&batch, at)).collect())
}

/// A batch of responses.
pub(super) fn batch(rows: &[Response]) -> Batch {
    let mut batch = BatchBuilder::new(Relation::Responses);
    for row in rows {
        let origin = Origin {
            row_id: id(row.id),
            root_id: id(row.id),
            parents: row.parents.clone(),
            call_keys: row.call.iter().map(CallKey::id).collect(),
        };
        let cells = [
            ("prompt", Cell::messages(vec![Message::user("hello")])),
            ("completion", Cell::messages(vec![Message::assistant(row.says)])),
            ("sample_index", Cell::Int(0)),
            ("model", Cell::text("assistant")),
            ("model_fingerprint", Cell::id(Id::ZERO)),
            ("finish_reason", Cell::text("stop")),
            ("prompt_tokens", Cell::Int(1)),
            ("completion_tokens", Cell::Int(1)),
        ];
        batch.push(&origin, &cells);
    }
    batch.finish().0
}
