//! Sampling: rows are continued token by token, all at once, each leaving when it is done.
//!
//! ```text
//! waiting ──prefill, by length──▶ slots of the cache ──one token each a step──▶ finished
//!    ▲                                  │ free slots
//!    └──────── admitted in batches ◀────┘
//! ```
//!
//! A row's tokens and their bits do not depend on who shares its steps. A prompt is padded to a
//! length that is a function of its own, a product always has [`ROWS_MIN`] rows, and free slots
//! compute what nobody reads.

use std::collections::{BTreeMap, VecDeque};

use tch::{Kind, Tensor};

use super::cache::Cache;
use super::llama::Llama;
use super::sampling::Draws;
use super::tokenizer::TextTokenizer;
use super::{ROWS_MIN, int, round_up};
use crate::model::{Finish, Sampling};

/// Prompts are padded to multiples of so many tokens.
const PROMPT_STEP: usize = 16;

/// The most tokens read by one forward pass, unless one prompt is longer.
const PREFILL_TOKENS_MAX: usize = 1024;

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub struct Continuation {
    /// Its tokens; at least one, and fewer than the context.
    pub prompt: Vec<i64>,
    /// How to continue it.
    pub sampling: Sampling,
}

/// What a prompt was continued with.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// All tokens drawn: with the end token, and with those of a stop text.
    pub tokens: Vec<i64>,
    /// The log-probability of each, under the whole distribution at temperature 1.
    pub logprobs: Vec<f32>,
    /// The text, without end token and stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// Continues rows; see the module.
pub struct Generator<'m> {
    llama: &'m Llama,
    tokenizer: &'m TextTokenizer,
    slots_max: usize,
    waiting: VecDeque<Row>,
    slots: Vec<Option<Row>>,
    cache: Cache,
    /// The probabilities of one step, kept to be filled again.
    probabilities: Vec<f32>,
}

/// A row on its way.
struct Row {
    tag: u64,
    prompt: Vec<i64>,
    tokens: Vec<i64>,
    logprobs: Vec<f32>,
    draws: Draws,
    stop: Vec<String>,
    tokens_max: usize,
}

/// Continues all rows and returns them in order. The model is stacked by the caller.
pub fn generate(
    llama: &Llama,
    tokenizer: &TextTokenizer,
    rows: Vec<Continuation>,
    slots_max: usize,
) -> Vec<Generated> {
    let _guard = tch::no_grad_guard();
    let mut generator = Generator::new(llama, tokenizer, slots_max);
    let count = rows.len();
    for (tag, row) in rows.into_iter().enumerate() {
        generator.push(tag as u64, row);
    }
    let mut done = BTreeMap::new();
    while done.len() < count {
        done.extend(generator.step());
    }
    done.into_values().collect()
}

