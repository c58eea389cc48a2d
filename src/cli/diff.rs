//! `amend diff`: how the rows of two snapshots differ.

use std::fmt::Write as _;

use serde_json::Value;

use super::args::{Common, DiffArgs};
use super::failure::Status;
use super::files;
use super::screen::Screen;
use super::shorten::{one_line, said};
use super::table::{TextTable, counted, some};
use crate::query::diff::{Diff, NodeDiff, RowDiff, Wanted, diff};
use crate::query::json::Object;

/// Rows of a node that people are shown.
const ROWS: usize = 20;

/// Columns whose change says nothing more: they are hashes of what else changed.
const HASHES: [&str; 2] = ["content", "call_keys"];

/// Compares two snapshots.
pub(super) fn run(args: &DiffArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let reader = files::reader(&args.which, common)?;
    let (from, to) = (reader.snapshot(&args.from)?, reader.snapshot(&args.to)?);
    let most = args.limit.unwrap_or(if screen.json { usize::MAX } else { ROWS });
    let wanted = Wanted { node: args.node.as_deref(), rows: args.rows.then_some(most) };
    let diff = diff(&from, &to, &wanted)?;
    if screen.json { screen.json(&diff) } else { screen.text(&text(&diff, screen)) }?;
    Ok(Status::Done)
}

fn text(diff: &Diff, screen: Screen) -> String {
    let changes = |node: &&NodeDiff| node.inserted + node.deleted + node.updated > 0;
    let changed: Vec<&NodeDiff> = diff.nodes.iter().filter(changes).collect();
    let same = (diff.nodes.len() - changed.len()) as u64;
    let (from, to) = (diff.from, diff.to);
    if changed.is_empty() {
        return format!("snapshots {from} and {to} have the same rows");
    }
    let mut table = TextTable::new(&["node", ">new", ">gone", ">changed", ">in provenance only"]);
    for node in &changed {
        table.row(vec![
            node.name.clone(),
            some(node.inserted),
            some(node.deleted),
            some(node.updated),
            some(node.provenance),
        ]);
    }
    let mut text =
        format!("from snapshot {from} to {to}\n\n{}", table.render(|head| screen.dim(head)));
    if same > 0 {
        let _ = writeln!(text, "\n{} the same", counted(same, "node"));
    }
    for node in changed {
        for row in node.rows.iter().flatten() {
            text.push_str(&row_text(node, row, screen));
        }
    }
    text
}

fn row_text(node: &NodeDiff, row: &RowDiff, screen: Screen) -> String {
    let name = screen.bold(&format!("{}/{}", node.name, &row.row_id[..12]));
    let (red, green, plain) =
        if screen.color_out { ("\x1b[31m", "\x1b[32m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("\n{name}\n");
    let mut line = |sign: &str, color: &str, column: &str, value: &Value| {
        let said = one_line(&said(value), if screen.verbose { usize::MAX } else { 200 });
        let _ = writeln!(text, "{color}{sign} {column}: {said}{plain}");
    };
    let nothing = Object::new();
    let (before, after) =
        (row.before.as_ref().unwrap_or(&nothing), row.after.as_ref().unwrap_or(&nothing));
    let columns = if after.is_empty() { before.keys() } else { after.keys() };
    for column in columns.filter(|column| !HASHES.contains(&column.as_str())) {
        let (was, is) = (before.get(column), after.get(column));
        if was == is {
            continue;
        }
        if let Some(was) = was.filter(|was| !was.is_null()) {
            line("-", red, column, was);
        }
        if let Some(is) = is.filter(|is| !is.is_null()) {
            line("+", green, column, is);
        }
    }
    text
}
