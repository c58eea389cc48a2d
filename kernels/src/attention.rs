//! Attention over pages: softmax(q kᵀ / √d) v of the tokens of many texts at once.
//!
//! Scores are summed over a head's numbers from first to last, weights over sixteen lanes of a
//! page and pages in their order, values over tokens from first to last; what a token does not see
//! weighs nothing. So a token's bits are a function of the tokens that it sees: not of the texts
//! beside it, nor of how many tokens are read at once, nor of whether pages are shared.

use std::ops::Range;
use std::sync::Arc;

use crate::exp::exp;
use crate::lanes::{Lanes, Work, dispatch};
use crate::pages::{Heads, PAGE, Page, Text};
use crate::threads::each;

/// Tokens of a text that are looked at together.
const TILE: usize = 8;

/// The tokens of its text that one token sees, itself among them: two ranges, the first of which
/// may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// What it shares with branches beside it.
    pub shared: Range<usize>,
    /// What only its own branch sees.
    pub own: Range<usize>,
}

impl Sight {
    /// That of a token of a plain text: all before it, and itself.
    #[must_use]
    pub fn to(token: usize) -> Sight {
        Sight { shared: 0..0, own: 0..token + 1 }
    }

    fn first(&self) -> usize {
        if self.shared.is_empty() { self.own.start } else { self.shared.start.min(self.own.start) }
    }
}

/// The texts of one pass, each with its number of new tokens.
pub struct Pass {
    /// The texts, and how many tokens of each are new.
    texts: Vec<(Text, usize)>,
    heads: Heads,
    threads: usize,
}

impl Pass {
    /// A pass over the next tokens of some texts: so many of each.
    ///
    /// # Panics
    /// When the texts are of different models, or there are none.
    #[must_use]
    pub fn new(texts: Vec<(Text, usize)>, threads: usize) -> Pass {
        let mut texts = texts;
        let heads = texts.first().expect("a pass has a text").0.heads();
        for (text, tokens) in &mut texts {
            assert_eq!(text.heads(), heads, "texts of a pass are of one model");
            text.extend(*tokens);
        }
        Pass { texts, heads, threads }
    }

    /// The texts, with the tokens that were new.
    #[must_use]
    pub fn into_texts(self) -> Vec<Text> {
        self.texts.into_iter().map(|(text, _)| text).collect()
    }

    /// Keeps keys and values (N, heads, D) of all new tokens at one layer, and gives what their
    /// queries (N, heads, D) make of the values they see: (N, heads, D).
    ///
    /// # Panics
    /// When a length is not that of its shape.
    pub fn attend(
        &mut self,
        layer: usize,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        sights: &[Sight],
        context: &mut [f32],
    ) {
        let heads = self.heads;
        let (wide, narrow) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let tokens: usize = self.texts.iter().map(|(_, tokens)| tokens).sum();
        assert!(
            keys.len() == tokens * narrow && values.len() == tokens * narrow,
            "each token has a key and a value"
        );
        assert!(
            queries.len() == tokens * wide && context.len() == tokens * wide,
            "each token has a query, and room for what it sees"
        );
        assert_eq!(sights.len(), tokens, "each token sees something");
        let mut first = 0;
        for (text, count) in &mut self.texts {
            let of_text = first * narrow..(first + *count) * narrow;
            text.write(layer, &keys[of_text.clone()], &values[of_text]);
            first += *count;
        }
        let mut tiles = Vec::new();
        let (mut queries, mut sights, mut context) = (queries, sights, context);
        for (text, count) in &self.texts {
            let mut left = *count;
            while left > 0 {
                let tokens = left.min(TILE);
                let of_tile;
                (of_tile, queries) = queries.split_at(tokens * wide);
                let seen;
                (seen, sights) = sights.split_at(tokens);
                let (room, rest) = context.split_at_mut(tokens * wide);
                context = rest;
                tiles.push(Tile {
                    pages: text.pages(),
                    queries: of_tile,
                    sights: seen,
                    context: room,
                });
                left -= tokens;
            }
        }
        let share = tiles.len().div_ceil(self.threads);
        let mut shares = Vec::new();
        while tiles.len() > share {
            shares.push(tiles.split_off(tiles.len() - share));
        }
        shares.push(tiles);
        each(shares, |tiles| dispatch(Share { tiles, heads, layer }));
    }
}

