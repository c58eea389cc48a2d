//! The screen: where results and notes are written, and whether in colour.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::args::{ColorWhen, Common, Output};

/// How this process prints.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Screen {
    /// Whether results are one JSON document.
    pub(super) json: bool,
    /// Whether stdout is coloured.
    pub(super) color_out: bool,
    /// Whether stderr is coloured.
    pub(super) color_err: bool,
    /// Whether a person sees stderr as it is written.
    pub(super) live: bool,
    /// Whether only errors are said.
    pub(super) quiet: bool,
    /// Whether more is said.
    pub(super) verbose: bool,
}

impl Screen {
    /// As the flags and the terminal say.
    pub(super) fn new(common: &Common) -> Screen {
        let color = |is_terminal: bool| match common.color {
            ColorWhen::Always => true,
            ColorWhen::Never => false,
            ColorWhen::Auto => {
                is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            }
        };
        let live = io::stderr().is_terminal();
        Screen {
            json: common.output == Output::Json,
            color_out: color(io::stdout().is_terminal()),
            color_err: color(live),
            live: live && !common.quiet,
            quiet: common.quiet,
            verbose: common.verbose > 0,
        }
    }

    /// Prints one JSON document on stdout.
    pub(super) fn json(self, document: &impl Serialize) -> anyhow::Result<()> {
        self.text(&serde_json::to_string_pretty(document)?)
    }

    /// Prints a text on stdout. A reader that went away is no failure.
    #[expect(clippy::unused_self, reason = "whoever prints has the screen at hand")]
    pub(super) fn text(self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(end.as_bytes())) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result.and_then(|()| stdout.flush())?),
        }
    }

    /// Writes a line on stderr. A line that nobody can read is not missed.
    #[expect(clippy::unused_self, reason = "whoever prints has the screen at hand")]
    pub(super) fn note(self, line: &str) {
        drop(writeln!(io::stderr().lock(), "{line}"));
    }

    /// A text in bold on stdout, if that is coloured.
    pub(super) fn bold(self, text: &str) -> String {
        if self.color_out { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A text in grey on stdout, if that is coloured.
    pub(super) fn dim(self, text: &str) -> String {
        if self.color_out { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}
