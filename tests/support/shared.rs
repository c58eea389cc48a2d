//! The folder of real data, which is no part of the project.

use std::path::{Path, PathBuf};

/// A file of the folder of real data: where `AMEND_DATA` says, or in a folder `shared/data` beside
/// the checkout or above it. None, said on stderr, where it is not.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn data(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("AMEND_DATA").map(PathBuf::from);
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
    let folders = given.into_iter().chain(above.map(|folder| folder.join("shared/data")));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: there is no {name} in a folder of real data (AMEND_DATA names one)");
    }
    found
}
