//! Files: those that a pattern matches and those under a folder, in the order of their names.

use std::io;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern, glob_with};

/// Files that a pattern may match and a folder may hold.
const FILES_MAX: usize = 100_000;

/// Names that begin with a dot are not matched, and a `*` matches within one folder.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its path from the folder that the search began at; its whole path if the pattern is one.
    pub inside: String,
}

/// Why files cannot be looked for.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The pattern is none.
    #[error("it is no pattern: {0}")]
    Pattern(String),
    /// A folder cannot be read.
    #[error("the folder \"{}\" cannot be read: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There are too many.
    #[error("there are more than {FILES_MAX} files")]
    Many,
}

/// Whether a path has signs of a pattern: `*`, `?` or `[`.
pub fn is_pattern(written: &str) -> bool {
    written.contains(['*', '?', '['])
}

/// The files that a pattern matches, from a folder on; `**` matches folders of any depth.
pub fn matching(from: &Path, pattern: &str) -> Result<Vec<Found>, FoundError> {
    let folder = from.to_string_lossy();
    let slash = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
    let whole = match Path::new(pattern).is_absolute() {
        true => pattern.to_owned(),
        false => format!("{}{slash}{pattern}", Pattern::escape(&folder)),
    };
    let paths = glob_with(&whole, OPTIONS);
    let paths = paths.map_err(|error| FoundError::Pattern(error.msg.to_owned()))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|error| FoundError::Folder {
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if path.is_dir() {
            continue;
        }
        if found.len() == FILES_MAX {
            return Err(FoundError::Many);
        }
        let inside = match Path::new(pattern).is_absolute() {
            true => &path,
            false => path.strip_prefix(from).unwrap_or(&path),
        };
        let inside = inside.to_string_lossy().into_owned();
        found.push(Found { path, inside });
    }
    found.sort_by(|a, b| a.inside.cmp(&b.inside));
    Ok(found)
}

/// The files in a folder and those in it, but for hidden ones.
pub fn folder(path: &Path) -> Result<Vec<Found>, FoundError> {
    // A folder that cannot be read at all matches nothing, which would be no error.
    let source = std::fs::read_dir(path).err();
    match source {
        Some(source) => Err(FoundError::Folder { path: path.to_owned(), source }),
        None => matching(path, "**/*"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(found: Result<Vec<Found>, FoundError>) -> Vec<String> {
        found.unwrap().into_iter().map(|found| found.inside).collect()
    }

    #[test]
    fn files_are_found_in_the_order_of_their_names() {
        let folder_of_all = tempfile::tempdir().unwrap();
        // What the name of a folder has of signs is no pattern.
        let root = folder_of_all.path().join("a[1]*");
        for name in
            ["b.csv", "a.csv", "a-10.csv", "a-2.csv", ".a.csv", "deep/er/a.csv", ".git/a.csv"]
        {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(names(matching(&root, "a*.csv")), ["a-10.csv", "a-2.csv", "a.csv"]);
        assert_eq!(names(matching(&root, "**/a.csv")), ["a.csv", "deep/er/a.csv"]);
        assert_eq!(names(matching(&root, "[b-z].csv")), ["b.csv"]);
        assert_eq!(names(matching(&root.join("deep"), "../a?2.csv")), ["../a-2.csv"]);
        assert!(names(matching(&root, "no/*")).is_empty());
        let all = ["a-10.csv", "a-2.csv", "a.csv", "b.csv", "deep/er/a.csv"];
        assert_eq!(names(folder(&root)), all);
        assert!(matches!(folder(&root.join("no")), Err(FoundError::Folder { .. })));
        assert!(matches!(matching(&root, "a[.csv"), Err(FoundError::Pattern(_))));
    }
}
