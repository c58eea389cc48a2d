//! `train-pm`: a preference model on comparisons, by Bradley-Terry with soft targets.
//!
//! The score is read at the last token of prompt, completion and end token; both completions of a
//! comparison are in one forward pass.

use tch::{Tensor, no_grad_guard};

use super::advantage::moments;
use super::calibration::{Judged, metrics_by_group};
use super::learner::{Learner, Texts};
use super::log::Log;
use super::loss::{bradley_terry, centring};
use super::optimizer::{AdamW, Schedule};
use super::order::{Steps, is_held_out};
use super::rows::{MicroBatch, Row, buckets, floats};
use crate::model::torch::config::Head;
use crate::model::train::{Example, PmSettings, TrainError, TrainJob, Trained};
use crate::record::Id;

/// A comparison in tokens.
pub(super) struct Comparison {
    /// The row's id.
    pub(super) id: Id,
    /// The two texts, end token included.
    pub(super) rows: [Row; 2],
    /// P(A better).
    pub(super) p: f32,
    /// The weight of its loss.
    pub(super) weight: f32,
    /// The node it came from.
    pub(super) source: String,
    /// Its category.
    pub(super) category: Option<String>,
}

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &PmSettings) -> Result<Trained, TrainError> {
    let mut trained = Trained { kind: "pm".to_owned(), ..Trained::default() };
    let texts = job.examples.iter().map(texts_of).collect::<Result<Vec<_>, _>>()?;
    let optim = &settings.optim;
    let mut model =
        Learner::begin(&job.init, Head::Score, optim.seed, &Texts(&texts.concat()), &job.out)?;
    let (held_out, learnt) = read(&model, &job.examples, settings, &mut trained)?;

    let ids: Vec<Id> = learnt.iter().map(|comparison| comparison.id).collect();
    let steps = Steps::new(optim.seed, &ids, settings.batch_size, settings.epochs);
    let schedule = Schedule::new(optim, steps.total())?;
    let mut adamw = AdamW::new(model.weights(), optim);
    let mut log = Log::default();
    for (step, batch) in (0..).zip(steps.batches()) {
        let (loss, judged) =
            accumulate(&model, &learnt, &batch, settings.center_rewards_coefficient);
        let (rate, done) = (schedule.rate(step), step + 1);
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: done, loss });
        }
        let grad_norm = adamw.step(rate);
        for (name, value) in metrics_by_group(&judged) {
            if !name.contains('/') && name != "ece" {
                log.add(&name, value, judged.len() as f64);
            }
        }
        log.add("grad_norm", grad_norm, 1.0);
        if done % optim.logging_steps.max(1) == 0 || done == steps.total() {
            let epoch = steps.epoch_after(done);
            let means = log.flush(done, epoch, "train");
            log.push(done, epoch, "train", "learning_rate", rate);
            let line = format!(
                "step {done}/{} loss {:.3} accuracy {:.2}",
                steps.total(),
                means["loss"],
                means["accuracy"]
            );
            (job.progress)(&line, done, steps.total());
        }
    }
    finish(&mut model, &held_out, &learnt, &steps, log, &mut trained);
    trained.weights = model.save(&job.out, "train-pm")?;
    Ok(trained)
}

/// Measures on what was held out, and stores the mean and the standard deviation of the scores
/// beside the weights; where nothing was held out, of the scores of what was learnt.
fn finish(
    model: &mut Learner,
    held_out: &[Comparison],
    learnt: &[Comparison],
    steps: &Steps<'_>,
    mut log: Log,
    trained: &mut Trained,
) {
    let judged = judge(model, if held_out.is_empty() { learnt } else { held_out });
    let (mean, variance) = moments(judged.iter().flat_map(|judged| [judged.a, judged.b]));
    let std = variance.sqrt();
    if !held_out.is_empty() {
        let epoch = steps.epoch_after(steps.total());
        let metrics = metrics_by_group(&judged);
        for (name, value) in metrics.iter().map(|(name, value)| (name.as_str(), *value)) {
            log.push(steps.total(), epoch, "heldout", name, value);
        }
    }
    model.set_number("mean", mean);
    model.set_number("std", std);
    trained.scores = Some((mean, std));
    trained.steps = steps.total();
    trained.metrics = log.into_metrics();
}

