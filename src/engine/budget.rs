//! The budget: what a run may spend, and whether the next call still fits.

use std::ops::{AddAssign, SubAssign};

/// What a run may spend, and how it treats remembered failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The most calls to make.
    pub max_calls: Option<u64>,
    /// The most tokens to read and write.
    pub max_tokens: Option<u64>,
    /// The most US dollars.
    pub max_cost: Option<f64>,
    /// Ask again what failed permanently.
    pub retry_rejects: bool,
}

impl Limits {
    /// Whether tokens or dollars are bounded.
    pub(super) fn bound_spending(&self) -> bool {
        self.max_tokens.is_some() || self.max_cost.is_some()
    }

    /// Why a call that may take `next` is not made, if it does not fit beside what is spent and
    /// what is set aside for the calls under way.
    pub(super) fn exceeded(&self, spent: Spent, reserved: Spent, next: Spent) -> Option<String> {
        let tokens = spent.tokens + reserved.tokens + next.tokens;
        if let Some(most) = self.max_tokens.filter(|most| tokens > *most) {
            let (next, spent) = (next.tokens, spent.tokens);
            let message =
                format!("the next call may take {next} tokens, of {most} are spent {spent}");
            return Some(message);
        }
        let usd = spent.usd + reserved.usd + next.usd;
        let most = self.max_cost.filter(|most| usd > *most)?;
        let (next, spent) = (next.usd, spent.usd);
        Some(format!("the next call may cost ${next:.4}, of ${most} are spent ${spent:.4}"))
    }
}

/// What calls took, or may take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    /// Tokens read and written.
    pub(super) tokens: u64,
    /// US dollars.
    pub(super) usd: f64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.tokens += other.tokens;
        self.usd += other.usd;
    }
}

impl SubAssign for Spent {
    fn sub_assign(&mut self, other: Spent) {
        self.tokens -= other.tokens;
        // Sums of numbers with a point leave a rest.
        self.usd = if self.tokens == 0 { 0.0 } else { self.usd - other.usd };
    }
}
