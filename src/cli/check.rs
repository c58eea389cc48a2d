//! `amend check`: everything that is wrong with a pipeline and its constitution, at once.

use serde_json::json;

use super::args::{Common, File};
use super::failure::{Status, mistakes_json};
use super::files;
use super::screen::Screen;

/// Checks a pipeline.
pub(super) fn run(args: &File, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let path = args.file.display().to_string();
    match files::plan(&args.file, common) {
        Ok(plan) => {
            let (pipeline, nodes) = (&plan.pipeline().name.value, plan.pipeline().nodes.len());
            if screen.json {
                screen.json(
                    &json!({ "path": path, "pipeline": pipeline, "nodes": nodes, "mistakes": [] }),
                )?;
            } else if !screen.quiet {
                screen.text(&format!("{path}: {nodes} nodes, no mistakes"))?;
            }
            Ok(Status::Done)
        }
        Err(mistakes) if screen.json => {
            let list = mistakes_json(&mistakes);
            screen.json(
                &json!({ "path": path, "pipeline": null, "nodes": null, "mistakes": list }),
            )?;
            Ok(Status::Usage)
        }
        Err(mistakes) => Err(mistakes.into()),
    }
}
