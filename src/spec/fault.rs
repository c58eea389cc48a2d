//! One thing wrong with a value, on its way from where it was found to the message that says it.

use std::fmt::{self, Display};

use serde::de::{self, Unexpected};

use super::mistake::{Mistakes, did_you_mean, nearest};
use super::place::Place;
use super::tree::{Kind, Tree};

/// What is wrong, where, and under which keys.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) what: What,
    /// Identity of the tree that it is about; 0 until it is known.
    pub(super) id: u32,
    /// Identity of the map that a key without a setting is in; else 0.
    pub(super) map: u32,
    place: Place,
    /// Keys from the value outwards.
    path: Vec<String>,
}

/// The kinds of fault, by what must be left out to go on.
#[derive(Debug)]
pub(super) enum What {
    /// A key that no setting has.
    NoSuchField { name: String, settings: &'static [&'static str] },
    /// A setting that is needed and not there.
    Missing(&'static str),
    /// Anything else about a value.
    Wrong { says: Says, help: Option<String> },
}

/// How a message goes on after the name of the value.
#[derive(Debug)]
pub(super) enum Says {
    /// `"n" of node "x" must be …`.
    MustBe(String),
    /// `node "x": …`.
    Sentence(String),
}

impl Fault {
    fn new(what: What) -> Self {
        Self { what, id: 0, map: 0, place: Place::NOWHERE, path: Vec::new() }
    }

    fn sentence(text: String, help: Option<String>) -> Self {
        Self::new(What::Wrong { says: Says::Sentence(text), help })
    }

    /// A value that is not what is wanted: "a number".
    pub(super) fn wrong(wanted: &str, tree: &Tree) -> Self {
        let help = match &tree.kind {
            Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) if wanted == "a text" => {
                Some(format!("put it in quotes: \"{}\"", tree.scalar().unwrap_or_default()))
            }
            Kind::Text { text, .. } if wanted == "a list" => {
                Some(format!("put it in brackets: [\"{text}\"]"))
            }
            _ => None,
        };
        let says = Says::MustBe(format!("{wanted}, not {}", tree.described()));
        Self::new(What::Wrong { says, help }).at(tree)
    }

    /// A word that is none of those there are. `tree` is what will be replaced, `key` what is shown.
    pub(super) fn no_such_variant(
        tree: &Tree,
        key: &Tree,
        variants: &'static [&'static str],
    ) -> Self {
        let word = key.scalar().unwrap_or_default();
        let near = did_you_mean(&word, variants.iter().copied());
        let mut fault = if is_verbs(variants) {
            let help = near.unwrap_or_else(|| format!("the verbs are {}", variants.join(" ")));
            Self::sentence(format!("\"{word}\" is not a verb"), Some(help))
        } else {
            let says = Says::MustBe(format!("{}, not \"{word}\"", Self::choices(variants)));
            Self::new(What::Wrong { says, help: near })
        };
        fault.id = tree.id;
        fault.place = key.place;
        fault
    }

    /// A map where one word with its settings is wanted.
    pub(super) fn not_one_entry(
        tree: &Tree,
        entries: &[(Tree, Tree)],
        variants: &'static [&'static str],
    ) -> Self {
        if !is_verbs(variants) {
            return Self::wrong(&Self::choices(variants), tree);
        }
        let keys: Vec<_> = entries
            .iter()
            .filter_map(|(key, _)| key.scalar())
            .map(|key| format!("\"{key}\""))
            .collect();
        let text = match keys.as_slice() {
            [] => "there is no verb".to_owned(),
            keys => format!("there are {} keys, {}", keys.len(), keys.join(" and ")),
        };
        let mut fault = Self::sentence(
            text,
            Some("a node is one verb with its settings: `verb: { … }`".to_owned()),
        );
        fault.id = tree.id;
        fault.place = entries.get(1).map_or(tree.place, |(key, _)| key.place);
        fault
    }

    /// A word without the settings that it needs.
    pub(super) fn alone(word: &str, tree: &Tree) -> Self {
        let help = format!("write `{word}: {{ … }}`");
        Self::sentence(format!("\"{word}\" needs its settings"), Some(help)).at(tree)
    }

    /// The words of an enum for a message: `"soft" or "hard"`.
    pub(super) fn choices(variants: &[&str]) -> String {
        let quoted: Vec<_> = variants.iter().map(|word| format!("\"{word}\"")).collect();
        match quoted.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => quoted.join(""),
        }
    }

    /// Says which value it is about, unless that is known.
    pub(super) fn at(mut self, tree: &Tree) -> Self {
        if self.id == 0 {
            self.id = tree.id;
            self.place = tree.place;
        }
        self
    }

    /// Says in which map a key stands, unless that is known.
    pub(super) fn in_map(mut self, map: &Tree) -> Self {
        if self.map == 0 {
            self.map = map.id;
        }
        self
    }

    /// The setting that a key without one was meant to be, most likely.
    pub(super) fn meant(&self) -> Option<&'static str> {
        match &self.what {
            What::NoSuchField { name, settings } => nearest(name, settings.iter().copied()),
            _ => None,
        }
    }

    /// Adds the key under which the value stands. A missing setting is shown at the key of the map that lacks it.
    pub(super) fn under(mut self, key: String, entry: Option<(&Tree, &Tree)>) -> Self {
        if let (Some((name, value)), What::Missing(_)) = (entry, &self.what)
            && self.id == value.id
        {
            self.place = name.place;
        }
        self.path.push(key);
        self
    }

    /// Adds the mistake that it is.
    pub(super) fn report(&self, root: &Tree, whole: &str, mistakes: &mut Mistakes) {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        let (owner, inner) = owner(root, whole, &path);
        let (message, help) = match &self.what {
            What::NoSuchField { name, settings } => {
                let near = did_you_mean(name, settings.iter().copied());
                let of = if inner.is_empty() {
                    owner.clone()
                } else {
                    format!("\"{inner}\" of {owner}")
                };
                let help = near.or_else(|| match settings {
                    [] => None,
                    settings => Some(format!("there are {}", settings.join(", "))),
                });
                (format!("\"{name}\" is not a setting of {of}"), help)
            }
            What::Missing(field) => {
                let of = if inner.is_empty() { owner } else { format!("\"{inner}\" of {owner}") };
                (format!("{of} has no \"{field}\""), Some(format!("add `{field}: …`")))
            }
            What::Wrong { says: Says::MustBe(what), help } if inner.is_empty() => {
                (format!("{owner} must be {what}"), help.clone())
            }
            What::Wrong { says: Says::MustBe(what), help } => {
                (format!("\"{inner}\" of {owner} must be {what}"), help.clone())
            }
            What::Wrong { says: Says::Sentence(text), help } => {
                (format!("{owner}: {text}"), help.clone())
            }
        };
        mistakes.add(self.place, message, help);
    }
}

