//! `train-sl`: fine-tuning on demonstrations, with the loss on the completions alone.

use tch::{Kind, Tensor, no_grad_guard};

use super::best::Best;
use super::learner::{Learner, Texts};
use super::log::Log;
use super::loss::cross_entropy;
use super::optimizer::{AdamW, Schedule};
use super::order::{Steps, is_held_out};
use super::rows::{Layout, MicroBatch, Row, micro_batches};
use super::state::{Position, State};
use crate::model::torch::config::Head;
use crate::model::train::{Example, SlSettings, TrainError, TrainJob, Trained};
use crate::record::Id;

/// A demonstration in tokens.
pub(super) struct Demonstrations {
    /// The rows' ids.
    pub(super) ids: Vec<Id>,
    /// Their tokens, end token included.
    pub(super) rows: Vec<Row>,
    /// The weights of their losses.
    pub(super) weights: Vec<f32>,
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// The weighted loss, summed over tokens.
    pub(super) loss: f64,
    /// Tokens that were predicted.
    pub(super) n_predicted: f64,
    /// Tokens that were predicted and likeliest.
    pub(super) n_correct: f64,
    /// Tokens that were read.
    pub(super) n_tokens: f64,
}

impl Outcome {
    fn log(&self, log: &mut Log) {
        log.add("loss", self.loss / self.n_predicted, self.n_predicted);
        log.add("mean_token_accuracy", self.n_correct / self.n_predicted, self.n_predicted);
    }
}

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &SlSettings) -> Result<Trained, TrainError> {
    let mut trained = Trained { kind: "lm".to_owned(), ..Trained::default() };
    let texts = job.examples.iter().map(texts_of).collect::<Result<Vec<_>, _>>()?;
    let SlSettings { optim, compute, .. } = settings;
    let texts = Texts(&texts.concat());
    let model = Learner::begin(&job.init, Head::Lm, optim.seed, &texts, &job.out, compute)?;
    let mut model = model.adapted(&job.init, optim)?;
    let (held_out, learnt) = read(&model, &job.examples, settings, &mut trained)?;
    let data = Demonstrations::of(learnt);
    let layout = layout(&model, settings);

    let held_out = Demonstrations::of(held_out);
    let steps = Steps::new(optim.seed, &data.ids, settings.batch_size, settings.epochs);
    let schedule = Schedule::new(optim, steps.total())?;
    let mut adamw = AdamW::new(model.weights(), optim);
    let state = State::of(job, compute);
    let (mut at, best) = state.resume(job, &mut [("model", &mut adamw)], steps.total())?;
    let mut best = Best::of(best);
    model.refresh()?;
    for batch in steps.batches().skip(at.step as usize) {
        let outcome = accumulate(&model, &data, &batch, &layout);
        let rate = schedule.rate(at.step);
        at.step += 1;
        let grad_norm = model.step(&mut adamw, rate)?;
        check(at.step, outcome.loss / outcome.n_predicted, grad_norm, &model)?;
        at.n_tokens += outcome.n_tokens;
        outcome.log(&mut at.log);
        at.log.add("grad_norm", grad_norm, 1.0);
        let is_last = at.step == steps.total();
        if at.step % optim.logging_steps.max(1) == 0 || is_last {
            report(&mut at, &steps, rate, job);
        }
        let is_due = settings.eval_steps.is_some_and(|every| at.step.is_multiple_of(every.max(1)));
        if is_due || is_last {
            measure(&mut at, &model, &held_out, &layout, &steps, settings.patience, &mut best);
            if has_stalled(&at, settings) {
                break;
            }
        }
        if state.is_due(at.step, steps.total()) {
            state.write(&at, &[("model", &adamw)], &best.tensors())?;
        }
    }
    let (step, _) = at.best.unwrap_or((at.step, 0.0));
    if step < at.step {
        best.restore(&model);
        model.refresh()?;
        at.log.push(at.step, steps.epoch_after(at.step), "train", "kept/step", step as f64);
    }
    at.tell(job, "done", steps.total());
    trained.steps = step;
    trained.metrics = at.log.into_metrics();
    trained.weights = model.save(&job.out, "train-sl")?;
    Ok(trained)
}

/// A loss far above that of a guess among all tokens is no learning any more.
fn check(step: u64, loss: f64, grad_norm: f64, model: &Learner) -> Result<(), TrainError> {
    let guess = libm::log(model.transformer().config.vocab_size as f64);
    if loss.is_finite() && grad_norm.is_finite() && loss < 10.0 * guess {
        return Ok(());
    }
    Err(TrainError::Diverged { step, loss, grad_norm })
}

/// Measures the loss of what is held out, and keeps the weights of the lowest where the training may
/// end early.
fn measure(
    at: &mut Position,
    model: &Learner,
    held_out: &Demonstrations,
    layout: &Layout,
    steps: &Steps<'_>,
    patience: Option<u64>,
    best: &mut Best,
) {
    if held_out.rows.is_empty() {
        return;
    }
    let outcome = evaluate(model, held_out, layout);
    let (step, epoch) = (at.step, steps.epoch_after(at.step));
    let loss = outcome.loss / outcome.n_predicted;
    at.log.push(step, epoch, "heldout", "loss", loss);
    let accuracy = outcome.n_correct / outcome.n_predicted;
    at.log.push(step, epoch, "heldout", "mean_token_accuracy", accuracy);
    if patience.is_some() && at.best.is_none_or(|(_, lowest)| loss < lowest) {
        best.keep(at, model, loss);
    }
}

