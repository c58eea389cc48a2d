//! `train-pm`: a preference model on comparisons, by Bradley-Terry with soft targets.
//!
//! The score is read at the last token of prompt, completion and end token; both completions of a
//! comparison are in one forward pass.

use std::collections::BTreeMap;

use tch::{Tensor, no_grad_guard};

use super::advantage::moments;
use super::calibration::{Judged, metrics_by_group, told_by_chance};
use super::comparisons::{self, Comparison, Reading, buckets_of};
use super::learner::{Learner, Texts};
use super::loss::{bradley_terry, centring};
use super::optimizer::{AdamW, Schedule};
use super::order::Steps;
use super::rows::{Layout, MicroBatch, Row, floats};
use super::state::{Position, State};
use crate::model::torch::config::Head;
use crate::model::train::{PmSettings, TrainError, TrainJob, Trained};
use crate::record::Id;

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &PmSettings) -> Result<Trained, TrainError> {
    let mut trained = Trained { kind: "pm".to_owned(), ..Trained::default() };
    let PmSettings { optim, compute, .. } = settings;
    let texts = comparisons::texts(&job.examples, "train-pm")?;
    let texts = Texts(&texts);
    let model = Learner::begin(&job.init, Head::Score, optim.seed, &texts, &job.out, compute)?;
    let mut model = model.adapted(&job.init, optim)?;
    let PmSettings { max_length, held_out, .. } = *settings;
    let reading = Reading { verb: "train-pm", seed: optim.seed, max_length, held_out };
    let (held_out, learnt) = comparisons::read(&model, &job.examples, &reading, &mut trained)?;
    let parts = compute.gradient_accumulation_steps;
    let layout = Layout::of_parts(settings.batch_size, parts, model.device());

    let ids: Vec<Id> = learnt.iter().map(|comparison| comparison.id).collect();
    let steps = Steps::new(optim.seed, &ids, settings.batch_size, settings.epochs);
    let schedule = Schedule::new(optim, steps.total())?;
    let mut adamw = AdamW::new(model.weights(), optim);
    let state = State::of(job, compute);
    let mut at = state.resume(job, &mut [("model", &mut adamw)], steps.total())?.0;
    model.refresh()?;
    for batch in steps.batches().skip(at.step as usize) {
        let centring = settings.center_rewards_coefficient;
        let (loss, judged) = accumulate(&model, &learnt, &batch, centring, &layout);
        let rate = schedule.rate(at.step);
        at.step += 1;
        let grad_norm = model.step(&mut adamw, rate)?;
        comparisons::check(at.step, (loss, grad_norm), &learnt, &batch)?;
        for (name, value) in metrics_by_group(&judged) {
            if !name.contains('/') && name != "ece" {
                at.log.add(&name, value, judged.len() as f64);
            }
        }
        at.n_tokens += batch.iter().map(|&row| learnt[row].n_tokens()).sum::<usize>() as f64;
        at.log.add("grad_norm", grad_norm, 1.0);
        if at.step % optim.logging_steps.max(1) == 0 || at.step == steps.total() {
            report(&mut at, &steps, rate, job);
        }
        if state.is_due(at.step, steps.total()) {
            state.write(&at, &[("model", &adamw)], &BTreeMap::new())?;
        }
    }
    let judged = judge(&model, &held_out, &layout);
    warn_of_chance(&judged);
    let scaling = |all: &[Comparison]| scaling(all, &settings.scale_on);
    let (few, more) = (scaling(&held_out), scaling(&learnt));
    // Where nothing was held out, what was learnt has to do.
    let of_scale = judge(&model, if few.is_empty() { &more } else { &few }, &layout);
    set_scale(&mut model, &of_scale, &mut trained);
    let epoch = steps.epoch_after(steps.total());
    for (name, value) in metrics_by_group(&judged) {
        at.log.push(steps.total(), epoch, "heldout", &name, value);
    }
    at.tell(job, "done", steps.total());
    trained.steps = steps.total();
    trained.metrics = at.log.into_metrics();
    trained.weights = model.save(&job.out, "train-pm")?;
    Ok(trained)
}

