//! Prompts are read in blocks by libtorch, each distinct block once, and what is left of each row
//! after them.
//!
//! Where a row is cut depends on the row alone, so its bits are the same whether its beginning was
//! shared, read long before, or read now; and a pass is of bounded size however long a prompt is.

use std::collections::BTreeMap;
use std::rc::Rc;

use tch::{Kind, Tensor};

use super::block::{KeysValues, Mask};
use super::prefix::{BlockId, Prefixes};
use super::reader::{Group, Kept, ReadRow, bytes_per_token};
use super::transformer::{Positions, Transformer};
use super::{ROWS_MIN, int, round_up};

/// Tokens of a block.
const BLOCK: usize = 64;

/// The rest of a row is padded to multiples of so many tokens.
const REST_STEP: usize = 16;

/// The most tokens read by one forward pass.
const TOKENS_MAX: usize = 1024;

/// The most attention weights of one block in one forward pass, unless one row needs more.
const WEIGHTS_MAX: usize = 1 << 26;

/// How many rows are read before blocks that are too many are let go.
const ROWS_MAX: usize = 256;

/// Reads rows with one model, and remembers prefixes.
pub(super) struct BlockReader<'m> {
    pub(super) model: &'m Transformer,
    /// With each block's keys and values, layer by layer (1, KV, BLOCK, D).
    prefixes: Prefixes<Vec<KeysValues>>,
    /// The last chain of blocks that was put together, by its last block.
    joined: Option<(BlockId, Rc<Vec<KeysValues>>)>,
}

