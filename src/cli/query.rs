//! `amend query`: the tables of a snapshot in SQL.

use super::args::{Common, QueryArgs};
use super::failure::Status;
use super::files;
use super::screen::Screen;
#[cfg(feature = "sql")]
use crate::query::Pipelines;
#[cfg(feature = "sql")]
use crate::store::{Snapshot, Store};

/// Asks a snapshot.
#[cfg(feature = "sql")]
pub(super) fn run(args: &QueryArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    use super::args::Output;
    use crate::query::{json, sql};

    let (store, snapshot) = asked(args, common)?;
    let answer = sql::query(&store, snapshot, &args.sql)?;
    match common.output {
        Output::Json => screen.json(&json::objects(&answer.batches)?)?,
        Output::Csv => {
            let names: Vec<&str> =
                answer.schema.fields().iter().map(|field| field.name().as_str()).collect();
            screen.text(&csv(&names, &json::objects(&answer.batches)?))?;
        }
        _ => screen.text(&answer.table()?)?,
    }
    Ok(Status::Done)
}

/// The snapshot that is asked; none before the first, when there are calls alone.
#[cfg(feature = "sql")]
fn asked(args: &QueryArgs, common: &Common) -> anyhow::Result<(Store, Option<Snapshot>)> {
    let store = Store::new(&files::store(&args.which, common)?);
    let has_calls = || store.memo_read_only().is_ok_and(|memo| !memo.is_empty());
    if Pipelines::of(&store)?.names().is_empty() && has_calls() {
        return Ok((store, None));
    }
    let reader = files::reader(&args.which, common)?;
    let snapshot = reader.snapshot(&args.at)?;
    Ok((reader.store, Some(snapshot)))
}

/// Says that this program has no SQL, and where the files are.
#[cfg(not(feature = "sql"))]
pub(super) fn run(args: &QueryArgs, common: &Common, _screen: Screen) -> anyhow::Result<Status> {
    let reader = files::reader(&args.which, common)?;
    let tables = reader.snapshot(&args.at)?.dir().join("tables/<node>/*.parquet");
    Err(crate::query::QueryError::NoSql(tables.display().to_string()).into())
}

/// Rows as comma-separated values, with a head; what is nested is JSON in its cell.
#[cfg(feature = "sql")]
fn csv(names: &[&str], rows: &[crate::query::json::Object]) -> String {
    use serde_json::Value;

    let quoted = |text: &str| {
        let plain = !text.contains([',', '"', '\n', '\r']);
        if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
    };
    let cell = |value: Option<&Value>| match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => quoted(text),
        Some(other) => quoted(&other.to_string()),
    };
    let line = |cells: Vec<String>| format!("{}\n", cells.join(","));
    let head = line(names.iter().map(|name| quoted(name)).collect());
    rows.iter().fold(head, |text, row| {
        text + &line(names.iter().map(|name| cell(row.get(*name))).collect())
    })
}

#[cfg(all(test, feature = "sql"))]
mod tests {
    use super::csv;
    use serde_json::json;

    #[test]
    fn commas_quotes_and_nested_values_are_quoted() {
        let row = json!({ "a": "x,\"y\"", "b": [1, 2], "c": null, "d": 1.5 });
        let text = csv(&["a", "b", "c", "d"], &[row.as_object().unwrap().clone()]);
        assert_eq!(text, "a,b,c,d\n\"x,\"\"y\"\"\",\"[1,2]\",,1.5\n");
    }
}
