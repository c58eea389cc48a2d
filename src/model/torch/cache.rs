//! The keys and values of the rows being continued: in slots, one for each row.
//!
//! A slot is a text with its pages, or a row of tensors with room for a number of positions, which
//! grow and shrink by copying.

use amend_kernels::Text;
use tch::{Kind, Tensor};

use super::block::{CacheView, KEYS_STEP, KeysValues, View};
use super::draw::select_rows;
use super::pages::Part;
use super::reader::{Group, Kept};
use super::transformer::Transformer;
use super::{int, round_up};

/// What the slots hold.
pub(super) enum Cache {
    Texts(Vec<Option<Text>>),
    Tensors(Slots),
}

/// The last token of a slot's row.
pub(super) struct Last {
    pub(super) slot: usize,
    pub(super) id: i64,
    pub(super) position: usize,
}

impl Cache {
    /// A cache with no slots.
    pub(super) fn new(model: &Transformer) -> Cache {
        match model.heads() {
            Some(_) => Cache::Texts(Vec::new()),
            None => Cache::Tensors(Slots::new(model)),
        }
    }

    /// A cache of `slots` slots, the first of which are the old slots `kept`, in that order.
    pub(super) fn rebuild(&mut self, kept: &[usize], slots: usize) {
        match self {
            Cache::Texts(texts) => {
                *texts = kept.iter().map(|&slot| texts[slot].take()).collect();
                texts.resize_with(slots, || None);
            }
            Cache::Tensors(tensors) => tensors.rebuild(kept, slots, 0),
        }
    }

    /// Puts rows of a group, each with so many tokens and at most so many to come, into slots:
    /// (slot, which of the group, tokens, most).
    pub(super) fn fill(&mut self, group: &Group, rows: &[(usize, usize, usize, usize)]) {
        match (self, &group.kept) {
            (Cache::Texts(slots), Kept::Texts(texts)) => {
                for &(slot, of, ..) in rows {
                    slots[slot] = Some(texts[of].clone());
                }
            }
            (Cache::Tensors(tensors), Kept::Tensors { start, past, rest }) => {
                let slots: Vec<usize> = rows.iter().map(|&(slot, ..)| slot).collect();
                let of_group: Vec<usize> = rows.iter().map(|&(_, of, ..)| of).collect();
                tensors.expect_positions(rows.iter().map(|&(.., most)| most).max().unwrap_or(0));
                if let Some(past) = past {
                    tensors.fill(&slots, past, &of_group, 0, *start);
                }
                // Padding may reach past the last position that the row will have.
                let tokens = rows.iter().map(|&(_, _, tokens, _)| tokens - start).max();
                tensors.fill(&slots, rest, &of_group, *start, tokens.unwrap_or(0));
            }
            _ => unreachable!("a model is read in one way"),
        }
    }

    /// Forgets a slot's row.
    pub(super) fn clear(&mut self, slot: usize) {
        if let Cache::Texts(texts) = self {
            texts[slot] = None;
        }
    }

    /// How many bytes it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Cache::Texts(texts) => {
                let texts = texts.iter().flatten();
                texts.map(|text| text.pages().len() * text.heads().page_bytes()).sum()
            }
            Cache::Tensors(tensors) => tensors.bytes(),
        }
    }

    /// Reads the last tokens of some rows: what the head sees of each, and perhaps of others after
    /// them.
    pub(super) fn step(&mut self, model: &Transformer, rows: &[Last]) -> Tensor {
        match self {
            Cache::Texts(texts) => {
                let mut parts = Vec::with_capacity(rows.len());
                for Last { slot, id, position } in rows {
                    let text = texts[*slot].take().expect("a row has a text");
                    debug_assert_eq!(text.tokens(), *position, "a token comes after its text");
                    let ids = std::slice::from_ref(id);
                    parts.push(Part { text, ids, branches: None, wanted: None });
                }
                let (hidden, read) = model.read_parts(parts);
                for (row, text) in rows.iter().zip(read) {
                    texts[row.slot] = Some(text);
                }
                hidden // (B, C)
            }
            Cache::Tensors(tensors) => {
                let (mut ids, mut positions) = (vec![0; tensors.count], vec![0; tensors.count]);
                for row in rows {
                    (ids[row.slot], positions[row.slot]) = (row.id, row.position);
                }
                let hidden = tensors.step(model, &ids, &positions); // (slots, C)
                select_rows(&hidden, &rows.iter().map(|row| row.slot).collect::<Vec<_>>())
            }
        }
    }
}

