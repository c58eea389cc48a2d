//! Names that cannot be given: of what amend itself keeps under them, too long for a file, and alike but
//! for capitals.

use std::collections::BTreeMap;

use crate::spec::mistake::Mistakes;
use crate::spec::op::Op;
use crate::spec::pipeline::Pipeline;
use crate::spec::place::Name;

/// The most letters of a name: it is a part of the names of files, which have 255 bytes.
pub(super) const LETTERS_MAX: usize = 100;

/// What lies in a store beside the folders of pipelines.
const OF_THE_STORE: &[&str] =
    &["calls", "checkpoints", "trainings", "endpoints", "profiles", "batches", "verified", "lock"];

/// Tables that every pipeline has.
const TABLES: &[(&str, &str)] = &[
    ("rejects", "holds the rows that were lost"),
    ("metrics", "holds the logged numbers of trainings"),
    ("checkpoints", "lists the models that were trained"),
    ("calls", "holds the calls of the store"),
];

/// Schemas that SQL has: the parts of a split are read as tables of one.
const SCHEMAS: &[&str] = &["public", "information_schema"];

/// Checks names of the pipeline, of its nodes and of the parts of splits.
pub(super) fn names(pipeline: &Pipeline, mistakes: &mut Mistakes) {
    if is_one_of(&pipeline.name, OF_THE_STORE) {
        mistakes.push(
            pipeline.name.place,
            format!("a pipeline cannot be called \"{}\": the store keeps something else under that name", pipeline.name),
            "give the pipeline another name: it is a folder of the store",
        );
    }
    for (name, op) in &pipeline.nodes {
        if let Some((_, holds)) = TABLES.iter().find(|(table, _)| is_one_of(name, &[table])) {
            mistakes.push(
                name.place,
                format!("a node cannot be called \"{name}\": the table of that name {holds}"),
                "give the node another name",
            );
        }
        if let Op::Split(split) = op {
            if is_one_of(name, SCHEMAS) {
                mistakes.push(
                    name.place,
                    format!("a split cannot be called \"{name}\": in SQL it is the schema of other tables"),
                    "give the node another name",
                );
            }
            alike(&format!("parts of \"{name}\""), split.parts.keys(), mistakes);
        }
    }
    alike("nodes", pipeline.nodes.keys(), mistakes);
}

fn is_one_of(name: &Name, names: &[&str]) -> bool {
    name.place.is_somewhere() && names.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Reports names that differ in capitals alone: SQL reads them alike, and so do some file systems.
fn alike<'a>(what: &str, names: impl Iterator<Item = &'a Name>, mistakes: &mut Mistakes) {
    let mut seen: BTreeMap<String, &Name> = BTreeMap::new();
    for name in names {
        if let Some(first) = seen.get(name.to_ascii_lowercase().as_str()) {
            mistakes.push(
                name.place,
                format!("{what} \"{first}\" and \"{name}\" differ in capitals alone"),
                "give one of them another name: SQL reads both alike, and so do some file systems",
            );
        } else {
            seen.insert(name.to_ascii_lowercase(), name);
        }
    }
}