/// Some tokens of a text.
struct Tile<'a> {
    pages: &'a [Arc<Page>],
    queries: &'a [f32], // (T, heads, D)
    sights: &'a [Sight],
    context: &'a mut [f32], // (T, heads, D)
}

/// What one thread computes of a pass.
struct Share<'a> {
    tiles: Vec<Tile<'a>>,
    heads: Heads,
    layer: usize,
}

impl Work for Share<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Share { tiles, heads, layer } = self;
        let group = heads.queries / heads.keys;
        let mut room = Room::default();
        for mut tile in tiles {
            let count = tile.sights.len() * group;
            for head in 0..heads.keys {
                for first in (0..count).step_by(L::ROWS) {
                    let some = Queries { heads, layer, head, first };
                    match (count - first).min(L::ROWS) {
                        1 => some.attend::<L, 1>(lanes, &mut tile, &mut room),
                        2 => some.attend::<L, 2>(lanes, &mut tile, &mut room),
                        3 => some.attend::<L, 3>(lanes, &mut tile, &mut room),
                        4 => some.attend::<L, 4>(lanes, &mut tile, &mut room),
                        5 => some.attend::<L, 5>(lanes, &mut tile, &mut room),
                        6 => some.attend::<L, 6>(lanes, &mut tile, &mut room),
                        7 => some.attend::<L, 7>(lanes, &mut tile, &mut room),
                        _ => some.attend::<L, 8>(lanes, &mut tile, &mut room),
                    }
                }
            }
        }
    }
}

/// Room that is used again.
#[derive(Default)]
struct Room {
    queries: Vec<f32>, // (D, M)
    weights: Vec<f32>, // (M, keys)
}

/// Some queries of a tile that share a head of keys: those from `first` on, counted token by token
/// and within a token by heads.
#[derive(Clone, Copy)]
struct Queries {
    heads: Heads,
    layer: usize,
    head: usize,
    first: usize,
}

impl Queries {
    /// The token of a query, and where its numbers begin in the tile.
    #[inline(always)]
    fn place(self, query: usize) -> (usize, usize) {
        let group = self.heads.queries / self.heads.keys;
        let (token, of_group) = ((self.first + query) / group, (self.first + query) % group);
        let head = self.head * group + of_group;
        (token, (token * self.heads.queries + head) * self.heads.dim)
    }

    #[inline(always)]
    fn attend<L: Lanes, const M: usize>(self, lanes: L, tile: &mut Tile<'_>, room: &mut Room) {
        let dim = self.heads.dim;
        let scale = 1.0 / (dim as f32).sqrt();
        room.queries.resize(dim * M, 0.0);
        for query in 0..M {
            let (_, at) = self.place(query);
            let numbers = &tile.queries[at..at + dim];
            for (to, number) in room.queries[query..].iter_mut().step_by(M).zip(numbers) {
                *to = number * scale;
            }
        }
        let sights: [&Sight; M] = std::array::from_fn(|query| &tile.sights[self.place(query).0]);
        let first = sights.iter().map(|sight| sight.first()).min().unwrap_or(0) / PAGE;
        let end = sights.iter().map(|sight| sight.own.end).max().unwrap_or(0).div_ceil(PAGE);
        let pages = &tile.pages[first..end];
        let width = pages.len() * PAGE;
        room.weights.resize(M * width, 0.0);
        let weights = &mut room.weights[..M * width];

        self.score::<L, M>(lanes, &room.queries[..dim * M], pages, weights);
        let mut sums = [0.0; M];
        for query in 0..M {
            let weights = &mut weights[query * width..(query + 1) * width];
            hide(weights, sights[query], first * PAGE);
            sums[query] = softmax(weights);
        }
        let blocks = self.heads.padded() / 16;
        let mut block = 0;
        while block < blocks {
            if M == 1 && blocks - block >= 4 {
                self.mix::<L, M, 4>(lanes, weights, &sums, pages, block, tile.context);
                block += 4;
            } else if L::IS_WIDE && blocks - block >= 2 {
                self.mix::<L, M, 2>(lanes, weights, &sums, pages, block, tile.context);
                block += 2;
            } else {
                self.mix::<L, M, 1>(lanes, weights, &sums, pages, block, tile.context);
                block += 1;
            }
        }
    }

