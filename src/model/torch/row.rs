//! A row: a prompt, what was drawn after it, and how it ends.

use super::sampling::Draws;
use super::tokenizer::TextTokenizer;
use super::transformer::Transformer;
use crate::model::{Finish, Sampling};

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub struct Continuation {
    /// Its tokens; at least one, and fewer than the context.
    pub prompt: Vec<i64>,
    /// How to continue it.
    pub sampling: Sampling,
}

/// What a prompt was continued with.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// All tokens drawn: with the end token, and with those of a stop text.
    pub tokens: Vec<i64>,
    /// The log-probability of each, under the whole distribution at temperature 1.
    pub logprobs: Vec<f32>,
    /// The likeliest tokens of each step with their log-probabilities, where they were asked for.
    pub alternatives: Vec<Vec<(i64, f32)>>,
    /// The text, without end token and stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// A row on its way.
pub(super) struct Row {
    pub(super) tag: u64,
    pub(super) prompt: Vec<i64>,
    pub(super) tokens: Vec<i64>,
    pub(super) logprobs: Vec<f32>,
    pub(super) draws: Draws,
    pub(super) stop: Vec<String>,
    pub(super) tokens_max: usize,
    /// How many of the likeliest tokens are told at each step.
    pub(super) alternatives_max: usize,
    /// Those, likeliest first, of each step.
    pub(super) alternatives: Vec<Vec<(i64, f32)>>,
}

impl Row {
    pub(super) fn new(tag: u64, row: Continuation, positions_max: usize) -> Row {
        let tokens_max = (row.sampling.max_tokens as usize).min(positions_max - row.prompt.len());
        Row {
            tag,
            draws: Draws::new(&row.sampling),
            prompt: row.prompt,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            stop: row.sampling.stop.into_iter().filter(|stop| !stop.is_empty()).collect(),
            tokens_max,
            alternatives_max: 0,
            alternatives: Vec::new(),
        }
    }

    /// The token that was drawn last.
    pub(super) fn last(&self) -> i64 {
        *self.tokens.last().expect("an admitted row has a token")
    }

    /// How many positions the row has at its longest.
    pub(super) fn length_max(&self) -> usize {
        self.prompt.len() + self.tokens_max
    }

    /// The position of that token.
    pub(super) fn position(&self) -> usize {
        self.prompt.len() + self.tokens.len() - 1
    }

    /// The row as it ended, if its last token ended it.
    pub(super) fn finished(
        &self,
        model: &Transformer,
        tokenizer: &TextTokenizer,
    ) -> Option<Generated> {
        if model.config.eos_token_ids.contains(&self.last()) {
            let text = tokenizer.decode_after(&self.prompt, &self.tokens[..self.tokens.len() - 1]);
            return Some(self.ended(Finish::Stop, text));
        }
        if let Some(text) = self.stopped(tokenizer) {
            return Some(self.ended(Finish::Stop, text));
        }
        (self.tokens.len() >= self.tokens_max)
            .then(|| self.ended(Finish::Length, tokenizer.decode_after(&self.prompt, &self.tokens)))
    }

    /// The text before the first stop text, if the last token completed one.
    fn stopped(&self, tokenizer: &TextTokenizer) -> Option<String> {
        let bytes_max = self.stop.iter().map(String::len).max()?;
        // A token may be part of a character: the end is looked at with a few tokens to spare.
        let tail = self.tokens.len().saturating_sub(bytes_max + 4);
        let end = match tail {
            0 => tokenizer.decode_after(&self.prompt, &self.tokens),
            _ => tokenizer.decode(&self.tokens[tail..]),
        };
        if !self.stop.iter().any(|stop| end.contains(stop)) {
            return None;
        }
        let mut text = tokenizer.decode_after(&self.prompt, &self.tokens);
        let at = self.stop.iter().filter_map(|stop| text.find(stop)).min()?;
        text.truncate(at);
        Some(text)
    }

    pub(super) fn ended(&self, finish: Finish, text: String) -> Generated {
        Generated {
            tokens: self.tokens.clone(),
            logprobs: self.logprobs.clone(),
            alternatives: self.alternatives.clone(),
            text,
            finish,
        }
    }
}
