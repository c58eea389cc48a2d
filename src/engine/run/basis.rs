//! The basis of a plan: the files, variables and flags that it was made of, and the snapshot that it
//! began at, so that a run can refuse to follow a plan that no longer holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::publish::inputs;
use super::{Options, RunError};
use crate::plan::Plan;
use crate::record::KeyHasher;
use crate::store::manifest::SourceFile;
use crate::store::{Manifest, Snapshot, Snapshots};

/// Names that an error lists before it says how many more there are.
const NAMED_MAX: usize = 4;

/// What a plan was made of. Values are hashes: a plan is a file that is handed around.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// The hash of each file that was read (pipeline, constitution, rows, checkpoints), by its path
    /// from the pipeline's folder.
    pub files: BTreeMap<String, String>,
    /// The hash of each variable that the pipeline names, but for the secret ones, and of the
    /// program's version.
    pub variables: BTreeMap<String, String>,
    /// The flags that decide what is run: `--set`, `--hold`, `--until`, `--retry-rejects`.
    pub flags: Vec<String>,
    /// The number of the snapshot before; null where there was none.
    pub snapshot: Option<u64>,
    /// The digest of that snapshot.
    pub digest: Option<String>,
}

impl Basis {
    /// The basis of what is planned now, of the files that were read for it.
    pub(super) fn of(
        plan: &Plan,
        options: &Options,
        sources: Vec<SourceFile>,
        before: Option<&Manifest>,
    ) -> Basis {
        let folder = plan.loaded.pipeline_file().path.parent().unwrap_or(Path::new(""));
        let named = |path: &str| {
            let inside = Path::new(path).strip_prefix(folder);
            inside.map_or_else(|_| path.to_owned(), |path| path.display().to_string())
        };
        let given = inputs(plan, options, sources);
        let mut flags: Vec<String> =
            plan.loaded.sets.iter().map(|set| format!("--set {set}")).collect();
        let mut holds: Vec<String> =
            options.hold.iter().map(|node| format!("--hold {node}")).collect();
        holds.sort();
        flags.append(&mut holds);
        flags.extend(options.until.iter().map(|node| format!("--until {node}")));
        flags.extend(options.retry_rejects.then(|| "--retry-rejects".to_owned()));
        let texts = given.files.iter().map(|file| (named(&file.path), hash(&file.text)));
        let rows = given.sources.iter().map(|file| (named(&file.path), hash(&file.blake3)));
        Basis {
            files: texts.chain(rows).collect(),
            variables: given.variables.iter().map(|(name, of)| (name.clone(), hash(of))).collect(),
            flags,
            snapshot: before.map(|before| before.number),
            digest: before.map(|before| before.digest.to_string()),
        }
    }

    /// What moved from an earlier basis to this one, in words.
    fn moved(&self, from: &Basis, snapshots: &Snapshots) -> Vec<String> {
        let mut moved = Vec::new();
        moved.extend(differ(&from.files, &self.files, "the file"));
        moved.extend(differ(&from.variables, &self.variables, "the variable"));
        if from.flags != self.flags {
            let said = |flags: &[String]| match flags {
                [] => "none".to_owned(),
                flags => format!("`{}`", flags.join(" ")),
            };
            moved.push(format!(
                "its flags were {} and are {}",
                said(&from.flags),
                said(&self.flags)
            ));
        }
        if (from.snapshot, &from.digest) != (self.snapshot, &self.digest) {
            moved.push(republished(from.snapshot, self.snapshot, snapshots));
        }
        moved
    }
}

/// Refuses a run whose plan was made of something else.
pub(super) fn check(
    plan: &Plan,
    options: &Options,
    sources: Vec<SourceFile>,
    before: Option<&Snapshot>,
    snapshots: &Snapshots,
) -> Result<(), RunError> {
    let Some(planned) = &options.planned else { return Ok(()) };
    let now = Basis::of(plan, options, sources, before.map(Snapshot::manifest));
    match now.moved(planned, snapshots) {
        moved if moved.is_empty() => Ok(()),
        moved => Err(RunError::Moved(moved.join("; "))),
    }
}

