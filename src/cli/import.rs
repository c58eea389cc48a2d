//! `amend import`: a published constitution, written as ours.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::Context as _;
use serde_json::json;

use super::args::{Common, ImportArgs, Output};
use super::failure::{Status, Usage};
use super::screen::Screen;
use super::table::counted;
use crate::spec::import;

/// Reads what is published and writes it to stdout, or to the file of `-o`.
pub(super) fn run(args: &ImportArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let constitution = import::read(&args.path)?;
    let heading = format!("Imported from {}.", args.path.display());
    let yaml = import::to_yaml(&constitution, Some(&heading));
    let principles = constitution.principles.len();
    match &common.output {
        Output::File(path) => {
            if args.force {
                fs::write(path, &yaml)
            } else {
                match File::create_new(path) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        let message = format!("\"{}\" is there already", path.display());
                        return Err(Usage::new(message).help("--force writes over it").into());
                    }
                    file => file.and_then(|mut file| file.write_all(yaml.as_bytes())),
                }
            }
            .with_context(|| format!("write \"{}\"", path.display()))?;
            if !screen.quiet {
                let principles = counted(principles as u64, "principle");
                screen.note(&format!("{}: {principles}", path.display()));
            }
        }
        Output::Json => screen.json(&json!({ "principles": principles, "yaml": yaml }))?,
        _ => screen.text(&yaml)?,
    }
    Ok(Status::Done)
}
