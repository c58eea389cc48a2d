//! The files and the store that a command is about.

use std::path::{Path, PathBuf};

use super::args::{Common, Which};
use super::failure::Usage;
use super::predicates::SqlPredicates;
use crate::engine::run::check;
use crate::plan::{self, Plan};
use crate::query::{Pipelines, Reader};
use crate::spec::Mistakes;
use crate::store::Store;

/// The name of a store's directory.
const STORE: &str = ".amend";

/// Loads a pipeline file and plans it.
pub(super) fn plan(file: &Path, common: &Common) -> Result<Plan, Mistakes> {
    plan::load(file, &common.sets, &|name| std::env::var(name).ok())
}

/// As [`plan`], and looks at what the files name as well: rows, checkpoints, conditions; with `needed`
/// at what that node needs.
pub(super) fn checked(
    file: &Path,
    common: &Common,
    needed: Option<&str>,
) -> Result<Plan, Mistakes> {
    let (plan, mut mistakes, absent) = looked_at(file, common, needed);
    mistakes.append(&absent);
    match plan {
        Some(plan) => mistakes.into_result(plan),
        None => Err(mistakes),
    }
}

/// What can be planned of a pipeline file, what is wrong with it and what it names, and what it names
/// that is not there.
pub(super) fn looked_at(
    file: &Path,
    common: &Common,
    needed: Option<&str>,
) -> (Option<Plan>, Mistakes, Mistakes) {
    let environment = |name: &str| std::env::var(name).ok();
    let (plan, mut mistakes) = plan::load_partly(file, &common.sets, &environment);
    let absent = plan.as_ref().map(|plan| check(plan, needed, &SqlPredicates, &mut mistakes));
    (plan, mistakes, absent.unwrap_or_default())
}

/// The store of a pipeline file: as flagged, or beside the file.
pub(super) fn store_of(file: &Path, common: &Common) -> PathBuf {
    common.store.clone().unwrap_or_else(|| file.parent().unwrap_or(Path::new("")).join(STORE))
}

/// The file that the pipeline is named by, if it is named by one.
fn file_of(which: &Which) -> Option<&Path> {
    let is_file = |name: &&str| {
        name.contains(['/', '\\']) || [".yaml", ".yml"].iter().any(|end| name.ends_with(end))
    };
    which.pipeline.as_deref().filter(is_file).map(Path::new)
}

/// The store that a command reads.
pub(super) fn store(which: &Which, common: &Common) -> anyhow::Result<PathBuf> {
    match (file_of(which), &common.store) {
        (_, Some(store)) => Ok(store.clone()),
        (Some(file), None) => Ok(store_of(file, common)),
        (None, None) => find_store(),
    }
}

/// The pipeline of a store that a command reads.
pub(super) fn reader(which: &Which, common: &Common) -> anyhow::Result<Reader> {
    let (named, file) = (which.pipeline.as_deref(), file_of(which));
    let dir = store(which, common)?;
    let pipelines = Pipelines::of(&Store::new(&dir))?;
    let name = match file {
        Some(file) => plan(file, common)?.pipeline().name.value.clone(),
        None => match (named, pipelines.names()) {
            (Some(name), _) => name.to_owned(),
            (None, [name]) => name.clone(),
            (None, []) => {
                let message = format!("the store \"{}\" holds no snapshot", dir.display());
                return Err(Usage::new(message)
                    .help("name another with --store, or run a pipeline")
                    .into());
            }
            (None, names) => {
                let message = format!("the store \"{}\" holds {}", dir.display(), names.join(", "));
                return Err(Usage::new(message).help("name one of them with --pipeline").into());
            }
        },
    };
    Ok(pipelines.reader(&name)?)
}

/// The store of this folder, of its `pipelines/`, or of a folder above.
fn find_store() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let above =
        here.ancestors().flat_map(|dir| [dir.join(STORE), dir.join("pipelines").join(STORE)]);
    let found = above.into_iter().find(|dir| dir.is_dir());
    let missing = || {
        let message =
            format!("there is no store \"{STORE}\" in \"{}\" or above it", here.display());
        Usage::new(message).help("name it with --store, or the pipeline file with --pipeline")
    };
    Ok(found.ok_or_else(missing)?)
}