fn hash(text: &str) -> String {
    KeyHasher::new("amend/basis/1").text(text).id().to_string()
}

/// Which of two sets of named values differ, each kind of change in one sentence.
fn differ(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    what: &str,
) -> Vec<String> {
    let is_other =
        |(name, hash): &(&String, &String)| before.get(*name).is_some_and(|b| b != *hash);
    let changed = after.iter().filter(is_other).map(|(name, _)| name);
    let new = after.keys().filter(|name| !before.contains_key(*name));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let said = [
        (changed.collect::<Vec<_>>(), ["changed", "changed"]),
        (new.collect(), ["is new", "are new"]),
        (gone.collect(), ["is no longer read", "are no longer read"]),
    ];
    let said = said.into_iter().filter(|(names, _)| !names.is_empty());
    let one_or_many = |(names, [one, many]): (Vec<&String>, [&str; 2])| match names.len() {
        1 => format!("{what} {} {one}", list(&names)),
        _ => format!("{what}s {} {many}", list(&names)),
    };
    said.map(one_or_many).collect()
}

/// Names in quotes, not more than a person reads.
fn list(names: &[&String]) -> String {
    let mut shown: Vec<String> =
        names.iter().take(NAMED_MAX).map(|name| format!("\"{name}\"")).collect();
    if names.len() > NAMED_MAX {
        shown.push(format!("{} more", names.len() - NAMED_MAX));
    }
    shown.join(", ")
}

/// How the last snapshot is another, and which nodes' rows are.
fn republished(from: Option<u64>, to: Option<u64>, snapshots: &Snapshots) -> String {
    let number =
        |number: Option<u64>| number.map_or("none".to_owned(), |number| number.to_string());
    let mut said = format!("the last snapshot was {} and is {}", number(from), number(to));
    let open = |number: Option<u64>| snapshots.at(number?).ok();
    if let (true, Some(from), Some(to)) = (from != to, open(from), open(to)) {
        let (from, to) = (&from.manifest().nodes, &to.manifest().nodes);
        let digest = |name: &String| from.get(name).map(|entry| entry.table.digest);
        let is_other = |(name, digest_now): &(&String, _)| digest(name) != Some(*digest_now);
        let now = to.iter().map(|(name, entry)| (name, entry.table.digest));
        let others: Vec<&String> = now.filter(is_other).map(|(name, _)| name).collect();
        if !others.is_empty() {
            let _ = write!(said, ", with other rows of {}", list(&others));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn basis(files: &[(&str, &str)]) -> Basis {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), hash(text)));
        Basis { files: files.collect(), ..Basis::default() }
    }

    #[test]
    fn what_moved_is_named() {
        let dir = tempfile::TempDir::new().unwrap();
        let snapshots = Store::new(dir.path()).snapshots("cai");
        let planned = basis(&[("p.yaml", "a"), ("old.jsonl", "x")]);
        let mut now = basis(&[("p.yaml", "b"), ("new.jsonl", "x")]);
        now.flags = vec!["--hold sl".to_owned()];
        now.variables.insert("AMEND_MODEL".to_owned(), hash("m"));
        (now.snapshot, now.digest) = (Some(3), Some("ab".to_owned()));
        assert!(planned.moved(&planned, &snapshots).is_empty());
        insta::assert_snapshot!(now.moved(&planned, &snapshots).join("\n"), @r#"
        the file "p.yaml" changed
        the file "new.jsonl" is new
        the file "old.jsonl" is no longer read
        the variable "AMEND_MODEL" is new
        its flags were none and are `--hold sl`
        the last snapshot was none and is 3
        "#);
        let many: Vec<(String, &str)> = (0..9).map(|n| (format!("{n}.jsonl"), "x")).collect();
        let many: Vec<(&str, &str)> =
            many.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let said = basis(&many).moved(&Basis::default(), &snapshots);
        assert_eq!(
            said,
            [r#"the files "0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl", 5 more are new"#]
        );
    }
}
