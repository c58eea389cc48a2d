//! `cli`: the command line: one file a subcommand, and how things are shown.
//!
//! Results go to stdout, with `-o json` as one document; everything else goes to stderr. What a
//! subcommand fails with decides the exit code: see `failure`.

mod args;
mod end;
mod failure;
mod files;
mod logging;
mod screen;

mod check;
mod diff;
mod explain;
mod graph;
mod import;
mod log;
mod plan;
mod query;
mod run;
mod schema;
mod verify;

#[cfg(feature = "torch")]
mod chat;
#[cfg(feature = "torch")]
mod serve;

#[cfg(feature = "torch")]
mod local;

mod options;
mod panics;
mod predicates;
mod progress;
mod shares;
mod shorten;
mod table;
mod tensorboard;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, Common, Output};
use failure::{Status, Usage};
use screen::Screen;

/// Runs the command that the process was given, and says how it ended.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(status) => return status.into(),
    };
    #[cfg(feature = "torch")]
    prepare(&cli.command, &arguments);
    let screen = Screen::new(&cli.common);
    logging::begin(&cli.common, screen);
    // A server outlives a request that fails.
    if !matches!(cli.command, Command::Serve(_)) {
        panics::end_the_process(screen);
    }
    let status = match dispatch(&cli.command, &cli.common, screen) {
        Ok(status) => status,
        Err(error) => failure::show(&error, screen),
    };
    if may_use_models(&cli.command) {
        end::with(status);
    }
    status.into()
}

fn may_use_models(command: &Command) -> bool {
    matches!(command, Command::Run(_) | Command::Plan(_) | Command::Chat(_) | Command::Serve(_))
}

/// Starts the process again as libtorch needs it, for a command that may use models.
#[cfg(feature = "torch")]
fn prepare(command: &Command, arguments: &[OsString]) {
    if may_use_models(command) {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // What it fails to cure costs time only.
        drop(crate::model::torch::prepare_process(threads, arguments));
    }
}

/// Answers a command that asks no model, before libtorch starts up: its exit code, or nothing where
/// [`main`] is to be called, in a process that is as libtorch needs it. The process has no runtime of
/// Rust's yet, and must not ask for its arguments.
#[cfg(all(target_os = "linux", feature = "torch"))]
pub fn early() -> Option<u8> {
    use std::os::unix::ffi::OsStringExt as _;

    let line = std::fs::read("/proc/self/cmdline").ok()?;
    let arguments = line.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let arguments: Vec<OsString> =
        arguments.map(|argument| OsString::from_vec(argument.to_vec())).collect();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(status) => return Some(status.code()),
    };
    let screen = Screen::new(&cli.common);
    let status = match &cli.command {
        Command::Run(args) => run::unchanged(args, &cli.common, screen),
        Command::Plan(_) | Command::Chat(_) | Command::Serve(_) => None,
        command => {
            logging::begin(&cli.common, screen);
            let status = dispatch(command, &cli.common, screen);
            Some(status.unwrap_or_else(|error| failure::show(&error, screen)))
        }
    };
    if status.is_none() {
        prepare(&cli.command, &arguments);
    }
    status.map(Status::code)
}

/// The command; or, where help was asked for and printed, or a mistake was, how that ends.
fn parse(arguments: &[OsString]) -> Result<Cli, Status> {
    Cli::try_parse_from(arguments).map_err(|error| {
        // Help and version are no failures; what cannot be printed has no reader.
        let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        drop(error.print());
        if is_help { Status::Done } else { Status::Usage }
    })
}

fn dispatch(command: &Command, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let is_named = match command {
        Command::Import(_) => !matches!(common.output, Output::Csv),
        Command::Query(_) => !matches!(common.output, Output::File(_)),
        _ => matches!(common.output, Output::Text | Output::Json),
    };
    if !is_named {
        let takes =
            if matches!(command, Command::Query(_)) { "text, json or csv" } else { "text or json" };
        return Err(Usage::new(format!("-o takes {takes} here")).into());
    }
    match command {
        Command::Check(args) => check::run(args, common, screen),
        Command::Graph(args) => graph::run(args, common, screen),
        Command::Schema(args) => schema::run(args, screen),
        Command::Import(args) => import::run(args, common, screen),
        Command::Plan(args) => plan::run(args, common, screen),
        Command::Run(args) => run::run(args, common, screen),
        Command::Query(args) => query::run(args, common, screen),
        Command::Log(args) => log::run(args, common, screen),
        Command::Diff(args) => diff::run(args, common, screen),
        Command::Explain(args) => explain::run(args, common, screen),
        Command::Verify(args) => verify::run(args, common, screen),
        #[cfg(feature = "torch")]
        Command::Chat(args) => chat::run(args, common, screen),
        #[cfg(feature = "torch")]
        Command::Serve(args) => serve::run(args, common, screen),
        #[cfg(not(feature = "torch"))]
        Command::Chat(_) | Command::Serve(_) => {
            anyhow::bail!(
                "this amend was built without local models: build it with `--features torch`"
            )
        }
    }
}