/// Whether so many measurements as the settings have patience for brought no lower loss.
fn has_stalled(at: &Position, settings: &SlSettings) -> bool {
    let (Some(patience), Some(every)) = (settings.patience, settings.eval_steps) else {
        return false;
    };
    at.best.is_some_and(|(step, _)| at.step - step >= patience.max(1) * every.max(1))
}

fn layout(model: &Learner, settings: &SlSettings) -> Layout {
    let parts = settings.compute.gradient_accumulation_steps;
    let packed = settings.packing.then(|| settings.max_length.min(model.length_max()));
    Layout { packed, ..Layout::of_parts(settings.batch_size, parts, model.device()) }
}

fn report(at: &mut Position, steps: &Steps<'_>, rate: f64, job: &TrainJob) {
    let (done, epoch) = (at.step, steps.epoch_after(at.step));
    let means = at.log.flush(done, epoch, "train");
    at.log.push(done, epoch, "train", "learning_rate", rate);
    at.log.push(done, epoch, "train", "num_tokens", at.n_tokens);
    at.log.push(done, epoch, "train", "epoch", epoch);
    at.tell(job, &format!("loss {:.3}", means["loss"]), steps.total());
}

fn texts_of(example: &Example) -> Result<[&str; 2], TrainError> {
    match example {
        Example::Demonstration { prompt, completion, .. } => Ok([prompt, completion]),
        _ => Err(TrainError::Data("train-sl learns from demonstrations only".to_owned())),
    }
}

type Demonstration = (Id, Row, f32);

/// The examples in tokens: those held out and those learnt. What is empty or too long is rejected.
fn read(
    model: &Learner,
    examples: &[Example],
    settings: &SlSettings,
    trained: &mut Trained,
) -> Result<(Vec<Demonstration>, Vec<Demonstration>), TrainError> {
    let (mut held_out, mut learnt) = (Vec::new(), Vec::new());
    let length_max = settings.max_length.min(model.length_max());
    for example in examples {
        let Example::Demonstration { row_id, prompt, completion, weight } = example else {
            unreachable!("the texts were taken of demonstrations");
        };
        match model.row(prompt, completion, length_max)? {
            Err((reason, detail)) => trained.rejected.push((*row_id, reason, detail)),
            Ok(row) => {
                let held = is_held_out(settings.optim.seed, *row_id, settings.held_out);
                let into = if held { &mut held_out } else { &mut learnt };
                into.push((*row_id, row, *weight as f32));
            }
        }
    }
    if learnt.is_empty() {
        return Err(TrainError::Data(format!(
            "no demonstration is left to train on: {} of {} are empty or longer than {length_max} \
             tokens, {} are held out",
            trained.rejected.len(),
            examples.len(),
            held_out.len(),
        )));
    }
    Ok((held_out, learnt))
}

impl Demonstrations {
    fn of(rows: Vec<Demonstration>) -> Demonstrations {
        let mut data = Demonstrations { ids: Vec::new(), rows: Vec::new(), weights: Vec::new() };
        for (id, row, weight) in rows {
            data.ids.push(id);
            data.rows.push(row);
            data.weights.push(weight);
        }
        data
    }
}

/// Adds the gradients of a batch's mean loss per token of the completions.
pub(super) fn accumulate(
    model: &Learner,
    data: &Demonstrations,
    batch: &[usize],
    layout: &Layout,
) -> Outcome {
    let n_predicted: usize = batch.iter().map(|&row| data.rows[row].predicted().len()).sum();
    let mut outcome = Outcome::default();
    for micro in micro_batches(&data.rows, batch, layout) {
        let loss = run(model, data, &micro, &mut outcome);
        model.backward(&(loss / n_predicted as f64));
    }
    outcome
}

/// The loss of rows, without learning from them.
fn evaluate(model: &Learner, data: &Demonstrations, layout: &Layout) -> Outcome {
    let _guard = no_grad_guard();
    let rows: Vec<usize> = (0..data.rows.len()).collect();
    let mut outcome = Outcome::default();
    for micro in micro_batches(&data.rows, &rows, layout) {
        let _ = run(model, data, &micro, &mut outcome);
    }
    outcome
}

fn run(
    model: &Learner,
    data: &Demonstrations,
    micro: &MicroBatch,
    outcome: &mut Outcome,
) -> Tensor {
    let logits = model.logits(&model.states(micro)); // (N, V)
    let weights = micro.per_token(|row| data.weights[row]); // (N)
    let loss = cross_entropy(&logits, &micro.targets, &weights); // ()
    let correct = logits.detach().argmax(-1, false).eq_tensor(&micro.targets); // (N)
    outcome.loss += loss.double_value(&[]);
    outcome.n_correct += correct.sum(Kind::Float).double_value(&[]);
    outcome.n_predicted += micro.targets.size()[0] as f64;
    outcome.n_tokens +=
        micro.rows.iter().map(|&row| data.rows[row].tokens.len()).sum::<usize>() as f64;
    loss
}
