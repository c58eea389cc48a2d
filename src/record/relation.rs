//! Relations: the Arrow schema of what an edge carries, and which columns its consumers read.

use std::fmt;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

/// What a table or an edge holds; the columns of each are listed in `schemas/relations/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Conversations that end on the human side.
    Prompts,
    /// Answers of a model to prompts.
    Responses,
    /// What a model finds wrong with a response, under a principle.
    Critiques,
    /// Responses rewritten under a principle.
    Revisions,
    /// Two responses to one prompt, with the probability that the first is better.
    Comparisons,
    /// What a model is fine-tuned on.
    Demonstrations,
    /// Episodes of reinforcement learning.
    Rollouts,
    /// Numbers logged by trainings, one a row.
    Metrics,
    /// Labels and numbers given to rows by an evaluation.
    Scores,
    /// Models that the pipeline made.
    Checkpoints,
    /// Rows that failed, with the reason.
    Rejects,
}

/// The type of a column, as far as amend is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Utf8.
    Text,
    /// Utf8 of 32 hex digits.
    Id,
    /// Int32.
    Int32,
    /// Int64.
    Int64,
    /// Float64.
    Float,
    /// Boolean.
    Bool,
    /// List of struct of role and content.
    Messages,
    /// List of Utf8.
    Texts,
    /// List of Utf8 of 32 hex digits.
    Ids,
    /// List of Int32.
    Ints,
    /// List of Float32.
    Floats32,
    /// List of Float64.
    Floats,
    /// List of struct of name, bytes and sha256.
    Files,
}

/// What a column is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The row's identity: `row_id`, `content`, `root_id`, `parents`, `call_keys`.
    Common,
    /// What consumers that spend read or copy: part of the `content` id.
    Content,
    /// How the row came to be.
    Provenance,
}

/// One column of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name, in tables and in code.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// Whether it may be null.
    pub nullable: bool,
    /// What it is part of.
    pub part: Part,
}

impl Relation {
    /// Every relation, in the order of the way the data goes.
    pub const ALL: [Relation; 11] = [
        Relation::Prompts,
        Relation::Responses,
        Relation::Critiques,
        Relation::Revisions,
        Relation::Comparisons,
        Relation::Demonstrations,
        Relation::Rollouts,
        Relation::Metrics,
        Relation::Scores,
        Relation::Checkpoints,
        Relation::Rejects,
    ];

    /// The name, as in YAML.
    pub fn name(self) -> &'static str {
        match self {
            Relation::Prompts => "prompts",
            Relation::Responses => "responses",
            Relation::Critiques => "critiques",
            Relation::Revisions => "revisions",
            Relation::Comparisons => "comparisons",
            Relation::Demonstrations => "demonstrations",
            Relation::Rollouts => "rollouts",
            Relation::Metrics => "metrics",
            Relation::Scores => "scores",
            Relation::Checkpoints => "checkpoints",
            Relation::Rejects => "rejects",
        }
    }

    /// The columns, in the order of the schema.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Relation::Prompts => PROMPTS,
            Relation::Responses => RESPONSES,
            Relation::Critiques => CRITIQUES,
            Relation::Revisions => REVISIONS,
            Relation::Comparisons => COMPARISONS,
            Relation::Demonstrations => DEMONSTRATIONS,
            Relation::Rollouts => ROLLOUTS,
            Relation::Metrics => METRICS,
            Relation::Scores => SCORES,
            Relation::Checkpoints => CHECKPOINTS,
            Relation::Rejects => REJECTS,
        }
    }

    /// The Arrow schema.
    pub fn schema(self) -> SchemaRef {
        static SCHEMAS: OnceLock<Vec<SchemaRef>> = OnceLock::new();
        let schemas = SCHEMAS.get_or_init(|| {
            let schema = |relation: Relation| -> SchemaRef {
                let fields: Vec<Field> = relation.columns().iter().map(Column::field).collect();
                Arc::new(Schema::new(fields))
            };
            Relation::ALL.iter().map(|relation| schema(*relation)).collect()
        });
        Arc::clone(&schemas[self as usize])
    }

    /// The position of a column.
    ///
    /// # Panics
    ///
    /// When the relation has no such column: names of columns are written in code, not by users.
    pub fn position(self, name: &str) -> usize {
        let found = self.columns().iter().position(|column| column.name == name);
        found.unwrap_or_else(|| panic!("{self} has no column {name:?}"))
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Column {
    /// The Arrow field.
    pub fn field(&self) -> Field {
        Field::new(self.name, self.kind.data_type(), self.nullable)
    }
}

impl Kind {
    /// The Arrow type.
    pub fn data_type(self) -> DataType {
        let list = |item: DataType| DataType::List(Arc::new(Field::new("item", item, false)));
        match self {
            Text | Id => DataType::Utf8,
            Int32 => DataType::Int32,
            Int64 => DataType::Int64,
            Float => DataType::Float64,
            Bool => DataType::Boolean,
            Messages => list(DataType::Struct(message_fields())),
            Texts | Ids => list(DataType::Utf8),
            Ints => list(DataType::Int32),
            Floats32 => list(DataType::Float32),
            Floats => list(DataType::Float64),
            Files => list(DataType::Struct(file_fields())),
        }
    }
}

/// The fields of a message.
pub(crate) fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ])
}

