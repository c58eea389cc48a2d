//! Sampling: rows are continued token by token, all at once, each leaving when it is done.
//!
//! ```text
//! waiting ──prefill, by length──▶ slots of the cache ──one token each a step──▶ finished
//!    ▲                                  │ free slots
//!    └──────── admitted in batches ◀────┘
//! ```
//!
//! A row's tokens and their bits do not depend on who shares its steps. Its prompt is read in
//! a way that does not depend on others (`reader.rs`), and the kernels sum in one
//! order for any number of rows; or, by libtorch, a product always has `ROWS_MIN` rows, and free
//! slots compute what nobody reads.
//!
//! Memory is bounded: rows wait while the cache could not hold them at their longest.

use std::collections::{BTreeMap, VecDeque};

use super::cache::{Cache, Last};
use super::draw::{Drawer, select_rows};
use super::reader::{Group, ReadRow, Reader, bytes_per_token};
use super::row::Row;
use super::tokenizer::TextTokenizer;
use super::transformer::Transformer;
use super::{ROWS_MIN, round_up};
use crate::model::Finish;

pub use super::row::{Continuation, Generated};

/// The most tokens of prompts that are read between two steps, unless one prompt is longer.
const PROMPT_TOKENS_MAX: usize = 8192;

/// From how many rows, in multiples of the slots, those to be admitted are chosen.
const WINDOW: usize = 4;

/// What the keys and values of a generator take by default: 1 GiB for rows, as much for prefixes.
pub const CACHE_BYTES: usize = 2 << 30;

/// Continues rows; see the module.
pub struct Generator<'m> {
    model: &'m Transformer,
    tokenizer: &'m TextTokenizer,
    reader: Reader<'m>,
    slots_max: usize,
    /// The most positions of all slots together, unless a row alone needs more.
    positions_max: usize,
    waiting: VecDeque<Row>,
    slots: Vec<Option<Row>>,
    cache: Cache,
    drawer: Drawer,
}