/// Keys and values of every block.
pub(super) struct Slots {
    blocks: Vec<(Tensor, Tensor)>, // (slots·KV, positions, D) each
    count: usize,
    positions: usize,
    positions_max: usize,
    key_heads: usize,
    dim: i64,
}

impl Slots {
    fn new(model: &Transformer) -> Slots {
        let dim = model.config.head_dim;
        let empty = || Tensor::zeros([0, 0, dim], (model.kind, model.device));
        Slots {
            blocks: model.blocks.iter().map(|_| (empty(), empty())).collect(),
            count: 0,
            positions: 0,
            positions_max: 0,
            key_heads: model.config.num_key_value_heads as usize,
            dim,
        }
    }

    /// Makes room for positions, keeping what is there.
    fn grow_positions(&mut self, positions: usize) {
        if positions > self.positions {
            let kept: Vec<usize> = (0..self.count).collect();
            let more = (self.positions * 3 / 2).min(self.positions_max);
            self.rebuild(&kept, self.count, positions.max(more));
        }
    }

    /// A cache of `slots` slots, the first of which are the old slots `kept`, in that order.
    fn rebuild(&mut self, kept: &[usize], slots: usize, positions: usize) {
        assert!(kept.len() <= slots, "what is kept has a slot");
        let positions = round_up(positions.max(self.positions).max(1), KEYS_STEP as usize);
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
        (self.count, self.positions) = (slots, positions);
    }

    /// Says that a row will have so many positions: room grows no further than the longest needs.
    fn expect_positions(&mut self, positions: usize) {
        self.positions_max = self.positions_max.max(positions);
    }

    /// Puts keys and values of the first tokens into slots, from a position on: for each slot those
    /// of the row that `rows` names, or the one that all share.
    fn fill(
        &mut self,
        slots: &[usize],
        layers: &[KeysValues],
        rows: &[usize],
        first: usize,
        tokens: usize,
    ) {
        self.grow_positions(first + tokens);
        let device = self.blocks[0].0.device();
        let index = |values: &[usize]| {
            let values: Vec<i64> = values.iter().map(|&value| int(value)).collect();
            Tensor::from_slice(&values).to_device(device)
        };
        let (slots, rows) = (index(slots), index(rows));
        let (heads, dim) = (int(self.key_heads), self.dim);
        for ((keys, values), (new_keys, new_values)) in self.blocks.iter().zip(layers) {
            for (cache, new) in [(keys, new_keys), (values, new_values)] {
                let new = new.narrow(2, 0, int(tokens));
                let new = match new.size()[0] {
                    1 => new.expand([slots.size()[0], -1, -1, -1], false),
                    _ => new.index_select(0, &rows),
                };
                let cache = cache.view([-1, heads, int(self.positions), dim]);
                let _ = cache.narrow(2, int(first), int(tokens)).index_copy_(0, &slots, &new);
            }
        }
    }

    /// How many bytes it holds.
    fn bytes(&self) -> usize {
        let tensors = self.blocks.iter().flat_map(|(keys, values)| [keys, values]);
        tensors.map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }

    /// One token for every slot, at its position: what the head sees of each.
    fn step(&mut self, model: &Transformer, ids: &[i64], positions: &[usize]) -> Tensor {
        assert!(ids.len() == self.count && positions.len() == self.count, "a token for each slot");
        let last = positions.iter().copied().max().unwrap_or(0);
        self.grow_positions(last + 1);
        let count = round_up(last + 1, KEYS_STEP as usize).min(self.positions);
        let rows = int(self.count);

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
        let places = Tensor::from_slice(&places).to_device(model.device);
        let positions: Vec<i64> = positions.iter().map(|&position| int(position)).collect();
        let positions = Tensor::from_slice(&positions).to_device(model.device).view([rows, 1]);
        let keys = Tensor::arange(int(count), (Kind::Int64, model.device)).unsqueeze(0); // (1, S)
        let visible = keys.unsqueeze(1).le_tensor(&positions.unsqueeze(2)); // (B, 1, S)
        let mask = model.mask(&visible, &positions, &keys);

        let ids = Tensor::from_slice(ids).to_device(model.device).view([rows, 1]);
        let positions = model.positions_at(&positions, last + 1);
        let views = self.blocks.iter_mut().map(|(keys, values)| {
            let (places, count, mask) = (&places, int(count), &mask);
            View::Cache(CacheView { keys, values, places, count, mask })
        });
        model.run_cached(&ids, &positions, views) // (B, C)
    }
}
