//! Streaks: whether the requests to a model fail all in the same way, so that it is the model that
//! fails and not its rows.

use std::collections::VecDeque;

/// So many first requests that fail in the same way stop a run.
pub(super) const FIRST: usize = 10;
/// So many, where there are no more and the model never answered.
const FEW: usize = 3;
/// Of so many last requests …
const LAST: usize = 200;
/// … so many that fail in the same way stop a run: 95 %.
const LAST_FAILED: usize = 190;
/// Characters of a message that tell one way to fail from another.
const SIGNATURE_CHARS: usize = 160;

/// How the requests to one model ended so far.
#[derive(Debug, Default)]
pub(super) struct Streak {
    /// Whether the model answered before this run: then what it refuses for good is its rows' failure.
    is_known: bool,
    /// Whether one was answered, or they failed in several ways.
    is_broken: bool,
    /// How the first ones failed.
    first: Vec<String>,
    /// How the last ones ended: nothing for an answer.
    last: VecDeque<Option<String>>,
}

/// What becomes of a request that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the row's failure, as are those that are held.
    Settle,
    /// It is not known yet whether it is the row's failure or the model's.
    Hold,
    /// It is the model's failure; the text says how many failed.
    Stop(String),
}

impl Streak {
    /// Of a model that answered before this run, or never did.
    pub(super) fn new(is_known: bool) -> Streak {
        Streak { is_known, ..Streak::default() }
    }

    /// A request was answered.
    pub(super) fn answered(&mut self) {
        self.is_broken = true;
        self.push(None);
    }

    /// A request failed, for good or until the next run.
    pub(super) fn failed(&mut self, message: &str, for_good: bool) -> Verdict {
        if for_good && self.is_known {
            return Verdict::Settle;
        }
        let signature = signature(message);
        self.push(Some(signature.clone()));
        if !self.is_broken {
            self.first.push(signature);
            if !self.is_one_way() {
                self.is_broken = true;
                return Verdict::Settle;
            }
            return match self.first.len() {
                FIRST.. => {
                    Verdict::Stop(format!("the first {FIRST} requests failed in the same way"))
                }
                _ => Verdict::Hold,
            };
        }
        let same = self.last.iter().filter(|one| **one == self.last[self.last.len() - 1]).count();
        match same {
            LAST_FAILED.. => {
                Verdict::Stop(format!("{same} of the last {LAST} requests failed in the same way"))
            }
            _ => Verdict::Settle,
        }
    }

    /// No request is left. What becomes of those that are held.
    pub(super) fn drained(&mut self) -> Verdict {
        if !self.is_known && !self.is_broken && self.first.len() >= FEW {
            let n = self.first.len();
            return Verdict::Stop(format!("all {n} requests failed in the same way"));
        }
        Verdict::Settle
    }

    fn is_one_way(&self) -> bool {
        self.first.iter().all(|signature| *signature == self.first[0])
    }

    fn push(&mut self, end: Option<String>) {
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(end);
    }
}

/// A message without what differs from request to request: numbers and ids.
fn signature(message: &str) -> String {
    let words = message.split_whitespace().map(|word| {
        let is_own = word.chars().any(|c| c.is_ascii_digit());
        if is_own { "#" } else { word }
    });
    words.collect::<Vec<_>>().join(" ").chars().take(SIGNATURE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_requests_are_held_until_it_is_known_whose_failure_it_is() {
        let mut streak = Streak::default();
        for n in 1..FIRST {
            assert_eq!(streak.failed(&format!("boom in request {n}"), true), Verdict::Hold);
        }
        assert!(matches!(streak.failed("boom in request 99", true), Verdict::Stop(_)));

        let mut streak = Streak::default();
        assert_eq!(streak.failed("boom", true), Verdict::Hold);
        assert_eq!(streak.failed("bang", true), Verdict::Settle, "they fail in several ways");
        assert_eq!(streak.failed("boom", true), Verdict::Settle);

        let mut streak = Streak::default();
        assert_eq!(streak.failed("boom", true), Verdict::Hold);
        streak.answered();
        assert_eq!(streak.failed("boom", true), Verdict::Settle);
    }

    #[test]
    fn what_a_model_that_is_known_refuses_for_good_is_its_rows_failure() {
        let mut streak = Streak::new(true);
        for _ in 0..2 * LAST {
            assert_eq!(streak.failed("flagged", true), Verdict::Settle);
        }
        // It may be down all the same.
        for _ in 1..FIRST {
            assert_eq!(streak.failed("boom", false), Verdict::Hold);
        }
        assert!(matches!(streak.failed("boom", false), Verdict::Stop(_)));
    }

    #[test]
    fn a_model_that_never_answered_is_not_there_however_few_were_asked() {
        let failed = |times: usize, is_known: bool| {
            let mut streak = Streak::new(is_known);
            (0..times).for_each(|_| assert_eq!(streak.failed("boom", false), Verdict::Hold));
            streak.drained()
        };
        assert!(matches!(failed(FEW, false), Verdict::Stop(_)));
        assert_eq!(failed(FEW - 1, false), Verdict::Settle, "too few to tell");
        assert_eq!(failed(FEW, true), Verdict::Settle, "it is the rows");
    }

    #[test]
    fn a_model_that_stops_answering_is_seen_among_the_last_requests() {
        let mut streak = Streak::default();
        // Eleven answers in two hundred are more than one in twenty.
        for n in 0..4 * LAST {
            match n % 18 {
                0 => streak.answered(),
                _ => assert_eq!(streak.failed("boom", false), Verdict::Settle, "{n}"),
            }
        }
        let mut streak = Streak::default();
        (0..10).for_each(|_| streak.answered());
        let stopped = (0..LAST).find(|_| matches!(streak.failed("boom", false), Verdict::Stop(_)));
        assert_eq!(stopped, Some(LAST_FAILED - 1));
    }
}
