//! `amend check`: everything that is wrong with a pipeline, its constitution and what they name, at once.

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
    match files::checked(&args.file, common, None) {
        Ok(plan) => {
            let (pipeline, nodes) = (&plan.pipeline().name.value, plan.pipeline().nodes.len());
            let warnings = warnings(&plan);
            failure::warn(&warnings, screen);
            if screen.json {
                let warnings = mistakes_json(&warnings);
                screen.json(&document(Some(pipeline), Some(nodes), Vec::new(), warnings))?;
            } else if !screen.quiet {
                let warned = match warnings.is_empty() {
                    true => String::new(),
                    false => format!(", {}", warnings.counted()),
                };
                let nodes = counted(nodes as u64, "node");
                screen.text(&format!("{path}: {nodes}, no mistakes{warned}"))?;
            }
            Ok(Status::Done)
        }
        Err(mistakes) if screen.json => {
            screen.json(&document(None, None, mistakes_json(&mistakes), Vec::new()))?;
            Ok(Status::Usage)
        }
        Err(mistakes) => Err(mistakes.into()),
    }
}
