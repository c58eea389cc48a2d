//! What a policy is rewarded for: a preference model's score, or a judge's verdict.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::place::Name;
use crate::spec::selector::Selector;

/// Where the reward of a rollout comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Reward {
    /// A preference model: its score.
    Model(Name),
    /// A language model that is asked by the constitution, without a preference model: the share of comparisons with
    /// other rollouts of the prompt that a rollout wins.
    Judge(RewardJudge),
}

/// A judge of rollouts, asked in the words of `pairwise-judge`, in both orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardJudge {
    /// The model that judges: one with weights, in this process.
    pub model: Name,
    /// The principles that may be drawn, one for a prompt and an update.
    #[serde(default)]
    pub principles: Selector,
}

/// A preference model, or `{ judge: … }`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "$by_shape")]
#[schemars(untagged)]
enum Written {
    #[serde(rename = "$text")]
    Model(Name),
    #[serde(rename = "$map")]
    Judge(Judged),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Judged {
    /// A language model that compares rollouts by the constitution.
    judge: RewardJudge,
}

impl Reward {
    /// The model, with the key that names it.
    pub fn model(&self) -> (&'static str, &Name) {
        match self {
            Self::Model(name) => ("reward", name),
            Self::Judge(judge) => ("judge", &judge.model),
        }
    }
}

impl<'de> Deserialize<'de> for Reward {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Model(name) => Self::Model(name),
            Written::Judge(Judged { judge }) => Self::Judge(judge),
        })
    }
}

impl Serialize for Reward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Model(name) => name.serialize(serializer),
            Self::Judge(judge) => Judged { judge: judge.clone() }.serialize(serializer),
        }
    }
}

impl JsonSchema for Reward {
    fn schema_name() -> Cow<'static, str> {
        "Reward".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}
