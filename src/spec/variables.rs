//! `${NAME}` and `${NAME:-default}` in the texts of a pipeline file, out of the environment.

use std::collections::{BTreeMap, BTreeSet};

use super::mistake::Mistakes;
use super::place::Place;
use super::secrets;
use super::tree::{Kind, Tree};

/// Where values of variables come from.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables that a pipeline file names, and what they gave.
#[derive(Debug, Default)]
pub(super) struct Variables {
    values: BTreeMap<String, String>,
    secret: BTreeSet<String>,
}

impl Variables {
    /// Names and values of all but the secret ones.
    pub(super) fn public(mut self) -> BTreeMap<String, String> {
        self.values.retain(|name, _| !self.secret.contains(name));
        self.values
    }
}

/// Puts values into every text of the tree. `$${` stands for `${` itself.
pub(super) fn resolve(
    tree: &mut Tree,
    environment: Environment<'_>,
    mistakes: &mut Mistakes,
) -> Variables {
    let mut variables = Variables::default();
    Resolver { environment, variables: &mut variables, mistakes }.tree(tree, false);
    variables
}

struct Resolver<'a> {
    environment: Environment<'a>,
    variables: &'a mut Variables,
    mistakes: &'a mut Mistakes,
}

impl Resolver<'_> {
    fn tree(&mut self, tree: &mut Tree, secret: bool) {
        match &mut tree.kind {
            Kind::Text { text, .. } if secret && (!text.contains("${") || text.contains(":-")) => {
                self.mistakes.mask(tree.place);
                self.text_of(tree, secret);
            }
            Kind::Text { .. } => self.text_of(tree, secret),
            Kind::List(items) => items.iter_mut().for_each(|item| self.tree(item, secret)),
            Kind::Map(entries) => {
                for (key, value) in entries {
                    let secret = secret || key.is_text("api_key");
                    if key.is_text("endpoint") {
                        self.url(value);
                    } else {
                        self.tree(value, secret);
                    }
                }
            }
            _ => {}
        }
    }

    /// The address of an endpoint: a key in it is as secret as one in `api_key`.
    fn url(&mut self, tree: &mut Tree) {
        let written = match &tree.kind {
            Kind::Text { text, .. } => text.clone(),
            _ => return self.tree(tree, false),
        };
        self.tree(tree, false);
        let Kind::Text { text: url, .. } = &tree.kind else { return };
        let secrets = secrets::of_url(url);
        // What is written there, rather than taken from the environment, is masked in every copy.
        if secrets.iter().any(|secret| written.contains(secret)) {
            self.mistakes.mask(tree.place);
        }
        for secret in secrets {
            self.mistakes.hide(secret);
            let gives = |(name, value): &(&String, &String)| {
                let is_named = written.contains(&format!("${{{name}}}"))
                    || written.contains(&format!("${{{name}:-"));
                is_named && (value.contains(secret) || (value.len() > 3 && secret.contains(*value)))
            };
            let given = self.variables.values.iter().filter(gives);
            let names: Vec<String> = given.map(|(name, _)| name.clone()).collect();
            self.variables.secret.extend(names);
        }
    }

    fn text_of(&mut self, tree: &mut Tree, secret: bool) {
        match &mut tree.kind {
            Kind::Text { text, resolved } if text.contains("${") => {
                if let Some(value) = self.text(text, tree.place, secret) {
                    *text = value;
                    *resolved = true;
                } else {
                    tree.kind = Kind::Unresolved;
                }
            }
            _ => {}
        }
        if let (true, Kind::Text { text, .. }) = (secret, &tree.kind) {
            self.mistakes.hide(text);
        }
    }

    /// The text with its variables replaced; `None` after a mistake.
    fn text(&mut self, text: &str, place: Place, secret: bool) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                out.push_str(&rest[..at - 1]);
                out.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                self.mistakes.push(
                    place,
                    "a \"${\" is not closed",
                    "write `${NAME}`, or `$${` for the characters themselves",
                );
                return None;
            };
            out.push_str(&self.variable(&rest[at + 2..at + end], place, secret)?);
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        Some(out)
    }

    fn variable(&mut self, inside: &str, place: Place, secret: bool) -> Option<String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            let help = "a variable is `${NAME}` or `${NAME:-default}`; write `$${` for the characters themselves";
            self.mistakes.push(place, format!("\"{name}\" is not the name of a variable"), help);
            return None;
        }
        let found = (self.environment)(name).filter(|value| !value.is_empty() || default.is_none());
        let Some(value) = found.or_else(|| default.map(str::to_owned)) else {
            let help = format!("set it, or give a default: `${{{name}:-…}}`");
            self.mistakes.push(place, format!("the environment has no \"{name}\""), help);
            return None;
        };
        if secret {
            self.variables.secret.insert(name.to_owned());
        }
        self.variables.values.insert(name.to_owned(), value.clone());
        Some(value)
    }
}
