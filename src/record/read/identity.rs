//! Identities: which row of a file is which, also after an edit of the file.
//!
//! A row with a key is found by it; any other is what it says. Rows that are the same in that
//! sense are numbered in the file's order.

use indexmap::IndexMap;
use serde_json::Value;

use super::ReadOptions;
use super::lines::Fields;
use super::shape::{Fault, Shaped};
use crate::record::{Id, KeyHasher};

/// The rows seen so far.
#[derive(Default)]
pub(super) struct Identities {
    seen: IndexMap<Id, Seen>,
}

/// The first row of an identity, and how many there are.
struct Seen {
    says: Id,
    line: u64,
    times: u64,
}

/// The values of the key columns as canonical JSON; nothing where no key is declared. A column is
/// named as the file names it, or as we do.
pub(super) fn key(fields: &Fields, options: &ReadOptions) -> Result<Option<String>, Fault> {
    if options.key.is_empty() {
        return Ok(None);
    }
    let theirs = |name: &String| options.columns.get(name).and_then(|name| fields.get(name));
    let value = |name: &String| match theirs(name).or_else(|| fields.get(name)) {
        None => Err(Fault::Lacks(format!("it has no key column \"{name}\""))),
        Some(Value::Null) => Err(Fault::Row(format!("its key column \"{name}\" is null"))),
        Some(value) => Ok(value.clone()),
    };
    let values: Result<Vec<Value>, Fault> = options.key.iter().map(value).collect();
    Ok(Some(match values?.as_slice() {
        [one] => one.to_string(),
        all => Value::from(all.to_vec()).to_string(),
    }))
}

impl Identities {
    /// The id of a row; where its key is another row's that says something else, that row's line.
    pub(super) fn row(&mut self, key: Option<&str>, row: &Shaped, line: u64) -> Result<Id, u64> {
        let mut says = KeyHasher::new("amend/row/1").text("read");
        row.hash_into(&mut says);
        let says = says.id();
        let id = match key {
            Some(key) => KeyHasher::new("amend/row/1").text("key").text(key).id(),
            None => says,
        };
        self.number(id, says, line)
    }

    /// The id of what is no row, as the node that reads it loses it.
    pub(super) fn reject(&mut self, raw: &str, node: &str) -> Id {
        let id = KeyHasher::new("amend/row/1").text("reject").text(node).text(raw).id();
        self.number(id, id, 0).expect("what says the same does not differ")
    }

    fn number(&mut self, id: Id, says: Id, line: u64) -> Result<Id, u64> {
        let seen = self.seen.entry(id).or_insert(Seen { says, line, times: 0 });
        if seen.says != says {
            return Err(seen.line);
        }
        seen.times += 1;
        Ok(match seen.times {
            1 => id,
            times => KeyHasher::new("amend/row/1").with(id).u64(times).id(),
        })
    }
}
