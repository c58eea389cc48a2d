//! `amend run`: brings every table of a pipeline up to date.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use anyhow::Context as _;

use super::args::{Common, RunArgs};
use super::failure::{self, Status, Usage};
use super::options::{self, Setup};
use super::screen::Screen;
use super::shares;
use super::table::{TextTable, count, counted, duration, some};
use super::tensorboard::Tee;
use super::{files, progress};
#[cfg(all(target_os = "linux", feature = "torch"))]
use crate::engine::run::run_unchanged;
use crate::engine::run::{Basis, Options, Report, RunError, moved, renamed, run as run_plan};
use crate::plan::{self, Plan};
use crate::query::Reader;
use crate::store::Store;

/// Runs a pipeline.
pub(super) fn run(args: &RunArgs, common: &Common, screen: Screen) -> anyhow::Result<Status> {
    let plan = files::checked(&args.file.file, common, args.limits.until.as_deref())?;
    let (file, limits) = (args.file.file.as_path(), &args.limits);
    let setup = Setup { file, limits, max_calls: args.max_calls, max_cost: args.max_cost };
    let mut options = setup.options(&plan, common, screen)?;
    options.planned = planned(args, &plan)?;
    let mut warnings = plan::warnings(&plan);
    renamed(&plan, &options, &mut warnings);
    moved(&plan, &options, &mut warnings);
    failure::warn(&warnings, screen);
    options::heed_ctrl_c(&options.interrupt, screen)?;
    if let Some(dir) = &args.tensorboard {
        let tee = Tee::new(options.progress, dir, &plan.pipeline().name);
        options.progress = Arc::new(tee.with_context(|| dir.display().to_string())?);
    }
    let report = run_plan(&plan, &options);
    progress::end();
    let report = report.map_err(|error| refused(args, error, &plan))?;
    show(&plan, &options, &report, screen)
}

/// How a run with nothing to do ended; nothing where there is something to do, or to complain of.
#[cfg(all(target_os = "linux", feature = "torch"))]
pub(super) fn unchanged(args: &RunArgs, common: &Common, screen: Screen) -> Option<Status> {
    let plan = files::plan(&args.file.file, common).ok()?;
    let (file, limits) = (args.file.file.as_path(), &args.limits);
    let setup = Setup { file, limits, max_calls: args.max_calls, max_cost: args.max_cost };
    let mut options = setup.options(&plan, common, screen).ok()?;
    options.planned = planned(args, &plan).ok()?;
    let report = run_unchanged(&plan, &options).ok()??;
    // The files are as they were in the last run, so what they name is not looked at again.
    failure::warn(&plan::warnings(&plan), screen);
    show(&plan, &options, &report, screen).ok()
}

/// What the plan to be followed was made of, if one is to be.
fn planned(args: &RunArgs, plan: &Plan) -> Result<Option<Basis>, Usage> {
    /// Of what `amend plan -o json` prints, what is looked at.
    #[derive(serde::Deserialize)]
    struct Planned {
        pipeline: String,
        from: Basis,
    }
    let Some(path) = &args.plan else { return Ok(None) };
    let usage = |what: String| Usage::new(format!("--plan \"{}\": {what}", path.display()));
    let text = fs::read_to_string(path)
        .map_err(|error| usage(format!("it cannot be read: {error}")).help(PLAN_HELP))?;
    let planned: Planned = serde_json::from_str(&text)
        .map_err(|error| usage(format!("it is no plan: {error}")).help(PLAN_HELP))?;
    let name = &plan.pipeline().name.value;
    if planned.pipeline != *name {
        let what = format!("it is a plan of \"{}\", and this is \"{name}\"", planned.pipeline);
        return Err(usage(what).help(PLAN_HELP));
    }
    Ok(Some(planned.from))
}

/// How a plan is made that can be followed.
const PLAN_HELP: &str =
    "make one with `amend plan FILE -o json > plan.json`, with the flags of the run";

fn refused(args: &RunArgs, error: RunError, plan: &Plan) -> anyhow::Error {
    let (RunError::Moved(moved), Some(path)) = (&error, &args.plan) else {
        return options::error(plan, error);
    };
    let usage = Usage::new(format!("--plan \"{}\" no longer holds: {moved}", path.display()));
    usage
        .help(
            "see with `amend plan` what a run would do now, and run with that plan or without one",
        )
        .into()
}

fn show(plan: &Plan, options: &Options, report: &Report, screen: Screen) -> anyhow::Result<Status> {
    if screen.json {
        screen.json(report)?;
    } else if !screen.quiet {
        screen.text(&text(report, &rejects_of(plan, options), screen))?;
        if let Some(number) = report.snapshot {
            let reader = Reader::new(&Store::new(&options.store), &plan.pipeline().name);
            for shares in shares::of(&reader.snapshot(&number.to_string())?)? {
                screen.text(&format!("\n{}", shares.render(screen)))?;
            }
        }
    }
    let is_clean = report.nodes.iter().all(|node| node.rejects == 0);
    Ok(if is_clean { Status::Done } else { Status::Rejects })
}

/// The command that says what became of the rows that failed.
fn rejects_of(plan: &Plan, options: &Options) -> String {
    let (store, name) = (options.store.display().to_string(), &plan.pipeline().name.value);
    let quoted = if store.contains(' ') { format!("'{store}'") } else { store };
    let sql = "select node, reason, count(*) from rejects group by 1, 2";
    format!("amend query --store {quoted} -p {name} \"{sql}\"")
}

fn text(report: &Report, rejects_of: &str, screen: Screen) -> String {
    let heads = [
        "node",
        "op",
        ">rows",
        ">rejects",
        ">dropped",
        ">calls",
        ">from memo",
        ">attempts",
        ">time",
    ];
    let mut table = TextTable::new(&heads);
    for node in &report.nodes {
        table.row(vec![
            node.name.clone(),
            node.op.clone(),
            count(node.rows),
            some(node.rejects),
            some(node.dropped),
            some(node.calls.made),
            some(node.calls.memo),
            some(node.calls.attempts),
            duration(node.seconds),
        ]);
    }
    let mut text = table.render(|head| screen.dim(head));
    let rejects: u64 = report.nodes.iter().map(|node| node.rejects).sum();
    let _ = write!(
        text,
        "\n{} made, {} from the memo, {}",
        counted(report.calls.made, "call"),
        count(report.calls.memo),
        duration(report.seconds),
    );
    if rejects > 0 {
        let _ = write!(text, ", {}: `{rejects_of}`", counted(rejects, "reject"));
    }
    let _ = match (report.snapshot, &report.digest) {
        (Some(number), Some(digest)) => {
            writeln!(text, "\nsnapshot {} {digest}", screen.bold(&number.to_string()))
        }
        _ => writeln!(text, "\nno snapshot: a part of a pipeline is not published"),
    };
    text
}
