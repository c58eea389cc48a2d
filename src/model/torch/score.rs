//! Scoring: the log-probability of given continuations, and the score a preference model gives.
//!
//! All choices of a prompt are read in one row. The prompt comes first, then each choice without
//! what all share; a mask keeps choices from seeing each other, and each counts its positions
//! from the prompt's end:
//!
//! ```text
//! tokens     The answer is   (   A   )   B   )
//! positions   0    1    2    3   4   5   4   5
//! sees        ·──── prompt ────· own │   own │      (the last token of a choice is not read)
//! ```

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::generate::select_rows;
use super::llama::Llama;
use super::tokenizer::Continued;
use super::{int, round_up};

/// Rows are padded to multiples of so many tokens.
const ROW_STEP: usize = 16;

/// The most tokens read by one forward pass, unless one row is longer.
const TOKENS_MAX: usize = 1024;

/// The most attention weights of one block in one forward pass, unless one row needs more.
const WEIGHTS_MAX: usize = 1 << 26;

/// The most rows of logits at once.
const LOGITS_MAX: usize = 256;

/// A prompt with its choices as one row.
struct Packed {
    ids: Vec<i64>,
    positions: Vec<i64>,
    /// 0 for the prompt, then one number for each choice.
    segments: Vec<i64>,
    /// For each choice its tokens, each with the place that predicts it.
    targets: Vec<Vec<(usize, i64)>>,
}

/// The log-probability of each continuation of each row, summed over its tokens, by the model's
/// distribution at temperature 1.
///
/// # Panics
/// When a prefix is empty: there is nothing that would predict the first token.
pub fn score(llama: &Llama, rows: &[Continued]) -> Vec<Vec<f64>> {
    let _guard = tch::no_grad_guard();
    let packed: Vec<Packed> = rows.iter().map(pack).collect();
    let mut scores: Vec<Vec<f64>> = rows.iter().map(|row| vec![0.0; row.tails.len()]).collect();
    for batch in batches(llama, packed.iter().map(|row| row.ids.len())) {
        let rows: Vec<&Packed> = batch.rows.iter().map(|&row| &packed[row]).collect();
        let hidden = read(llama, &rows, batch.padded); // (B, T, C)
        let wanted = rows.iter().enumerate().flat_map(|(at, row)| {
            let (row_index, first) = (batch.rows[at], at * batch.padded);
            row.targets.iter().enumerate().flat_map(move |(choice, targets)| {
                targets.iter().map(move |&(place, token)| (row_index, choice, first + place, token))
            })
        });
        let wanted: Vec<(usize, usize, usize, i64)> = wanted.collect();
        for wanted in wanted.chunks(LOGITS_MAX) {
            let places: Vec<usize> = wanted.iter().map(|&(_, _, place, _)| place).collect();
            let tokens: Vec<i64> = wanted.iter().map(|&(_, _, _, token)| token).collect();
            let logprobs = logprobs_at(llama, &hidden, &places, tokens);
            for (&(row, choice, _, _), logprob) in wanted.iter().zip(logprobs) {
                scores[row][choice] += f64::from(logprob);
            }
        }
    }
    scores
}

/// The score that a preference model gives each row of tokens, at its last token.
///
/// # Panics
/// When a row is empty.
pub fn rewards(llama: &Llama, rows: &[Vec<i64>]) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let mut scores = vec![0.0; rows.len()];
    for batch in batches(llama, rows.iter().map(Vec::len)) {
        let texts: Vec<&[i64]> = batch.rows.iter().map(|&row| rows[row].as_slice()).collect();
        let ids = padded(&texts, batch.padded, 0).to_device(llama.device);
        let last = texts.iter().enumerate().map(|(at, row)| at * batch.padded + row.len() - 1);
        let hidden = select_rows(&llama.hidden(&ids), &last.collect::<Vec<_>>());
        let found = Vec::<f32>::try_from(llama.scores(&hidden)).expect("scores are f32");
        for (&row, score) in batch.rows.iter().zip(found) {
            scores[row] = score;
        }
    }
    scores
}

/// Rows that are read together, padded to one length.
struct Batch {
    padded: usize,
    rows: Vec<usize>,
}

/// Groups rows by a length that is a function of their own.
fn batches(llama: &Llama, lengths: impl Iterator<Item = usize>) -> Vec<Batch> {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, length) in lengths.enumerate() {
        by_length.entry(round_up(length, ROW_STEP)).or_default().push(row);
    }
    let heads = llama.config.num_attention_heads as usize;
    let chunks = |(padded, rows): (usize, Vec<usize>)| {
        let rows_max = (TOKENS_MAX / padded).min(WEIGHTS_MAX / (heads * padded * padded)).max(1);
        let chunks: Vec<Batch> =
            rows.chunks(rows_max).map(|rows| Batch { padded, rows: rows.to_vec() }).collect();
        chunks
    };
    by_length.into_iter().flat_map(chunks).collect()
}