/// The fields of a file of a checkpoint.
pub(crate) fn file_fields() -> Fields {
    Fields::from(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("bytes", DataType::Int64, false),
        Field::new("sha256", DataType::Utf8, false),
    ])
}

const fn column(name: &'static str, kind: Kind, part: Part) -> Column {
    Column { name, kind, nullable: false, part }
}

const fn nullable(name: &'static str, kind: Kind, part: Part) -> Column {
    Column { name, kind, nullable: true, part }
}

/// Builds a table of columns that begins with the common ones.
macro_rules! columns {
    ($($column:expr),* $(,)?) => {
        &[
            column("row_id", Id, Common),
            column("content", Id, Common),
            column("root_id", Id, Common),
            column("parents", Ids, Common),
            column("call_keys", Ids, Common),
            $($column),*
        ]
    };
}

use Kind::{
    Bool, Files, Float, Floats, Floats32, Id, Ids, Int32, Int64, Ints, Messages, Text, Texts,
};
use Part::{Common, Content, Provenance};

const PROMPTS: &[Column] = columns![
    column("prompt", Messages, Content),
    column("conversation_id", Id, Provenance),
    column("turn", Int32, Provenance),
    nullable("split", Text, Provenance),
    nullable("category", Text, Content),
    column("tags", Texts, Content),
    column("source", Text, Provenance),
    column("source_line", Int64, Provenance),
    nullable("extra", Text, Content),
];

const RESPONSES: &[Column] = columns![
    column("prompt", Messages, Content),
    column("completion", Messages, Content),
    column("sample_index", Int32, Content),
    nullable("category", Text, Content),
    column("model", Text, Provenance),
    column("model_fingerprint", Id, Provenance),
    nullable("seed", Int64, Provenance),
    column("finish_reason", Text, Content),
    column("prompt_tokens", Int32, Provenance),
    column("completion_tokens", Int32, Provenance),
    nullable("logprob", Float, Provenance),
    nullable("reasoning", Text, Provenance),
    nullable("warnings", Texts, Provenance),
];

const CRITIQUES: &[Column] = columns![
    column("prompt", Messages, Content),
    column("response", Messages, Content),
    nullable("category", Text, Content),
    column("round", Int32, Content),
    column("principle_id", Text, Provenance),
    column("principle_hash", Id, Provenance),
    column("stage", Text, Provenance),
    column("few_shot_ids", Texts, Provenance),
    column("critique", Text, Content),
    column("model", Text, Provenance),
    column("model_fingerprint", Id, Provenance),
    nullable("seed", Int64, Provenance),
    column("finish_reason", Text, Provenance),
    column("completion_tokens", Int32, Provenance),
    nullable("reasoning", Text, Provenance),
    nullable("warnings", Texts, Provenance),
];

const REVISIONS: &[Column] = columns![
    column("prompt", Messages, Content),
    column("completion", Messages, Content),
    column("previous", Messages, Provenance),
    column("initial", Messages, Content),
    nullable("category", Text, Content),
    column("round", Int32, Content),
    nullable("principle_id", Text, Provenance),
    nullable("principle_hash", Id, Provenance),
    column("stage", Text, Provenance),
    column("few_shot_ids", Texts, Provenance),
    nullable("critique", Text, Provenance),
    column("unchanged", Bool, Provenance),
    column("skipped", Bool, Provenance),
    column("model", Text, Provenance),
    column("model_fingerprint", Id, Provenance),
    nullable("seed", Int64, Provenance),
    column("finish_reason", Text, Provenance),
    column("completion_tokens", Int32, Provenance),
    nullable("reasoning", Text, Provenance),
    nullable("warnings", Texts, Provenance),
];

