//! `read`: which files a node reads, and how, in the words of the reader.
//!
//! `files -> prompts | comparisons | demonstrations`. It has no step: [`read`](crate::record::read) does
//! the work.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::record::read::{self as files, Format, Found, FoundError, Input, ReadOptions};
use crate::spec::hub::{self, Config};
use crate::spec::op::{FileFormat, Read};
use crate::spec::{FilePath, Name, Place, Spanned, did_you_mean};

/// What a node reads.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The files of rows, in their order.
    pub files: Vec<Input>,
    /// Where the pipeline names each of them.
    pub places: Vec<Place>,
    /// The files that say which those are.
    pub cards: Vec<PathBuf>,
}

/// Why it is not known what a node reads.
#[derive(Clone, Debug)]
pub struct Unknown {
    /// Where the pipeline says it.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Whether something is only not there yet.
    pub is_absent: bool,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}

/// What the reader is told of a node.
pub fn options(op: &Read, node: &str) -> ReadOptions {
    let columns = op.columns.iter();
    ReadOptions {
        relation: op.relation.relation(),
        verbatim: op.verbatim,
        key: op.key.iter().map(|name| name.value.clone()).collect(),
        columns: columns.map(|(ours, theirs)| (ours.value.clone(), theirs.value.clone())).collect(),
        limit: op.limit,
        node: node.to_owned(),
    }
}