impl<'m> Generator<'m> {
    /// A generator with at most so many rows in a step.
    pub fn new(llama: &'m Llama, tokenizer: &'m TextTokenizer, slots_max: usize) -> Generator<'m> {
        Generator {
            llama,
            tokenizer,
            slots_max: round_up(slots_max.max(1), ROWS_MIN),
            waiting: VecDeque::new(),
            slots: Vec::new(),
            cache: Cache::new(llama),
            probabilities: Vec::new(),
        }
    }

    /// Adds a row; [`Generator::step`] returns it under its tag.
    ///
    /// # Panics
    /// When the prompt is empty or fills the context.
    pub fn push(&mut self, tag: u64, row: Continuation) {
        let positions_max = self.llama.config.max_position_embeddings;
        assert!(!row.prompt.is_empty(), "a prompt has a token");
        assert!(row.prompt.len() < positions_max, "a prompt leaves room for a token");
        let tokens_max = (row.sampling.max_tokens as usize).min(positions_max - row.prompt.len());
        self.waiting.push_back(Row {
            tag,
            draws: Draws::new(&row.sampling),
            prompt: row.prompt,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            stop: row.sampling.stop.into_iter().filter(|stop| !stop.is_empty()).collect(),
            tokens_max,
        });
    }

    /// Whether no row is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active() == 0
    }

    /// Reads the prompts of rows that can be admitted, then draws one token for every row.
    /// Returns those that are done.
    pub fn step(&mut self) -> Vec<(u64, Generated)> {
        let mut done = self.admit();
        self.shrink();
        if self.active() > 0 {
            let ids: Vec<i64> =
                self.slots.iter().map(|slot| slot.as_ref().map_or(0, Row::last)).collect();
            let positions: Vec<usize> =
                self.slots.iter().map(|slot| slot.as_ref().map_or(0, Row::position)).collect();
            let hidden = self.cache.step(self.llama, &ids, &positions); // (B, C)
            let mut slots = std::mem::take(&mut self.slots);
            self.draw(&hidden, slots.iter_mut().map(Option::as_mut).collect());
            for slot in &mut slots {
                let Some(generated) = slot.as_ref().and_then(|row| self.finished(row)) else {
                    continue;
                };
                done.extend(slot.take().map(|row| (row.tag, generated)));
            }
            self.slots = slots;
        }
        done
    }

    fn active(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Moves waiting rows into slots when enough are free that reading their prompts together pays.
    fn admit(&mut self) -> Vec<(u64, Generated)> {
        let active = self.active();
        let count = self.waiting.len().min(self.slots_max - active);
        let worth = self.waiting.len().min((self.slots_max / 8).max(ROWS_MIN));
        if count == 0 || (count < worth && active > 0) {
            return Vec::new();
        }
        let mut by_length: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        let mut done = Vec::new();
        for row in self.waiting.drain(..count) {
            if row.tokens_max == 0 {
                done.push((row.tag, row.ended(Finish::Length, String::new())));
                continue;
            }
            let padded = round_up(row.prompt.len(), PROMPT_STEP);
            let padded = padded.min(self.llama.config.max_position_embeddings);
            by_length.entry(padded).or_default().push(row);
        }
        for (padded, mut rows) in by_length {
            let rows_max = (PREFILL_TOKENS_MAX / padded).max(1);
            while !rows.is_empty() {
                let rest = rows.split_off(rows.len().min(rows_max));
                done.extend(self.prefill(padded, std::mem::replace(&mut rows, rest)));
            }
        }
        done
    }

    /// Reads prompts padded to one length, and draws the first token of each.
    fn prefill(&mut self, padded: usize, mut rows: Vec<Row>) -> Vec<(u64, Generated)> {
        // One row of few tokens is joined by copies of itself.
        let count = rows.len().max(ROWS_MIN.div_ceil(padded));
        let mut ids = vec![0i64; count * padded];
        for (row, ids) in rows.iter().zip(ids.chunks_mut(padded)) {
            ids[..row.prompt.len()].copy_from_slice(&row.prompt);
        }
        let ids = Tensor::from_slice(&ids).to_device(self.llama.device);
        let ids = ids.view([int(count), int(padded)]); // (B, T)
        let mut kept = Vec::new();
        let x = self.llama.embed(&ids);
        let rotation = self.llama.rope.first(int(padded));
        let mask = self.llama.causal_mask(int(padded));
        let hidden = self.llama.run(x, &rotation, &mask, Some(&mut kept)); // (B, T, C)

        let last = rows.iter().enumerate().map(|(row, it)| row * padded + it.prompt.len() - 1);
        let hidden = select_rows(&hidden, &last.collect::<Vec<_>>());
        self.draw(&hidden, rows.iter_mut().map(Some).collect());

        let mut done = Vec::new();
        let free = self.free_slots(rows.len());
        self.cache.fill(&free, &kept, count);
        for (row, slot) in rows.into_iter().zip(free) {
            match self.finished(&row) {
                Some(generated) => done.push((row.tag, generated)),
                None => self.slots[slot] = Some(row),
            }
        }
        done
    }

    /// As many free slots, made if need be.
    fn free_slots(&mut self, count: usize) -> Vec<usize> {
        let needed = self.active() + count;
        if needed > self.slots.len() {
            self.resize(round_up(needed, ROWS_MIN));
        }
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_none());
        free.map(|(index, _)| index).take(count).collect()
    }

    /// Gives up slots when most are free and nobody waits.
    fn shrink(&mut self) {
        let needed = round_up(self.active().max(1), ROWS_MIN);
        if self.waiting.is_empty() && needed * 2 <= self.slots.len() {
            self.resize(needed);
        }
    }

    /// Moves the rows to the first of so many slots.
    fn resize(&mut self, slots: usize) {
        let taken = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        let kept: Vec<usize> = taken.map(|(index, _)| index).collect();
        self.cache.rebuild(&kept, slots, 0);
        self.slots = std::mem::take(&mut self.slots).into_iter().flatten().map(Some).collect();
        self.slots.resize_with(slots, || None);
    }

    /// Draws a token for each row from what the head sees of it.
    fn draw(&mut self, hidden: &Tensor, mut rows: Vec<Option<&mut Row>>) {
        let logits = self.llama.logits(hidden); // (B, V)
        let (count, vocab) = logits.size2().expect("logits are a matrix");
        let mut tokens = vec![0i64; count as usize];
        if rows.iter().flatten().any(|row| row.draws.is_greedy()) {
            logits
                .argmax(-1, false)
                .to_device(tch::Device::Cpu)
                .copy_data(&mut tokens, count as usize);
        }
        if rows.iter().flatten().any(|row| !row.draws.is_greedy()) {
            self.fill_probabilities(&logits, &rows);
            for ((row, token), probabilities) in
                rows.iter_mut().zip(&mut tokens).zip(self.probabilities.chunks(vocab as usize))
            {
                if let Some(row) = row.as_mut().filter(|row| !row.draws.is_greedy()) {
                    *token = int(row.draws.draw(probabilities));
                }
            }
        }
        let index = Tensor::from_slice(&tokens).to_device(self.llama.device).view([count, 1]);
        let logprobs = logits.log_softmax(-1, Kind::Float).gather(1, &index, false);
        let logprobs =
            Vec::<f32>::try_from(logprobs.view([-1])).expect("log-probabilities are f32");
        for ((row, token), logprob) in rows.iter_mut().zip(tokens).zip(logprobs) {
            if let Some(row) = row {
                row.tokens.push(token);
                row.logprobs.push(logprob);
            }
        }
    }

    /// Fills `probabilities` with the softmax of each row at its temperature.
    fn fill_probabilities(&mut self, logits: &Tensor, rows: &[Option<&mut Row>]) {
        let temperature = |row: &Option<&mut Row>| match row {
            Some(row) if !row.draws.is_greedy() => row.draws.temperature as f32,
            _ => 1.0,
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

    /// The row as it ended, if its last token ended it.
    fn finished(&self, row: &Row) -> Option<Generated> {
        if self.llama.config.eos_token_ids.contains(&row.last()) {
            let text =
                self.tokenizer.decode_after(&row.prompt, &row.tokens[..row.tokens.len() - 1]);
            return Some(row.ended(Finish::Stop, text));
        }
        if let Some(text) = row.stopped(self.tokenizer) {
            return Some(row.ended(Finish::Stop, text));
        }
        (row.tokens.len() >= row.tokens_max).then(|| {
            row.ended(Finish::Length, self.tokenizer.decode_after(&row.prompt, &row.tokens))
        })
    }
}

impl Row {
    /// The token that was drawn last.
    fn last(&self) -> i64 {
        *self.tokens.last().expect("an admitted row has a token")
    }

    /// The position of that token.
    fn position(&self) -> usize {
        self.prompt.len() + self.tokens.len() - 1
    }

    /// The text before the first stop text, if the last token completed one.
    fn stopped(&self, tokenizer: &TextTokenizer) -> Option<String> {
        let bytes_max = self.stop.iter().map(String::len).max()?;
        // A token may be part of a character: the end is looked at with a few tokens to spare.
        let tail = self.tokens.len().saturating_sub(bytes_max + 4);
        let end = match tail {
            0 => tokenizer.decode_after(&self.prompt, &self.tokens),
            _ => tokenizer.decode(&self.tokens[tail..]),
        };
        if !self.stop.iter().any(|stop| end.contains(stop)) {
            return None;
        }
        let mut text = tokenizer.decode_after(&self.prompt, &self.tokens);
        let at = self.stop.iter().filter_map(|stop| text.find(stop)).min()?;
        text.truncate(at);
        Some(text)
    }

    fn ended(&self, finish: Finish, text: String) -> Generated {
        let (tokens, logprobs) = (self.tokens.clone(), self.logprobs.clone());
        Generated { tokens, logprobs, text, finish }
    }
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
