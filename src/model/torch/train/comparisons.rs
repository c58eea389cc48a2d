//! Comparisons in tokens, as a preference model and a policy learn from them.

use std::f64::consts::LN_2;

use super::learner::Learner;
use super::order::is_held_out;
use super::rows::{Layout, Row, buckets};
use crate::model::train::{Example, TrainError, Trained};
use crate::record::Id;

/// A comparison in tokens.
#[derive(Clone)]
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

impl Comparison {
    /// The tokens of both texts.
    pub(super) fn n_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }
}

/// What of the examples is read, and what of it is held out.
pub(super) struct Reading<'a> {
    /// The verb, for messages.
    pub(super) verb: &'a str,
    /// The training's seed.
    pub(super) seed: u64,
    /// The longest text, in tokens.
    pub(super) max_length: usize,
    /// The share of the rows that is held out.
    pub(super) held_out: f64,
}

/// The texts of comparisons.
pub(super) fn texts<'a>(examples: &'a [Example], verb: &str) -> Result<Vec<&'a str>, TrainError> {
    let of = |example: &'a Example| match example {
        Example::Comparison { prompt, a, b, .. } => Ok([prompt.as_str(), a, b]),
        _ => Err(TrainError::Data(format!("{verb} learns from comparisons only"))),
    };
    let texts = examples.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.concat())
}

/// The examples in tokens: those held out and those learnt. What is empty or too long is rejected.
pub(super) fn read(
    model: &Learner,
    examples: &[Example],
    reading: &Reading<'_>,
    trained: &mut Trained,
) -> Result<(Vec<Comparison>, Vec<Comparison>), TrainError> {
    let (mut held_out, mut learnt) = (Vec::new(), Vec::new());
    let length_max = reading.max_length.min(model.length_max());
    for example in examples {
        let Example::Comparison { row_id, prompt, a, b, p, weight, source, category } = example
        else {
            return Err(TrainError::Data(format!("{} learns from comparisons only", reading.verb)));
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
        let held = is_held_out(reading.seed, *row_id, reading.held_out);
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
    if learnt.iter().all(|comparison| (comparison.p - 0.5).abs() < f32::EPSILON) {
        return Err(TrainError::Data(format!(
            "there is nothing to learn: each of {} comparisons has p = 0.5, so none says which \
             completion is better",
            learnt.len()
        )));
    }
    Ok((held_out, learnt))
}

/// What a coin loses by a comparison, times a hundred: a batch above it is no learning any more. A
/// single comparison whose label is wrong may well be ten times above.
const LOSS_MAX: f64 = 100.0 * LN_2;

/// Says so where the mean loss of a batch, or the norm of its gradient, is not that of a training
/// that learns.
pub(super) fn check(
    step: u64,
    (loss, grad_norm): (f64, f64),
    data: &[Comparison],
    batch: &[usize],
) -> Result<(), TrainError> {
    let weight = batch.iter().map(|&row| f64::from(data[row].weight)).sum::<f64>();
    let most = LOSS_MAX * (weight / batch.len() as f64).max(1.0);
    if loss < most && grad_norm.is_finite() {
        return Ok(());
    }
    Err(TrainError::Diverged { step, loss, grad_norm })
}

/// Comparisons in buckets, by the length of the longer text.
pub(super) fn buckets_of(data: &[Comparison], batch: &[usize], layout: &Layout) -> Vec<Vec<usize>> {
    let longer = |row: usize| data[row].rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
    buckets(batch, layout.rows_max, longer)
}
