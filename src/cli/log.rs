//! `amend log`: the snapshots of a pipeline.

use serde_json::json;

use super::args::{Common, LogArgs};
use super::failure::Status;
use super::files;
use super::screen::Screen;
use super::table::{TextTable, count, some};
use crate::query::history;

/// Digits of a digest that are shown to people.
const DIGITS: usize = 12;

/// Lists the snapshots, the last one first.
pub(super) fn run(args: &LogArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let reader = files::reader(&args.which, common)?;
    let entries = history::log(&reader, args.limit)?;
    if screen.json {
        screen.json(&json!({ "pipeline": reader.pipeline, "snapshots": entries }))?;
        return Ok(Status::Done);
    }
    let heads =
        [">snapshot", "digest", "when", ">rows", ">rejects", ">new", ">gone", ">changed", ">calls"];
    let mut table = TextTable::new(&heads);
    for entry in &entries {
        table.row(vec![
            entry.number.to_string(),
            entry.digest.chars().take(DIGITS).collect(),
            entry.created_at.replace('T', " ").replace('Z', ""),
            count(entry.rows),
            some(entry.rejects),
            some(entry.inserted),
            some(entry.deleted),
            some(entry.updated),
            some(entry.calls),
        ]);
    }
    screen.text(&table.render(|head| screen.dim(head)))?;
    Ok(Status::Done)
}
