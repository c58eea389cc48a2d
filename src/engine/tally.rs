//! The tally: what each node asked in an epoch, every call counted once.

use std::collections::BTreeMap;

use super::estimate::Estimate;
use crate::record::{CallKey, IdMap};

/// What one node asked in an epoch, counted by distinct call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls made.
    pub made: u64,
    /// Calls that the memo had.
    pub memo: u64,
    /// Requests sent, retries included.
    pub attempts: u64,
    /// In a plan: calls that may be made, of rows not yet known. Never exceeded.
    pub up_to: u64,
    /// Tokens read and written by the calls made.
    pub tokens: u64,
    /// In a plan: what is known of what the calls to make will read and write.
    pub estimate: Estimate,
}

impl Calls {
    /// Adds another node's.
    pub fn add(&mut self, other: Calls) {
        self.made += other.made;
        self.memo += other.memo;
        self.attempts += other.attempts;
        self.up_to += other.up_to;
        self.tokens += other.tokens;
        self.estimate.add(other.estimate);
    }
}

/// What was asked since the last time this was taken.
#[derive(Default)]
pub(super) struct Tally {
    calls: IdMap<CallKey, Asked>,
    up_to: BTreeMap<usize, u64>,
    estimates: BTreeMap<usize, Estimate>,
}

/// A call.
#[derive(Clone, Copy)]
struct Asked {
    /// The first node in plan order that needs it.
    node: usize,
    in_memo: bool,
    attempts: u64,
    tokens: u64,
}

impl Tally {
    /// A node needs a call. Whether it is the first that does.
    fn needs(&mut self, key: CallKey, node: usize, in_memo: bool) -> bool {
        let (calls, asked) = (self.calls.len(), Asked { node, in_memo, attempts: 0, tokens: 0 });
        let asked = self.calls.entry(key).or_insert(asked);
        asked.node = asked.node.min(node);
        self.calls.len() > calls
    }

    /// A node needs a call that is made, or in a plan would be. Whether it is the first that does.
    pub(super) fn asked(&mut self, key: CallKey, node: usize) -> bool {
        self.needs(key, node, false)
    }

    /// A node needs a call that the memo has. Whether it is the first that does.
    pub(super) fn recalled(&mut self, key: CallKey, node: usize) -> bool {
        self.needs(key, node, true)
    }

    /// A node needs a call that was asked in this run, maybe in an earlier epoch.
    pub(super) fn needed(&mut self, key: &CallKey, node: usize) {
        if let Some(asked) = self.calls.get_mut(key) {
            asked.node = asked.node.min(node);
        }
    }

    /// Nobody needs the call any more, and it was not begun.
    pub(super) fn cancelled(&mut self, key: &CallKey) {
        self.calls.remove(key);
    }

    /// A call was made.
    pub(super) fn made(&mut self, key: &CallKey, attempts: u64, tokens: u64) {
        if let Some(asked) = self.calls.get_mut(key) {
            asked.attempts += attempts;
            asked.tokens += tokens;
            asked.in_memo = false;
        }
    }

    /// A failed attempt of a call took so many tokens.
    pub(super) fn charged(&mut self, key: &CallKey, tokens: u64) {
        if let Some(asked) = self.calls.get_mut(key) {
            asked.tokens += tokens;
        }
    }

    /// In a plan: a node may need so many calls more.
    pub(super) fn may_ask(&mut self, node: usize, calls: u64) {
        *self.up_to.entry(node).or_default() += calls;
    }

    /// In a plan: what is known of a node's calls.
    pub(super) fn estimate(&mut self, node: usize) -> &mut Estimate {
        self.estimates.entry(node).or_default()
    }

    /// What each of `nodes` nodes asked.
    pub(super) fn take(self, nodes: usize) -> Vec<Calls> {
        let mut calls = vec![Calls::default(); nodes];
        for asked in self.calls.into_values() {
            let node = &mut calls[asked.node];
            match asked.in_memo {
                true => node.memo += 1,
                false => node.made += 1,
            }
            node.attempts += asked.attempts;
            node.tokens += asked.tokens;
        }
        for (node, up_to) in self.up_to {
            calls[node].up_to += up_to;
        }
        for (node, estimate) in self.estimates {
            calls[node].estimate.add(estimate);
        }
        calls
    }
}
