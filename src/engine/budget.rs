//! The budget: what a run may spend, and whether the next call still fits.

use std::ops::{AddAssign, SubAssign};

/// What a run may spend, and how it treats remembered failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The most requests that are charged for: those of calls made, each of a vote, and failed
    /// attempts.
    pub max_calls: Option<u64>,
    /// The most tokens to read and write.
    pub max_tokens: Option<u64>,
    /// The most US dollars.
    pub max_cost: Option<f64>,
    /// Ask again what failed permanently.
    pub retry_rejects: bool,
}

impl Limits {
    /// Whether calls, tokens or dollars are bounded.
    pub(super) fn is_bound(&self) -> bool {
        self.max_calls.is_some() || self.max_tokens.is_some() || self.max_cost.is_some()
    }

    /// Why a call that may take `next` is not made, if it does not fit beside what is spent and
    /// what is set aside for the calls under way.
    pub(super) fn exceeded(&self, spent: Spent, reserved: Spent, next: Spent) -> Option<String> {
        let requests = spent.requests + reserved.requests + next.requests;
        if let Some(most) = self.max_calls.filter(|most| requests > *most) {
            return Some(format!(
                "reached the limit of {most} calls (`--max-calls`, `budget.calls`); run again to continue"
            ));
        }
        let tokens = spent.tokens + reserved.tokens + next.tokens;
        if let Some(most) = self.max_tokens.filter(|most| tokens > *most) {
            let (next, spent) = (next.tokens, spent.tokens);
            return Some(format!(
                "would exceed `budget.tokens`: {spent} of {most} used, the next call may need {next}; \
                 raise it and run again to continue"
            ));
        }
        let usd = spent.usd + reserved.usd + next.usd;
        let most = self.max_cost.filter(|most| usd > *most)?;
        let (next, spent) = (next.usd, spent.usd);
        Some(format!(
            "would exceed the limit of ${most} (`--max-cost`, `budget.usd`): ${spent:.4} used, the next \
             call may cost ${next:.4}; raise it and run again to continue"
        ))
    }
}

/// What calls took, or may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    /// Requests that are charged for.
    pub(super) requests: u64,
    /// Tokens read and written.
    pub(super) tokens: u64,
    /// US dollars.
    pub(super) usd: f64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.usd += other.usd;
    }
}

impl SubAssign for Spent {
    fn sub_assign(&mut self, other: Spent) {
        self.requests -= other.requests;
        self.tokens -= other.tokens;
        // Sums of numbers with a point leave a rest.
        self.usd = if self.tokens == 0 { 0.0 } else { self.usd - other.usd };
    }
}
