//! Scoring: the log-probability of given continuations, and the score a preference model gives.
//!
//! All choices of a prompt are read in one row, the beginning of which is shared with other rows
//! (`reader.rs`). The prompt comes first, then each choice without
//! what all share; a mask keeps choices from seeing each other, and each counts its positions
//! from the prompt's end:
//!
//! ```text
//! tokens     The answer is   (   A   )   B   )
//! positions   0    1    2    3   4   5   4   5
//! sees        ·──── prompt ────· own │   own │      (the last token of a choice is not read)
//! ```

use std::collections::BTreeSet;

use amend_kernels::Text;
use tch::{Kind, Tensor};

use super::draw::select_rows;
use super::generate::CACHE_BYTES;
use super::int;
use super::page_reader::TOKENS_MAX;
use super::pages::Part;
use super::reader::{Branches, ReadRow, Reader};
use super::tokenizer::Continued;
use super::transformer::Transformer;

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
pub fn score(model: &Transformer, rows: &[Continued]) -> Vec<Vec<f64>> {
    let _guard = tch::no_grad_guard();
    score_with(&mut Reader::new(model, CACHE_BYTES / 2), rows)
}

/// The same, with the prefixes that a reader keeps.
pub(super) fn score_with(reader: &mut Reader<'_>, rows: &[Continued]) -> Vec<Vec<f64>> {
    let model = reader.model();
    let packed: Vec<Packed> = rows.iter().map(pack).collect();
    let mut scores: Vec<Vec<f64>> = rows.iter().map(|row| vec![0.0; row.tails.len()]).collect();
    let read: Vec<ReadRow<'_>> =
        rows.iter().zip(&packed).map(|(row, packed)| packed.row(row)).collect();
    reader.read(&read, |group| {
        let group = &group;
        let wanted = group.rows.iter().enumerate().flat_map(|(at, &row)| {
            packed[row].targets.iter().enumerate().flat_map(move |(choice, targets)| {
                let place = move |token: usize| group.place(at, token);
                targets.iter().map(move |&(token, target)| (row, choice, place(token), target))
            })
        });
        let wanted: Vec<(usize, usize, usize, i64)> = wanted.collect();
        for wanted in wanted.chunks(LOGITS_MAX) {
            let cells: Vec<_> = wanted.iter().map(|&(_, _, place, token)| (place, token)).collect();
            let logprobs = logprobs_at(model, &group.hidden, &cells);
            for (&(row, choice, _, _), logprob) in wanted.iter().zip(logprobs) {
                scores[row][choice] += f64::from(logprob);
            }
        }
    });
    scores
}

/// The score that a preference model gives each row of tokens, at its last token.
///
/// # Panics
/// When a row is empty.
pub fn rewards(model: &Transformer, rows: &[Vec<i64>]) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    rewards_with(&mut Reader::new(model, CACHE_BYTES / 2), rows)
}

/// The same, with the prefixes that a reader keeps.
pub(super) fn rewards_with(reader: &mut Reader<'_>, rows: &[Vec<i64>]) -> Vec<f32> {
    assert!(rows.iter().all(|row| !row.is_empty()), "a score is that of a token");
    let model = reader.model();
    let mut scores = vec![0.0; rows.len()];
    let read = rows.iter().map(|ids| ReadRow::plain(ids));
    reader.read(&read.collect::<Vec<_>>(), |group| {
        let last = group.rows.iter().enumerate();
        let last = last.map(|(at, &row)| group.place(at, rows[row].len() - 1));
        let hidden = select_rows(&group.hidden, &last.collect::<Vec<_>>());
        let found = Vec::<f32>::try_from(model.scores(&hidden)).expect("scores are f32");
        for (&row, score) in group.rows.iter().zip(found) {
            scores[row] = score;
        }
    });
    scores
}

/// The log-probability of each token of a text under those before it, and so many of the likeliest
/// in its place. Nothing predicts the first.
pub(super) fn score_prompt(
    model: &Transformer,
    ids: &[i64],
    alternatives_max: usize,
) -> Vec<(Option<f32>, Vec<(i64, f32)>)> {
    let hidden = hidden_of(model, ids);
    let mut scores = vec![(None, Vec::new())];
    let places: Vec<usize> = (0..ids.len() - 1).collect();
    for places in places.chunks(LOGITS_MAX) {
        let table = model.logits(&select_rows(&hidden, places)).log_softmax(-1, Kind::Float);
        let most = int(alternatives_max).min(table.size()[1]);
        let (top, tokens) = table.topk(most, -1, true, true);
        let top = Vec::<Vec<f32>>::try_from(top).expect("log-probabilities are f32");
        let tokens = Vec::<Vec<i64>>::try_from(tokens).expect("tokens are integers");
        for (at, &place) in places.iter().enumerate() {
            let logprob = table.double_value(&[int(at), ids[place + 1]]) as f32;
            let likeliest = tokens[at].iter().copied().zip(top[at].iter().copied()).collect();
            scores.push((Some(logprob), likeliest));
        }
    }
    scores
}

/// What the head sees of every token of a text.
fn hidden_of(model: &Transformer, ids: &[i64]) -> Tensor {
    let Some(heads) = model.heads() else {
        return model.hidden(&Tensor::from_slice(ids).to_device(model.device).view([1, -1]));
    };
    let (mut text, mut hidden) = (Text::new(heads), Vec::new());
    for ids in ids.chunks(TOKENS_MAX) {
        let part = Part { text, ids, branches: None, wanted: None };
        let (of_part, mut texts) = model.read_parts(vec![part]);
        hidden.push(of_part);
        text = texts.remove(0);
    }
    Tensor::cat(&hidden, 0) // (T, C)
}

impl Packed {
    fn row(&self, of: &Continued) -> ReadRow<'_> {
        let branches = Branches { positions: &self.positions, segments: &self.segments };
        let wanted: BTreeSet<usize> = self.targets.iter().flatten().map(|&(at, _)| at).collect();
        let wanted = Vec::from_iter(wanted);
        ReadRow { ids: &self.ids, plain: of.prefix.len(), branches: Some(branches), wanted }
    }
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

/// The log-probability of a token at each of some places of (…, C), each place read once.
fn logprobs_at(model: &Transformer, hidden: &Tensor, wanted: &[(usize, i64)]) -> Vec<f32> {
    let places: BTreeSet<usize> = wanted.iter().map(|&(place, _)| place).collect();
    let places = Vec::from_iter(places);
    let hidden = select_rows(hidden, &places); // (N, C)
    let table = model.logits(&hidden).log_softmax(-1, Kind::Float); // (N, V)
    let vocab = table.size()[1];
    let cell = |&(place, token): &(usize, i64)| {
        int(places.binary_search(&place).expect("the place was read")) * vocab + token
    };
    let cells: Vec<i64> = wanted.iter().map(cell).collect();
    let cells = Tensor::from_slice(&cells).to_device(model.device);
    let logprobs = table.view([-1]).index_select(0, &cells);
    Vec::<f32>::try_from(logprobs).expect("log-probabilities are f32")
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
