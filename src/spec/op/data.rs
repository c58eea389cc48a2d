//! Verbs that move rows and call no model: `read`, `split`, `mix`, `filter`.

use std::path::Path;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{OneOrMany, Source};
use crate::record::Relation;
use crate::spec::place::{FilePath, Name, Spanned};

/// `read`: rows from files. `files -> prompts | comparisons | demonstrations`.
///
/// A row that cannot be read (a broken line, an empty turn) becomes a reject that names its file and line.
/// Several files are read in the order of their paths, as one table: keys are unique over all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// A file, relative to this one; a pattern (`data/train-*.parquet`, `**` for folders of any depth); a
    /// folder, of which the files with a known ending are read; or a list of these. Files packed by gzip
    /// or zstd are unpacked. A folder whose `README.md` declares `configs`, as data sets of the Hugging
    /// Face Hub do, is read as it declares.
    pub path: OneOrMany<Spanned<FilePath>>,
    /// Which of the configs that a folder's `README.md` declares. Without it, the only one or the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Name>,
    /// Which of the splits that the config declares, one or a list. Without it, the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<OneOrMany<Name>>,
    /// What the files hold. Without it, by the path's ending: `.jsonl`, `.parquet`, `.csv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// What its rows are: `prompts`, `comparisons` or `demonstrations`.
    #[serde(default)]
    pub relation: Readable,
    /// Whether `prompt` and `completion` of demonstrations are texts that a model reads and writes as they stand, with
    /// every space, instead of conversations in its format. Their messages have the role `text`.
    #[serde(default)]
    pub verbatim: bool,
    /// Columns that identify a row: a row whose key stays keeps its id when its text is edited.
    /// Without it the id is a hash of the whole row.
    #[serde(default)]
    pub key: Vec<Name>,
    /// What the files call our columns: `{ prompt: question, category: topic }`.
    #[serde(default)]
    pub columns: Columns,
    /// Rows read, from the top of the first file. Without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Our column, and what the file calls it.
pub type Columns = IndexMap<Name, Name>;

impl Read {
    /// Raised when the same files would make other rows.
    pub const VERSION: u32 = 1;

    /// What a file of the node holds: as written, or by the ending of its path.
    pub fn format_of(&self, path: &str) -> Option<FileFormat> {
        self.format.or_else(|| FileFormat::of_ending(path))
    }
}

impl FileFormat {
    /// What the ending of a path says that a file holds.
    pub fn of_ending(path: &str) -> Option<FileFormat> {
        let packed = [".gz", ".zst", ".zstd"];
        let path = packed.iter().find_map(|ending| path.strip_suffix(ending)).unwrap_or(path);
        match Path::new(path).extension()?.to_str()? {
            "jsonl" | "ndjson" => Some(FileFormat::Jsonl),
            "parquet" => Some(FileFormat::Parquet),
            "csv" => Some(FileFormat::Csv),
            _ => None,
        }
    }
}

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readable {
    /// Conversations that end on the human side.
    #[default]
    Prompts,
    /// Pairs of answers, labelled by people.
    Comparisons,
    /// Conversations with the answer to learn.
    Demonstrations,
}

impl Readable {
    /// As a relation.
    pub fn relation(self) -> Relation {
        match self {
            Self::Prompts => Relation::Prompts,
            Self::Comparisons => Relation::Comparisons,
            Self::Demonstrations => Relation::Demonstrations,
        }
    }
}

/// What a file of rows holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// One JSON object a line.
    Jsonl,
    /// Parquet.
    Parquet,
    /// Comma-separated, with a header line.
    Csv,
    /// JSON lines of `{"chosen", "rejected"}` transcripts, as published with hh-rlhf.
    /// As prompts, their longest common beginning that ends in `\n\nAssistant:`.
    HhRlhf,
}

/// `split`: parts of a node's rows, used as `node.part`. `relation -> the same`.
///
/// A row's part is a function of the seed and of its root's key, so an edit moves no other row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The node whose rows are split.
    pub from: Name,
    /// Name and share of each part: `{ train: 0.9, test: 0.1 }`. Shares are above 0 and sum to 1.
    pub parts: IndexMap<Name, Spanned<f64>>,
    /// Seed of the assignment, instead of the pipeline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Split {
    /// Raised when the same rows would be assigned otherwise.
    pub const VERSION: u32 = 1;
}

/// `mix`: rows of several nodes together.
///
/// `responses | revisions | demonstrations -> demonstrations`; prompts stay prompts, comparisons stay comparisons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// The sources. Rows that `count` and `share` leave out are counted as dropped.
    pub from: OneOrMany<Source>,
    /// Seed of the choice that `count` and `share` make, instead of the pipeline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Mix {
    /// Raised when the same sources would make other rows.
    pub const VERSION: u32 = 1;
}

/// `filter`: fewer rows. `relation -> the same`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The node whose rows are filtered.
    pub from: Name,
    /// SQL condition over the columns of one row; rows for which it holds stay.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<Name>,
    /// Named faults of a row that drop it.
    #[serde(default)]
    pub drop: Vec<Flaw>,
    /// Keep one row of those that agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<Dedupe>,
    /// Completion tokens above which a row is `too_long`.
    #[serde(default = "max_tokens")]
    pub max_tokens: Spanned<u32>,
    /// What becomes of the rows left out.
    #[serde(default)]
    pub on_drop: OnDrop,
}

fn max_tokens() -> Spanned<u32> {
    Spanned::nowhere(1024)
}

impl Filter {
    /// Raised when the same rows would be left out otherwise.
    pub const VERSION: u32 = 1;
}

/// A fault that drops a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// Nothing but white space.
    Empty,
    /// A revision equal to what it revises, or a pair of equal responses.
    Identical,
    /// More completion tokens than `max_tokens`.
    TooLong,
    /// Text that speaks about the task: "Here is the revised response", "CritiqueRequest:".
    LeakedMeta,
    /// Cut off by `max_tokens` of the node that sampled it.
    NotStopped,
}

/// Which rows count as the same, and which of them stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dedupe {
    /// Columns that must agree.
    pub by: OneOrMany<Name>,
    /// The row that stays.
    #[serde(default)]
    pub keep: KeepRow,
}

/// The row that stays of those that agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeepRow {
    /// The smallest row id.
    #[default]
    First,
    /// The largest row id.
    Last,
}

/// What becomes of rows that a filter leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDrop {
    /// They become rows of `rejects`, with the reason.
    #[default]
    Reject,
    /// They are counted as dropped.
    Drop,
}
