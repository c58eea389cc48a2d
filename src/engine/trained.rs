//! The rows that a finished training makes: its checkpoint, its metrics, its episodes.

use super::policy::{KeptBy, Standing};
use super::rows::{Lineage, Rec, Rows};
use super::train::{TrainMade, Training};
use crate::model::train::Kept;
use crate::model::{Trained, train};
use crate::operators::{Reason, made_id};
use crate::record::{BatchBuilder, Cell, Id, KeyHasher, Message, Origin, Relation};

/// What is known of a training besides what it gave.
pub(super) struct Facts {
    pub(super) recipe: Id,
    pub(super) dataset: Id,
    pub(super) dataset_rows: u64,
    pub(super) standing: Standing,
}

/// A finished training of which nothing but the weights is left.
pub(super) fn weights_only(weights: Id) -> Trained {
    Trained { weights, ..Trained::default() }
}

fn checkpoint_row(training: &Training) -> Id {
    KeyHasher::new("amend/checkpoint/1").text(&training.node).id()
}

/// The row of a checkpoint that is not yet known.
pub(super) fn unknown(training: &Training) -> Rec {
    let row = checkpoint_row(training);
    Rec { row, content: row.unknown(), version: row.unknown() }
}

/// Keeps the rows of a finished training and gives what travels.
pub(super) fn rows(
    training: &Training,
    trained: &Trained,
    facts: &Facts,
    rows: &Rows,
) -> Vec<TrainMade> {
    let row = checkpoint_row(training);
    let origin = |row_id: Id, parents: Vec<Id>| Origin {
        row_id,
        root_id: row,
        parents,
        call_keys: vec![facts.recipe],
    };
    rows.descend(row, || Lineage { root: row, parents: Vec::new(), sibling: 0 });
    let mut made = vec![TrainMade::Model(trained.weights)];

    let mut checkpoints = BatchBuilder::new(Relation::Checkpoints);
    let last = Kept {
        step: trained.steps,
        weights: trained.weights,
        dir: String::new(),
        files: trained.files.clone(),
    };
    checkpoints.push(&origin(row, Vec::new()), &checkpoint(training, trained, &last, facts));
    made.extend(keep(rows, checkpoints).into_iter().map(TrainMade::Checkpoint));

    let mut snapshots = BatchBuilder::new(Relation::Checkpoints);
    for kept in &trained.snapshots {
        let id = made_id("snapshot", &[row], kept.step);
        snapshots.push(&origin(id, vec![row]), &checkpoint(training, trained, kept, facts));
    }
    made.extend(keep(rows, snapshots).into_iter().map(TrainMade::Snapshot));

    let mut metrics = BatchBuilder::new(Relation::Metrics);
    for (at, metric) in trained.metrics.iter().enumerate() {
        let id = made_id("metric", &[row], at as u64);
        metrics.push(&origin(id, vec![row]), &self::metric(training, facts, metric));
    }
    made.extend(keep(rows, metrics).into_iter().map(TrainMade::Metric));

    let mut rollouts = BatchBuilder::new(Relation::Rollouts);
    for rollout in &trained.rollouts {
        let id = made_id("rollout", &[row, rollout.prompt_row], rollout.episode as u64);
        let root = rows.lineage(rollout.prompt_row).root;
        let origin = Origin { root_id: root, ..origin(id, vec![row, rollout.prompt_row]) };
        rollouts.push(&origin, &self::rollout(rollout));
    }
    made.extend(keep(rows, rollouts).into_iter().map(TrainMade::Rollout));

    let mut rejects = BatchBuilder::new(Relation::Rejects);
    for (lost, reason, detail) in &trained.rejected {
        let root = rows.lineage(*lost).root;
        let cells = [
            ("node", Cell::text(training.node.to_string())),
            ("reason", Cell::text(reason.clone())),
            ("detail", Cell::text(detail.clone())),
        ];
        debug_assert!([Reason::TooLong.name(), Reason::Empty.name()].contains(&reason.as_str()));
        let id = made_id("reject", &[*lost, row], 0);
        rejects.push(&Origin { root_id: root, ..origin(id, vec![*lost]) }, &cells);
    }
    made.extend(keep(rows, rejects).into_iter().map(TrainMade::Reject));
    made
}

