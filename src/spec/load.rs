//! From the paths of files to what they say, or to all their mistakes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::constitution::Constitution;
use super::decode::{Holes, decode};
use super::mistake::{Mistakes, SourceFile};
use super::op::Op;
use super::pipeline::Pipeline;
use super::place::{FilePath, Name, Place, Spanned};
use super::tree::{Numbers, Tree, parse};
use super::variables::{self, Environment};
use super::{checks, names, overrides};
use crate::record::read::open;

/// A pipeline with its constitution, read and checked as far as the files alone allow.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The pipeline. Its relative paths are resolved.
    pub pipeline: Pipeline,
    /// The constitution that it names.
    pub constitution: Option<Constitution>,
    /// The files that places refer to: the pipeline, then each `--set`, then the constitution.
    /// A key that stands in one is masked by stars.
    pub files: Vec<SourceFile>,
    /// The variables that the pipeline took from the environment or from their defaults, without secret ones.
    pub variables: BTreeMap<String, String>,
    /// The `--set` flags, as given, keys masked.
    pub sets: Vec<String>,
    /// Nodes and models left out of `pipeline` because they could not be read. Empty without mistakes.
    pub broken: BTreeSet<String>,
}

impl Loaded {
    /// The pipeline file.
    pub fn pipeline_file(&self) -> &SourceFile {
        &self.files[0]
    }

    /// The constitution file.
    pub fn constitution_file(&self) -> Option<&SourceFile> {
        self.constitution.as_ref().and_then(|_| self.files.get(1 + self.sets.len()))
    }
}

/// Reads a pipeline and its constitution, or says everything that is wrong with them.
///
/// `sets` are the values of `--set`; `environment` gives the values of `${NAME}`.
pub fn load(
    path: &Path,
    sets: &[String],
    environment: Environment<'_>,
) -> Result<Loaded, Mistakes> {
    match load_partly(path, sets, environment) {
        (Some(loaded), mistakes) => mistakes.into_result(loaded),
        (None, mistakes) => Err(mistakes),
    }
}

/// As [`load`], but gives what could be read beside the mistakes, so that a later layer can add its own to them.
///
/// `None` only with mistakes.
pub fn load_partly(
    path: &Path,
    sets: &[String],
    environment: Environment<'_>,
) -> (Option<Loaded>, Mistakes) {
    let mut mistakes = Mistakes::default();
    let loaded = read_all(path, sets, environment, &mut mistakes);
    let files = mistakes.files().to_vec();
    // A key given by a flag is masked in the flag's file, and so in what is kept of the flag.
    let given = files.iter().skip(1).take(sets.len()).map(|file| file.text.clone()).collect();
    let loaded = loaded.map(|loaded| Loaded { files, sets: given, ..loaded });
    assert!(loaded.is_some() || !mistakes.is_empty(), "what could not be read is a mistake");
    (loaded, mistakes)
}

fn read_all(
    path: &Path,
    sets: &[String],
    environment: Environment<'_>,
    mistakes: &mut Mistakes,
) -> Option<Loaded> {
    let mut numbers = Numbers::default();
    let mut tree = read_tree(path, "the pipeline", None, &mut numbers, mistakes)?;
    for set in sets {
        overrides::apply(&mut tree, set, &mut numbers, mistakes);
    }
    let variables = variables::resolve(&mut tree, environment, mistakes);

    let (pipeline, holes) = decode::<Pipeline>(&tree, "the pipeline", mistakes);
    let mut pipeline = pipeline?;
    resolve_paths(&mut pipeline, path.parent().unwrap_or(Path::new("")));
    let constitution = match &pipeline.constitution {
        Some(named) if !named.written.is_empty() => {
            read_constitution(&named.path.clone(), Some(named.place), &mut numbers, mistakes)
        }
        _ => None,
    };

    names::check(&pipeline, mistakes);
    checks::pipeline(&pipeline, mistakes);
    if let Some(constitution) = &constitution {
        checks::selectors(&pipeline, constitution, mistakes);
    } else if pipeline.constitution.is_none() {
        checks::no_constitution(&pipeline, mistakes);
    }
    let broken = leave_out_broken(&mut pipeline, &tree, &holes);
    let variables = variables.public();
    Some(Loaded { pipeline, constitution, files: Vec::new(), variables, sets: Vec::new(), broken })
}

