//! The keys and values of the rows being continued.
//!
//! A cache has a number of slots, one for each row, and room for a number of positions. Both grow
//! and shrink by copying.

use tch::{Kind, Tensor};

use super::block::{CacheView, View};
use super::llama::Llama;
use super::{int, round_up};

/// Keys are looked at in multiples of so many, so that few shapes occur.
const KEYS_STEP: usize = 16;

/// Keys and values of every block.
pub(super) struct Cache {
    blocks: Vec<(Tensor, Tensor)>, // (slots·KV, positions, D) each
    slots: usize,
    positions: usize,
    key_heads: usize,
    dim: i64,
}

impl Cache {
    /// A cache with no slots.
    pub(super) fn new(llama: &Llama) -> Cache {
        let dim = llama.config.head_dim;
        let empty = || Tensor::zeros([0, 0, dim], (llama.kind, llama.device));
        Cache {
            blocks: llama.blocks.iter().map(|_| (empty(), empty())).collect(),
            slots: 0,
            positions: 0,
            key_heads: llama.config.num_key_value_heads as usize,
            dim,
        }
    }

    /// Makes room for positions, keeping what is there.
    pub(super) fn grow_positions(&mut self, positions: usize) {
        if positions > self.positions {
            let kept: Vec<usize> = (0..self.slots).collect();
            self.rebuild(&kept, self.slots, positions.max(self.positions * 3 / 2));
        }
    }

    /// A cache of `slots` slots, the first of which are the old slots `kept`, in that order.
    pub(super) fn rebuild(&mut self, kept: &[usize], slots: usize, positions: usize) {
        assert!(kept.len() <= slots, "what is kept has a slot");
        let positions = round_up(positions.max(self.positions).max(1), KEYS_STEP);
        let (old, heads, dim) = (int(self.positions), int(self.key_heads), self.dim);
        let index: Vec<i64> = kept.iter().map(|&slot| int(slot)).collect();
        let rebuilt = |tensor: &Tensor| {
            let options = (tensor.kind(), tensor.device());
            let new = Tensor::zeros([int(slots), heads, int(positions), dim], options);
            if !index.is_empty() && old > 0 {
                let index = Tensor::from_slice(&index).to_device(tensor.device());
                let rows = tensor.view([-1, heads, old, dim]).index_select(0, &index);
                new.narrow(0, 0, int(kept.len())).narrow(2, 0, old).copy_(&rows);
            }
            new.view([-1, int(positions), dim])
        };
        for (keys, values) in &mut self.blocks {
            (*keys, *values) = (rebuilt(keys), rebuilt(values));
        }
        (self.slots, self.positions) = (slots, positions);
    }

    /// Puts the keys and values of whole sequences, padded to one length, into slots.
    pub(super) fn fill(&mut self, slots: &[usize], kept: &[(Tensor, Tensor)], rows: usize) {
        let tokens = kept[0].0.size()[1];
        self.grow_positions(tokens as usize);
        let (heads, dim) = (int(self.key_heads), self.dim);
        let index: Vec<i64> = slots.iter().map(|&slot| int(slot)).collect();
        for ((keys, values), (new_keys, new_values)) in self.blocks.iter().zip(kept) {
            for (cache, new) in [(keys, new_keys), (values, new_values)] {
                let index = Tensor::from_slice(&index).to_device(cache.device());
                let new = new.view([int(rows), heads, tokens, dim]).narrow(0, 0, int(slots.len()));
                let cache = cache.view([-1, heads, int(self.positions), dim]);
                let _ = cache.narrow(2, 0, tokens).index_copy_(0, &index, &new);
            }
        }
    }

    /// One token for every slot, at its position: what the head sees of each.
    pub(super) fn step(&mut self, llama: &Llama, ids: &[i64], positions: &[usize]) -> Tensor {
        assert!(ids.len() == self.slots && positions.len() == self.slots, "a token for each slot");
        let last = positions.iter().copied().max().unwrap_or(0);
        self.grow_positions(last + 1);
        let count = round_up(last + 1, KEYS_STEP).min(self.positions);
        let rows = int(self.slots);

        let heads = self.key_heads;
        let place = |(slot, &position): (usize, &usize)| {
            (0..heads).map(move |head| (slot * heads + head, position))
        };
        let places: Vec<i64> = positions
            .iter()
            .enumerate()
            .flat_map(place)
            .map(|(head, position)| int(head * self.positions + position))
            .collect();
        let places = Tensor::from_slice(&places).to_device(llama.device);
        let positions: Vec<i64> = positions.iter().map(|&position| int(position)).collect();
        let positions = Tensor::from_slice(&positions).to_device(llama.device).view([rows, 1]);
        let mask = mask(&positions, int(count), llama.kind);

        let ids = Tensor::from_slice(ids).to_device(llama.device).view([rows, 1]);
        let rotation = llama.rope.at(&positions);
        let mut x = llama.embed(&ids); // (B, 1, C)
        for (block, (keys, values)) in llama.blocks.iter().zip(&mut self.blocks) {
            let cache = CacheView { keys, values, places: &places, count: int(count), mask: &mask };
            x = block.forward(&x, &rotation, View::Cache(cache));
        }
        llama.finish(&x).select(1, 0) // (B, C)
    }
}

/// -∞ where a key lies after a row's position.
fn mask(positions: &Tensor, count: i64, kind: Kind) -> Tensor {
    let device = positions.device();
    let keys = Tensor::arange(count, (Kind::Int64, device)); // (S)
    Tensor::zeros([positions.size()[0], count], (kind, device))
        .masked_fill(&keys.gt_tensor(positions), f64::NEG_INFINITY)
        .view([-1, 1, 1, count]) // (B, 1, 1, S)
}
