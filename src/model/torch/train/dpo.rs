//! `train-dpo`: a policy on comparisons, without a preference model and without rollouts (arXiv
//! 2305.18290), with soft labels.
//!
//! The reference's log-probabilities are read once, before anything is learnt.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad_guard};

use super::comparisons::{self, Comparison, Reading, buckets_of};
use super::learner::{Learner, Texts};
use super::log::Log;
use super::loss::{dpo, log_probs};
use super::optimizer::{AdamW, Schedule};
use super::order::Steps;
use super::rows::{Layout, MicroBatch, Row, floats};
use super::state::{Position, State};
use crate::model::torch::config::Head;
use crate::model::train::{DpoSettings, Init, TrainError, TrainJob, Trained};
use crate::record::Id;

/// The log-probabilities of both completions of comparisons.
type LogProbs = Vec<[f32; 2]>;

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &DpoSettings) -> Result<Trained, TrainError> {
    let mut trained = Trained { kind: "lm".to_owned(), ..Trained::default() };
    let DpoSettings { optim, compute, .. } = settings;
    let texts = comparisons::texts(&job.examples, "train-dpo")?;
    let texts = Texts(&texts);
    let model = Learner::begin(&job.init, Head::Lm, optim.seed, &texts, &job.out, compute)?;
    let mut model = model.adapted(&job.init, optim)?;
    let DpoSettings { max_length, held_out, .. } = *settings;
    let reading = Reading { verb: "train-dpo", seed: optim.seed, max_length, held_out };
    let (held_out, learnt) = comparisons::read(&model, &job.examples, &reading, &mut trained)?;
    let parts = compute.gradient_accumulation_steps;
    let layout = Layout::of_parts(settings.batch_size, parts, model.device());
    let (of_learnt, of_held_out) = {
        let reference = reference(&model, job, settings)?;
        let reference = reference.as_ref().unwrap_or(&model);
        (measure(reference, &learnt, &layout), measure(reference, &held_out, &layout))
    };

    let ids: Vec<Id> = learnt.iter().map(|comparison| comparison.id).collect();
    let steps = Steps::new(optim.seed, &ids, settings.batch_size, settings.epochs);
    let schedule = Schedule::new(optim, steps.total())?;
    let mut adamw = AdamW::new(model.weights(), optim);
    let state = State::of(job, compute);
    let mut at = state.resume(job, &mut [("model", &mut adamw)], steps.total())?.0;
    model.refresh()?;
    for batch in steps.batches().skip(at.step as usize) {
        let outcome = accumulate(&model, &learnt, &of_learnt, &batch, settings.beta, &layout);
        let rate = schedule.rate(at.step);
        at.step += 1;
        let grad_norm = model.step(&mut adamw, rate)?;
        let loss = outcome.loss / batch.len() as f64;
        comparisons::check(at.step, (loss, grad_norm), &learnt, &batch)?;
        outcome.log(&mut at.log);
        at.n_tokens += batch.iter().map(|&row| learnt[row].n_tokens()).sum::<usize>() as f64;
        at.log.add("grad_norm", grad_norm, 1.0);
        if at.step % optim.logging_steps.max(1) == 0 || at.step == steps.total() {
            report(&mut at, &steps, rate, job);
        }
        if state.is_due(at.step, steps.total()) {
            state.write(&at, &[("model", &adamw)], &BTreeMap::new())?;
        }
    }
    if !held_out.is_empty() {
        let _guard = no_grad_guard();
        let all: Vec<usize> = (0..held_out.len()).collect();
        let mut outcome = Outcome::default();
        for bucket in buckets_of(&held_out, &all, &layout) {
            let _ = run(&model, &held_out, &of_held_out, &bucket, settings.beta, &mut outcome);
        }
        outcome.log(&mut at.log);
        at.log.flush(steps.total(), steps.epoch_after(steps.total()), "heldout");
    }
    at.tell(job, "done", steps.total());
    trained.steps = steps.total();
    trained.metrics = at.log.into_metrics();
    trained.weights = model.save(&job.out, "train-dpo")?;
    Ok(trained)
}

/// The reference, where it is another model than the policy's start.
fn reference(
    model: &Learner,
    job: &TrainJob,
    settings: &DpoSettings,
) -> Result<Option<Learner>, TrainError> {
    if matches!(job.init, Init::Scratch(_)) {
        return Err(TrainError::Data("a policy begins at a model, not from nothing".to_owned()));
    }
    let Some(dir) = &settings.reference else { return Ok(None) };
    let reference = Learner::read(dir, Head::Lm, &settings.compute)?.frozen();
    if !reference.has_tokenizer_of(model) {
        return Err(TrainError::Data(
            "the reference's tokenizer is not the policy's: it reads the policy's tokens"
                .to_owned(),
        ));
    }
    Ok(Some(reference))
}

/// What a batch came to, summed over comparisons.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// The weighted loss.
    pub(super) loss: f64,
    n: f64,
    /// The log-probabilities of the likelier-to-be-better and of the other completion.
    log_probs: (f64, f64),
    /// Their implicit rewards, `β (log π − log π_ref)`.
    rewards: (f64, f64),
    /// 1 where the policy prefers what the label prefers, ½ where either has no preference.
    agreeing: f64,
}

