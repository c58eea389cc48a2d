//! Panics that nobody catches: the process ends, whichever thread it was.
//!
//! A thread that is gone is waited for in vain: by the run, by other workers, by the rows whose answers
//! it was to bring.

use std::panic::PanicHookInfo;

use serde_json::json;

use super::failure::Status;
use super::screen::Screen;
use crate::model::panics;

/// From now on a panic that nobody catches is told, and ends the process as failed.
pub(super) fn end_the_process(screen: Screen) {
    std::panic::set_hook(Box::new(move |panic| {
        if !panics::is_caught() {
            tell(panic, screen);
            // What other threads wait for never comes; the memo is safe at any instant.
            super::end::at_once(Status::Failed);
        }
    }));
}

fn tell(panic: &PanicHookInfo<'_>, screen: Screen) {
    let said = panics::message(panic.payload());
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
    let message = format!(
        "a fault of amend itself in the thread \"{thread}\": {said}{}; what was paid for is kept: please report it, and run again to go on",
        place.unwrap_or_default()
    );
    screen.note(&format!("error: {message}"));
    if screen.json {
        let kind = Status::Failed.name();
        drop(screen.json(&json!({ "error": { "kind": kind, "message": message } })));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::Parser as _;

    use super::*;

    const CHILD: &str = "AMEND_TEST_PANICS";
    const NAME: &str = "cli::panics::tests::a_panic_of_any_thread_ends_the_process_as_failed";

    /// What the test does in a process of its own.
    fn child() {
        let cli = super::super::args::Cli::parse_from(["amend", "log"]);
        end_the_process(Screen::new(&cli.common));
        let caught: Result<(), String> = panics::caught(|| panic!("told elsewhere"));
        assert_eq!(caught.unwrap_err(), "told elsewhere");
        let thread = std::thread::Builder::new().name("one of many".to_owned());
        drop(thread.spawn(|| panic!("nobody catches this")).unwrap());
        // As a run does that waits for what the thread was to bring.
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_process_as_failed() {
        if std::env::var_os(CHILD).is_some() {
            child();
        }
        let exe = std::env::current_exe().unwrap();
        let mut command = Command::new(exe);
        let ended =
            command.args([NAME, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{told}");
        assert!(told.contains("in the thread \"one of many\": nobody catches this"), "{told}");
        assert!(!told.contains("told elsewhere"), "{told}");
    }
}
