//! Estimates: what calls that are not made yet will read and write, by those of their node that
//! were.

use std::ops::AddAssign;

use crate::model::{Answer, Request, Task};

/// Of texts of which no tokens were ever counted, so many bytes are taken for one.
const BYTES_A_TOKEN: f64 = 4.0;

/// What some calls read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// How many calls.
    pub calls: u64,
    /// Bytes of their prompts.
    pub bytes: u64,
    /// Tokens read, where they were counted.
    pub read: u64,
    /// Tokens written; by calls that are not made, the most that they may write.
    pub written: u64,
}

impl Volume {
    /// A call that is not made.
    pub(super) fn wanted(request: &Request) -> Volume {
        let written = match &request.task {
            Task::Generate(sampling) => u64::from(sampling.max_tokens),
            Task::Score { choices, .. } => choices.len() as u64,
        };
        Volume { calls: 1, bytes: request.prompt.bytes(), read: 0, written }
    }

    /// Tokens to a byte of the prompts.
    pub(super) fn tokens_a_byte(&self) -> f64 {
        match self.read.min(self.bytes) {
            0 => 1.0 / BYTES_A_TOKEN,
            _ => self.read as f64 / self.bytes as f64,
        }
    }

    /// A call that was made.
    pub(super) fn made(request: &Request, answer: &Answer) -> Volume {
        let count = |tokens: i32| tokens.max(0) as u64;
        let (read, written) = (count(answer.prompt_tokens), count(answer.completion_tokens));
        Volume { calls: 1, bytes: request.prompt.bytes(), read, written }
    }
}

impl AddAssign for Volume {
    fn add_assign(&mut self, other: Volume) {
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.read += other.read;
        self.written += other.written;
    }
}

/// What a plan knows of the calls of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Those that the memo has.
    pub made: Volume,
    /// Those to make whose requests are known.
    pub wanted: Volume,
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Read.
    pub read: f64,
    /// Written.
    pub written: f64,
}

impl Estimate {
    /// Adds another node's.
    pub fn add(&mut self, other: Estimate) {
        self.made += other.made;
        self.wanted += other.wanted;
    }

    /// About how many tokens `to_make` calls take; nothing where no call like them is known.
    ///
    /// Prompts are measured, and the tokens to a byte are those of calls made; an answer is as long
    /// as those were in the mean. Where none was made a token is four bytes, and an answer as long
    /// as it may be.
    pub fn tokens(&self, to_make: u64) -> Option<Tokens> {
        if to_make == 0 {
            return Some(Tokens::default());
        }
        // Some servers count no tokens.
        let made = if self.made.read > 0 { self.made } else { Volume::default() };
        let known = (self.made.calls + self.wanted.calls) as f64;
        if known == 0.0 {
            return None;
        }
        let bytes_a_call = (self.made.bytes + self.wanted.bytes) as f64 / known;
        let guessed = to_make.saturating_sub(self.wanted.calls) as f64;
        let bytes = self.wanted.bytes as f64 + guessed * bytes_a_call;
        let like = if made.calls > 0 { made } else { self.wanted };
        let written = (like.calls > 0).then(|| like.written as f64 / like.calls as f64)?;
        Some(Tokens { read: bytes * made.tokens_a_byte(), written: to_make as f64 * written })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(calls: u64, bytes: u64, read: u64, written: u64) -> Volume {
        Volume { calls, bytes, read, written }
    }

    fn tokens(made: Volume, wanted: Volume, to_make: u64) -> Option<(f64, f64)> {
        let tokens = Estimate { made, wanted }.tokens(to_make);
        tokens.map(|tokens| (tokens.read, tokens.written))
    }

    const NONE: Volume = Volume { calls: 0, bytes: 0, read: 0, written: 0 };

    #[test]
    fn calls_are_measured_by_those_that_were_made() {
        // Five bytes a token, ten tokens an answer; the answers could have had a hundred.
        let (made, wanted) = (volume(100, 50_000, 10_000, 1_000), volume(10, 10_000, 0, 1_000));
        assert_eq!(tokens(made, wanted, 10), Some((2_000.0, 100.0)));
        // Two more, of which no request is known: prompts of the usual length.
        let (read, written) = tokens(made, wanted, 12).unwrap();
        assert!((read - 2_000.0 - 2.0 * 60_000.0 / 110.0 / 5.0).abs() < 1e-9, "{read}");
        assert!((written - 120.0).abs() < 1e-9, "{written}");
    }

    #[test]
    fn without_calls_made_prompts_are_measured_and_answers_are_as_long_as_they_may_be() {
        assert_eq!(tokens(NONE, volume(10, 4_000, 0, 2_560), 10), Some((1_000.0, 2_560.0)));
        let uncounted = volume(10, 4_000, 0, 0);
        assert_eq!(tokens(uncounted, volume(1, 400, 0, 256), 1), Some((100.0, 256.0)));
    }

    #[test]
    fn of_calls_like_none_that_is_known_nothing_is_said() {
        assert_eq!(tokens(NONE, NONE, 5), None);
        assert_eq!(tokens(volume(10, 4_000, 0, 0), NONE, 5), None, "the server counts no tokens");
        assert_eq!(tokens(NONE, NONE, 0), Some((0.0, 0.0)));
    }
}
