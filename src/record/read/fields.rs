//! Fields: the columns of one record by name, with those whose value cannot be read.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;

use super::shape::Fault;

/// The fields of a record, in the file's order.
#[derive(Default)]
pub(super) struct Fields {
    values: IndexMap<String, Value>,
    /// Why the value of a column cannot be used. What stands in `values` is then for `extra` alone.
    unusable: BTreeMap<String, String>,
}

impl FromIterator<(String, Value)> for Fields {
    fn from_iter<T: IntoIterator<Item = (String, Value)>>(fields: T) -> Fields {
        Fields { values: fields.into_iter().collect(), unusable: BTreeMap::new() }
    }
}

impl Fields {
    /// The names of the columns.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.values.keys()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a column, to be changed.
    pub(super) fn value_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.values.get_mut(name)
    }

    /// Says that the value of a column cannot be used, and why.
    pub(super) fn refuse(&mut self, name: &str, why: String) {
        self.unusable.insert(name.to_owned(), why);
    }

    /// Takes the value of a column out.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Value>, Fault> {
        let value = self.values.shift_remove(name);
        match self.unusable.remove(name) {
            Some(why) => Err(Fault::Row(why)),
            None => Ok(value),
        }
    }

    /// The value of a column that tells rows apart: the digits of a UUID do so, which are no text of a
    /// conversation.
    pub(super) fn key(&self, name: &str) -> Result<Option<&Value>, Fault> {
        match (self.unusable.get(name), self.values.get(name)) {
            (Some(_), digits @ Some(Value::String(_))) => Ok(digits),
            (Some(why), _) => Err(Fault::Row(why.clone())),
            (None, value) => Ok(value),
        }
    }

    /// Gives columns our names. Gives back the columns of the file that only seem to be ours: another
    /// one has their name now.
    pub(super) fn rename(&mut self, columns: &IndexMap<String, String>) -> Fields {
        let taken: Vec<_> = columns
            .iter()
            .map(|(ours, theirs)| {
                (ours, self.values.shift_remove(theirs), self.unusable.remove(theirs))
            })
            .collect();
        let mut strangers = Fields::default();
        for (ours, value, why) in taken {
            let Some(value) = value else { continue };
            if let Some(stranger) = self.values.insert(ours.clone(), value) {
                strangers.values.insert(ours.clone(), stranger);
            }
            self.unusable.remove(ours);
            self.unusable.extend(why.map(|why| (ours.clone(), why)));
        }
        strangers
    }

    /// What is left, as an object of JSON with sorted keys; nothing where only nulls are left.
    pub(super) fn into_extra(mut self, strangers: Fields) -> Option<String> {
        self.values.extend(strangers.values);
        self.values.retain(|_, value| !value.is_null());
        self.values.sort_keys();
        (!self.values.is_empty()).then(|| {
            let map: serde_json::Map<String, Value> = self.values.into_iter().collect();
            Value::Object(map).to_string()
        })
    }
}
