//! Principles: the texts of those drawn for a row, as requests and columns hold them.

use std::borrow::Cow;

use minijinja::{Value, context};

use crate::record::{Id, KeyHasher};

use super::Drawn;

/// The principles drawn for one request. Several are asked together, a line each.
pub(super) struct Principles<'a> {
    drawn: &'a [Drawn],
}

impl<'a> Principles<'a> {
    /// # Panics
    ///
    /// When none was drawn: the engine rejects such a row before, with the reason `no_principle`.
    pub(super) fn of(drawn: &'a [Drawn]) -> Principles<'a> {
        assert!(!drawn.is_empty(), "a row that is asked about has a principle");
        Principles { drawn }
    }

    fn text(&self, separator: &str, text: impl Fn(&'a Drawn) -> Option<&'a str>) -> Cow<'a, str> {
        let text = |drawn| text(drawn).expect("a drawn principle has the texts that are asked for");
        match self.drawn {
            [one] => Cow::Borrowed(text(one)),
            all => Cow::Owned(all.iter().map(text).collect::<Vec<_>>().join(separator)),
        }
    }

    pub(super) fn critique(&self) -> Cow<'a, str> {
        self.text("\n", |drawn| drawn.critique.as_deref())
    }

    pub(super) fn revise(&self) -> Cow<'a, str> {
        self.text("\n", |drawn| drawn.revise.as_deref())
    }

    /// The ids, joined by `+`.
    pub(super) fn id(&self) -> Cow<'a, str> {
        self.text("+", |drawn| Some(&drawn.id))
    }

    pub(super) fn hash(&self) -> Id {
        match self.drawn {
            [one] => one.hash,
            all => {
                let hasher = KeyHasher::new("amend/principles/1");
                all.iter().fold(hasher, |hasher, drawn| hasher.with(drawn.hash)).id()
            }
        }
    }

    /// As a template sees them. A text that a principle lacks is undefined there.
    pub(super) fn value(&self) -> Value {
        let texts = |text: fn(&Drawn) -> Option<&str>| {
            let texts: Option<Vec<&str>> = self.drawn.iter().map(text).collect();
            texts.map_or(Value::UNDEFINED, |texts| Value::from(texts.join("\n")))
        };
        context! {
            id => self.id(),
            critique => texts(|drawn| drawn.critique.as_deref()),
            revise => texts(|drawn| drawn.revise.as_deref()),
            judge => texts(|drawn| drawn.judge.as_deref()),
        }
    }
}