impl<'m> BlockReader<'m> {
    /// A reader that keeps about so many bytes of prefixes.
    pub(super) fn new(model: &'m Transformer, bytes_max: usize) -> BlockReader<'m> {
        let blocks_max = bytes_max / (BLOCK * bytes_per_token(model));
        BlockReader { model, prefixes: Prefixes::new(blocks_max), joined: None }
    }

    /// How many bytes of prefixes are kept.
    pub(super) fn bytes(&self) -> usize {
        self.prefixes.len() * BLOCK * bytes_per_token(self.model)
    }

    /// Reads rows, and shows them in groups.
    pub(super) fn read(&mut self, rows: &[ReadRow<'_>], mut show: impl FnMut(Group)) {
        // Rows that begin alike are read together, so that what they share is kept as long.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|&a, &b| rows[a].ids.cmp(rows[b].ids));
        for window in order.chunks(ROWS_MAX) {
            self.prefixes.begin();
            let chains = self.read_blocks(rows, window);
            self.read_rests(rows, window, &chains, &mut show);
            self.prefixes.trim();
        }
        self.joined = None;
    }

    /// Reads the blocks that are not kept yet, all first ones, then all second ones, and so on.
    /// Returns each row's chain.
    fn read_blocks(&mut self, rows: &[ReadRow<'_>], window: &[usize]) -> Vec<Vec<BlockId>> {
        let blocks_of = |row: usize| rows[row].plain.saturating_sub(1) / BLOCK;
        let mut chains: Vec<Vec<BlockId>> = vec![Vec::new(); window.len()];
        for level in 0..window.iter().map(|&row| blocks_of(row)).max().unwrap_or(0) {
            let tokens = |row: usize| &rows[row].ids[level * BLOCK..(level + 1) * BLOCK];
            let before = |chain: &[BlockId]| chain.last().copied().unwrap_or(0);
            let mut missing: BTreeMap<(BlockId, &[i64]), Vec<BlockId>> = BTreeMap::new();
            let going = |at: &usize| blocks_of(window[*at]) > level;
            for at in (0..window.len()).filter(going) {
                let (before, tokens) = (before(&chains[at]), tokens(window[at]));
                if self.prefixes.find(before, tokens).is_none() {
                    missing.insert((before, tokens), chains[at].clone());
                }
            }
            let missing: Vec<_> = missing.into_iter().collect();
            for batch in missing.chunks(TOKENS_MAX / BLOCK) {
                self.read_level(level, batch);
            }
            for at in (0..window.len()).filter(going) {
                let before = before(&chains[at]);
                let found = self.prefixes.find(before, tokens(window[at]));
                chains[at].push(found.expect("the block was just read"));
            }
        }
        chains
    }

    /// Reads some blocks that all have as many blocks before them.
    fn read_level(&mut self, level: usize, batch: &[((BlockId, &[i64]), Vec<BlockId>)]) {
        let ids: Vec<i64> = batch.iter().flat_map(|((_, tokens), _)| *tokens).copied().collect();
        let ids = self.tensor(&ids, batch.len());
        let start = int(level * BLOCK);
        let chains: Vec<&[BlockId]> = batch.iter().map(|(_, chain)| chain.as_slice()).collect();
        let past = self.past(&chains);
        let mut kept = Vec::new();
        let positions = self.model.positions_from(start, int(BLOCK));
        let mask = self.model.mask_after(start, int(BLOCK));
        let past = past.as_ref().map(|past| past.as_slice());
        let _hidden = self.model.run(&ids, &positions, &mask, past, Some(&mut kept));
        for (row, ((before, tokens), _)) in batch.iter().enumerate() {
            // A copy: a view would keep the whole batch.
            let own = |tensor: &Tensor| tensor.narrow(0, int(row), 1).copy();
            let layers = kept.iter().map(|(keys, values)| (own(keys), own(values))).collect();
            self.prefixes.insert(*before, tokens, layers);
        }
    }

    fn read_rests(
        &mut self,
        rows: &[ReadRow<'_>],
        window: &[usize],
        chains: &[Vec<BlockId>],
        show: &mut impl FnMut(Group),
    ) {
        let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (at, &row) in window.iter().enumerate() {
            let start = chains[at].len() * BLOCK;
            let rest = rows[row].ids.len() - start;
            groups.entry((start, round_up(rest, REST_STEP))).or_default().push(at);
        }
        let heads = self.model.config.num_attention_heads as usize;
        for ((start, padded), mut members) in groups {
            members.sort_by_key(|&at| chains[at].last().copied());
            let weights = heads * padded * (start + padded);
            let rows_max = (TOKENS_MAX / padded).min(WEIGHTS_MAX / weights).max(1);
            for batch in members.chunks(rows_max) {
                let of_batch: Vec<&[BlockId]> =
                    batch.iter().map(|&at| chains[at].as_slice()).collect();
                let past = self.past(&of_batch);
                let batch: Vec<usize> = batch.iter().map(|&at| window[at]).collect();
                show(self.read_rest(rows, batch, start, padded, past));
            }
        }
    }

    fn read_rest(
        &self,
        rows: &[ReadRow<'_>],
        batch: Vec<usize>,
        start: usize,
        padded: usize,
        past: Option<Rc<Vec<KeysValues>>>,
    ) -> Group {
        const { assert!(REST_STEP >= ROWS_MIN, "one row alone has enough rows for a product") };
        let column = |of: &dyn Fn(usize) -> Vec<i64>, padding: i64| {
            let mut values = vec![padding; batch.len() * padded];
            for (&row, values) in batch.iter().zip(values.chunks_mut(padded)) {
                let rest = of(row);
                values[..rest.len()].copy_from_slice(&rest);
            }
            self.tensor(&values, batch.len())
        };
        let ids = column(&|row| rows[row].ids[start..].to_vec(), 0); // (B, T)
        let (positions, mask) = if rows[batch[0]].branches.is_some() {
            let branches =
                |row: usize| rows[row].branches.expect("all rows have branches, or none");
            let positions = column(&|row| branches(row).positions[start..].to_vec(), 0);
            let segments = column(&|row| branches(row).segments[start..].to_vec(), -1);
            let end = batch.iter().flat_map(|&row| branches(row).positions).max();
            self.branched(start, &positions, &segments, end.map_or(1, |last| last + 1) as usize)
        } else {
            let (start, padded) = (int(start), int(padded));
            (self.model.positions_from(start, padded), self.model.mask_after(start, padded))
        };
        let mut kept = Vec::new();
        let of_past = past.as_ref().map(|past| past.as_slice());
        let hidden = self.model.run(&ids, &positions, &mask, of_past, Some(&mut kept));
        let told = |at: usize| ((start..start + padded).collect(), at * padded);
        let told = (0..batch.len()).map(told).collect();
        let kept = Kept::Tensors { start, past, rest: kept };
        Group { rows: batch, hidden, told, kept }
    }

    /// Positions and mask of rows with branches after a past that all see.
    fn branched(
        &self,
        start: usize,
        positions: &Tensor, // (B, T)
        segments: &Tensor,  // (B, T)
        end: usize,
    ) -> (Positions, Mask) {
        let (rows, tokens) = positions.size2().expect("positions are a matrix");
        let of_key = segments.unsqueeze(1); // (B, 1, T)
        let visible = of_key.eq(0).logical_or(&of_key.eq_tensor(&segments.unsqueeze(2))); // (B, T, T)
        let visible = visible.logical_and(&visible.ones_like().tril(0));
        let options = (Kind::Int64, self.model.device);
        let before = Tensor::ones([rows, tokens, int(start)], (Kind::Bool, self.model.device));
        let visible = Tensor::cat(&[before, visible], 2); // (B, T, S)
        let before = Tensor::arange(int(start), options).unsqueeze(0).expand([rows, -1], false);
        let keys = Tensor::cat(&[&before, positions], 1); // (B, S)
        let mask = self.model.mask(&visible, positions, &keys);
        (self.model.positions_at(positions, end), mask)
    }

    /// Keys and values of chains of as many blocks: one entry where all are the same.
    fn past(&mut self, chains: &[&[BlockId]]) -> Option<Rc<Vec<KeysValues>>> {
        let last = *chains[0].last()?;
        if chains.iter().any(|chain| chain.last() != Some(&last)) {
            let pasts: Vec<Vec<KeysValues>> = chains.iter().map(|chain| self.join(chain)).collect();
            let layer = |layer: usize| {
                let keys: Vec<&Tensor> = pasts.iter().map(|past| &past[layer].0).collect();
                let values: Vec<&Tensor> = pasts.iter().map(|past| &past[layer].1).collect();
                (Tensor::cat(&keys, 0), Tensor::cat(&values, 0))
            };
            return Some(Rc::new((0..self.model.blocks.len()).map(layer).collect()));
        }
        if let Some((_, joined)) = self.joined.as_ref().filter(|(block, _)| *block == last) {
            return Some(Rc::clone(joined));
        }
        let joined = Rc::new(self.join(chains[0]));
        self.joined = Some((last, Rc::clone(&joined)));
        Some(joined)
    }

    fn join(&self, chain: &[BlockId]) -> Vec<KeysValues> {
        let blocks: Vec<&[KeysValues]> =
            chain.iter().map(|&block| self.prefixes.get(block).as_slice()).collect();
        let layer = |layer: usize| {
            let keys: Vec<&Tensor> = blocks.iter().map(|block| &block[layer].0).collect();
            let values: Vec<&Tensor> = blocks.iter().map(|block| &block[layer].1).collect();
            (Tensor::cat(&keys, 2), Tensor::cat(&values, 2)) // (1, KV, P, D)
        };
        (0..self.model.blocks.len()).map(layer).collect()
    }

    fn tensor(&self, values: &[i64], rows: usize) -> Tensor {
        Tensor::from_slice(values).to_device(self.model.device).view([int(rows), -1])
    }
}
