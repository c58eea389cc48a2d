//! `--set nodes.sl.train-sl.epochs=2`: a value put into the tree before it is read, so that mistakes name the flag.

use std::path::PathBuf;

use super::mistake::{Mistakes, SourceFile, did_you_mean};
use super::place::Place;
use super::tree::{Kind, Numbers, Tree, parse};

/// Applies one `--set`: `path=value`, keys separated by dots, items of lists by their number from 0, the value as YAML.
pub(super) fn apply(tree: &mut Tree, set: &str, numbers: &mut Numbers, mistakes: &mut Mistakes) {
    let file = mistakes.file(SourceFile { path: PathBuf::from("--set"), text: set.to_owned() });
    let whole = Place { file, line: 1, column: 1, start: 0, len: set.len() as u32 };
    let Some((path, value)) = set.split_once('=') else {
        let help = "write `--set nodes.sl.train-sl.epochs=2`";
        mistakes.push(whole, "a `--set` is a path, `=` and a value", help);
        return;
    };
    if let Some((place, message, help)) = names_nothing(tree, path, whole) {
        mistakes.add(place, message, help);
        return;
    }
    let Some(mut value_tree) = parse(value, file, numbers, mistakes) else { return };
    shift(&mut value_tree, path.len() + 1);

    let mut at = Step { tree, place: whole, numbers, mistakes };
    let mut start = 0;
    for key in path.split('.') {
        let place =
            Place { column: 1 + start as u32, start: start as u32, len: key.len() as u32, ..whole };
        match at.down(key, place) {
            Some(next) => at = next,
            None => return,
        }
        start += key.len() + 1;
    }
    *at.tree = value_tree;
}

struct Step<'a> {
    tree: &'a mut Tree,
    place: Place,
    numbers: &'a mut Numbers,
    mistakes: &'a mut Mistakes,
}

impl Step<'_> {
    /// The value under a key. A map that lacks it gets it, so that a flag can say what the file leaves to a default.
    fn down(self, key: &str, place: Place) -> Option<Self> {
        let Self { tree, place: above, numbers, mistakes } = self;
        if matches!(tree.kind, Kind::Null) {
            tree.kind = Kind::Map(Vec::new());
        }
        let described = tree.described();
        match &mut tree.kind {
            Kind::Map(entries) => {
                let index =
                    entries.iter().position(|(name, _)| name.is_text(key)).unwrap_or_else(|| {
                        let text = Kind::Text { text: key.to_owned(), resolved: false };
                        let name = Tree { id: numbers.next(), place, kind: text };
                        entries.push((name, Tree { id: numbers.next(), place, kind: Kind::Null }));
                        entries.len() - 1
                    });
                Some(Self { tree: &mut entries[index].1, place, numbers, mistakes })
            }
            Kind::List(items) => {
                let len = items.len();
                let item = key.parse().ok().and_then(|index: usize| items.get_mut(index));
                let Some(tree) = item else {
                    let message = format!("\"{key}\" is not an item of a list of {len}");
                    mistakes.push(place, message, "items are numbered from 0");
                    return None;
                };
                Some(Self { tree, place, numbers, mistakes })
            }
            _ => {
                let message = format!("there is nothing inside {described}");
                mistakes.push(above, message, "a path of `--set` goes through maps and lists");
                None
            }
        }
    }
}

/// What to say when a path names a node or a model that the file does not have: almost surely a slip.
fn names_nothing(tree: &Tree, path: &str, whole: Place) -> Option<(Place, String, Option<String>)> {
    let mut keys = path.split('.');
    let (Some(section @ ("nodes" | "models")), Some(name), Some(_)) =
        (keys.next(), keys.next(), keys.next())
    else {
        return None;
    };
    let Some(Kind::Map(entries)) = tree.get(section).map(|map| &map.kind) else { return None };
    if entries.iter().any(|(key, _)| key.is_text(name)) {
        return None;
    }
    let names: Vec<_> = entries.iter().filter_map(|(key, _)| key.scalar()).collect();
    let start = section.len() as u32 + 1;
    let place = Place { column: start + 1, start, len: name.len() as u32, ..whole };
    let message = format!("the pipeline has no {} \"{name}\"", section.trim_end_matches('s'));
    Some((place, message, did_you_mean(name, names.iter().map(String::as_str))))
}

/// Moves the places of a value, which was parsed alone, behind the `=`.
fn shift(tree: &mut Tree, by: usize) {
    tree.place.start += by as u32;
    if tree.place.line == 1 {
        tree.place.column += by as u32;
    }
    match &mut tree.kind {
        Kind::List(items) => items.iter_mut().for_each(|item| shift(item, by)),
        Kind::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            shift(key, by);
            shift(value, by);
        }),
        _ => {}
    }
}
