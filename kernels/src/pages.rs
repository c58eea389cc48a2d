//! The keys and values of a text, in pages of sixteen tokens that texts may share.
//!
//! A page holds its tokens' keys and values of all layers and heads, in the order in which
//! attention reads them. Texts that begin alike hold the same pages; who writes into one that
//! others hold gets a copy first.

use std::sync::Arc;

/// Tokens of a page.
pub const PAGE: usize = 16;

/// How the heads of a model's attention are shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Blocks of the model.
    pub layers: usize,
    /// Heads of queries, a multiple of those of keys.
    pub queries: usize,
    /// Heads of keys and of values.
    pub keys: usize,
    /// Numbers of a head.
    pub dim: usize,
}

impl Heads {
    /// Numbers of a head's values, with room up to a multiple of sixteen.
    pub(crate) fn padded(self) -> usize {
        self.dim.next_multiple_of(16)
    }

    /// Keys and values of one head and layer in a page.
    fn part(self) -> usize {
        PAGE * (self.dim + self.padded())
    }

    /// How many bytes a page takes.
    #[must_use]
    pub fn page_bytes(self) -> usize {
        self.layers * self.keys * self.part() * size_of::<f32>()
    }
}

/// Sixteen tokens' keys and values; 0 where there is no token yet.
#[derive(Clone)]
pub struct Page {
    /// Layer by layer, head by head: keys (D, PAGE), then values (D / 16, PAGE, 16).
    numbers: Vec<f32>,
}

impl Page {
    fn new(heads: Heads) -> Page {
        Page { numbers: vec![0.0; heads.layers * heads.keys * heads.part()] }
    }

    /// Keys (D, PAGE) and values (D / 16, PAGE, 16), sixteen by sixteen.
    #[inline(always)]
    pub(crate) fn part(
        &self,
        heads: Heads,
        layer: usize,
        head: usize,
    ) -> (&[[f32; PAGE]], &[[f32; 16]]) {
        let first = (layer * heads.keys + head) * heads.part();
        let (sixteens, _) = self.numbers[first..first + heads.part()].as_chunks::<16>();
        sixteens.split_at(heads.dim)
    }
}

/// A text as attention sees it.
#[derive(Clone)]
pub struct Text {
    heads: Heads,
    pages: Vec<Arc<Page>>,
    tokens: usize,
}

impl Text {
    /// A text without tokens.
    #[must_use]
    pub fn new(heads: Heads) -> Text {
        Text { heads, pages: Vec::new(), tokens: 0 }
    }

    /// The heads of its model.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// How many tokens it has.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Its pages, the last of which may not be full.
    #[must_use]
    pub fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// Continues it by a page that another text has filled.
    ///
    /// # Panics
    /// When its own last page is not full.
    pub fn push(&mut self, page: Arc<Page>) {
        assert!(self.tokens.is_multiple_of(PAGE), "a page comes after whole pages");
        assert_eq!(self.pages.len() * PAGE, self.tokens, "a page comes after whole pages");
        self.pages.push(page);
        self.tokens += PAGE;
    }

    /// Counts tokens that are about to be read, and makes room that is its own for them.
    pub(crate) fn extend(&mut self, tokens: usize) {
        if !self.tokens.is_multiple_of(PAGE) && tokens > 0 {
            Arc::make_mut(&mut self.pages[self.tokens / PAGE]);
        }
        self.tokens += tokens;
        while self.pages.len() * PAGE < self.tokens {
            self.pages.push(Arc::new(Page::new(self.heads)));
        }
    }

    /// Writes keys and values (T, heads, D) of its last tokens at one layer.
    pub(crate) fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let heads = self.heads;
        let width = heads.keys * heads.dim;
        let first = self.tokens - keys.len() / width;
        let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (token, (keys, values)) in (first..).zip(tokens) {
            let page = Arc::get_mut(&mut self.pages[token / PAGE]);
            let page = page.expect("a page that is written is the text's own");
            let lane = token % PAGE;
            let begin = layer * heads.keys * heads.part();
            let of_layer = &mut page.numbers[begin..begin + heads.keys * heads.part()];
            let of_heads = of_layer.chunks_exact_mut(heads.part());
            let of_token = keys.chunks_exact(heads.dim).zip(values.chunks_exact(heads.dim));
            for (part, (key, value)) in of_heads.zip(of_token) {
                let (keys, values) = part.split_at_mut(heads.dim * PAGE);
                for (to, &number) in keys[lane..].iter_mut().step_by(PAGE).zip(key) {
                    *to = number;
                }
                for (to, from) in values.chunks_exact_mut(PAGE * 16).zip(value.chunks(16)) {
                    to[lane * 16..lane * 16 + from.len()].copy_from_slice(from);
                }
            }
        }
    }
}
