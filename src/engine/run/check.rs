//! Checking: what a run would find wrong outside the two files, before anything starts: files of rows,
//! checkpoints, conditions, templates. No row is kept and no model opened.

#[cfg(feature = "torch")]
mod templates;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Predicates, until};
use crate::engine::compile::{World, faults};
use crate::engine::session::Source;
use crate::engine::train::Held;
use crate::model::Estimator;
use crate::operators::{Predicate, read};
use crate::plan::{Plan, Step};
use crate::record::read::{Input, ReadError, is_pattern, probe, some_of};
use crate::record::{Id, Relation};
use crate::spec::op::{Edge, OneOrMany, Op, Read};
use crate::spec::{FilePath, Mistakes, Model, Name, Place, Spanned, did_you_mean};

/// Adds to the mistakes what a run of the plan, or of the part of it that a node needs, would find
/// wrong, and gives apart what is not there: a pipeline can be right where its files are not. The plan
/// may be one of what could be read.
pub fn check(
    plan: &Plan,
    needed: Option<&str>,
    predicates: &dyn Predicates,
    mistakes: &mut Mistakes,
) -> Mistakes {
    let mut absent = mistakes.warnings_beside();
    let part;
    let plan = match needed {
        None => plan,
        Some(node) => match until(plan, node) {
            Ok(kept) => {
                part = kept;
                &part
            }
            // A name that is none is a mistake of usage, which is told where flags are read.
            Err(_) => return absent,
        },
    };
    let pipeline = plan.pipeline();
    let planned: BTreeSet<&str> = plan.nodes.iter().map(|node| node.written.as_str()).collect();
    let is_run = |name: &str| needed.is_none() || planned.contains(name);
    let mut models: BTreeSet<&str> = BTreeSet::new();
    for (name, op) in pipeline.nodes.iter().filter(|(name, _)| is_run(name)) {
        if let Op::Read(read) = op {
            rows(name, read, mistakes, &mut absent);
        }
        let references = op.references().into_iter();
        let named = references.filter(|reference| reference.edge == Edge::Model);
        models.extend(named.map(|reference| reference.name.as_str()));
    }
    for (_, model) in pipeline.models.iter().filter(|(name, _)| models.contains(name.as_str())) {
        if let Some(named) = &model.checkpoint {
            checkpoint(named, mistakes, &mut absent);
        }
    }
    conditions(plan, predicates, mistakes);
    #[cfg(feature = "torch")]
    templates::check(plan, is_run, mistakes, &absent);
    // What is built of files with mistakes has faults that follow from them.
    if mistakes.is_empty() {
        for fault in faults(plan, &Unopened { predicates }) {
            mistakes.add(fault.place.unwrap_or_default(), fault.message, fault.help);
        }
    }
    absent
}

/// Checks files of rows: that they are there, and have the columns that their node names.
fn rows(node: &str, op: &Read, mistakes: &mut Mistakes, absent: &mut Mistakes) {
    // A format that nothing says is a mistake already.
    let is_said = |path: &&Spanned<FilePath>| {
        op.format_of(&path.written).is_some() || is_pattern(&path.written) || path.path.is_dir()
    };
    let said = OneOrMany(op.path.iter().filter(is_said).cloned().collect());
    let op = &Read { path: said, ..op.clone() };
    if op.path.is_empty() {
        return;
    }
    let inputs = match read::inputs(op) {
        Ok(inputs) => inputs,
        Err(unknown) => {
            for read::Unknown { place, message, help, is_absent } in unknown {
                let into = if is_absent { &mut *absent } else { &mut *mistakes };
                into.add(place, message, help);
            }
            return;
        }
    };
    let seen = probe(&inputs.files, &read::options(op, node));
    let what = match &inputs.files[..] {
        [one] => format!("\"{}\" has no column", one.source),
        all => format!("none of the {} files of \"{node}\" has a column", all.len()),
    };
    let lacks = |name: &&Name| seen.lacking.contains(&name.value);
    let columns: Vec<String> = seen.columns.iter().cloned().collect();
    let whose = if inputs.files.len() == 1 { "its" } else { "their" };
    let has = || Some(format!("{whose} columns are {}", some_of(&columns)));
    for (name, is) in (op.columns.values().map(|name| (name, "")))
        .chain(op.key.iter().map(|name| (name, ", which is a key")))
        .filter(|(name, _)| lacks(name))
    {
        let help = did_you_mean(name, columns.iter().map(String::as_str)).or_else(has);
        mistakes.add(name.place, format!("{what} \"{name}\"{is}"), help);
    }
    for (at, error) in seen.errors {
        let (place, file) = (inputs.places[at], &inputs.files[at]);
        unreadable(place, file, error, mistakes, absent);
    }
}