/// The files that a node reads now, sorted by their paths; all that is wrong, if something is.
pub fn inputs(op: &Read) -> Result<Inputs, Vec<Unknown>> {
    let mut wrong = Vec::new();
    let mut cards = Vec::new();
    let mut all: Vec<(Input, Place)> = Vec::new();
    for named in op.path.iter() {
        match found(op, named, &mut cards) {
            Ok(found) => all.extend(found.into_iter().map(|input| (input, named.place))),
            Err(unknown) => wrong.push(unknown),
        }
    }
    let chosen = op.config.iter().chain(op.split.iter().flat_map(|split| split.iter())).next();
    if let (Some(name), true, true) = (chosen, cards.is_empty(), wrong.is_empty()) {
        wrong.push(Unknown {
            place: name.place,
            message: format!("\"{name}\" is chosen of a data set that declares nothing"),
            help: Some(
                "`config` and `split` need a folder whose README.md declares `configs`; else name the \
                 files: `path: folder/train-*.parquet`"
                    .to_owned(),
            ),
            is_absent: false,
        });
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    all.sort_by(|(a, _), (b, _)| a.source.cmp(&b.source));
    // A file that is named and matched too is read once.
    let mut seen = BTreeSet::new();
    all.retain(|(input, _)| seen.insert(input.path.clone()));
    let (files, places) = all.into_iter().unzip();
    Ok(Inputs { files, places, cards })
}

/// The files that one path of a node stands for.
fn found(
    op: &Read,
    named: &Spanned<FilePath>,
    cards: &mut Vec<PathBuf>,
) -> Result<Vec<Input>, Unknown> {
    let (written, path) = (named.written.as_str(), named.path.as_path());
    if path.is_dir() {
        return in_folder(op, named, cards);
    }
    // A file whose name has such signs is itself.
    if !files::is_pattern(written) || fs::symlink_metadata(path).is_ok() {
        let found = vec![Found { path: path.to_owned(), inside: written.to_owned() }];
        return with_formats(op, named, found);
    }
    let whole = path.to_string_lossy();
    let from = Path::new(whole.strip_suffix(written).unwrap_or_default());
    let found = files::matching(from, written).map_err(|error| cannot(named, &error))?;
    if found.is_empty() {
        return Err(Unknown {
            is_absent: true,
            ..unknown(
                named.place,
                format!("no file matches \"{written}\""),
                "`*` matches within a folder, `**` folders of any depth; patterns are relative to the \
                 file that names them",
            )
        });
    }
    with_formats(op, named, found)
}

/// The files of a folder: those that its `README.md` declares, else all with an ending that is known.
fn in_folder(
    op: &Read,
    named: &Spanned<FilePath>,
    cards: &mut Vec<PathBuf>,
) -> Result<Vec<Input>, Unknown> {
    let folder = named.path.as_path();
    let written = named.written.trim_end_matches('/');
    let inside = |found: Found| Found { inside: format!("{written}/{}", found.inside), ..found };
    let card = folder.join("README.md");
    let configs = match card.is_file() {
        true => fs::read_to_string(&card).map_err(|error| error.to_string()),
        false => Ok(String::new()),
    };
    let configs = configs.and_then(|readme| hub::configs(&readme));
    let configs = configs.map_err(|detail| {
        unknown(
            named.place,
            format!("\"{}\": {detail}", card.display()),
            "mend its YAML, or name the files",
        )
    })?;
    if !configs.is_empty() {
        cards.push(card);
        let found = declared(op, named, &configs)?;
        return with_formats(op, named, found.into_iter().map(inside).collect());
    }
    let found = files::folder(folder).map_err(|error| cannot(named, &error))?;
    let is_known = |found: &Found| match (op.format, FileFormat::of_ending(&found.inside)) {
        (Some(FileFormat::HhRlhf), Some(FileFormat::Jsonl)) => true,
        (Some(format), Some(of_ending)) => format == of_ending,
        (None, of_ending) => of_ending.is_some(),
        (Some(_), None) => false,
    };
    let found: Vec<Found> = found.into_iter().filter(is_known).map(inside).collect();
    if found.is_empty() {
        let endings = match op.format {
            None => ".jsonl, .ndjson, .parquet or .csv",
            Some(FileFormat::Jsonl | FileFormat::HhRlhf) => ".jsonl or .ndjson",
            Some(FileFormat::Parquet) => ".parquet",
            Some(FileFormat::Csv) => ".csv",
        };
        let message = format!("no file in the folder \"{}\" ends in {endings}", named.written);
        let help = "packed files end in .gz or .zst after that; files with other endings are named: `path: folder/*.json` with `format: jsonl`";
        return Err(unknown(named.place, message, help));
    }
    with_formats(op, named, found)
}

/// Files with what they hold.
fn with_formats(
    op: &Read,
    named: &Spanned<FilePath>,
    found: Vec<Found>,
) -> Result<Vec<Input>, Unknown> {
    let input = |found: Found| {
        let format = match op.format_of(&found.inside) {
            Some(FileFormat::Jsonl) => Format::Jsonl,
            Some(FileFormat::Parquet) => Format::Parquet,
            Some(FileFormat::Csv) => Format::Csv,
            Some(FileFormat::HhRlhf) => Format::HhRlhf,
            None => {
                let message = format!("the ending of \"{}\" says no format", found.inside);
                let help = "add `format: jsonl`, `parquet`, `csv` or `hh-rlhf`, or leave the file out: `path: data/*.parquet`";
                return Err(unknown(named.place, message, help));
            }
        };
        Ok(Input { path: found.path, source: found.inside, format })
    };
    found.into_iter().map(input).collect()
}

/// The files that a data set declares for the config and the splits that a node names.
fn declared(
    op: &Read,
    named: &Spanned<FilePath>,
    configs: &[Config],
) -> Result<Vec<Found>, Unknown> {
    let config = config(op, named, configs)?;
    let mut patterns: Vec<&str> = Vec::new();
    for split in splits(op, named, config)? {
        let of = config.splits.iter().filter(|(name, _)| name == split);
        patterns.extend(of.flat_map(|(_, paths)| paths).map(String::as_str));
    }
    if config.splits.is_empty() {
        patterns.push(".");
    }
    let from = config.folder.as_deref().unwrap_or(".");
    let mut all = Vec::new();
    for pattern in patterns {
        let whole = Path::new(from).join(pattern);
        let is_inside = |path: &Path| {
            use std::path::Component;
            path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        if pattern.contains("://") || !is_inside(&whole) {
            let message =
                format!("\"{}\" declares \"{pattern}\", which is no file in it", named.written);
            return Err(unknown(named.place, message, "download the file and name it here"));
        }
        let plain: PathBuf = whole.components().filter(|part| part.as_os_str() != ".").collect();
        let path = named.path.join(&plain);
        let inside = plain.to_string_lossy().into_owned();
        let found = if path.is_dir() {
            let known = |found: &Found| op.format_of(&found.inside).is_some();
            let found = files::folder(&path).map_err(|error| cannot(named, &error))?;
            let join = |found: Found| Found {
                inside: plain.join(&found.inside).to_string_lossy().into_owned(),
                ..found
            };
            found.into_iter().filter(known).map(join).collect()
        } else if path.exists() {
            vec![Found { path, inside }]
        } else {
            files::matching(&named.path, &inside).map_err(|error| cannot(named, &error))?
        };
        if found.is_empty() {
            let message =
                format!("\"{}\" declares \"{pattern}\", and no file is that", named.written);
            let help = "download the whole data set (`hf download --repo-type dataset …`)";
            return Err(Unknown { is_absent: true, ..unknown(named.place, message, help) });
        }
        all.extend(found);
    }
    Ok(all)
}

/// The config that a node names, else the only one, else the default.
fn config<'a>(
    op: &Read,
    named: &Spanned<FilePath>,
    configs: &'a [Config],
) -> Result<&'a Config, Unknown> {
    let names = || configs.iter().map(|config| config.name.as_str());
    let list = || format!("its configs are {}", names().collect::<Vec<_>>().join(", "));
    let Some(name) = &op.config else {
        let default = configs.iter().find(|config| config.is_default);
        let default = default.or_else(|| configs.iter().find(|config| config.name == "default"));
        return match configs {
            [one] => Ok(one),
            _ => default.ok_or_else(|| {
                let message = format!("\"{}\" declares several configs", named.written);
                unknown(named.place, message, &format!("name one: `config: …`; {}", list()))
            }),
        };
    };
    configs.iter().find(|config| config.name == name.value).ok_or_else(|| {
        let message = format!("\"{}\" declares no config \"{name}\"", named.written);
        unknown(name.place, message, &did_you_mean(name, names()).unwrap_or_else(list))
    })
}

