//! One token is drawn for every row of a step.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};

use super::row::Row;
use super::transformer::Transformer;
use super::{ROWS_MIN, int, round_up};

/// Draws tokens; what it holds is room that is used again.
#[derive(Default)]
pub(super) struct Drawer {
    /// The probabilities of one step.
    probabilities: Vec<f32>,
}

impl Drawer {
    /// Draws a token for each row from what the head sees of it; there may be more of that.
    pub(super) fn draw(&mut self, model: &Transformer, hidden: &Tensor, mut rows: Vec<&mut Row>) {
        let whole = model.logits(hidden); // (B, V)
        let logits = penalised(&whole, &rows);
        let (count, vocab) = logits.size2().expect("logits are a matrix");
        let mut tokens = vec![0i64; count as usize];
        if rows.iter().any(|row| row.draws.is_greedy()) {
            logits
                .argmax(-1, false)
                .to_device(tch::Device::Cpu)
                .copy_data(&mut tokens, count as usize);
        }
        if rows.iter().any(|row| !row.draws.is_greedy()) {
            self.fill_probabilities(&logits, &rows);
            for ((row, token), probabilities) in
                rows.iter_mut().zip(&mut tokens).zip(self.probabilities.chunks(vocab as usize))
            {
                if !row.draws.is_greedy() {
                    *token = int(row.draws.draw(probabilities));
                }
            }
        }
        let index = Tensor::from_slice(&tokens).to_device(model.device).view([count, 1]);
        let table = whole.log_softmax(-1, Kind::Float); // (B, V)
        tell_alternatives(&table, &mut rows);
        let logprobs = table.gather(1, &index, false).view([-1]);
        let logprobs = Vec::<f32>::try_from(logprobs).expect("log-probabilities are f32");
        for ((row, token), logprob) in rows.iter_mut().zip(tokens).zip(logprobs) {
            row.tokens.push(token);
            row.logprobs.push(logprob);
        }
    }

    /// Fills `probabilities` with the softmax of each row at its temperature.
    fn fill_probabilities(&mut self, logits: &Tensor, rows: &[&mut Row]) {
        let temperature = |row: &&mut Row| match row.draws.is_greedy() {
            true => 1.0,
            false => row.draws.temperature as f32,
        };
        let mut temperatures: Vec<f32> = rows.iter().map(temperature).collect();
        temperatures.resize(logits.size()[0] as usize, 1.0);
        #[expect(clippy::float_cmp, reason = "1 is what was asked for, or it is not")]
        let scaled = if temperatures.iter().all(|&temperature| temperature == 1.0) {
            logits.shallow_clone()
        } else {
            logits / Tensor::from_slice(&temperatures).to_device(logits.device()).view([-1, 1])
        };
        let probabilities = scaled.softmax(-1, Kind::Float).to_device(tch::Device::Cpu);
        self.probabilities.resize(probabilities.numel(), 0.0);
        probabilities.copy_data(&mut self.probabilities, probabilities.numel());
    }
}

/// Keeps the likeliest tokens of a table of log-probabilities, for rows that ask for them.
fn tell_alternatives(table: &Tensor, rows: &mut [&mut Row]) {
    let most = rows.iter().map(|row| row.alternatives_max).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let most = int(most).min(table.size()[1]);
    let (logprobs, tokens) = table.topk(most, -1, true, true); // (B, most)
    let logprobs = Vec::<Vec<f32>>::try_from(logprobs).expect("log-probabilities are f32");
    let tokens = Vec::<Vec<i64>>::try_from(tokens).expect("tokens are integers");
    for ((row, tokens), logprobs) in rows.iter_mut().zip(tokens).zip(logprobs) {
        if row.alternatives_max > 0 {
            let pairs = tokens.into_iter().zip(logprobs);
            row.alternatives.push(pairs.take(row.alternatives_max).collect());
        }
    }
}

/// Logits in which tokens that occurred in a row are less likely, where the row asks for it.
fn penalised(logits: &Tensor, rows: &[&mut Row]) -> Tensor {
    if !rows.iter().any(|row| row.draws.is_penalised()) {
        return logits.shallow_clone();
    }
    let changed = logits.copy();
    for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.draws.is_penalised()) {
        let penalty = row.draws.repetition_penalty;
        let seen: BTreeSet<i64> = row.prompt.iter().chain(&row.tokens).copied().collect();
        let seen = Vec::from_iter(seen);
        let index = Tensor::from_slice(&seen).to_device(logits.device());
        let mut of_row = changed.select(0, int(at)); // (V)
        let found = of_row.index_select(0, &index);
        let penalised = (&found / penalty).where_self(&found.gt(0.0), &(&found * penalty));
        let _ = of_row.index_copy_(0, &index, &penalised);
    }
    changed
}

/// Some rows of a tensor (…, C), followed by copies of the first up to a multiple of
/// [`ROWS_MIN`].
pub(super) fn select_rows(hidden: &Tensor, rows: &[usize]) -> Tensor {
    let mut index: Vec<i64> = rows.iter().map(|&row| int(row)).collect();
    index.resize(round_up(rows.len(), ROWS_MIN), index[0]);
    let index = Tensor::from_slice(&index).to_device(hidden.device());
    let width = hidden.size().last().copied().unwrap_or(0);
    hidden.reshape([-1, width]).index_select(0, &index) // (rows up to a multiple, C)
}
