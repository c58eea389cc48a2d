//! Logs on stderr, at the level that `-q`, `-v` or `AMEND_LOG` name.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use super::args::Common;
use super::screen::Screen;

/// Begins to log; what is logged before is lost.
pub(super) fn begin(common: &Common, screen: Screen) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "amend=info,warn",
        (false, 2) => "amend=debug,info",
        (false, _) => "trace",
    };
    let filter = std::env::var("AMEND_LOG").unwrap_or_else(|_| level.to_owned());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new(level)))
        .with_ansi(screen.color_err)
        .with_target(common.verbose > 1)
        .with_writer(|| Lines)
        .finish();
    // In a test that calls commands in one process, the first one's logging stays.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// Stderr, with progress bars taken out of the way while a line is written.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        super::progress::bars().suspend(|| io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
