//! Where rows come from when they come from several nodes: [`Source`], its [`Rounds`], and [`OneOrMany`].

use std::borrow::Cow;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::place::{Name, Spanned};

/// Rows of one node, and how many of them: `revisions`, or `{ rows: revisions, rounds: all, weight: 2.0 }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The node; a part of a split is `node.part`.
    pub rows: Name,
    /// Which rounds of a `repeat` are taken.
    pub rounds: Rounds,
    /// Weight of each row in a loss, above 0.
    pub weight: Spanned<f64>,
    /// Rows taken, chosen by a hash of their id. At most one of `count` and `share`.
    pub count: Option<u64>,
    /// Share of the rows taken, in (0, 1], chosen by a hash of their id.
    pub share: Option<Spanned<f64>>,
}

/// Which rounds of a `repeat` are taken: `all`, `last` or `{ up_to: 2 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rounds {
    /// The revisions of every round, as in §3.1 of the paper.
    #[default]
    All,
    /// The last revision of each draft.
    Last,
    /// The revisions up to and including this round, from 1.
    UpTo(u32),
}

impl Rounds {
    /// Whether round `round` of `times` (from 1) is taken.
    pub fn take(self, round: u32, times: u32) -> bool {
        match self {
            Self::All => true,
            Self::Last => round == times,
            Self::UpTo(last) => round <= last,
        }
    }
}

/// Rows of one node, and how many of them.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// The node; a part of a split is `node.part`.
    rows: Name,
    /// Which rounds of a `repeat` are taken.
    #[serde(default)]
    rounds: Rounds,
    /// Weight of each row in a loss, above 0.
    #[serde(default = "one")]
    weight: Spanned<f64>,
    /// Rows taken, chosen by a hash of their id. At most one of `count` and `share`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// Share of the rows taken, in (0, 1], chosen by a hash of their id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<Spanned<f64>>,
}

fn one() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

/// A node's name, or a map that also says how many of its rows.
// The decoder of this layer tells the variants of `$by_shape` apart by the value's shape.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "$by_shape")]
#[schemars(untagged)]
enum Written {
    #[serde(rename = "$text")]
    Name(Name),
    #[serde(rename = "$map")]
    Fields(Fields),
}

impl From<Name> for Source {
    fn from(rows: Name) -> Self {
        Self { rows, rounds: Rounds::All, weight: one(), count: None, share: None }
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Name(name) => Self::from(name),
            Written::Fields(Fields { rows, rounds, weight, count, share }) => {
                Self { rows, rounds, weight, count, share }
            }
        })
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { rows, rounds, weight, count, share } = self.clone();
        Fields { rows, rounds, weight, count, share }.serialize(serializer)
    }
}

impl JsonSchema for Source {
    fn schema_name() -> Cow<'static, str> {
        "Source".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}

/// One value, or a list of them: `from: drafts` and `from: [drafts, revisions]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Deref for OneOrMany<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// The three shapes in which one or many may be written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "$by_shape")]
#[schemars(untagged)]
enum Shapes<T> {
    #[serde(rename = "$text")]
    One(T),
    #[serde(rename = "$map")]
    OneMap(T),
    #[serde(rename = "$list")]
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Shapes::deserialize(deserializer)? {
            Shapes::One(one) | Shapes::OneMap(one) => vec![one],
            Shapes::Many(many) => many,
        }))
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        schemars::json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}
