//! `amend check`: everything that is wrong with a pipeline, its constitution and what they name, at once.
//! What they name and is not there is a warning here, and a mistake to `plan` and `run`.

use serde_json::{Value, json};

use super::args::{Common, File};
use super::failure::{self, Status, mistakes_json};
use super::files;
use super::screen::Screen;
use super::table::counted;
use crate::plan::warnings;

/// Checks a pipeline.
pub(super) fn run(args: &File, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let path = args.file.display().to_string();
    let document = |pipeline: Option<&str>, nodes: Option<usize>, mistakes, warnings| {
        json!({
            "path": path,
            "pipeline": pipeline,
            "nodes": nodes,
            "mistakes": Value::Array(mistakes),
            "warnings": Value::Array(warnings),
        })
    };
    let (plan, mistakes, mut warned) = files::looked_at(&args.file, common, None);
    let plan = plan.filter(|_| mistakes.is_empty());
    if let Some(plan) = &plan {
        warned.append(&warnings(plan));
    }
    failure::warn(&warned, screen);
    let Some(plan) = plan else {
        if !screen.json {
            return Err(mistakes.into());
        }
        screen.json(&document(None, None, mistakes_json(&mistakes), mistakes_json(&warned)))?;
        return Ok(Status::Usage);
    };
    let (pipeline, nodes) = (&plan.pipeline().name.value, plan.pipeline().nodes.len());
    if screen.json {
        screen.json(&document(Some(pipeline), Some(nodes), Vec::new(), mistakes_json(&warned)))?;
    } else if !screen.quiet {
        let more = match warned.is_empty() {
            true => String::new(),
            false => format!(", {}", warned.counted()),
        };
        screen.text(&format!("{path}: {}, no mistakes{more}", counted(nodes as u64, "node")))?;
    }
    Ok(Status::Done)
}
