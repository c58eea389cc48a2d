//! Where a value stands in the files: [`Place`], and [`Spanned`], a value with its place.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A stretch of one source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index into [`Loaded::files`](super::Loaded::files).
    pub file: u32,
    /// Line, from 1; 0 is nowhere.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// First byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Place {
    /// The place of what no file says, such as a default.
    pub const NOWHERE: Self = Self { file: 0, line: 0, column: 0, start: 0, len: 0 };

    /// Whether a file says it at all.
    pub fn is_somewhere(self) -> bool {
        self.line > 0
    }
}

/// The name under which the decoder recognises a [`Spanned`].
pub(super) const SPANNED: &str = "$spanned";
/// Its fields: the place as five numbers, then the value.
pub(super) const SPANNED_FIELDS: &[&str] = &["$place", "$value"];

/// A value and the place in the file that says it.
///
/// Equality, order and hash are those of the value: two files that say the same are equal.
#[derive(Clone, Copy, Default)]
pub struct Spanned<T> {
    /// What is said.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// A name that refers to a node or to an entry of `models`, with its place.
pub type Name = Spanned<String>;

impl<T> Spanned<T> {
    /// A value that no file says: a default, or one made by a test.
    pub fn nowhere(value: T) -> Self {
        Self { value, place: Place::NOWHERE }
    }

    /// Another value at the same place.
    pub fn with<U>(&self, value: U) -> Spanned<U> {
        Spanned { value, place: self.place }
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::nowhere(text.to_owned())
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl Borrow<str> for Spanned<String> {
    fn borrow(&self) -> &str {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

impl<T: PartialOrd> PartialOrd for Spanned<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl<T: Ord> Ord for Spanned<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.value.cmp(&other.value)
    }
}

impl<T: Hash> Hash for Spanned<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

impl<T: Serialize> Serialize for Spanned<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    /// Only the decoder of this layer knows places; nothing else reads these types.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "$spanned")]
        struct Pair<T> {
            #[serde(rename = "$place")]
            place: [u32; 5],
            #[serde(rename = "$value")]
            value: T,
        }
        let Pair { place: [file, line, column, start, len], value } =
            Pair::deserialize(deserializer)?;
        Ok(Self { value, place: Place { file, line, column, start, len } })
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A path; relative ones are relative to the file that names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "String")]
#[schemars(with = "String")]
pub struct FilePath {
    /// As the file says it.
    pub written: String,
    /// Joined to the folder of the file that says it.
    pub path: PathBuf,
}

impl FilePath {
    /// Joins what is written to `folder`.
    pub(super) fn resolve(&mut self, folder: &Path) {
        self.path = folder.join(&self.written);
    }
}

impl From<String> for FilePath {
    fn from(written: String) -> Self {
        Self { path: PathBuf::from(&written), written }
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written.serialize(serializer)
    }
}
