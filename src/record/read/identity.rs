//! Identities: which row of the files is which, also after an edit of them.
//!
//! A row with a key is found by it; any other is what it says. Rows that are the same in that
//! sense are numbered in the files' order.

use indexmap::IndexMap;
use serde_json::Value;

use super::ReadOptions;
use super::fields::Fields;
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
    place: Place,
    times: u64,
}

/// Where a row stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The file, by its place among those that are read.
    pub(super) file: usize,
    /// The line.
    pub(super) line: u64,
}

/// The values of the key columns as canonical JSON; nothing where no key is declared. A column is
/// named as the file names it, or as we do.
pub(super) fn key(fields: &Fields, options: &ReadOptions) -> Result<Option<String>, Fault> {
    if options.key.is_empty() {
        return Ok(None);
    }
    let theirs = |name: &String| match options.columns.get(name) {
        Some(theirs) if fields.has(theirs) => fields.key(theirs),
        _ => fields.key(name),
    };
    let value = |name: &String| match theirs(name)? {
        None => Err(Fault::Lacks(format!("it has no key column \"{name}\""))),
        Some(Value::Null) => Err(Fault::Row(format!("its key column \"{name}\" is null"))),
        // Two numbers of so many digits may be read as one.
        Some(Value::Number(number))
            if number.as_f64().is_some_and(is_rounded) && number.is_f64() =>
        {
            Err(Fault::Row(format!(
                "its key column \"{name}\" is a number of more digits than can be told apart: write it as a text"
            )))
        }
        Some(value) => Ok(value.clone()),
    };
    let values: Result<Vec<Value>, Fault> = options.key.iter().map(value).collect();
    Ok(Some(match values?.as_slice() {
        [one] => one.to_string(),
        all => Value::from(all.to_vec()).to_string(),
    }))
}

/// Whether a number is so great that its neighbours are more than 1 away.
fn is_rounded(number: f64) -> bool {
    number.abs() > 9_007_199_254_740_992.0
}

impl Identities {
    /// The id of a row; where its key is another row's that says something else, that row's place.
    pub(super) fn row(
        &mut self,
        key: Option<&str>,
        row: &Shaped,
        place: Place,
    ) -> Result<Id, Place> {
        let mut says = KeyHasher::new("amend/row/1").text("read");
        row.hash_into(&mut says);
        let says = says.id();
        let id = match key {
            Some(key) => KeyHasher::new("amend/row/1").text("key").text(key).id(),
            None => says,
        };
        self.number(id, says, place)
    }

    /// The id of what is no row, as the node that reads it loses it.
    pub(super) fn reject(&mut self, raw: &str, node: &str) -> Id {
        let id = KeyHasher::new("amend/row/1").text("reject").text(node).text(raw).id();
        self.number(id, id, Place::default()).expect("what says the same does not differ")
    }

    fn number(&mut self, id: Id, says: Id, place: Place) -> Result<Id, Place> {
        let seen = self.seen.entry(id).or_insert(Seen { says, place, times: 0 });
        if seen.says != says {
            return Err(seen.place);
        }
        seen.times += 1;
        Ok(match seen.times {
            1 => id,
            times => KeyHasher::new("amend/row/1").with(id).u64(times).id(),
        })
    }
}