fn report(at: &mut Position, steps: &Steps<'_>, rate: f64, job: &TrainJob) {
    let (done, total, epoch) = (at.step, steps.total(), steps.epoch_after(at.step));
    let means = at.log.flush(done, epoch, "train");
    at.log.push(done, epoch, "train", "learning_rate", rate);
    let (loss, accuracy) = (means["loss"], means["accuracy"]);
    at.tell(job, &format!("loss {loss:.3} accuracy {accuracy:.2}"), total);
}

/// Warns of sources that taught the model nothing.
fn warn_of_chance(held_out: &[Judged]) {
    for source in told_by_chance(held_out) {
        tracing::warn!(
            "the preference model agrees with the comparisons of `{source}` that were held out no \
             more than by chance: as a reward that is noise, to which `normalize_reward` gives the \
             strength of a judgement"
        );
    }
}

/// The comparisons whose scores give the model's scale.
fn scaling(all: &[Comparison], sources: &[String]) -> Vec<Comparison> {
    let counts = |one: &&Comparison| sources.is_empty() || sources.contains(&one.source);
    all.iter().filter(counts).cloned().collect()
}

/// Stores the mean and the standard deviation of the scores beside the weights.
fn set_scale(model: &mut Learner, judged: &[Judged], trained: &mut Trained) {
    let (mean, variance) = moments(judged.iter().flat_map(|judged| [judged.a, judged.b]));
    let std = variance.sqrt();
    model.set_number("mean", mean);
    model.set_number("std", std);
    trained.scores = Some((mean, std));
}

/// Adds the gradients of a batch's mean loss per comparison; gives that mean, and the scores.
pub(super) fn accumulate(
    model: &Learner,
    data: &[Comparison],
    batch: &[usize],
    center_rewards_coefficient: f64,
    layout: &Layout,
) -> (f64, Vec<Judged>) {
    let mut mean = 0.0;
    let mut judged = Vec::with_capacity(batch.len());
    for bucket in buckets_of(data, batch, layout) {
        let (a, b) = scores(model, data, &bucket); // (n), (n)
        let column = |of: fn(&Comparison) -> f32| {
            let numbers: Vec<f32> = bucket.iter().map(|&row| of(&data[row])).collect();
            Tensor::from_slice(&numbers).to_device(model.device()) // (n)
        };
        let (p, weights) = (column(|c| c.p), column(|c| c.weight));
        let loss = bradley_terry(&(&a - &b), &p, &weights);
        let loss =
            (loss + centring(&a, &b, &weights) * center_rewards_coefficient) / batch.len() as f64; // ()
        model.backward(&loss);
        mean += loss.double_value(&[]);
        judged.extend(judged_of(data, &bucket, &a, &b));
    }
    (mean, judged)
}

/// The scores of comparisons, without learning from them.
fn judge(model: &Learner, data: &[Comparison], layout: &Layout) -> Vec<Judged> {
    let _guard = no_grad_guard();
    let all: Vec<usize> = (0..data.len()).collect();
    let of_bucket = |bucket: Vec<usize>| {
        let (a, b) = scores(model, data, &bucket);
        judged_of(data, &bucket, &a, &b)
    };
    buckets_of(data, &all, layout).into_iter().flat_map(of_bucket).collect()
}

/// The scores of both texts of each comparison, in one forward pass.
fn scores(model: &Learner, data: &[Comparison], bucket: &[usize]) -> (Tensor, Tensor) {
    let rows: Vec<Row> = bucket.iter().flat_map(|&row| data[row].rows.clone()).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    let micro = MicroBatch::of_ends(&rows, &all, model.device());
    let scores = model.scores(&model.states(&micro)).view([-1, 2]); // (n, 2)
    (scores.select(1, 0), scores.select(1, 1))
}

fn judged_of(data: &[Comparison], bucket: &[usize], a: &Tensor, b: &Tensor) -> Vec<Judged> {
    let (a, b) = (floats(a), floats(b));
    let judged = |(place, &row): (usize, &usize)| Judged {
        a: f64::from(a[place]),
        b: f64::from(b[place]),
        p: f64::from(data[row].p),
        source: data[row].source.clone(),
        category: data[row].category.clone(),
    };
    bucket.iter().enumerate().map(judged).collect()
}
