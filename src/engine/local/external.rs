//! A trainer that is a program of its own: it is given files, and leaves a checkpoint.
//!
//! `docs/trainer.md` is the contract, for those who write one.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{fs, thread};

use serde_json::{Map, Value};

use crate::engine::local::models::weights_id;
use crate::engine::train::Recipe;
use crate::model::Trained;
use crate::model::train::{Metric, Progress};
use crate::operators::copy;
use crate::record::{BatchBuilder, Origin};
use crate::store::{Table, TableRow};

/// The last lines of what a program says of its failure.
const LINES_SAID: usize = 20;

/// Has a program train: writes the dataset and the settings beside the state, runs the program, and
/// takes what it left in `out`.
pub(super) fn train(
    recipe: &Recipe,
    command: &[String],
    folder: &Path,
    models: Vec<(&'static str, PathBuf)>,
    [out, state]: [&Path; 2],
    progress: &dyn Fn(&Progress<'_>),
) -> Result<Trained, String> {
    let mut paths = given(recipe, state)?;
    paths.extend(models);
    paths.push(("out", out.to_owned()));
    // The program runs in another folder.
    for (_, path) in &mut paths {
        *path =
            std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let command: Vec<String> = command.iter().map(|part| filled(part, &paths)).collect();
    let metrics = run(&command, folder, progress)?;
    let steps = metrics.iter().map(|metric| metric.step).max().unwrap_or(0);
    let (kind, scores) = look(out, recipe.training.verb)?;
    let weights = weights_id(out)?;
    Ok(Trained { weights, kind: kind.to_owned(), steps, metrics, scores, ..Trained::default() })
}

/// The files that a program is given, by the names under which its command has them.
fn given(recipe: &Recipe, state: &Path) -> Result<Vec<(&'static str, PathBuf)>, String> {
    let dataset = state.join("dataset");
    let settings = state.join("settings.json");
    let own = state.join("trainer");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&dataset)?;
        fs::create_dir_all(&own)?;
        write_anew(&dataset.join("train.parquet"), &table(recipe).parquet())?;
        write_anew(&settings, recipe.training.settings_json.as_bytes())
    };
    write().map_err(|error| format!("{}: {error}", state.display()))?;
    Ok(vec![("dataset", dataset), ("settings", settings), ("state", own)])
}

/// Writes a file in place of what has its name, and not through a link to a file elsewhere.
fn write_anew(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::File::create_new(path)?.write_all(bytes)
}

/// The rows of the dataset, under their own ids.
fn table(recipe: &Recipe) -> Table {
    let relation = recipe.rows[0].1.row().relation();
    let mut builder = BatchBuilder::new(relation);
    for (row_id, slot) in &recipe.rows {
        // Rows of equal content share a slot, which bears the id of one of them.
        let row = slot.row();
        let root_id = row.id("root_id").expect("root_id is not null");
        let origin =
            Origin { row_id: *row_id, root_id, parents: row.ids("parents"), call_keys: Vec::new() };
        builder.push(&origin, &copy(row));
    }
    let (batch, _) = builder.finish();
    let batch = Arc::new(batch);
    let rows = (0..batch.len()).map(|index| TableRow::of(&batch, index)).collect();
    Table::new(relation, rows)
}

/// An argument with paths in place of their names.
fn filled(part: &str, paths: &[(&'static str, PathBuf)]) -> String {
    let fill = |part: String, (name, path): &(&str, PathBuf)| {
        part.replace(&format!("{{{name}}}"), &path.display().to_string())
    };
    paths.iter().fold(part.to_owned(), fill)
}

/// Runs a command to its end; gives the numbers that it logged.
fn run(
    command: &[String],
    folder: &Path,
    progress: &dyn Fn(&Progress<'_>),
) -> Result<Vec<Metric>, String> {
    let (program, arguments) = command.split_first().expect("a command has a program");
    let mut command = Command::new(program);
    #[cfg(feature = "torch")]
    crate::model::torch::clean_child(&mut command);
    let mut child = command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the trainer \"{program}\": {error}"))?;
    let errors = child.stderr.take().expect("it is piped");
    // Read beside, so that neither pipe fills while the other is read.
    let errors = thread::spawn(move || last_lines(errors));
    let mut metrics = Vec::new();
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    for line in lines.map_while(Result::ok) {
        match serde_json::from_str::<Map<String, Value>>(&line) {
            Ok(logged) if logged.contains_key("step") => {
                let number = |key: &str| logged.get(key).and_then(Value::as_u64).unwrap_or(0);
                let said = metrics_of(&logged);
                progress(&Progress {
                    line: &summary(&said),
                    done: number("step"),
                    all: number("total"),
                    tokens: logged.get("num_tokens").and_then(Value::as_f64).unwrap_or(0.0),
                    metrics: &said,
                });
                metrics.extend(said);
            }
            _ => progress(&Progress { line: &line, ..Progress::default() }),
        }
    }
    let status = child.wait().map_err(|error| format!("the trainer \"{program}\": {error}"))?;
    let errors = errors.join().expect("reading lines does not panic");
    if status.success() {
        return Ok(metrics);
    }
    Err(format!("the trainer \"{program}\" ended with {status}\n{}", errors.join("\n")))
}

/// The numbers of one line: under TRL's names, each by itself.
fn metrics_of(logged: &Map<String, Value>) -> Vec<Metric> {
    let step = logged["step"].as_u64().unwrap_or(0);
    let epoch = logged.get("epoch").and_then(Value::as_f64).unwrap_or(0.0);
    let split = logged.get("split").and_then(Value::as_str).unwrap_or("train");
    let own = ["step", "epoch", "split", "total"];
    let metric = |(name, value): (&String, &Value)| {
        let value = value.as_f64().filter(|_| !own.contains(&name.as_str()))?;
        Some(Metric { step, epoch, split: split.to_owned(), name: name.clone(), value })
    };
    logged.iter().filter_map(metric).collect()
}

fn summary(metrics: &[Metric]) -> String {
    let said: Vec<String> = metrics
        .iter()
        .take(3)
        .map(|metric| format!("{} {:.3}", metric.name, metric.value))
        .collect();
    said.join(" ")
}

fn last_lines(errors: impl Read) -> Vec<String> {
    let mut last = VecDeque::new();
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        if last.len() == LINES_SAID {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.into()
}

/// What kind of model lies in a directory, and the scale of its scores if it has one; or what is
/// wrong with it.
fn look(out: &Path, verb: &str) -> Result<(&'static str, Option<(f64, f64)>), String> {
    let path = out.join("config.json");
    let text = fs::read(&path)
        .map_err(|error| format!("the trainer left no model: {}: {error}", path.display()))?;
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let classifies = |name: &Value| {
        name.as_str().is_some_and(|name| name.ends_with("ForSequenceClassification"))
    };
    let architectures = config.get("architectures").and_then(Value::as_array);
    let kind = match architectures.is_some_and(|names| names.iter().any(classifies)) {
        true => "pm",
        false => "lm",
    };
    if (kind == "pm") != (verb == "train-pm") {
        return Err(format!(
            "{}: the trainer left {}, and `{verb}` trains {}",
            path.display(),
            if kind == "pm" { "a model that scores" } else { "a model that writes" },
            if kind == "pm" { "one that writes" } else { "one that scores" },
        ));
    }
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    Ok((kind, number("mean").zip(number("std"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<(Vec<Metric>, Vec<String>), String> {
        let lines = std::cell::RefCell::new(Vec::new());
        let command = ["sh", "-c", script].map(str::to_owned);
        let progress = |told: &Progress<'_>| {
            lines.borrow_mut().push(format!("{}/{} {}", told.done, told.all, told.line));
        };
        let metrics = run(&command, Path::new("."), &progress)?;
        Ok((metrics, lines.into_inner()))
    }

    #[test]
    fn a_line_of_json_is_numbers_and_another_is_said() {
        let (metrics, lines) = shell(
            "echo hello; echo '{\"step\": 3, \"total\": 9, \"epoch\": 0.5, \"loss\": 1.25, \"note\": \"x\"}'; \
             echo '{\"step\": 9, \"split\": \"heldout\", \"loss\": 1}'",
        )
        .unwrap();
        assert_eq!(lines, ["0/0 hello", "3/9 loss 1.250", "9/0 loss 1.000"]);
        let found: Vec<(u64, f64, &str, &str, f64)> = metrics
            .iter()
            .map(|m| (m.step, m.epoch, m.split.as_str(), m.name.as_str(), m.value))
            .collect();
        assert_eq!(found, [(3, 0.5, "train", "loss", 1.25), (9, 0.0, "heldout", "loss", 1.0)]);
    }

    #[test]
    fn a_program_that_fails_is_quoted_and_one_that_is_not_there_is_named() {
        let error = shell("for i in $(seq 30); do echo line $i >&2; done; exit 7").unwrap_err();
        assert!(error.contains("\"sh\" ended with exit status: 7"), "{error}");
        assert!(
            error.contains("line 30") && !error.contains("line 10\n"),
            "the last lines: {error}"
        );
        let nowhere = run(&["no-such-program".to_owned()], Path::new("."), &|_| {});
        assert!(nowhere.unwrap_err().contains("the trainer \"no-such-program\""));
    }

    #[test]
    fn arguments_get_their_paths() {
        let paths = [("out", PathBuf::from("/a b/out")), ("init", PathBuf::from("/init"))];
        assert_eq!(filled("--to={out}/x", &paths), "--to=/a b/out/x");
        assert_eq!(filled("{init}{out}", &paths), "/init/a b/out");
        assert_eq!(filled("{other}", &paths), "{other}");
    }

    #[test]
    fn what_is_left_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let check = |verb: &str| look(dir.path(), verb);
        assert!(check("train-sl").unwrap_err().contains("the trainer left no model"));
        let write = |text: &str| fs::write(dir.path().join("config.json"), text).unwrap();
        write("{\"architectures\": [\"LlamaForCausalLM\"]}");
        assert_eq!(check("train-dpo").unwrap(), ("lm", None));
        assert!(check("train-pm").unwrap_err().contains("`train-pm` trains one that scores"));
        write(
            "{\"architectures\": [\"LlamaForSequenceClassification\"], \"mean\": 0.5, \"std\": 2.0}",
        );
        assert_eq!(check("train-pm").unwrap(), ("pm", Some((0.5, 2.0))));
        assert!(check("train-sl").is_err());
        write("not json");
        assert!(check("train-sl").unwrap_err().contains("config.json"));
    }
}
