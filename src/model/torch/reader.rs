//! Prompts are read: what they share once, and the rest of each row after it.
//!
//! By pages where there are kernels for it, else in blocks by libtorch. Either way a row's bits
//! are the same whether its beginning was shared, read long before, or read now, and a pass is of
//! bounded size however long a prompt is.

use std::rc::Rc;

use amend_kernels::Text;
use tch::Tensor;

use super::block::KeysValues;
use super::block_reader::BlockReader;
use super::page_reader::PageReader;
use super::transformer::Transformer;

/// A row to be read.
pub(super) struct ReadRow<'a> {
    pub(super) ids: &'a [i64],
    /// How many tokens come one after the other from position 0, each seeing all before it. The
    /// last of them is never part of what is kept for other rows.
    pub(super) plain: usize,
    /// Where tokens after those stand and whom they see, for choices beside each other.
    pub(super) branches: Option<Branches<'a>>,
    /// What the head sees of these tokens is wanted: in order, none before the last plain one.
    pub(super) wanted: Vec<usize>,
}

impl<'a> ReadRow<'a> {
    /// A row of which the last token is wanted.
    pub(super) fn plain(ids: &'a [i64]) -> ReadRow<'a> {
        ReadRow { ids, plain: ids.len(), branches: None, wanted: vec![ids.len() - 1] }
    }
}

/// The positions of all tokens of a row, and their segments in order: a token sees its own and
/// segment 0.
#[derive(Clone, Copy)]
pub(super) struct Branches<'a> {
    pub(super) positions: &'a [i64],
    pub(super) segments: &'a [i64],
}

/// Rows whose ends were read together.
pub(super) struct Group {
    /// Which of the rows.
    pub(super) rows: Vec<usize>,
    /// What the head sees.
    pub(super) hidden: Tensor, // (…, C)
    /// Of each row the tokens of which that is told, in order, and which of `hidden` is the first.
    pub(super) told: Vec<(Vec<usize>, usize)>,
    /// Keys and values of the rows.
    pub(super) kept: Kept,
}

/// Keys and values of some rows.
pub(super) enum Kept {
    /// By pages.
    Texts(Vec<Text>),
    /// As tensors, layer by layer.
    Tensors {
        /// How many tokens were in blocks.
        start: usize,
        /// Of the blocks; one entry where all rows share them.
        past: Option<Rc<Vec<KeysValues>>>, // (B or 1, KV, start, D)
        /// Of the rests.
        rest: Vec<KeysValues>, // (B, KV, T, D)
    },
}

impl Group {
    /// Which of `hidden` is a token of a row of the group.
    pub(super) fn place(&self, at: usize, token: usize) -> usize {
        let (tokens, first) = &self.told[at];
        first + tokens.binary_search(&token).expect("what was wanted is told")
    }
}

/// Reads rows with one model, and remembers prefixes.
pub(super) enum Reader<'m> {
    Pages(PageReader<'m>),
    Blocks(BlockReader<'m>),
}

impl<'m> Reader<'m> {
    /// A reader that keeps about so many bytes of prefixes.
    pub(super) fn new(model: &'m Transformer, bytes_max: usize) -> Reader<'m> {
        match model.heads() {
            Some(heads) => Reader::Pages(PageReader::new(model, heads, bytes_max)),
            None => Reader::Blocks(BlockReader::new(model, bytes_max)),
        }
    }

    pub(super) fn model(&self) -> &'m Transformer {
        match self {
            Reader::Pages(reader) => reader.model,
            Reader::Blocks(reader) => reader.model,
        }
    }

    /// How many bytes of prefixes are kept.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Reader::Pages(reader) => reader.bytes(),
            Reader::Blocks(reader) => reader.bytes(),
        }
    }

    /// Reads rows, and shows them in groups.
    pub(super) fn read(&mut self, rows: &[ReadRow<'_>], show: impl FnMut(Group)) {
        match self {
            Reader::Pages(reader) => reader.read(rows, show),
            Reader::Blocks(reader) => reader.read(rows, show),
        }
    }
}

/// What the keys and values of one token take.
pub(super) fn bytes_per_token(model: &Transformer) -> usize {
    let config = &model.config;
    let numbers = config.num_key_value_heads * config.head_dim * 2;
    numbers as usize * model.blocks.len() * model.kind.elt_size_in_bytes()
}
