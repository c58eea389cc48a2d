//! `amend schema`: the JSON Schemas of the files, and the columns of the relations.

use serde_json::{Map, Value};

use super::args::{SchemaArgs, SchemaOf};
use super::failure::Status;
use super::screen::Screen;
use crate::record::Relation;
use crate::spec::schema;

/// Prints a schema; it is JSON in every format.
pub(super) fn run(args: &SchemaArgs, screen: Screen) -> anyhow::Result<Status> {
    let document = match args.of {
        SchemaOf::Pipeline => schema::pipeline(),
        SchemaOf::Constitution => schema::constitution(),
        SchemaOf::Relations => {
            let relation = |relation: &Relation| (relation.name().to_owned(), relation.describe());
            Value::Object(Relation::ALL.iter().map(relation).collect::<Map<_, _>>())
        }
    };
    screen.json(&document)?;
    Ok(Status::Done)
}