fn texts_of(example: &Example) -> Result<[&str; 3], TrainError> {
    match example {
        Example::Comparison { prompt, a, b, .. } => Ok([prompt, a, b]),
        _ => Err(TrainError::Data("train-pm learns from comparisons only".to_owned())),
    }
}

/// The examples in tokens: those held out and those learnt. What is empty or too long is rejected.
fn read(
    model: &Learner,
    examples: &[Example],
    settings: &PmSettings,
    trained: &mut Trained,
) -> Result<(Vec<Comparison>, Vec<Comparison>), TrainError> {
    let (mut held_out, mut learnt) = (Vec::new(), Vec::new());
    let length_max = settings.max_length.min(model.length_max());
    for example in examples {
        let Example::Comparison { row_id, prompt, a, b, p, weight, source, category } = example
        else {
            unreachable!("the texts were taken of comparisons");
        };
        if !(0.0..=1.0).contains(p) {
            return Err(TrainError::Data(format!("row {row_id}: p is {p}, not a probability")));
        }
        let rows = match (model.row(prompt, a, length_max)?, model.row(prompt, b, length_max)?) {
            (Ok(a), Ok(b)) => [a, b],
            (Err((reason, detail)), _) | (_, Err((reason, detail))) => {
                trained.rejected.push((*row_id, reason, detail));
                continue;
            }
        };
        let held = is_held_out(settings.optim.seed, *row_id, settings.held_out);
        let into = if held { &mut held_out } else { &mut learnt };
        into.push(Comparison {
            id: *row_id,
            rows,
            p: *p as f32,
            weight: *weight as f32,
            source: source.clone(),
            category: category.clone(),
        });
    }
    if learnt.is_empty() {
        return Err(TrainError::Data(format!(
            "no comparison is left to train on: {} of {} have a completion that is empty or longer \
             than {length_max} tokens, {} are held out",
            trained.rejected.len(),
            examples.len(),
            held_out.len(),
        )));
    }
    Ok((held_out, learnt))
}

/// Adds the gradients of a batch's mean loss per comparison; gives that mean, and the scores.
pub(super) fn accumulate(
    model: &Learner,
    data: &[Comparison],
    batch: &[usize],
    center_rewards_coefficient: f64,
) -> (f64, Vec<Judged>) {
    let mut mean = 0.0;
    let mut judged = Vec::with_capacity(batch.len());
    for bucket in buckets_of(data, batch) {
        let (a, b) = scores(model, data, &bucket); // (n), (n)
        let column = |of: fn(&Comparison) -> f32| {
            let numbers: Vec<f32> = bucket.iter().map(|&row| of(&data[row])).collect();
            Tensor::from_slice(&numbers).to_device(model.device()) // (n)
        };
        let (p, weights) = (column(|c| c.p), column(|c| c.weight));
        let loss = bradley_terry(&(&a - &b), &p, &weights);
        let loss =
            (loss + centring(&a, &b, &weights) * center_rewards_coefficient) / batch.len() as f64; // ()
        loss.backward();
        mean += loss.double_value(&[]);
        judged.extend(judged_of(data, &bucket, &a, &b));
    }
    (mean, judged)
}

/// The scores of comparisons, without learning from them.
fn judge(model: &Learner, data: &[Comparison]) -> Vec<Judged> {
    let _guard = no_grad_guard();
    let all: Vec<usize> = (0..data.len()).collect();
    let of_bucket = |bucket: Vec<usize>| {
        let (a, b) = scores(model, data, &bucket);
        judged_of(data, &bucket, &a, &b)
    };
    buckets_of(data, &all).into_iter().flat_map(of_bucket).collect()
}

fn buckets_of(data: &[Comparison], batch: &[usize]) -> Vec<Vec<usize>> {
    buckets(batch, |row| data[row].rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0))
}

/// The scores of both texts of each comparison, in one forward pass.
fn scores(model: &Learner, data: &[Comparison], bucket: &[usize]) -> (Tensor, Tensor) {
    let rows: Vec<Row> = bucket.iter().flat_map(|&row| data[row].rows.clone()).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    let micro = MicroBatch::of_ends(&rows, &all, model.device());
    let hidden = micro.predicting(&model.hidden(&micro.ids)); // (2n, d)
    let scores = model.scores(&hidden).view([-1, 2]); // (n, 2)
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