    /// Scores of M queries with the keys of pages.
    #[inline(always)]
    fn score<L: Lanes, const M: usize>(
        self,
        lanes: L,
        queries: &[f32], // (D, M)
        pages: &[Arc<Page>],
        scores: &mut [f32], // (M, keys)
    ) {
        let mut at = 0;
        while at < pages.len() {
            // One query alone has too few sums to keep the processor busy.
            if M == 1 && pages.len() - at >= 4 {
                self.score_pages::<L, M, 4>(lanes, queries, pages, at, scores);
                at += 4;
            } else if L::IS_WIDE && pages.len() - at >= 2 {
                self.score_pages::<L, M, 2>(lanes, queries, pages, at, scores);
                at += 2;
            } else {
                self.score_pages::<L, M, 1>(lanes, queries, pages, at, scores);
                at += 1;
            }
        }
    }

    #[inline(always)]
    fn score_pages<L: Lanes, const M: usize, const P: usize>(
        self,
        lanes: L,
        queries: &[f32],
        pages: &[Arc<Page>],
        first: usize,
        scores: &mut [f32],
    ) {
        let (dim, width) = (self.heads.dim, pages.len() * PAGE);
        let keys: [&[[f32; PAGE]]; P] = std::array::from_fn(|at| {
            &pages[first + at].part(self.heads, self.layer, self.head).0[..dim]
        });
        let (queries, _) = queries.as_chunks::<M>();
        let mut sums = [[lanes.splat(0.0); P]; M];
        for (number, of_queries) in queries.iter().enumerate().take(dim) {
            let keys: [L::Sixteen; P] = std::array::from_fn(|at| lanes.load(&keys[at][number]));
            for query in 0..M {
                let of_query = lanes.splat(of_queries[query]);
                for at in 0..P {
                    sums[query][at] = lanes.mul_add(of_query, keys[at], sums[query][at]);
                }
            }
        }
        for (sums, scores) in sums.iter().zip(scores.chunks_exact_mut(width)) {
            let (scores, _) = scores.as_chunks_mut::<PAGE>();
            for at in 0..P {
                lanes.store(sums[at], &mut scores[first + at]);
            }
        }
    }

    /// The values of pages as M queries weigh them, B times sixteen of their numbers.
    #[inline(always)]
    fn mix<L: Lanes, const M: usize, const B: usize>(
        self,
        lanes: L,
        weights: &[f32], // (M, keys)
        sums: &[f32; M],
        pages: &[Arc<Page>],
        block: usize,
        context: &mut [f32],
    ) {
        let (dim, width) = (self.heads.dim, pages.len() * PAGE);
        let mut mixed = [[lanes.splat(0.0); B]; M];
        for (at, page) in pages.iter().enumerate() {
            let (_, values) = page.part(self.heads, self.layer, self.head);
            let values: [&[[f32; 16]; PAGE]; B] = std::array::from_fn(|of| {
                let (blocks, _) = values.as_chunks::<PAGE>();
                &blocks[block + of]
            });
            let weights: [&[f32; PAGE]; M] =
                std::array::from_fn(|query| sixteen(weights, query * width + at * PAGE));
            for key in 0..PAGE {
                let values: [L::Sixteen; B] =
                    std::array::from_fn(|of| lanes.load(&values[of][key]));
                for query in 0..M {
                    let weight = lanes.splat(weights[query][key]);
                    for of in 0..B {
                        mixed[query][of] = lanes.mul_add(weight, values[of], mixed[query][of]);
                    }
                }
            }
        }
        for query in 0..M {
            let (_, begin) = self.place(query);
            for of in 0..B {
                let mut numbers = [0.0; 16];
                lanes.store(mixed[query][of], &mut numbers);
                let from = (block + of) * 16;
                let context = &mut context[begin + from..begin + dim.min(from + 16)];
                for (to, number) in context.iter_mut().zip(numbers) {
                    *to = number / sums[query];
                }
            }
        }
    }
}