/// Continues all rows and returns them in order. The model is stacked by the caller.
pub fn generate(
    model: &Transformer,
    tokenizer: &TextTokenizer,
    rows: Vec<Continuation>,
    slots_max: usize,
) -> Vec<Generated> {
    let _guard = tch::no_grad_guard();
    let mut generator = Generator::new(model, tokenizer, slots_max, CACHE_BYTES);
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
    /// A generator with at most so many rows in a step, and keys and values of about so many
    /// bytes: half for the rows, half for prefixes that they share.
    pub fn new(
        model: &'m Transformer,
        tokenizer: &'m TextTokenizer,
        slots_max: usize,
        cache_bytes: usize,
    ) -> Generator<'m> {
        Generator {
            model,
            tokenizer,
            reader: Reader::new(model, cache_bytes / 2),
            slots_max: round_up(slots_max.max(1), ROWS_MIN),
            positions_max: cache_bytes / 2 / bytes_per_token(model),
            waiting: VecDeque::new(),
            slots: Vec::new(),
            cache: Cache::new(model),
            drawer: Drawer::default(),
        }
    }

    /// What reads prompts, for scores to share its prefixes.
    pub(super) fn reader(&mut self) -> &mut Reader<'m> {
        &mut self.reader
    }

    /// How many bytes of keys and values are held.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes() + self.reader.bytes()
    }

    /// Adds a row; [`Generator::step`] returns it under its tag.
    ///
    /// # Panics
    /// When the prompt is empty or fills the context.
    pub fn push(&mut self, tag: u64, row: Continuation) {
        let positions_max = self.model.config.max_position_embeddings;
        assert!(!row.prompt.is_empty(), "a prompt has a token");
        assert!(row.prompt.len() < positions_max, "a prompt leaves room for a token");
        self.waiting.push_back(Row::new(tag, row, positions_max));
    }

    /// The same, with so many of the likeliest tokens told at each step.
    pub(super) fn push_with(&mut self, tag: u64, row: Continuation, alternatives_max: usize) {
        self.push(tag, row);
        if let Some(row) = self.waiting.back_mut() {
            row.alternatives_max = alternatives_max;
        }
    }

    /// A row that is being continued, as far as it is written.
    pub(super) fn written(&self, tag: u64) -> Option<&Row> {
        self.slots.iter().flatten().find(|row| row.tag == tag)
    }

    /// Forgets a row: nobody wants it any more.
    pub(super) fn cancel(&mut self, tag: u64) {
        self.waiting.retain(|row| row.tag != tag);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.take_if(|row| row.tag == tag).is_some() {
                self.cache.clear(index);
            }
        }
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
        let last = |(slot, row): (usize, &Option<Row>)| {
            let row = row.as_ref()?;
            Some(Last { slot, id: row.last(), position: row.position() })
        };
        let rows: Vec<Last> = self.slots.iter().enumerate().filter_map(last).collect();
        if rows.is_empty() {
            return done;
        }
        let hidden = self.cache.step(self.model, &rows); // (B, C)
        self.drawer.draw(self.model, &hidden, self.slots.iter_mut().flatten().collect());
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let finished = slot.as_ref().and_then(|row| row.finished(self.model, self.tokenizer));
            if let Some((row, generated)) = finished.and_then(|found| Some((slot.take()?, found))) {
                self.cache.clear(index);
                done.push((row.tag, generated));
            }
        }
        done
    }

    fn active(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Moves waiting rows into slots when enough are free that reading their prompts together pays.
    fn admit(&mut self) -> Vec<(u64, Generated)> {
        let active = self.active();
        if active == 0 {
            self.slots.clear();
            self.cache = Cache::new(self.model);
        }
        let free = self.slots_max - active;
        let few = if self.model.is_packed() { 1 } else { ROWS_MIN };
        let worth = self.waiting.len().min((self.slots_max / 8).max(few));
        if self.waiting.is_empty() || (free < worth && active > 0) {
            return Vec::new();
        }
        let mut done = Vec::new();
        let mut rows = Vec::new();
        for row in self.choose(free) {
            match row.tokens_max {
                0 => done.push((row.tag, row.ended(Finish::Length, String::new()))),
                _ => rows.push(row),
            }
        }
        done.extend(self.read_prompts(rows));
        done
    }

    /// Takes rows out of those that have waited longest: the longest of them first, so that rows
    /// of like length share steps, and no more than fit.
    fn choose(&mut self, free: usize) -> Vec<Row> {
        let mut order: Vec<usize> = (0..self.waiting.len().min(WINDOW * self.slots_max)).collect();
        order.sort_by_key(|&at| (std::cmp::Reverse(self.waiting[at].length_max()), at));
        let mut length_max = self.slots.iter().flatten().map(Row::length_max).max().unwrap_or(0);
        let (mut slots, mut prompt_tokens) = (self.active(), 0);
        let mut chosen = Vec::new();
        for at in order {
            let row = &self.waiting[at];
            let longest = length_max.max(row.length_max());
            let positions = round_up(slots + 1, ROWS_MIN) * longest;
            let is_alone = slots == 0;
            let fits = positions <= self.positions_max
                && prompt_tokens + row.prompt.len() <= PROMPT_TOKENS_MAX;
            if chosen.len() == free || !(fits || is_alone) {
                break;
            }
            (slots, length_max) = (slots + 1, longest);
            prompt_tokens += row.prompt.len();
            chosen.push(at);
        }
        chosen.sort_unstable();
        let mut rows = Vec::with_capacity(chosen.len());
        for at in chosen.into_iter().rev() {
            rows.extend(self.waiting.remove(at));
        }
        rows
    }

    /// Reads prompts, each distinct one once, and draws the first token of each row.
    fn read_prompts(&mut self, rows: Vec<Row>) -> Vec<(u64, Generated)> {
        let mut by_prompt: BTreeMap<Vec<i64>, Vec<Row>> = BTreeMap::new();
        for row in rows {
            by_prompt.entry(row.prompt.clone()).or_default().push(row);
        }
        let (prompts, mut rows): (Vec<Vec<i64>>, Vec<Vec<Row>>) = by_prompt.into_iter().unzip();
        let read: Vec<ReadRow<'_>> = prompts.iter().map(|ids| ReadRow::plain(ids)).collect();
        let mut groups = Vec::new();
        self.reader.read(&read, |group| groups.push(group));
        let mut done = Vec::new();
        for group in groups {
            let of_group = group.rows.iter().map(|&prompt| std::mem::take(&mut rows[prompt]));
            done.extend(self.begin(&group, of_group.collect()));
        }
        done
    }

    /// Draws the first token of rows, given those of each prompt of a group, and puts those that
    /// go on into slots.
    fn begin(&mut self, group: &Group, rows: Vec<Vec<Row>>) -> Vec<(u64, Generated)> {
        let mut of_row = Vec::new();
        let mut all = Vec::new();
        for (at, rows) in rows.into_iter().enumerate() {
            of_row.extend(std::iter::repeat_n(at, rows.len()));
            all.extend(rows);
        }
        let last = of_row.iter().zip(&all);
        let last = last.map(|(&at, row)| group.place(at, row.prompt.len() - 1));
        let hidden = select_rows(&group.hidden, &last.collect::<Vec<_>>());
        self.drawer.draw(self.model, &hidden, all.iter_mut().collect());

        let mut done = Vec::new();
        let mut going = Vec::new();
        for (at, row) in of_row.into_iter().zip(all) {
            match row.finished(self.model, self.tokenizer) {
                Some(generated) => done.push((row.tag, generated)),
                None => going.push((at, row)),
            }
        }
        if going.is_empty() {
            return done;
        }
        let free = self.free_slots(going.len());
        let filled = going.iter().zip(&free);
        let filled =
            filled.map(|((at, row), &slot)| (slot, *at, row.prompt.len(), row.length_max()));
        self.cache.fill(group, &filled.collect::<Vec<_>>());
        for ((_, row), slot) in going.into_iter().zip(free) {
            self.slots[slot] = Some(row);
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
        self.cache.rebuild(&kept, slots);
        self.slots = std::mem::take(&mut self.slots).into_iter().flatten().map(Some).collect();
        self.slots.resize_with(slots, || None);
    }
}
