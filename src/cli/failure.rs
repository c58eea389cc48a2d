//! How a command ends: its exit code, and what is said when it failed.
//!
//! | code | meaning |
//! |--:|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | usage, or a mistake in a file |
//! | 3 | done, with rejects |
//! | 75 | the store is locked |
//! | 130 | interrupted, resumable |

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::screen::Screen;
use crate::engine::run::RunError;
use crate::query::QueryError;
use crate::query::shown::shown;
use crate::spec::Mistakes;
use crate::spec::import::ImportError;
use crate::store::StoreError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Usage, or a mistake in a file.
    Usage,
    /// Done, with rejects.
    Rejects,
    /// Another run holds the store.
    Locked,
    /// Stopped by the user; the next run goes on.
    Interrupted,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(status.code())
    }
}

impl Status {
    /// The exit code.
    pub(super) fn code(self) -> u8 {
        match self {
            Status::Done => 0,
            Status::Failed => 1,
            Status::Usage => 2,
            Status::Rejects => 3,
            Status::Locked => 75,
            Status::Interrupted => 130,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Usage => "usage",
            Status::Rejects => "rejects",
            Status::Locked => "locked",
            Status::Interrupted => "interrupted",
        }
    }
}

/// A flag or an argument that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Usage {
    message: String,
    help: Option<String>,
}

impl Usage {
    /// What is wrong.
    pub(super) fn new(message: impl Into<String>) -> Usage {
        Usage { message: message.into(), help: None }
    }

    /// The same, with what can be done.
    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Usage {
        self.help = Some(help.into());
        self
    }
}

/// Says why a command failed, and gives the exit code.
pub(super) fn show(error: &anyhow::Error, screen: Screen) -> Status {
    let status = status_of(error);
    screen.note(render(error, screen.color_err).trim_end());
    if screen.json {
        let mistakes = error.downcast_ref::<Mistakes>();
        let message = match mistakes {
            Some(mistakes) => mistakes.counted(),
            None => message_of(error),
        };
        let mut fault = json!({ "kind": status.name(), "message": message });
        if let Some(mistakes) = mistakes {
            fault["mistakes"] = Value::Array(mistakes_json(mistakes));
        }
        drop(screen.json(&json!({ "error": fault })));
    }
    status
}

/// Says warnings, if there are any: they end nothing.
pub(super) fn warn(warnings: &Mistakes, screen: Screen) {
    if !warnings.is_empty() && !screen.quiet {
        screen.note(&format!("{}{}", warnings.render(screen.color_err), warnings.counted()));
    }
}

fn status_of(error: &anyhow::Error) -> Status {
    let is_usage = error.is::<Usage>() || error.is::<Mistakes>() || error.is::<ImportError>();
    let locked = |error: &StoreError| matches!(error, StoreError::Locked { .. });
    match (error.downcast_ref::<RunError>(), error.downcast_ref::<QueryError>()) {
        (Some(RunError::Locked(_)), _) => Status::Locked,
        (Some(RunError::Interrupted(_)), _) => Status::Interrupted,
        (Some(RunError::Mistake { .. }), _) => Status::Usage,
        (_, Some(QueryError::Store(error))) if locked(error) => Status::Locked,
        (_, Some(error)) if error.is_usage() => Status::Usage,
        _ if is_usage => Status::Usage,
        _ if error.downcast_ref::<StoreError>().is_some_and(locked) => Status::Locked,
        _ => Status::Failed,
    }
}

fn render(error: &anyhow::Error, color: bool) -> String {
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        return format!("{}{}\n", mistakes.render(color), mistakes.counted());
    }
    let (red, plain) = if color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let mut text = format!("{red}error:{plain} {}\n", shown(&message_of(error)));
    if let Some(help) = error.downcast_ref::<Usage>().and_then(|usage| usage.help.as_ref()) {
        let _ = writeln!(text, "help: {help}");
    }
    text
}

/// The error and its causes, without those that an error already says itself.
fn message_of(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    text
}

/// Mistakes or warnings as JSON: path, line, column, message, help.
pub(super) fn mistakes_json(mistakes: &Mistakes) -> Vec<Value> {
    let path =
        |file: u32| mistakes.files().get(file as usize).map(|file| file.path.display().to_string());
    mistakes
        .iter()
        .map(|mistake| {
            let place = mistake.place;
            let known = |number: u32| place.is_somewhere().then_some(number);
            json!({
                "path": path(place.file),
                "line": known(place.line),
                "column": known(place.column),
                "message": mistake.message,
                "help": mistake.help,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_code() {
        let locked = RunError::Locked("it is in use".to_owned());
        assert_eq!(status_of(&locked.into()).code(), 75);
        let stopped = RunError::Interrupted("by you".to_owned());
        assert_eq!(status_of(&stopped.into()).code(), 130);
        assert_eq!(status_of(&Usage::new("x").into()).code(), 2);
        assert_eq!(status_of(&anyhow::anyhow!("x")).code(), 1);
    }

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("the disk is gone");
        let error = anyhow::Error::from(io).context("write \"x\": the disk is gone");
        assert_eq!(message_of(&error), "write \"x\": the disk is gone");
        let io = std::io::Error::other("the disk is gone");
        let error = anyhow::Error::from(io).context("nothing was written");
        assert_eq!(message_of(&error), "nothing was written: the disk is gone");
    }
}