/// Reads a constitution file alone, or says everything that is wrong with it.
pub fn load_constitution(path: &Path) -> Result<Constitution, Mistakes> {
    let mut mistakes = Mistakes::default();
    match read_constitution(path, None, &mut Numbers::default(), &mut mistakes) {
        Some(constitution) => mistakes.into_result(constitution),
        None => Err(mistakes),
    }
}

/// The constitution that a text says, as far as it can be read: what an earlier run was given.
pub fn parse_constitution(text: &str) -> Option<Constitution> {
    constitution_of(text, 0, &mut Mistakes::default())
}

/// The pipeline that a text says with `--set` flags and variables, as far as it can be read: what an
/// earlier run was given.
pub fn parse_pipeline(
    text: &str,
    sets: &[String],
    variables: &BTreeMap<String, String>,
) -> Option<Pipeline> {
    let (mut mistakes, mut numbers) = (Mistakes::default(), Numbers::default());
    let mut tree = parse(text, 0, &mut numbers, &mut mistakes)?;
    for set in sets {
        overrides::apply(&mut tree, set, &mut numbers, &mut mistakes);
    }
    let environment = |name: &str| variables.get(name).cloned();
    variables::resolve(&mut tree, &environment, &mut mistakes);
    decode::<Pipeline>(&tree, "the pipeline", &mut mistakes).0
}

fn read_constitution(
    path: &Path,
    named_at: Option<Place>,
    numbers: &mut Numbers,
    mistakes: &mut Mistakes,
) -> Option<Constitution> {
    let tree = read_tree(path, "the constitution", named_at, numbers, mistakes)?;
    checked_constitution(&tree, mistakes)
}

/// The constitution that a text says, which is file `file` of the mistakes.
pub(super) fn constitution_of(
    text: &str,
    file: u32,
    mistakes: &mut Mistakes,
) -> Option<Constitution> {
    let tree = parse(text, file, &mut Numbers::default(), mistakes)?;
    checked_constitution(&tree, mistakes)
}

fn checked_constitution(tree: &Tree, mistakes: &mut Mistakes) -> Option<Constitution> {
    let (constitution, _) = decode::<Constitution>(tree, "the constitution", mistakes);
    let constitution = constitution?;
    checks::constitution(&constitution, mistakes);
    Some(constitution)
}

/// Reads a file into a tree. One that is not there is a mistake where it is named, if it is named.
fn read_tree(
    path: &Path,
    whole: &str,
    named_at: Option<Place>,
    numbers: &mut Numbers,
    mistakes: &mut Mistakes,
) -> Option<Tree> {
    match open(path).and_then(io::read_to_string) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
            let file = mistakes.file(SourceFile { path: path.to_owned(), text: text.clone() });
            parse(&text, file, numbers, mistakes)
        }
        Err(error) => {
            let file = mistakes.file(SourceFile { path: path.to_owned(), text: String::new() });
            let place = named_at.unwrap_or(Place { file, ..Place::NOWHERE });
            let help = (error.kind() == io::ErrorKind::NotFound)
                .then(|| "relative paths are relative to the file that names them".to_owned())
                .filter(|_| named_at.is_some());
            mistakes.add(
                place,
                format!("{whole} \"{}\" cannot be read: {error}", path.display()),
                help,
            );
            None
        }
    }
}

/// Joins relative paths to the folder of the pipeline file.
fn resolve_paths(pipeline: &mut Pipeline, folder: &Path) {
    let resolve = |path: &mut Spanned<FilePath>| path.value.resolve(folder);
    pipeline.constitution.iter_mut().for_each(resolve);
    pipeline.models.values_mut().filter_map(|model| model.checkpoint.as_mut()).for_each(resolve);
    for op in pipeline.nodes.values_mut() {
        if let Op::Read(read) = op {
            read.path.0.iter_mut().for_each(resolve);
        }
    }
}

/// Takes out the nodes and models that hold something which could not be read, and gives their names.
fn leave_out_broken(pipeline: &mut Pipeline, tree: &Tree, holes: &Holes) -> BTreeSet<String> {
    let mut broken = BTreeSet::new();
    let mut whole = |section: &str, name: &Name| {
        let value = tree.get(section).and_then(|map| map.get(name));
        let whole = value.is_none_or(|value| !holes.inside(value));
        if !whole {
            broken.insert(name.value.clone());
        }
        whole
    };
    pipeline.nodes.retain(|name, _| whole("nodes", name));
    pipeline.models.retain(|name, model| whole("models", name) && model.is_complete());
    broken
}
