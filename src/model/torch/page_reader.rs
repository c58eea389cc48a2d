//! Prompts are read by pages, each distinct page once.
//!
//! ```text
//! few-shot examples ──┬── principle 1 ──┬── question, rest of row 1        (one part)
//!   (one part)        │   (one part)    └── question, rest of row 2        (one part)
//!                     └── principle 2, question, rest of row 3             (one part)
//! ```
//!
//! What several rows share is read first, then what comes after it, until every row is alone and
//! read to its end. A token's bits do not depend on where a text is cut, so parts are as long as
//! they come.

use std::sync::Arc;

use amend_kernels::{Heads, PAGE, Page, Text};

use super::pages::Part;
use super::prefix::{BlockId, Prefixes};
use super::reader::{Group, Kept, ReadRow};
use super::transformer::Transformer;

/// The most tokens read by one pass, unless the last page of a row makes it more.
pub(super) const TOKENS_MAX: usize = 1024;

/// How many rows are read before pages that are too many are let go.
const ROWS_MAX: usize = 256;

/// Reads rows with one model, and remembers prefixes.
pub(super) struct PageReader<'m> {
    pub(super) model: &'m Transformer,
    heads: Heads,
    prefixes: Prefixes<Arc<Page>>,
}

/// A row that is not read to its end.
struct Going {
    row: usize,
    text: Text,
    /// The last page of the text.
    last: BlockId,
}

/// What is read next of one row, or of several that share it.
struct Share {
    /// The first of the rows, by place among those that are going.
    first: usize,
    /// How many tokens.
    tokens: usize,
    /// Whether they are the last of the row.
    is_end: bool,
}

impl<'m> PageReader<'m> {
    /// A reader that keeps about so many bytes of prefixes.
    pub(super) fn new(model: &'m Transformer, heads: Heads, bytes_max: usize) -> PageReader<'m> {
        PageReader { model, heads, prefixes: Prefixes::new(bytes_max / heads.page_bytes()) }
    }

    /// How many bytes of prefixes are kept.
    pub(super) fn bytes(&self) -> usize {
        self.prefixes.len() * self.heads.page_bytes()
    }

    /// Reads rows, and shows them in groups.
    pub(super) fn read(&mut self, rows: &[ReadRow<'_>], mut show: impl FnMut(Group)) {
        // Rows that begin alike are neighbours.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|&a, &b| rows[a].ids.cmp(rows[b].ids));
        for window in order.chunks(ROWS_MAX) {
            self.prefixes.begin();
            let begun = |&row: &usize| Going { row, text: Text::new(self.heads), last: 0 };
            let mut going: Vec<Going> = window.iter().map(begun).collect();
            while !going.is_empty() {
                going.iter_mut().for_each(|going| self.follow(&rows[going.row], going));
                let shares = shares(rows, &going);
                let mut ended = vec![false; going.len()];
                let mut rest = shares.as_slice();
                while !rest.is_empty() {
                    let pass;
                    (pass, rest) = rest.split_at(fitting(rest));
                    self.read_pass(rows, &going, pass, &mut show);
                    let ends = pass.iter().filter(|share| share.is_end);
                    ends.for_each(|share| ended[share.first] = true);
                }
                let mut ended = ended.into_iter();
                going.retain(|_| ended.next() == Some(false));
            }
            self.prefixes.trim();
        }
    }

    /// Continues a row by pages that were read before.
    fn follow(&mut self, row: &ReadRow<'_>, going: &mut Going) {
        while let Some(tokens) = next_page(row, going.text.tokens()) {
            let Some(found) = self.prefixes.find(going.last, tokens) else { break };
            going.text.push(Arc::clone(self.prefixes.get(found)));
            going.last = found;
        }
    }

    /// Reads some shares, keeps their pages, and shows the rows that end.
    fn read_pass(
        &mut self,
        rows: &[ReadRow<'_>],
        going: &[Going],
        shares: &[Share],
        show: &mut impl FnMut(Group),
    ) {
        let part = |share: &Share| {
            let Going { row, text, .. } = &going[share.first];
            let row = &rows[*row];
            let ids = &row.ids[text.tokens()..text.tokens() + share.tokens];
            let wanted = if share.is_end { row.wanted.as_slice() } else { &[] };
            Part { text: text.clone(), ids, branches: row.branches, wanted: Some(wanted) }
        };
        let (hidden, texts) = self.model.read_parts(shares.iter().map(part).collect());
        let (mut ends, mut told, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let mut place = 0;
        for (share, text) in shares.iter().zip(texts) {
            let Going { row, text: before, last } = &going[share.first];
            let first = before.tokens();
            self.keep(&rows[*row], *last, first, &text, share.is_end);
            if share.is_end {
                ends.push(*row);
                told.push((rows[*row].wanted.clone(), place));
                place += rows[*row].wanted.len();
                kept.push(text);
            }
        }
        if !ends.is_empty() {
            show(Group { rows: ends, hidden, told, kept: Kept::Texts(kept) });
        }
    }

    /// Keeps the whole pages that a text got from a token on: where rows go on from there always,
    /// else if there is room.
    fn keep(
        &mut self,
        row: &ReadRow<'_>,
        mut last: BlockId,
        first: usize,
        text: &Text,
        is_end: bool,
    ) {
        for (page, token) in text.pages()[first / PAGE..].iter().zip((first..).step_by(PAGE)) {
            let Some(tokens) = next_page(row, token) else { break };
            if is_end && !self.prefixes.has_room() {
                break;
            }
            last = match self.prefixes.find(last, tokens) {
                Some(found) => found,
                None => self.prefixes.insert(last, tokens, Arc::clone(page)),
            };
        }
    }
}

/// The tokens of a row's next page, if it has one that may be kept.
fn next_page<'a>(row: &ReadRow<'a>, tokens: usize) -> Option<&'a [i64]> {
    (tokens + PAGE < row.plain).then(|| &row.ids[tokens..tokens + PAGE])
}

/// What is read next: of rows that share their next pages those, of each other row the rest.
fn shares(rows: &[ReadRow<'_>], going: &[Going]) -> Vec<Share> {
    let page = |at: usize, tokens: usize| next_page(&rows[going[at].row], tokens);
    let mut shares = Vec::new();
    let mut first = 0;
    while first < going.len() {
        let begin = going[first].text.tokens();
        let next = page(first, begin);
        let is_alike = |&at: &usize| {
            next.is_some() && going[at].last == going[first].last && page(at, begin) == next
        };
        let count = 1 + (first + 1..going.len()).take_while(is_alike).count();
        let mut share = Share { first, tokens: 0, is_end: false };
        if count > 1 {
            let of_all = |tokens: usize| {
                let next = page(first, tokens);
                next.is_some() && (first..first + count).all(|at| page(at, tokens) == next)
            };
            while share.tokens < TOKENS_MAX && of_all(begin + share.tokens) {
                share.tokens += PAGE;
            }
        } else {
            let rest = rows[going[first].row].ids.len() - begin;
            while share.tokens < TOKENS_MAX && page(first, begin + share.tokens).is_some() {
                share.tokens += PAGE;
            }
            share.is_end = share.tokens < TOKENS_MAX || share.tokens == rest;
            if share.is_end {
                share.tokens = rest;
            }
        }
        shares.push(share);
        first += count;
    }
    shares
}

/// How many of the shares are read by one pass.
fn fitting(shares: &[Share]) -> usize {
    let mut tokens = 0;
    let fits = |share: &&Share| {
        tokens += share.tokens;
        tokens <= TOKENS_MAX
    };
    shares.iter().take_while(fits).count().max(1)
}