fn pack(row: &Continued) -> Packed {
    assert!(!row.prefix.is_empty(), "a token predicts the first of a choice");
    let shared = shared_prefix(&row.tails);
    let mut ids = row.prefix.clone();
    ids.extend(row.tails.first().map_or(&[][..], |tail| &tail[..shared]));
    let base = ids.len();
    let mut packed = Packed {
        positions: (0..int(base)).collect(),
        segments: vec![0; base],
        targets: Vec::with_capacity(row.tails.len()),
        ids,
    };
    for (choice, tail) in row.tails.iter().enumerate() {
        let own = packed.ids.len();
        let place = |at: usize| match at {
            _ if at <= shared => row.prefix.len() + at - 1,
            _ => own + at - shared - 1,
        };
        packed
            .targets
            .push(tail.iter().enumerate().map(|(at, &token)| (place(at), token)).collect());
        let read = &tail[shared..tail.len().max(shared + 1) - 1];
        packed.ids.extend(read);
        packed.positions.extend((0..read.len()).map(|at| int(base + at)));
        packed.segments.extend(read.iter().map(|_| int(choice + 1)));
    }
    packed
}

/// How many tokens all choices begin with.
fn shared_prefix(tails: &[Vec<i64>]) -> usize {
    let Some((first, others)) = tails.split_first() else { return 0 };
    let common = |tail: &Vec<i64>| first.iter().zip(tail).take_while(|(a, b)| a == b).count();
    others.iter().map(common).min().unwrap_or(first.len())
}

/// What the head sees of packed rows.
fn read(llama: &Llama, rows: &[&Packed], length: usize) -> Tensor {
    let tensor = |column: fn(&Packed) -> &[i64], padding: i64| {
        let columns: Vec<&[i64]> = rows.iter().map(|row| column(row)).collect();
        padded(&columns, length, padding).to_device(llama.device)
    };
    let ids = tensor(|row| &row.ids, 0); // (B, T)
    let positions = tensor(|row| &row.positions, 0); // (B, T)
    let segments = tensor(|row| &row.segments, -1); // (B, T)
    let of_key = segments.unsqueeze(1); // (B, 1, T)
    let visible = of_key.eq(0).logical_or(&of_key.eq_tensor(&segments.unsqueeze(2))); // (B, T, T)
    let hidden = Tensor::full([], f64::NEG_INFINITY, (llama.kind, llama.device));
    let mask = llama.causal_mask(int(length)).where_self(&visible.unsqueeze(1), &hidden);
    llama.hidden_at(&ids, &positions, &mask) // (B, T, C)
}

/// The log-probability of a token at each of some places of (B, T, C).
fn logprobs_at(llama: &Llama, hidden: &Tensor, places: &[usize], mut tokens: Vec<i64>) -> Vec<f32> {
    let hidden = select_rows(hidden, places); // (N, C)
    let count = hidden.size()[0];
    tokens.resize(count as usize, 0);
    let tokens = Tensor::from_slice(&tokens).to_device(llama.device).view([count, 1]);
    let logprobs = llama.logits(&hidden).log_softmax(-1, Kind::Float).gather(1, &tokens, false);
    Vec::<f32>::try_from(logprobs.view([-1])).expect("log-probabilities are f32")
}

/// Rows of numbers as one tensor (B, length), filled up on the right.
fn padded(rows: &[&[i64]], length: usize, padding: i64) -> Tensor {
    let mut values = vec![padding; rows.len() * length];
    for (row, values) in rows.iter().zip(values.chunks_mut(length)) {
        values[..row.len()].copy_from_slice(row);
    }
    Tensor::from_slice(&values).view([int(rows.len()), int(length)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_share_what_they_begin_with_and_do_not_read_their_last_token() {
        let packed = pack(&Continued {
            prefix: vec![1, 2],
            tails: vec![vec![3, 4, 5], vec![3, 6, 5], vec![3, 7]],
        });
        assert_eq!(packed.ids, [1, 2, 3, 4, 6]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 3]);
        assert_eq!(packed.segments, [0, 0, 0, 1, 2]);
        assert_eq!(packed.targets[1], [(1, 3), (2, 6), (4, 5)]);
        assert_eq!(packed.targets[2], [(1, 3), (2, 7)]);
    }

    #[test]
    fn one_choice_may_begin_another() {
        let packed = pack(&Continued { prefix: vec![1], tails: vec![vec![2], vec![2, 3], vec![]] });
        assert_eq!(packed.ids, [1, 2]);
        assert_eq!(packed.targets, [vec![(0, 2)], vec![(0, 2), (1, 3)], vec![]]);
    }
}
