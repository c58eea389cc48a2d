//! Answers as they are being written, for who watches: pieces of text with their tokens.

use super::row::Row;
use super::tokenizer::TextTokenizer;
use crate::model::{Answer, CallError, Prompt};

/// What is read, by one who watches.
#[derive(Clone, Debug)]
pub enum Input {
    /// A prompt, which the model's tokenizer reads.
    Prompt(Prompt),
    /// Tokens as they are: nothing is put before them.
    Tokens(Vec<i64>),
}

/// What is heard of an answer.
#[derive(Debug)]
pub enum Event {
    /// More of it.
    Piece(Piece),
    /// It is whole, or will not come.
    End(Result<Answer, CallError>),
}

/// More of an answer, or the whole of a prompt: never part of a character, nor of what may become a stop text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// The tokens drawn since the last piece.
    pub tokens: Vec<Token>,
}

/// A token with its log-probability and those of the likeliest in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// What it is as text; a part of a character is a replacement character.
    pub text: String,
    /// None for the first token of a text, which nothing predicts.
    pub logprob: Option<f32>,
    /// The likeliest tokens, where they were asked for.
    pub alternatives: Vec<(String, f32)>,
}

/// Who watches an answer; false when nobody does any more, and the rest need not be written.
pub type Listener = Box<dyn FnMut(Event) -> bool + Send>;

/// Takes a prompt as text with its tokens.
pub type PromptDone = Box<dyn FnOnce(Result<Piece, CallError>) + Send>;

/// How much of a row was told.
#[derive(Default)]
pub(super) struct Told {
    bytes: usize,
    tokens: usize,
}

impl Told {
    /// What there is to tell of a row that is being written.
    pub(super) fn more(&mut self, row: &Row, tokenizer: &TextTokenizer) -> Option<Piece> {
        let text = tokenizer.decode_after(&row.prompt, &row.tokens);
        let safe = safe_bytes(&text, &row.stop);
        let text = text.get(self.bytes..safe).filter(|text| !text.is_empty())?.to_owned();
        Some(self.piece(text, row, tokenizer))
    }

    /// What is left to tell once the text is whole.
    pub(super) fn rest(
        &mut self,
        whole: &str,
        tokens: Tokens<'_>,
        tokenizer: &TextTokenizer,
    ) -> Piece {
        let text = whole.get(self.bytes..).unwrap_or_default().to_owned();
        self.bytes = whole.len();
        let tokens = tokens.from(self.tokens, tokenizer);
        self.tokens += tokens.len();
        Piece { text, tokens }
    }

    fn piece(&mut self, text: String, row: &Row, tokenizer: &TextTokenizer) -> Piece {
        self.bytes += text.len();
        let all = Tokens {
            before: &row.prompt,
            ids: &row.tokens,
            logprobs: &row.logprobs,
            alternatives: &row.alternatives,
        };
        let tokens = all.from(self.tokens, tokenizer);
        self.tokens += tokens.len();
        Piece { text, tokens }
    }
}

/// Tokens of an answer.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub(super) before: &'a [i64],
    pub(super) ids: &'a [i64],
    pub(super) logprobs: &'a [f32],
    pub(super) alternatives: &'a [Vec<(i64, f32)>],
}

impl Tokens<'_> {
    /// Those from some place on.
    fn from(self, first: usize, tokenizer: &TextTokenizer) -> Vec<Token> {
        (first..self.ids.len())
            .map(|at| {
                let before: Vec<i64> = self.before.iter().chain(&self.ids[..at]).copied().collect();
                let text = |id: i64| tokenizer.decode_after(&before, &[id]);
                let alternatives = self.alternatives.get(at).into_iter().flatten();
                Token {
                    text: text(self.ids[at]),
                    logprob: Some(self.logprobs[at]),
                    alternatives: alternatives.map(|&(id, p)| (text(id), p)).collect(),
                }
            })
            .collect()
    }
}

/// How much of a text stays as it is whatever comes after it.
fn safe_bytes(text: &str, stop: &[String]) -> usize {
    let whole = text.trim_end_matches('\u{FFFD}').len();
    let begun = |stop: &String| {
        let ends = (1..stop.len()).rev().filter(|&end| stop.is_char_boundary(end));
        ends.map(|end| &stop[..end]).find(|begin| text[..whole].ends_with(begin)).map(str::len)
    };
    whole - stop.iter().filter_map(begun).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_text_or_a_character_is_held_back() {
        let stop = ["\n\nHuman:".to_owned(), "END".to_owned()];
        assert_eq!(safe_bytes("Hello", &stop), 5);
        assert_eq!(safe_bytes("Hello\n\nHu", &stop), 5);
        assert_eq!(safe_bytes("Hello\n", &stop), 5);
        assert_eq!(safe_bytes("the EN", &stop), 4);
        assert_eq!(safe_bytes("caf\u{FFFD}\u{FFFD}", &stop), 3);
        assert_eq!(safe_bytes("", &stop), 0);
    }
}
