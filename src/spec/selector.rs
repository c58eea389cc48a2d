//! `principles:` on a node: which principles of the constitution may be drawn.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::constitution::{Constitution, Principle, Purpose, Stage};
use super::place::{Name, Place, Spanned};

/// Which principles may be drawn. Empty, it leaves all that have the texts needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// Only principles of this stage. One that states none belongs to each stage whose texts it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Only principles whose tags agree.
    #[serde(skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// Only these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<Name>,
    /// Only the first so many, in the order of the constitution file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Spanned<u32>>,
}

/// Conditions on a principle's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tags {
    /// It has at least one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<Name>,
    /// It has all of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<Name>,
    /// It has none of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub none: Vec<Name>,
}

impl Tags {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, tags: &[String]) -> bool {
        let has = |tag: &Name| tags.contains(&tag.value);
        (self.any.is_empty() || self.any.iter().any(has))
            && self.all.iter().all(has)
            && !self.none.iter().any(has)
    }
}

/// As a pipeline states it, on one line.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[Name]| {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            format!("[{}]", names.join(", "))
        };
        let mut parts = Vec::new();
        if let Some(stage) = self.stage {
            parts.push(format!("stage: {}", stage.as_str()));
        }
        let tags = [("any", &self.tags.any), ("all", &self.tags.all), ("none", &self.tags.none)];
        let tags = tags.iter().filter(|(_, names)| !names.is_empty());
        let tags: Vec<String> =
            tags.map(|(key, names)| format!("{key}: {}", list(names))).collect();
        if !tags.is_empty() {
            parts.push(format!("tags: {{ {} }}", tags.join(", ")));
        }
        if !self.ids.is_empty() {
            parts.push(format!("ids: {}", list(&self.ids)));
        }
        if let Some(limit) = self.limit {
            parts.push(format!("limit: {limit}"));
        }
        match parts.as_slice() {
            [] => f.write_str("{}"),
            parts => write!(f, "{{ {} }}", parts.join(", ")),
        }
    }
}

impl Selector {
    /// Where the files state it: the place of its first id, tag or limit.
    pub fn place(&self) -> Option<Place> {
        let tags = [&self.tags.any, &self.tags.all, &self.tags.none];
        let names = self.ids.iter().chain(tags.into_iter().flatten()).map(|name| name.place);
        names.chain(self.limit.map(|limit| limit.place)).find(|place| place.is_somewhere())
    }

    /// Whether stage, tags and ids leave the principle. `limit` is a matter of the whole list: see [`Selector::select`].
    pub fn matches(&self, principle: &Principle) -> bool {
        self.stage.is_none_or(|stage| principle.is_for(stage))
            && self.tags.matches(&principle.tags)
            && (self.ids.is_empty() || self.ids.iter().any(|id| id.value == principle.id.value))
    }

    /// The principles that may be drawn for a purpose, in the order of the file.
    ///
    /// They have the texts needed and a weight above 0.
    pub fn select<'a>(
        &self,
        constitution: &'a Constitution,
        purpose: Purpose,
    ) -> Vec<&'a Principle> {
        constitution
            .principles
            .iter()
            .filter(|principle| {
                self.matches(principle) && principle.serves(purpose) && principle.weight.value > 0.0
            })
            .take(self.limit.map_or(usize::MAX, |limit| limit.value as usize))
            .collect()
    }
}
