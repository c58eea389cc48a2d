//! The window: how many requests a server has been seen to take at once.
//!
//! It opens with each success and halves with a refusal (AIMD, as TCP does), and it remembers: up
//! to the most that has worked it recovers at once, between that and what was refused it opens by
//! one a round, and what was refused it tries again only after a while that doubles each time,
//! because a refused try costs a pause of all. A server that never refuses is at its `max` after a
//! few rounds.
//!
//! This is the arithmetic alone; the clock is passed in and [`super::gate`] does the waiting.

use std::time::{Duration, Instant};

/// Requests in flight before anything is known of the server.
const START: f64 = 16.0;
/// A refused level is tried again after this many times the pause that it cost, and twice as many
/// each time.
const PROBE_AFTER: u32 = 5;
/// The longest wait before a refused level is tried again.
const PROBE_MAX: Duration = Duration::from_mins(5);

/// How many requests may be in flight, and why.
#[derive(Debug)]
pub(super) struct Window {
    max: f64,
    limit: f64,
    /// The most in flight that has worked.
    good: f64,
    /// The fewest in flight that were refused, once some were.
    ceiling: Option<f64>,
    in_flight: usize,
    /// Raised by each refusal that halves: what was sent before it says nothing new.
    epoch: u64,
    paused_until: Option<Instant>,
    probe_at: Option<Instant>,
    probe_wait: Duration,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    epoch: u64,
    /// In flight when it was sent, with it.
    level: usize,
}

impl Window {
    pub(super) fn new(max: usize) -> Window {
        assert!(max > 0, "a window lets at least one request through");
        Window {
            max: max as f64,
            limit: START.min(max as f64),
            good: 0.0,
            ceiling: None,
            in_flight: 0,
            epoch: 0,
            paused_until: None,
            probe_at: None,
            probe_wait: Duration::ZERO,
        }
    }

    /// Until when nothing may be sent.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Sends one, if it may be sent.
    pub(super) fn send(&mut self, now: Instant) -> Option<Ticket> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        if self.in_flight >= self.limit as usize {
            return None;
        }
        self.in_flight += 1;
        Some(Ticket { epoch: self.epoch, level: self.in_flight })
    }

    /// It was answered.
    pub(super) fn served(&mut self, ticket: Ticket, now: Instant) {
        let full = self.in_flight * 2 > self.limit as usize;
        self.in_flight -= 1;
        // A window that is not used proves nothing by its size.
        if ticket.epoch != self.epoch || !full {
            return;
        }
        self.good = self.good.max(ticket.level as f64);
        let limit = match self.ceiling {
            None => self.limit + 1.0,
            Some(_) if self.limit < self.good => (self.limit + 1.0).min(self.good),
            Some(ceiling) if self.limit + 1.0 < ceiling => {
                (self.limit + 1.0 / self.limit).min(ceiling - 1.0)
            }
            Some(ceiling) if self.probe_at.is_none_or(|at| now >= at) => {
                self.ceiling = Some(ceiling * 2.0);
                ceiling
            }
            Some(_) => self.limit,
        };
        self.limit = limit.min(self.max);
    }

    /// It failed in a way that says nothing of how many the server takes.
    pub(super) fn failed(&mut self, _ticket: Ticket) {
        self.in_flight -= 1;
    }

    /// It was refused, and the server wants to be left alone for a while.
    pub(super) fn refused(&mut self, ticket: Ticket, now: Instant, pause: Duration) {
        let level = self.in_flight as f64;
        self.in_flight -= 1;
        let until = self.paused_until.map_or(now + pause, |until| until.max(now + pause));
        self.paused_until = Some(until);
        if ticket.epoch != self.epoch {
            return;
        }
        self.epoch += 1;
        self.limit = (level / 2.0).floor().max(1.0);
        if level <= self.good {
            self.good = self.limit;
        }
        let first = pause.saturating_mul(PROBE_AFTER);
        self.probe_wait = (self.probe_wait * 2).max(first).min(PROBE_MAX);
        self.probe_at = Some(until + self.probe_wait);
        self.ceiling = Some(level.max(2.0));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What became of 1,800 requests to a server of `cap` slots that takes 50 ms for an answer and
    /// asks to wait 1 s when it refuses.
    struct Run {
        wasted: usize,
        span: Duration,
        in_flight_max: usize,
    }

    fn run(max: usize, cap: usize) -> Run {
        const N_REQUESTS: usize = 1_800;
        let begin = Instant::now();
        let (mut now, mut window) = (begin, Window::new(max));
        let mut events: BTreeMap<(Instant, usize), (Ticket, bool)> = BTreeMap::new();
        let (mut waiting, mut taken, mut nth) = (N_REQUESTS, 0, 0);
        let mut run = Run { wasted: 0, span: Duration::ZERO, in_flight_max: 0 };
        while waiting + events.len() > 0 {
            while waiting > 0
                && let Some(ticket) = window.send(now)
            {
                let is_taken = taken < cap;
                taken += usize::from(is_taken);
                let takes_ms = if is_taken { 50 } else { 1 };
                events.insert((now + Duration::from_millis(takes_ms), nth), (ticket, is_taken));
                (waiting, nth) = (waiting - 1, nth + 1);
                run.in_flight_max = run.in_flight_max.max(events.len());
            }
            let Some(((at, _), (ticket, is_taken))) = events.pop_first() else {
                now = window.paused_until().expect("only a pause keeps all from being sent");
                continue;
            };
            now = at;
            if is_taken {
                taken -= 1;
                window.served(ticket, now);
            } else {
                (run.wasted, waiting) = (run.wasted + 1, waiting + 1);
                window.refused(ticket, now, Duration::from_secs(1));
            }
        }
        assert_eq!(window.in_flight, 0, "what was sent has come back");
        run.span = now - begin;
        run
    }

    #[test]
    fn a_server_is_filled_whatever_its_size_and_hardly_pushed() {
        for cap in [1, 2, 3, 5, 8, 12, 16, 24, 40, 63] {
            let run = run(64, cap);
            let ideal_s = 1_800.0 * 0.05 / cap as f64;
            let lost_s = run.span.as_secs_f64() - ideal_s;
            assert!(run.wasted <= 40, "{cap} slots: {} wasted", run.wasted);
            assert!(
                lost_s <= (0.5 * ideal_s).max(4.5),
                "{cap} slots: {lost_s} s lost of {ideal_s}"
            );
        }
    }

    #[test]
    fn a_server_that_never_refuses_is_at_its_max_after_a_few_rounds() {
        let run = run(64, 1_000);
        assert_eq!((run.wasted, run.in_flight_max), (0, 64));
        assert!(run.span < Duration::from_millis(1_800 * 50 / 64 * 11 / 10), "{:?}", run.span);
    }

    #[test]
    fn refusals_of_one_burst_halve_once() {
        let now = Instant::now();
        let mut window = Window::new(16);
        let tickets: Vec<Ticket> = std::iter::from_fn(|| window.send(now)).collect();
        assert_eq!(tickets.len(), 16);
        for ticket in tickets {
            window.refused(ticket, now, Duration::from_secs(1));
        }
        assert!(window.send(now).is_none(), "it pauses");
        let later = now + Duration::from_secs(1);
        assert_eq!(std::iter::from_fn(|| window.send(later)).count(), 8);
    }
}
