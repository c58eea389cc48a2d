//! The options that `plan` and `run` give the engine.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::{Common, Limits};
use super::failure::{Status, Usage};
use super::predicates::SqlPredicates;
use super::screen::Screen;
use super::{end, files, progress};
use crate::engine::run::{Options, RunError};
use crate::plan::Plan;
use crate::spec::{Mistakes, Place, did_you_mean};

/// What the command line says of a run.
pub(super) struct Setup<'a> {
    /// The pipeline file.
    pub(super) file: &'a Path,
    /// How far.
    pub(super) limits: &'a Limits,
    /// The most calls.
    pub(super) max_calls: Option<u64>,
    /// The most US dollars.
    pub(super) max_cost: Option<f64>,
}

impl Setup<'_> {
    /// The engine's options.
    pub(super) fn options(
        &self,
        plan: &Plan,
        common: &Common,
        screen: Screen,
    ) -> anyhow::Result<Options> {
        for name in self.limits.until.iter().chain(&self.limits.hold) {
            check_node(plan, name)?;
        }
        for name in &self.limits.hold {
            let op = plan.pipeline().nodes.get(name.as_str());
            if op.is_none_or(|op| !op.trains()) {
                return Err(Usage::new(format!("--hold \"{name}\": it trains no model")).into());
            }
        }
        let unpriced = plan.pipeline().models.iter().find(|(_, model)| model.is_unpriced());
        if let (Some(_), Some((name, _))) = (self.max_cost, unpriced) {
            let usage = Usage::new(format!("--max-cost: model \"{name}\" has no price"));
            let help =
                "add `price: { input: …, output: … }` to it, in dollars per million tokens, or 0";
            return Err(usage.help(help).into());
        }
        let interrupt = Arc::new(AtomicBool::new(false));
        Ok(Options {
            store: files::store_of(self.file, common),
            workers: common.workers,
            until: self.limits.until.clone(),
            hold: self.limits.hold.clone(),
            max_calls: self.max_calls,
            max_cost: self.max_cost,
            retry_rejects: self.limits.retry_rejects,
            planned: None,
            progress: progress::of(screen),
            now_ms: now_ms(),
            predicates: Arc::new(SqlPredicates),
            interrupt,
        })
    }
}

/// The engine's error, a mistake in a file as one that shows the file.
pub(super) fn error(plan: &Plan, error: RunError) -> anyhow::Error {
    match error {
        RunError::Mistake { place, message, help } => {
            let mut mistakes = Mistakes::new(plan.loaded.files.clone());
            mistakes.add(place.unwrap_or(Place::NOWHERE), message, help);
            mistakes.into()
        }
        other => other.into(),
    }
}

fn check_node(plan: &Plan, name: &str) -> Result<(), Usage> {
    if plan.find(name).is_some() || plan.pipeline().nodes.contains_key(name) {
        return Ok(());
    }
    let usage = Usage::new(format!("\"{name}\" is not a node of \"{}\"", plan.pipeline().name));
    let names = plan.pipeline().nodes.keys().map(|name| name.value.as_str());
    Err(match did_you_mean(name, names) {
        Some(help) => usage.help(help),
        None => usage,
    })
}

/// From now on the first Ctrl-C asks the run to stop, and the second ends the process.
pub(super) fn heed_ctrl_c(interrupt: &Arc<AtomicBool>, screen: Screen) -> anyhow::Result<()> {
    let interrupt = Arc::clone(interrupt);
    let heed = move || {
        if interrupt.swap(true, Ordering::SeqCst) {
            end::at_once(Status::Interrupted);
        }
        progress::bars().suspend(|| {
            screen.note("stopping; what was paid for is kept, and the next run goes on (again to end at once)");
        });
    };
    ctrlc::set_handler(heed).map_err(|error| io::Error::other(error).into())
}

/// The time. It is read here alone and passed down.
pub(super) fn now_ms() -> i64 {
    use std::time::{SystemTime, UNIX_EPOCH};

    #[expect(clippy::disallowed_methods, reason = "the clock is read once, where a run begins")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as i64)
}