fn is_verbs(variants: &[&str]) -> bool {
    variants.contains(&"ppo-update")
}

/// Who a path belongs to, in words, and the rest of the path: node "drafts", and `stop[0]`.
fn owner(root: &Tree, whole: &str, path: &[&str]) -> (String, String) {
    let (owner, rest) = match path {
        ["nodes", name, rest @ ..] => {
            (format!("node \"{name}\""), rest.get(1..).unwrap_or_default())
        }
        ["models", name, rest @ ..] => (format!("model \"{name}\""), rest),
        ["principles", index, rest @ ..] => (principle(root, index), rest),
        rest => (whole.to_owned(), rest),
    };
    let mut inner = String::new();
    for key in rest {
        if !inner.is_empty() && !key.starts_with('[') {
            inner.push('.');
        }
        inner.push_str(key);
    }
    (owner, inner)
}

/// A principle by its id, where it has one, else by its number.
fn principle(root: &Tree, index: &str) -> String {
    let number: usize = index.trim_matches(['[', ']']).parse().unwrap_or_default();
    let id = match root.get("principles").map(|list| &list.kind) {
        Some(Kind::List(items)) => {
            items.get(number).and_then(|item| item.get("id")).and_then(Tree::scalar)
        }
        _ => None,
    };
    match id {
        Some(id) => format!("principle \"{id}\""),
        None => format!("principle {}", number + 1),
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(text: T) -> Self {
        Self::sentence(text.to_string(), None)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::NoSuchField { name: field.to_owned(), settings: expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(What::Missing(field))
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(What::Wrong { says: Says::MustBe(format!("{wanted}, not {found}")), help: None })
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::invalid_type(found, wanted)
    }
}
