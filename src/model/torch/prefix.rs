//! Prefixes that many rows share, kept as blocks of tokens with their keys and values.
//!
//! ```text
//! root ── few-shot examples, 64 tokens ── 64 more ──┬── principle 1 ── …
//!                                                   └── principle 2 ── …
//! ```
//!
//! A block is found by its tokens and the block before it, so equal beginnings are one chain. What
//! has not been used for longest goes first when there are too many.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Names a block; 0 is the beginning of every text.
pub(super) type BlockId = u64;

/// The blocks that are kept, with T of each.
pub(super) struct Prefixes<T> {
    found: BTreeMap<(BlockId, Vec<i64>), BlockId>,
    blocks: BTreeMap<BlockId, Block<T>>,
    blocks_max: usize,
    made: BlockId,
    reads: u64,
}

struct Block<T> {
    before: BlockId,
    tokens: Vec<i64>,
    kept: T,
    /// The last read that used it; of a block at least that of any after it.
    used: u64,
}

impl<T> Prefixes<T> {
    /// None yet, and at most so many when nothing is being read.
    pub(super) fn new(blocks_max: usize) -> Prefixes<T> {
        let (found, blocks) = (BTreeMap::new(), BTreeMap::new());
        Prefixes { found, blocks, blocks_max, made: 0, reads: 0 }
    }

    /// A new read begins: what it uses is kept before what others used.
    pub(super) fn begin(&mut self) {
        self.reads += 1;
    }

    /// The block of these tokens after another.
    pub(super) fn find(&mut self, before: BlockId, tokens: &[i64]) -> Option<BlockId> {
        let id = *self.found.get(&(before, tokens.to_vec()))?;
        self.blocks.get_mut(&id).expect("a block that is found is kept").used = self.reads;
        Some(id)
    }

    /// Keeps a block.
    pub(super) fn insert(&mut self, before: BlockId, tokens: &[i64], kept: T) -> BlockId {
        self.made += 1;
        let tokens = tokens.to_vec();
        self.found.insert((before, tokens.clone()), self.made);
        self.blocks.insert(self.made, Block { before, tokens, kept, used: self.reads });
        self.made
    }

    /// What is kept of a block.
    pub(super) fn get(&self, id: BlockId) -> &T {
        &self.blocks[&id].kept
    }

    /// Whether there is room for a block that may not be asked for again.
    pub(super) fn has_room(&self) -> bool {
        self.blocks.len() < self.blocks_max
    }

    /// Lets go of what there is too much of.
    pub(super) fn trim(&mut self) {
        let surplus = self.blocks.len().saturating_sub(self.blocks_max);
        if surplus == 0 {
            return;
        }
        // A block is younger than the one before it, and so goes before it.
        let mut oldest: Vec<(u64, Reverse<BlockId>)> =
            self.blocks.iter().map(|(&id, block)| (block.used, Reverse(id))).collect();
        oldest.sort_unstable();
        for (_, Reverse(id)) in oldest.into_iter().take(surplus) {
            let block = self.blocks.remove(&id).expect("it was listed");
            self.found.remove(&(block.before, block.tokens));
        }
    }

    /// How many blocks are kept.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_never_before_what_comes_after_it() {
        let mut prefixes = Prefixes::new(3);
        let tokens = |first: i64| vec![first; 64];
        prefixes.begin();
        let shared = prefixes.insert(0, &tokens(1), ());
        let a = prefixes.insert(shared, &tokens(2), ());
        let b = prefixes.insert(shared, &tokens(3), ());
        let c = prefixes.insert(b, &tokens(4), ());
        prefixes.begin();
        assert_eq!(prefixes.find(0, &tokens(1)), Some(shared));
        assert_eq!(prefixes.find(shared, &tokens(2)), Some(a));
        prefixes.trim();
        assert_eq!(prefixes.len(), 3);
        assert_eq!(prefixes.find(b, &tokens(4)), None, "{c} was after {b} and not used");
        assert_eq!(prefixes.find(shared, &tokens(3)), Some(b));
        prefixes.blocks_max = 1;
        prefixes.trim();
        assert_eq!(prefixes.find(0, &tokens(1)), Some(shared));
    }
}
