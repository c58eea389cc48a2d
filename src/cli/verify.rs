//! `amend verify`: every byte of a store looked at, and what can be put in order put in order.

use std::fmt::Write as _;
use std::io;

use serde_json::json;

use super::args::{Common, VerifyArgs};
use super::failure::Status;
use super::screen::Screen;
use super::table::counted;
use super::{files, options};
use crate::store::{Fault, Store, StoreError, Verified};

/// Looks at a store. It is whole (0), or something in it is damaged and stays so (1).
pub(super) fn run(args: &VerifyArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let dir = files::store(&args.which, common)?;
    let store = Store::new(&dir);
    if !dir.is_dir() {
        let message = format!("there is no store \"{}\"", dir.display());
        return Err(super::failure::Usage::new(message).help("name one with --store").into());
    }
    // A run meanwhile would change what is looked at. Where nothing can be written, none can run.
    let lock = match store.lock("amend verify", options::now_ms() * 1000) {
        Ok(lock) => Some(lock),
        Err(StoreError::Io { source, .. }) if is_read_only(&source) => None,
        Err(error) => return Err(error.into()),
    };
    let found = store.verify(lock.is_some())?;
    if screen.json {
        screen.json(&json!({
            "store": dir, "whole": found.is_whole(), "checked": found.checked, "faults": found.faults,
        }))?;
    } else if !screen.quiet || !found.faults.is_empty() {
        screen.text(&text(&found, screen))?;
    }
    Ok(if found.is_whole() { Status::Done } else { Status::Failed })
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn text(found: &Verified, screen: Screen) -> String {
    let mut text = String::new();
    for Fault { kind, path, what, repaired, help } in &found.faults {
        let state = screen.bold(if *repaired { "repaired" } else { "damaged" });
        let _ = writeln!(text, "{state}: {kind} \"{}\": {what}\n  help: {help}", path.display());
    }
    let checked = &found.checked;
    let repaired = found.faults.iter().filter(|fault| fault.repaired).count() as u64;
    let damaged = found.faults.len() as u64 - repaired;
    let _ = writeln!(
        text,
        "verified {}, {}, {}, {} and {} of calls: {}{}",
        counted(checked.snapshots, "snapshot"),
        counted(checked.files, "file"),
        counted(checked.checkpoints, "checkpoint"),
        counted(checked.trainings, "training"),
        counted(checked.calls, "file"),
        if damaged == 0 { "nothing is damaged".to_owned() } else { format!("{damaged} damaged") },
        if repaired == 0 { String::new() } else { format!(", {repaired} repaired") },
    );
    text
}