/// Sixteen numbers from a place on.
#[inline(always)]
fn sixteen(numbers: &[f32], first: usize) -> &[f32; 16] {
    numbers[first..].first_chunk().expect("rows are made of whole pages")
}

/// Sets the scores of what is not seen to -∞. The first score is of the token `begin`.
#[inline(always)]
fn hide(scores: &mut [f32], sight: &Sight, begin: usize) {
    let end = begin + scores.len();
    let mut hide = |from: usize, to: usize| {
        let (from, to) = (from.clamp(begin, end), to.clamp(begin, end));
        if from < to {
            scores[from - begin..to - begin].fill(f32::NEG_INFINITY);
        }
    };
    if sight.shared.is_empty() {
        hide(begin, sight.own.start);
    } else {
        hide(begin, sight.shared.start);
        hide(sight.shared.end, sight.own.start);
    }
    hide(sight.own.end, end);
}

/// Turns scores into weights that are not yet divided by their sum; returns the sum.
#[inline(always)]
fn softmax(scores: &mut [f32]) -> f32 {
    let (sixteens, _) = scores.as_chunks_mut::<16>();
    let mut most = [f32::NEG_INFINITY; 16];
    for scores in &*sixteens {
        for lane in 0..16 {
            most[lane] = if scores[lane] > most[lane] { scores[lane] } else { most[lane] };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; 16];
    for scores in sixteens {
        for lane in 0..16 {
            scores[lane] = exp(scores[lane] - most);
            sums[lane] += scores[lane];
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers;

    const TOKENS: usize = 90;

    const SHAPES: [(usize, usize, usize); 4] = [(4, 2, 8), (3, 3, 24), (8, 1, 64), (6, 2, 80)];

    /// Queries, keys and values of a text.
    struct Case {
        heads: Heads,
        queries: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        sights: Vec<Sight>,
    }

    impl Case {
        fn new((queries, keys, dim): (usize, usize, usize), sights: Vec<Sight>) -> Case {
            Case {
                heads: Heads { layers: 2, queries, keys, dim },
                queries: numbers(1, TOKENS * queries * dim).iter().map(|x| 4.0 * x).collect(),
                keys: numbers(2, TOKENS * keys * dim),
                values: numbers(3, TOKENS * keys * dim),
                sights,
            }
        }

        /// Reads tokens of texts that have all before them, at layer 1: each text's context.
        fn read(&self, texts: Vec<Text>, tokens: &[Range<usize>], threads: usize) -> Read {
            let counts = tokens.iter().map(ExactSizeIterator::len);
            let mut pass = Pass::new(texts.into_iter().zip(counts).collect(), threads);
            let of = |numbers: &[f32], heads: usize| {
                let width = heads * self.heads.dim;
                let of_tokens = |tokens: &Range<usize>| {
                    numbers[tokens.start * width..tokens.end * width].to_vec()
                };
                tokens.iter().flat_map(of_tokens).collect::<Vec<_>>()
            };
            let (queries, keys) =
                (of(&self.queries, self.heads.queries), of(&self.keys, self.heads.keys));
            let values = of(&self.values, self.heads.keys);
            let sights: Vec<Sight> =
                tokens.iter().flat_map(|tokens| self.sights[tokens.clone()].to_vec()).collect();
            let mut context = vec![f32::NAN; queries.len()];
            pass.attend(1, &queries, &keys, &values, &sights, &mut context);
            let mut rest = context.as_slice();
            let mut contexts = Vec::new();
            for tokens in tokens {
                let (of_text, after) =
                    rest.split_at(tokens.len() * self.heads.queries * self.heads.dim);
                contexts.push(of_text.iter().map(|number| number.to_bits()).collect());
                rest = after;
            }
            (pass.into_texts(), contexts)
        }

        fn whole(&self) -> Vec<u32> {
            self.read(vec![Text::new(self.heads)], std::slice::from_ref(&(0..TOKENS)), 1)
                .1
                .remove(0)
        }

        /// softmax(q kᵀ / √d) v of one token and head, as it is written, in f64.
        fn plain(&self, token: usize, head: usize) -> Vec<f64> {
            let Heads { queries, keys, dim, .. } = self.heads;
            let of_keys = head / (queries / keys);
            let at = |numbers: &[f32], place: usize| f64::from(numbers[place]);
            let sees = |other: &usize| {
                let sight = &self.sights[token];
                sight.shared.contains(other) || sight.own.contains(other)
            };
            let seen: Vec<usize> = (0..TOKENS).filter(sees).collect();
            let score = |&other: &usize| {
                let product = |number: usize| {
                    at(&self.queries, (token * queries + head) * dim + number)
                        * at(&self.keys, (other * keys + of_keys) * dim + number)
                };
                ((0..dim).map(product).sum::<f64>() / (dim as f64).sqrt()).exp()
            };
            let weights: Vec<f64> = seen.iter().map(score).collect();
            let sum: f64 = weights.iter().sum();
            let value = |number: usize| {
                let of = |(other, weight): (&usize, &f64)| {
                    weight * at(&self.values, (other * keys + of_keys) * dim + number) / sum
                };
                seen.iter().zip(&weights).map(of).sum()
            };
            (0..dim).map(value).collect()
        }
    }

    type Read = (Vec<Text>, Vec<Vec<u32>>);

    fn plainly() -> Vec<Sight> {
        (0..TOKENS).map(Sight::to).collect()
    }

    /// From token 40 on two branches, the second from 60 on; and a window of 30 tokens.
    fn branched() -> Vec<Sight> {
        let window = |first: usize| first.saturating_sub(29);
        (0..TOKENS)
            .map(|token| match token {
                0..40 => Sight { shared: 0..0, own: window(token)..token + 1 },
                40..60 => Sight { shared: window(token)..40, own: 40..token + 1 },
                _ => Sight { shared: window(token - 20).min(40)..40, own: 60..token + 1 },
            })
            .collect()
    }

    #[test]
    fn a_token_gets_what_the_formula_says() {
        for (shape, sights) in
            SHAPES.into_iter().flat_map(|shape| [(shape, plainly()), (shape, branched())])
        {
            let case = Case::new(shape, sights);
            let found = case.whole();
            for (place, of_head) in found.chunks(case.heads.dim).enumerate() {
                let (token, head) = (place / case.heads.queries, place % case.heads.queries);
                for (found, exact) in of_head.iter().zip(case.plain(token, head)) {
                    let error = (f64::from(f32::from_bits(*found)) - exact).abs();
                    assert!(error < 2e-6, "{shape:?}, token {token}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_token_gets_the_same_bits_however_its_text_is_cut() {
        for shape in SHAPES {
            let case = Case::new(shape, branched());
            let (mut texts, mut found) = (vec![Text::new(case.heads)], Vec::new());
            let mut first = 0;
            for count in [1, 7, 16, 3, 30, 20, 1, 1, 1, 10] {
                let (read, contexts) =
                    case.read(texts, std::slice::from_ref(&(first..first + count)), 1);
                (texts, first) = (read, first + count);
                found.extend(contexts.into_iter().flatten());
            }
            assert_eq!(found, case.whole(), "{shape:?}");
        }
    }

    #[test]
    fn texts_that_share_pages_get_the_bits_of_texts_alone_with_any_number_of_threads() {
        for shape in SHAPES {
            let case = Case::new(shape, plainly());
            let width = case.heads.queries * case.heads.dim;
            let whole = case.whole();
            let (begun, _) =
                case.read(vec![Text::new(case.heads)], std::slice::from_ref(&(0..37)), 1);
            for threads in 1..4 {
                let texts = vec![begun[0].clone(), Text::new(case.heads), begun[0].clone()];
                let tokens = [37..TOKENS, 0..50, 37..38];
                let (after, found) = case.read(texts, &tokens, threads);
                for (tokens, found) in tokens.iter().zip(&found) {
                    assert_eq!(found, &whole[tokens.start * width..tokens.end * width]);
                }
                let shared = |text: &Text| Arc::as_ptr(&text.pages()[1]);
                assert_eq!(shared(&after[0]), shared(&after[2]), "whole pages are shared");
                let last = |text: &Text| Arc::as_ptr(&text.pages()[2]);
                assert_ne!(last(&after[0]), last(&after[2]), "what is written is one's own");
            }
        }
    }
}