/// The splits that a node names, else the only one.
fn splits<'a>(
    op: &Read,
    named: &Spanned<FilePath>,
    config: &'a Config,
) -> Result<Vec<&'a str>, Unknown> {
    let names = || config.splits.iter().map(|(name, _)| name.as_str());
    let list = || format!("its splits are {}", names().collect::<Vec<_>>().join(", "));
    let Some(wanted) = &op.split else {
        return match config.splits.len() {
            0 | 1 => Ok(names().collect()),
            _ => {
                let message = format!("\"{}\" declares several splits", named.written);
                let help = format!("name one, or a list: `split: …`; {}", list());
                Err(unknown(named.place, message, &help))
            }
        };
    };
    let one = |name: &Name| {
        names().find(|split| *split == name.value).ok_or_else(|| {
            let of = format!("config \"{}\" of \"{}\"", config.name, named.written);
            let message = format!("{of} declares no split \"{name}\"");
            unknown(name.place, message, &did_you_mean(name, names()).unwrap_or_else(list))
        })
    };
    wanted.iter().map(one).collect()
}

fn unknown(place: Place, message: String, help: &str) -> Unknown {
    Unknown { place, message, help: Some(help.to_owned()), is_absent: false }
}

fn cannot(named: &Spanned<FilePath>, error: &FoundError) -> Unknown {
    let message = format!("\"{}\": {error}", named.written);
    let help = match error {
        FoundError::Pattern(_) => {
            "`*` and `?` match within a name, `[0-9]` one of several characters"
        }
        FoundError::Folder { .. } => "make the folder readable",
        FoundError::Many => "name the files more closely",
    };
    unknown(named.place, message, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Relation;
    use crate::spec::Op;

    #[test]
    fn a_node_is_read_as_it_is_written() {
        let node = "read: { path: data/pairs.jsonl.gz, relation: comparisons, key: [n], \
                    columns: { prompt: question }, limit: 3 }";
        let Op::Read(op) = crate::operators::testing::op(node) else { panic!("it is a read") };
        let options = options(&op, "pairs");
        assert_eq!((options.relation, options.limit), (Relation::Comparisons, Some(3)));
        assert_eq!((options.key.len(), options.columns["prompt"].as_str()), (1, "question"));
        let inputs = inputs(&op).unwrap();
        let [file] = &inputs.files[..] else { panic!("one file") };
        assert_eq!((file.format, file.source.as_str()), (Format::Jsonl, "data/pairs.jsonl.gz"));
    }
}