const COMPARISONS: &[Column] = columns![
    column("prompt", Messages, Content),
    column("response_a", Messages, Content),
    column("response_b", Messages, Content),
    column("chosen", Messages, Provenance),
    column("rejected", Messages, Provenance),
    column("p", Float, Content),
    nullable("p_raw", Float, Provenance),
    nullable("p_ab", Float, Provenance),
    nullable("p_ba", Float, Provenance),
    nullable("logp_a_ab", Float, Provenance),
    nullable("logp_b_ab", Float, Provenance),
    nullable("logp_a_ba", Float, Provenance),
    nullable("logp_b_ba", Float, Provenance),
    nullable("label_logmass", Float, Provenance),
    nullable("votes", Int32, Provenance),
    column("estimator", Text, Provenance),
    column("label_kind", Text, Content),
    column("order", Text, Provenance),
    nullable("clamp", Floats, Provenance),
    nullable("cot", Texts, Provenance),
    nullable("principle_id", Text, Provenance),
    nullable("principle_hash", Id, Provenance),
    nullable("stage", Text, Provenance),
    nullable("few_shot_ids", Texts, Provenance),
    nullable("judge", Text, Provenance),
    nullable("judge_fingerprint", Id, Provenance),
    nullable("category", Text, Content),
    column("source", Text, Content),
    column("weight", Float, Content),
    nullable("warnings", Texts, Provenance),
];

const DEMONSTRATIONS: &[Column] = columns![
    column("prompt", Messages, Content),
    column("completion", Messages, Content),
    column("messages", Messages, Provenance),
    column("source", Text, Content),
    nullable("round", Int32, Provenance),
    nullable("principle_id", Text, Provenance),
    nullable("category", Text, Provenance),
    column("weight", Float, Content),
];

const ROLLOUTS: &[Column] = columns![
    column("prompt", Messages, Content),
    column("completion", Messages, Content),
    column("step", Int64, Content),
    column("episode", Int64, Content),
    column("sample_index", Int32, Content),
    nullable("token_ids", Ints, Content),
    nullable("logprobs", Floats32, Content),
    nullable("ref_logprobs", Floats32, Content),
    nullable("values", Floats32, Content),
    nullable("advantages", Floats32, Content),
    nullable("returns", Floats32, Content),
    column("score", Float, Content),
    column("score_normalized", Float, Content),
    nullable("score_test_pm", Float, Content),
    column("kl", Float, Content),
    column("reward", Float, Content),
    column("finish_reason", Text, Content),
    column("completion_tokens", Int32, Content),
];

const METRICS: &[Column] = columns![
    column("node", Text, Provenance),
    column("run", Id, Provenance),
    column("step", Int64, Content),
    column("epoch", Float, Content),
    column("split", Text, Content),
    column("name", Text, Content),
    column("value", Float, Content),
];

const SCORES: &[Column] = columns![
    column("subject_id", Id, Content),
    column("evaluator", Text, Content),
    column("source", Text, Content),
    nullable("evaluator_fingerprint", Id, Provenance),
    column("name", Text, Content),
    nullable("value", Float, Content),
    nullable("label", Text, Content),
    nullable("truth", Text, Content),
    nullable("group", Text, Content),
    nullable("model", Text, Content),
    nullable("model_fingerprint", Id, Provenance),
    nullable("step", Int64, Content),
    nullable("principle_id", Text, Provenance),
    nullable("warnings", Texts, Provenance),
];

const CHECKPOINTS: &[Column] = columns![
    column("node", Text, Provenance),
    column("fingerprint", Id, Content),
    column("kind", Text, Content),
    column("step", Int64, Content),
    column("path", Text, Provenance),
    column("files", Files, Provenance),
    nullable("init_fingerprint", Id, Provenance),
    column("dataset_digest", Id, Provenance),
    column("dataset_rows", Int64, Provenance),
    column("operator_version", Int32, Provenance),
    column("settings", Text, Provenance),
    column("policy", Text, Provenance),
    column("stale", Bool, Provenance),
    nullable("rows_changed", Int64, Provenance),
    nullable("warm_from", Id, Provenance),
    nullable("pm_mean", Float, Provenance),
    nullable("pm_std", Float, Provenance),
];

const REJECTS: &[Column] = columns![
    column("node", Text, Provenance),
    column("reason", Text, Content),
    column("detail", Text, Content),
    nullable("round", Int32, Provenance),
    nullable("principle_id", Text, Provenance),
    nullable("call_key", Id, Provenance),
    nullable("request", Text, Provenance),
    nullable("answer", Text, Provenance),
    nullable("source", Text, Provenance),
    nullable("source_line", Int64, Provenance),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_begins_with_the_common_columns_and_names_none_twice() {
        for relation in Relation::ALL {
            let names: Vec<&str> = relation.columns().iter().map(|column| column.name).collect();
            let unique: std::collections::BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(&names[..5], ["row_id", "content", "root_id", "parents", "call_keys"]);
            assert_eq!(unique.len(), names.len(), "{relation}");
            assert_eq!(relation.schema().fields().len(), names.len());
        }
    }
}
