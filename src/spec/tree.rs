//! A YAML file as a tree in which every value, keys included, keeps its place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::DuplicateKeyPolicy;
use serde_yaml::{Location, Spanned as Located};

use super::mistake::Mistakes;
use super::place::Place;

/// A value with its place, and an identity within its file set.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Unique among the trees that one [`Numbers`] made.
    pub(super) id: u32,
    /// Where it stands.
    pub(super) place: Place,
    /// What it is.
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text {
        text: String,
        /// Whether it holds something out of the environment, and so may stand for a number or a flag.
        resolved: bool,
    },
    List(Vec<Tree>),
    /// Keys and values in the order of the file; keys are unique.
    Map(Vec<(Tree, Tree)>),
    /// A text whose variables could not be found, which is a mistake already.
    Unresolved,
}

impl Tree {
    /// The text of a scalar as it would be written, for keys and messages.
    pub(super) fn scalar(&self) -> Option<String> {
        match &self.kind {
            Kind::Null => Some("null".to_owned()),
            Kind::Bool(value) => Some(value.to_string()),
            Kind::Int(value) => Some(value.to_string()),
            Kind::Float(value) => Some(value.to_string()),
            Kind::Text { text, .. } => Some(text.clone()),
            Kind::List(_) | Kind::Map(_) | Kind::Unresolved => None,
        }
    }

    /// The value under a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Tree> {
        self.entry(key).map(|(_, value)| value)
    }

    /// A key of a map, and the value under it.
    pub(super) fn entry(&self, key: &str) -> Option<(&Tree, &Tree)> {
        let Kind::Map(entries) = &self.kind else { return None };
        entries.iter().find(|(name, _)| name.is_text(key)).map(|(name, value)| (name, value))
    }

    /// Whether it is this text.
    pub(super) fn is_text(&self, wanted: &str) -> bool {
        matches!(&self.kind, Kind::Text { text, .. } if text == wanted)
    }

    /// What it is, in words for a message.
    pub(super) fn described(&self) -> String {
        match &self.kind {
            Kind::Null | Kind::Unresolved => "nothing".to_owned(),
            Kind::Bool(value) => format!("the flag {value}"),
            Kind::Int(value) => format!("the number {value}"),
            Kind::Float(value) => format!("the number {value}"),
            Kind::Text { text, .. } if text.chars().count() > 40 => {
                format!("the text \"{}…\"", text.chars().take(40).collect::<String>())
            }
            Kind::Text { text, .. } => format!("the text \"{text}\""),
            Kind::List(items) => format!("a list of {}", items.len()),
            Kind::Map(_) => "a map".to_owned(),
        }
    }
}

/// Reads YAML text. A mistake of YAML itself gives no tree; a key that comes twice is a mistake and its first value stays.
pub(super) fn parse(
    text: &str,
    file: u32,
    numbers: &mut Numbers,
    mistakes: &mut Mistakes,
) -> Option<Tree> {
    match serde_yaml::from_str_with_options::<Located<Raw>>(text, options()) {
        Ok(raw) => Some(Builder { file, numbers, mistakes }.tree(raw)),
        Err(error) => {
            let place =
                error.location().map_or(Place::NOWHERE, |at| place_of_error(text, file, at));
            let message =
                format!("this is not YAML: {}", first_clause(&error.without_snippet().render()));
            let help = text.contains("${").then(|| {
                "inside { } or [ ], a value that holds `${…}` needs quotes: \"${NAME}\"".to_owned()
            });
            mistakes.add(place, message, help);
            None
        }
    }
}

/// What a text out of the environment stands for, where YAML would not take it for a text: a flag, a
/// number, or null. An empty text stays one.
pub(super) fn typed(text: &str) -> Option<Kind> {
    // What is longer is none of these.
    if text.len() > 64 {
        return None;
    }
    match serde_yaml::from_str_with_options::<Raw>(text, options()).ok()? {
        // A text that is empty or a comment gives null as well.
        Raw::Null if text == "~" || text.eq_ignore_ascii_case("null") => Some(Kind::Null),
        Raw::Bool(value) => Some(Kind::Bool(value)),
        Raw::Int(value) => Some(Kind::Int(value)),
        Raw::Float(value) => Some(Kind::Float(value)),
        Raw::Null | Raw::Text(_) | Raw::List(_) | Raw::Map(_) => None,
    }
}

fn options() -> serde_yaml::Options {
    serde_yaml::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
    }
}

/// The message of a YAML error without its place, which the excerpt shows.
fn first_clause(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message).trim()
}

/// An error's location counts characters only; the byte is found in the text.
fn place_of_error(text: &str, file: u32, at: Location) -> Place {
    let line_start: usize =
        text.split_inclusive('\n').take((at.line() as usize).saturating_sub(1)).map(str::len).sum();
    let line = text[line_start..].lines().next().unwrap_or_default();
    let offset: usize =
        line.chars().take((at.column() as usize).saturating_sub(1)).map(char::len_utf8).sum();
    Place {
        file,
        line: at.line() as u32,
        column: at.column() as u32,
        start: (line_start + offset) as u32,
        len: u32::from(offset < line.len()),
    }
}

/// Gives every tree its identity.
#[derive(Default)]
pub(super) struct Numbers(u32);

impl Numbers {
    /// An identity that no tree has.
    pub(super) fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

struct Builder<'a> {
    file: u32,
    numbers: &'a mut Numbers,
    mistakes: &'a mut Mistakes,
}

impl Builder<'_> {
    fn tree(&mut self, raw: Located<Raw>) -> Tree {
        let place = self.place(raw.defined);
        let kind = match raw.value {
            Raw::Null => Kind::Null,
            Raw::Bool(value) => Kind::Bool(value),
            Raw::Int(value) => Kind::Int(value),
            Raw::Float(value) => Kind::Float(value),
            Raw::Text(text) => Kind::Text { text, resolved: false },
            Raw::List(items) => Kind::List(items.into_iter().map(|item| self.tree(item)).collect()),
            Raw::Map(entries) => Kind::Map(self.map(entries)),
        };
        Tree { id: self.numbers.next(), place, kind }
    }

    fn map(&mut self, entries: Vec<(Located<Raw>, Located<Raw>)>) -> Vec<(Tree, Tree)> {
        let mut unique: Vec<(Tree, Tree)> = Vec::new();
        for (key, value) in entries {
            let (key, value) = (self.tree(key), self.tree(value));
            let name = key.scalar();
            match unique.iter().find(|(first, _)| name.is_some() && first.scalar() == name) {
                Some((first, _)) => self.mistakes.add(
                    key.place,
                    format!("key \"{}\" is here twice", name.unwrap_or_default()),
                    Some(format!("the first is on line {}", first.place.line)),
                ),
                None => unique.push((key, value)),
            }
        }
        unique
    }

    fn place(&self, at: Location) -> Place {
        let span = at.span();
        Place {
            file: self.file,
            line: at.line() as u32,
            column: at.column() as u32,
            start: span.byte_offset().unwrap_or_default() as u32,
            len: span.byte_len().unwrap_or_default() as u32,
        }
    }
}

/// What serde-saphyr hands over, before identities are given.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Located<Raw>>),
    Map(Vec<(Located<Raw>, Located<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