/// Says why a file cannot be read, or no row of it.
fn unreadable(
    place: Place,
    file: &Input,
    error: ReadError,
    mistakes: &mut Mistakes,
    absent: &mut Mistakes,
) {
    let name = &file.source;
    match error {
        ReadError::File { source, line: 0, .. } => {
            let help = relative_help(name, source.kind());
            let into = if source.kind() == ErrorKind::NotFound { absent } else { mistakes };
            let path = file.path.display();
            into.add(place, format!("the file \"{path}\" cannot be read: {source}"), help);
        }
        ReadError::Columns { detail, found, .. } => {
            let message = format!("no row of \"{name}\" can be read: {detail}");
            mistakes.push(place, message, format!("its columns are {}", some_of(&found)));
        }
        ReadError::Malformed { line, detail, .. } => {
            let message = format!("no row of \"{name}\" can be read: line {line}: {detail}");
            let help = "say what the file holds: `format: jsonl`, `parquet`, `csv` or `hh-rlhf`";
            mistakes.push(place, message, help);
        }
        ReadError::Other { detail, help, .. } => {
            mistakes.push(place, format!("\"{name}\" cannot be read: {detail}"), help);
        }
        error => mistakes.add(place, error.to_string(), None),
    }
}

/// Checks that a checkpoint's directory is there and looks like one; its files are not opened.
fn checkpoint(named: &Spanned<FilePath>, mistakes: &mut Mistakes, absent: &mut Mistakes) {
    let dir = named.path.as_path();
    let layout = "a checkpoint is a directory in Hugging Face layout: `config.json`, weights in safetensors, the tokenizer's files";
    let has = |name: &str| dir.join(name).is_file();
    let found = fs::metadata(dir);
    let is_absent = found.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let (what, help) = match found {
        Err(error) => {
            let help =
                relative_help(&named.written, error.kind()).unwrap_or_else(|| layout.to_owned());
            (format!("cannot be read: {error}"), help)
        }
        Ok(found) if !found.is_dir() => ("is no directory".to_owned(), layout.to_owned()),
        Ok(_) if !has("config.json") => ("has no \"config.json\"".to_owned(), layout.to_owned()),
        Ok(_) if !has("model.safetensors") && !has("model.safetensors.index.json") => {
            let what = "has neither \"model.safetensors\" nor \"model.safetensors.index.json\"";
            (what.to_owned(), other_weights(dir).unwrap_or(layout).to_owned())
        }
        Ok(_) => return,
    };
    let into = if is_absent { absent } else { mistakes };
    into.push(named.place, format!("the checkpoint \"{}\" {what}", dir.display()), help);
}

/// What can be done about weights in another format.
fn other_weights(dir: &Path) -> Option<&'static str> {
    let mut files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let pickles = ["bin", "pt", "pth", "ckpt"];
    let is_pickle = |path: &Path| {
        path.extension().is_some_and(|ending| pickles.iter().any(|pickle| ending == *pickle))
    };
    files.any(|path| is_pickle(&path)).then_some(
        "pickles run code when they are read, and are not read here: convert it once with transformers (`model.save_pretrained(dir)` writes safetensors)",
    )
}

fn relative_help(written: &str, error: ErrorKind) -> Option<String> {
    let is_relative = Path::new(written).is_relative();
    (error == ErrorKind::NotFound && is_relative)
        .then(|| "relative paths are relative to the file that names them".to_owned())
}

/// Checks that the conditions of filters are conditions over the rows that they get.
fn conditions(plan: &Plan, predicates: &dyn Predicates, mistakes: &mut Mistakes) {
    for node in &plan.nodes {
        if let (Step::Filter { of }, Op::Filter(filter)) = (&node.step, plan.op(node))
            && let Some(sql) = &filter.condition
            && let over = plan.nodes[*of].relation
            && let Err(message) = predicates.predicate(sql, over)
        {
            let columns: Vec<&str> = over.columns().iter().map(|column| column.name).collect();
            let help = format!("the columns of {over} are {}", columns.join(", "));
            mistakes.push(sql.place, message, help);
        }
    }
}

/// A world of which nothing is opened but conditions.
struct Unopened<'a> {
    predicates: &'a dyn Predicates,
}

impl World for Unopened<'_> {
    fn read(&self, _node: &str, _read: &Read) -> Result<Arc<Source>, String> {
        Ok(Arc::new(Source { rows: Vec::new(), rejects: Vec::new() }))
    }

    fn fingerprint(&self, _name: &str, _model: &Model) -> Result<Id, String> {
        Ok(Id::ZERO)
    }

    fn estimator(&self, _name: &str, _model: &Model) -> Result<Option<Estimator>, String> {
        Ok(None)
    }

    fn predicate(&self, sql: &str, over: Relation) -> Result<Arc<dyn Predicate>, String> {
        self.predicates.predicate(sql, over)
    }

    fn last(&self, _node: &str) -> Option<Held> {
        None
    }
}
