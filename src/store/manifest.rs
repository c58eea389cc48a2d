//! The manifest: what a snapshot is made of and what it was made from. Writing it is the commit.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::record::{Id, KeyHasher, Relation};

/// The format of the manifests that this program writes and reads.
pub const FORMAT: u64 = 1;

/// What a snapshot is made of. `manifest.json` is this as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format, [`FORMAT`].
    pub format: u64,
    /// The pipeline's name.
    pub pipeline: String,
    /// The snapshot's number.
    pub number: u64,
    /// The number of the snapshot before it.
    pub parent: Option<u64>,
    /// The hash of the sorted (node, table digest): equal for equal tables.
    #[serde(with = "hex")]
    pub digest: Id,
    /// Microseconds since 1970 when it was committed.
    pub created_at_us: i64,
    /// Per node, in plan order, what it made. Rejects are those of the node `rejects`.
    pub nodes: IndexMap<String, NodeEntry>,
    /// What the run was given.
    pub inputs: Inputs,
    /// Calls that the run made. Manifests of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
}

/// What one node made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// What is known of the node without its table.
    pub node: NodeAbout,
    /// Its table.
    pub table: TableEntry,
}

/// What is known of a node without its table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeAbout {
    /// The verb.
    pub op: String,
    /// The hash of what decides its rows but for its inputs; for a training its recipe.
    #[serde(with = "hex")]
    pub fingerprint: Id,
    /// The nodes it reads.
    pub inputs: Vec<String>,
    /// Rows that became rejects here.
    pub rejects: u64,
    /// Rows that a filter or mix left out here.
    pub dropped: u64,
    /// The model it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointRef>,
    /// In what the node is not a function of the pipeline alone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub marks: BTreeSet<Mark>,
}

/// A node's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableEntry {
    /// What its rows are.
    #[serde(with = "relation")]
    pub relation: Relation,
    /// The hash of the sorted (row id, version) of its rows.
    #[serde(with = "hex")]
    pub digest: Id,
    /// How many rows it has.
    pub rows: u64,
    /// Its files, in the order of their rows.
    pub parts: Vec<Part>,
}

/// A model that a node made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// The weights id: the name of its directory in `checkpoints/`.
    #[serde(with = "hex")]
    pub weights: Id,
    /// The recipe it was trained by: the call key of the training, 64 hex digits.
    pub recipe: String,
    /// Whether its recipe is no longer the node's, because it was held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// In what a node is not a function of the pipeline alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It keeps a checkpoint that its data no longer gives.
    Held,
    /// It reads what a node made that kept an earlier model.
    Stale,
    /// Its model went on from its last checkpoint, not from its `init`.
    WarmStart,
    /// It reads what a node made whose model went on from its last checkpoint.
    OfHistory,
    /// It keeps a checkpoint because fewer of its rows changed than `min_changed`.
    MinChanged,
    /// Its model or trainer may answer otherwise when asked again.
    NonDeterministic,
}

impl Mark {
    /// Its word in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Mark::Held => "held",
            Mark::Stale => "stale",
            Mark::WarmStart => "warm_start",
            Mark::OfHistory => "of_history",
            Mark::MinChanged => "min_changed",
            Mark::NonDeterministic => "non_deterministic",
        }
    }
}

/// A file of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in `tables/<node>/`; the ids' is the same in `ids/<node>/` but for the extension.
    pub file: String,
    /// The blake3 of its bytes, 64 hex digits.
    pub blake3: String,
    /// The blake3 of the bytes of its ids.
    pub ids_blake3: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// The hash of the (row id, version) of its rows: equal digests are equal files.
    #[serde(with = "hex")]
    pub digest: Id,
}

/// What a run was given: enough to see that nothing changed, and to read how it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The pipeline and constitution files as they were.
    pub files: Vec<TextFile>,
    /// The resolved variables that are not secret.
    pub variables: BTreeMap<String, String>,
    /// The `--set` flags.
    pub set: Vec<String>,
    /// The files that `read` nodes read.
    pub sources: Vec<SourceFile>,
}

/// A file that was read as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextFile {
    /// Where it was.
    pub path: String,
    /// What it said.
    pub text: String,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Where it was.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was changed last, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// The blake3 of its bytes, 64 hex digits.
    pub blake3: String,
    /// What tells, with size and time, that it did not change, so that it need not be read to see. None
    /// where it had changed so shortly before it was read that this could not tell, and in manifests of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
}

/// What changes with every change of a file, and cannot be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// When the inode changed last, nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Its number.
    pub inode: u64,
}

impl Manifest {
    /// The digest that the nodes' digests make: no number, parent or time is in it.
    pub fn digest_of(nodes: &IndexMap<String, NodeEntry>) -> Id {
        let sorted: BTreeMap<&String, Id> =
            nodes.iter().map(|(name, node)| (name, node.table.digest)).collect();
        let mut hasher = KeyHasher::new("amend/snapshot/1");
        for (name, digest) in sorted {
            hasher.add_text(name);
            hasher.add_id(digest);
        }
        hasher.id()
    }

    /// Whether a snapshot of this would say nothing new: every table, model and mark is equal. What
    /// the run was given may be another, in what nobody sees in a table, such as a comment or a price.
    pub fn says_the_same(&self, other: &Manifest) -> bool {
        self.digest == other.digest && self.nodes == other.nodes
    }
}

/// How the text of a manifest ends: with the blake3 of what stands before this.
const CHECKSUM: &str = ",\n  \"checksum\": \"";
/// What follows the checksum.
const END: &str = "\"\n}";

impl Manifest {
    /// The text of `manifest.json`, which ends with its checksum.
    pub(super) fn text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a manifest has keys of text");
        let head = text.strip_suffix("\n}").expect("an object ends with a brace");
        format!("{head}{CHECKSUM}{}{END}", blake3::hash(head.as_bytes()).to_hex())
    }

    /// Whether the checksum of a text holds; nothing where there is none, as in earlier versions.
    pub(super) fn is_whole(text: &str) -> Option<bool> {
        let (head, checksum) = text.strip_suffix(END)?.rsplit_once(CHECKSUM)?;
        Some(checksum == blake3::hash(head.as_bytes()).to_hex().as_str())
    }
}

impl Part {
    /// Whether another part has the same rows, and so the same bytes.
    pub fn is_same(&self, other: &Part) -> bool {
        (self.digest, self.rows) == (other.digest, other.rows)
    }
}

/// An id as 32 hex digits.
mod hex {
    use crate::record::Id;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &Id, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A relation by its name.
mod relation {
    use crate::record::Relation;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(
        relation: &Relation,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(relation.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Relation, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Relation::ALL.into_iter().find(|relation| relation.name() == name);
        found.ok_or_else(|| D::Error::custom(format!("{name:?} is not a relation")))
    }
}