impl Outcome {
    fn log(&self, log: &mut Log) {
        let Outcome { n, .. } = *self;
        for (name, sum) in [
            ("loss", self.loss),
            ("logps/chosen", self.log_probs.0),
            ("logps/rejected", self.log_probs.1),
            ("rewards/chosen", self.rewards.0),
            ("rewards/rejected", self.rewards.1),
            ("rewards/margins", self.rewards.0 - self.rewards.1),
            ("rewards/accuracies", self.agreeing),
        ] {
            log.add(name, sum / n, n);
        }
    }

    fn add(&mut self, p: f32, policy: [f32; 2], reference: [f32; 2], beta: f64) {
        // The first is the chosen one unless the label says otherwise.
        let (chosen, rejected) = if p < 0.5 { (1, 0) } else { (0, 1) };
        let reward = |at: usize| beta * f64::from(policy[at] - reference[at]);
        let margin = reward(chosen) - reward(rejected);
        self.n += 1.0;
        self.log_probs.0 += f64::from(policy[chosen]);
        self.log_probs.1 += f64::from(policy[rejected]);
        self.rewards.0 += reward(chosen);
        self.rewards.1 += reward(rejected);
        let undecided = (p - 0.5).abs() < f32::EPSILON || margin == 0.0;
        self.agreeing += if undecided { 0.5 } else { f64::from(u8::from(margin > 0.0)) };
    }
}

fn report(at: &mut Position, steps: &Steps<'_>, rate: f64, job: &TrainJob) {
    let (done, total, epoch) = (at.step, steps.total(), steps.epoch_after(at.step));
    let means = at.log.flush(done, epoch, "train");
    at.log.push(done, epoch, "train", "learning_rate", rate);
    let (loss, margin) = (means["loss"], means["rewards/margins"]);
    at.tell(job, &format!("loss {loss:.3} margin {margin:.3}"), total);
}

/// Adds the gradients of a batch's mean loss per comparison.
pub(super) fn accumulate(
    model: &Learner,
    data: &[Comparison],
    reference: &[[f32; 2]],
    batch: &[usize],
    beta: f64,
    layout: &Layout,
) -> Outcome {
    let mut outcome = Outcome::default();
    for bucket in buckets_of(data, batch, layout) {
        let loss = run(model, data, reference, &bucket, beta, &mut outcome);
        model.backward(&(loss / batch.len() as f64));
    }
    outcome
}

/// The summed loss of comparisons.
fn run(
    model: &Learner,
    data: &[Comparison],
    reference: &[[f32; 2]],
    bucket: &[usize],
    beta: f64,
    outcome: &mut Outcome,
) -> Tensor {
    let policy = sums(model, data, bucket); // (n, 2)
    let column = |of: &dyn Fn(usize) -> f32| {
        let numbers: Vec<f32> = bucket.iter().map(|&row| of(row)).collect();
        Tensor::from_slice(&numbers).to_device(model.device()) // (n)
    };
    let before =
        Tensor::stack(&[column(&|row| reference[row][0]), column(&|row| reference[row][1])], 1); // (n, 2)
    let (p, weights) = (column(&|row| data[row].p), column(&|row| data[row].weight));
    let loss = dpo(&policy, &before, beta, &p, &weights); // ()
    outcome.loss += loss.double_value(&[]);
    for (&row, policy) in bucket.iter().zip(floats(&policy).chunks(2)) {
        outcome.add(data[row].p, [policy[0], policy[1]], reference[row], beta);
    }
    loss
}

/// The log-probabilities of comparisons' completions under a model, without learning from them.
pub(super) fn measure(model: &Learner, data: &[Comparison], layout: &Layout) -> LogProbs {
    let _guard = no_grad_guard();
    let all: Vec<usize> = (0..data.len()).collect();
    let mut found = vec![[0.0; 2]; data.len()];
    for bucket in buckets_of(data, &all, layout) {
        let sums = floats(&sums(model, data, &bucket));
        for (&row, sums) in bucket.iter().zip(sums.chunks(2)) {
            found[row] = [sums[0], sums[1]];
        }
    }
    found
}

/// The log-probability of each completion: the sum over its tokens, both in one forward pass.
fn sums(model: &Learner, data: &[Comparison], bucket: &[usize]) -> Tensor {
    let rows: Vec<Row> = bucket.iter().flat_map(|&row| data[row].rows.clone()).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    let micro = MicroBatch::new(&rows, &all, model.device());
    let tokens = log_probs(&model.logits(&model.states(&micro)), &micro.targets, 1.0); // (N)
    let owners: Vec<i64> = (0..).zip(&micro.counts).flat_map(|(row, &n)| vec![row; n]).collect();
    let owners = Tensor::from_slice(&owners).to_device(model.device()); // (N)
    Tensor::zeros([rows.len() as i64], (Kind::Float, model.device()))
        .index_add(0, &owners, &tokens) // (2n)
        .view([-1, 2]) // (n, 2)
}