fn keep(rows: &Rows, builder: BatchBuilder) -> Vec<Rec> {
    if builder.is_empty() {
        return Vec::new();
    }
    let (batch, ids) = builder.finish();
    rows.keep(batch, &ids)
}

fn checkpoint(
    training: &Training,
    trained: &Trained,
    kept: &Kept,
    facts: &Facts,
) -> Vec<(&'static str, Cell<'static>)> {
    let init = training.models.first().and_then(Option::as_ref).map(|model| model.fingerprint);
    // A model that is kept was trained on what was there then.
    let dataset = trained.basis.map_or(facts.dataset, |basis| basis.dataset);
    let dataset_rows = trained.basis.map_or(facts.dataset_rows, |basis| basis.dataset_rows);
    let changed = match facts.standing.kept {
        Some(KeptBy::MinChanged { changed, .. }) => Some(changed as i64),
        _ => None,
    };
    let kind = if trained.kind.is_empty() { "lm" } else { &trained.kind };
    vec![
        ("node", Cell::text(training.node.to_string())),
        ("fingerprint", Cell::id(kept.weights)),
        ("kind", Cell::text(kind.to_owned())),
        ("step", Cell::Int(kept.step as i64)),
        ("path", Cell::text(format!("checkpoints/{}", kept.weights))),
        ("files", Cell::Files(kept.files.clone())),
        ("init_fingerprint", Cell::or_null(init, Cell::id)),
        ("dataset_digest", Cell::id(dataset)),
        ("dataset_rows", Cell::Int(dataset_rows as i64)),
        ("operator_version", Cell::Int(i64::from(training.version))),
        ("settings", Cell::text(training.settings_json.to_string())),
        ("policy", Cell::text(training.policy.name())),
        ("stale", Cell::Bool(facts.standing.is_stale())),
        ("rows_changed", Cell::or_null(changed, Cell::Int)),
        ("warm_from", Cell::or_null(trained.basis.and_then(|basis| basis.warm_from), Cell::id)),
        ("pm_mean", Cell::or_null(trained.scores, |(mean, _)| Cell::Float(mean))),
        ("pm_std", Cell::or_null(trained.scores, |(_, std)| Cell::Float(std))),
    ]
}

fn metric(
    training: &Training,
    facts: &Facts,
    metric: &train::Metric,
) -> Vec<(&'static str, Cell<'static>)> {
    vec![
        ("node", Cell::text(training.node.to_string())),
        ("run", Cell::id(facts.recipe)),
        ("step", Cell::Int(metric.step as i64)),
        ("epoch", Cell::Float(metric.epoch)),
        ("split", Cell::text(metric.split.clone())),
        ("name", Cell::text(metric.name.clone())),
        ("value", Cell::Float(metric.value)),
    ]
}

fn rollout(rollout: &train::Rollout) -> Vec<(&'static str, Cell<'_>)> {
    let floats = |numbers: &[f32]| match numbers {
        [] => Cell::Null,
        numbers => Cell::Floats(numbers.iter().map(|number| f64::from(*number)).collect()),
    };
    let tokens = &rollout.token_ids;
    let completion = vec![Message::assistant(rollout.completion.clone())];
    vec![
        ("prompt", Cell::messages(rollout.prompt.clone())),
        ("completion", Cell::messages(completion)),
        ("step", Cell::Int(rollout.step)),
        ("episode", Cell::Int(rollout.episode)),
        ("sample_index", Cell::Int(rollout.sample_index)),
        ("token_ids", if tokens.is_empty() { Cell::Null } else { Cell::Ints(tokens.clone()) }),
        ("logprobs", floats(&rollout.logprobs)),
        ("ref_logprobs", floats(&rollout.ref_logprobs)),
        ("values", floats(&rollout.values)),
        ("advantages", floats(&rollout.advantages)),
        ("returns", floats(&rollout.returns)),
        ("score", Cell::Float(rollout.score)),
        ("score_normalized", Cell::Float(rollout.score_normalized)),
        ("score_test_pm", Cell::or_null(rollout.score_test_pm, Cell::Float)),
        ("kl", Cell::Float(rollout.kl)),
        ("reward", Cell::Float(rollout.reward)),
        ("finish_reason", Cell::text(rollout.finish_reason.clone())),
        ("completion_tokens", Cell::Int(i64::from(rollout.completion_tokens))),
    ]
}
