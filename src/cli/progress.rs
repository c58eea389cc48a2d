//! Progress of a run: bars on a terminal, plain lines elsewhere, nothing when quiet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::screen::Screen;
use super::table::{count, duration};
use crate::engine::dispatch::Seen;
use crate::engine::progress::Far;
use crate::engine::run::Progress;
use crate::model::{Waiting, train};

/// The first plain lines are written after this, so that whoever waits sees early what is done.
const FIRST_LINE: Duration = Duration::from_secs(2);

/// Plain lines are written as seldom as this.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A server that has not answered for so long is named: one request in many may fail.
const WAITS_FROM: Duration = Duration::from_millis(500);

/// A server that does not answer is named anew as seldom as this.
const WAITS_EVERY: Duration = Duration::from_secs(2);

/// Above so many bars those that are full go.
const BARS_MAX: usize = 12;

/// The bars of this process, which everything that writes to stderr takes out of the way.
pub(super) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)))
}

/// What shows the progress of a run on this screen.
pub(super) fn of(screen: Screen) -> Arc<dyn Progress> {
    match (screen.quiet, screen.live) {
        (true, _) => Arc::new(Silent),
        (false, true) => Arc::new(Bars::default()),
        (false, false) => Arc::new(Lines { screen, state: Mutex::new(State::new(Instant::now())) }),
    }
}

/// Takes the bars away, for good: a bar that is dropped later would be drawn once more.
pub(super) fn end() {
    drop(bars().clear());
    bars().set_draw_target(ProgressDrawTarget::hidden());
}

/// Shows nothing.
pub(super) struct Silent;

impl Progress for Silent {
    fn rows(&self, _far: &[Far]) {}
    fn calls(&self, _seen: &Seen) {}
    fn training(&self, _node: &str, _told: &train::Progress<'_>) {}
    fn message(&self, _line: &str) {}
}

/// A bar for each node at work, and one line for the calls of all.
#[derive(Default)]
struct Bars {
    nodes: Mutex<BTreeMap<String, ProgressBar>>,
    paces: Mutex<Paces>,
    waits: Mutex<Waits>,
    calls: OnceLock<(ProgressBar, Instant)>,
}

impl Bars {
    /// Moves a node's bar, and lets it stand when it is full, unless there are many.
    fn show(&self, name: &str, (done, total): (u64, u64), line: String) {
        let mut nodes = locked(&self.nodes);
        if done >= total && nodes.len() > BARS_MAX {
            if let Some(bar) = nodes.remove(name) {
                bar.finish_and_clear();
            }
            return;
        }
        let bar = nodes.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:28!} {bar:24} {msg}");
            let style = style.expect("the template is one").progress_chars("━╸ ");
            let bar = bars().insert(0, ProgressBar::new(total).with_style(style));
            bar.set_prefix(name.to_owned());
            bar
        });
        bar.set_length(total);
        bar.set_position(done.min(total));
        bar.set_message(line);
    }
}

impl Progress for Bars {
    fn rows(&self, far: &[Far]) {
        let now = Instant::now();
        for far in far.iter().filter(|far| far.begun) {
            // What is done between two looks needs no bar.
            if far.done < far.total || locked(&self.nodes).contains_key(&far.name) {
                let line = rows(&mut locked(&self.paces), far, now);
                self.show(&far.name, (far.done, far.total), line);
            }
        }
    }

    fn calls(&self, seen: &Seen) {
        let (bar, since) = self.calls.get_or_init(|| {
            let style =
                ProgressStyle::with_template("{spinner} {msg}").expect("the template is one");
            (bars().add(ProgressBar::new_spinner().with_style(style)), Instant::now())
        });
        let mut line = said(seen, since.elapsed());
        if locked(&self.waits).lasts(seen.waiting.is_some(), Instant::now())
            && let Some(waiting) = &seen.waiting
        {
            let _ = write!(line, "\n  {waiting}");
        }
        bar.set_message(line);
        bar.tick();
    }

    fn training(&self, node: &str, told: &train::Progress<'_>) {
        let line = paced(&mut locked(&self.paces), node, told, Instant::now());
        let line = format!("{} of {}  {line}", count(told.done), count(told.all));
        self.show(node, (told.done, told.all), line);
    }

    fn message(&self, line: &str) {
        drop(bars().println(line));
    }
}

/// A line when a node is done, and one every now and then.
struct Lines {
    screen: Screen,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    /// When the last line of each was written; the calls' is under no name.
    said: BTreeMap<String, Instant>,
    /// How many calls that line named.
    calls: u64,
    paces: Paces,
    waits: Waits,
}

impl State {
    fn new(began: Instant) -> State {
        let (said, paces, waits) = (BTreeMap::new(), Paces::new(), Waits::default());
        State { began, said, calls: 0, paces, waits }
    }

    /// Whether a line of this name is due.
    fn is_due(&mut self, name: &str) -> bool {
        let now = Instant::now();
        let due = match self.said.get(name) {
            Some(last) => now.duration_since(*last) >= LINE_EVERY,
            None => now.duration_since(self.began) >= FIRST_LINE,
        };
        if due {
            self.said.insert(name.to_owned(), now);
        }
        due
    }
}

impl Progress for Lines {
    fn rows(&self, far: &[Far]) {
        let mut state = locked(&self.state);
        let now = Instant::now();
        for far in far.iter().filter(|far| far.begun && far.done < far.total) {
            let line = rows(&mut state.paces, far, now);
            if state.is_due(&far.name) {
                self.screen.note(&format!("{}: {line}", far.name));
            }
        }
    }

    fn calls(&self, seen: &Seen) {
        let mut state = locked(&self.state);
        if let Some(line) = state.waits.line(seen.waiting.as_ref(), Instant::now()) {
            self.screen.note(&line);
        }
        let calls = seen.made + seen.memo;
        // While a model is trained there is nothing to say.
        let is_idle = seen.in_flight == 0 && calls == state.calls;
        if !is_idle && state.is_due("") {
            state.calls = calls;
            self.screen.note(&said(seen, state.began.elapsed()));
        }
    }

    fn training(&self, node: &str, told: &train::Progress<'_>) {
        let mut state = locked(&self.state);
        let line = paced(&mut state.paces, node, told, Instant::now());
        if state.is_due(node) || told.done == told.all {
            let (done, all) = (count(told.done), count(told.all));
            self.screen.note(&format!("{node}: step {done} of {all}  {line}"));
        }
    }

    fn message(&self, line: &str) {
        self.screen.note(line);
    }
}

/// Since when a server does not answer, and what was said of it.
#[derive(Default)]
struct Waits {
    since: Option<Instant>,
    said: Option<(Instant, String)>,
}

impl Waits {
    /// Whether a server is waited for, and that not for a moment.
    fn lasts(&mut self, waits: bool, now: Instant) -> bool {
        if !waits {
            *self = Waits::default();
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= WAITS_FROM
    }

    /// The line that is due.
    fn line(&mut self, waiting: Option<&Waiting>, now: Instant) -> Option<String> {
        if !self.lasts(waiting.is_some(), now) {
            return None;
        }
        let line = waiting?.to_string();
        let is_due = self
            .said
            .as_ref()
            .is_none_or(|(last, said)| *said != line && now.duration_since(*last) >= WAITS_EVERY);
        is_due.then(|| {
            self.said = Some((now, line.clone()));
            line
        })
    }
}

/// Where each node was when it was told of first.
type Paces = BTreeMap<String, Pace>;

/// The rows of a node in a few words, with the time that is left.
fn rows(paces: &mut Paces, far: &Far, now: Instant) -> String {
    let first = Pace { since: now, done: far.done, tokens: 0.0 };
    let pace = *paces.entry(far.name.clone()).or_insert(first);
    let up_to = if far.exact { "" } else { "up to " };
    let mut line = format!("{} of {up_to}{} rows", count(far.done), count(far.total));
    if let Some(left) = pace.left(far.done, far.total, now) {
        let _ = write!(line, " · {} left", duration(left));
    }
    line
}

/// Where a node was when it was told of first: what it did before, an earlier run did.
#[derive(Clone, Copy)]
struct Pace {
    since: Instant,
    done: u64,
    tokens: f64,
}

impl Pace {
    /// The seconds that are left at this pace, once there is one.
    fn left(self, done: u64, all: u64, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.since).as_secs_f64();
        let steps = done.saturating_sub(self.done);
        let known = steps > 0 && seconds > 0.0 && done < all;
        known.then(|| seconds * (all - done) as f64 / steps as f64)
    }
}

/// What is told of a training, with its tokens a second and the time that is left.
fn paced(paces: &mut Paces, node: &str, told: &train::Progress<'_>, now: Instant) -> String {
    let first = Pace { since: now, done: told.done, tokens: told.tokens };
    let pace = *paces.entry(node.to_owned()).or_insert(first);
    let seconds = now.duration_since(pace.since).as_secs_f64();
    let steps = told.done.saturating_sub(pace.done);
    let mut line = told.line.to_owned();
    if steps == 0 || seconds <= 0.0 {
        return line;
    }
    if told.tokens > pace.tokens {
        let _ = write!(line, " · {:.0} tokens/s", (told.tokens - pace.tokens) / seconds);
    }
    if let Some(left) = pace.left(told.done, told.all, now) {
        let _ = write!(line, " · {} left", duration(left));
    }
    line
}

/// The calls in one line, and what the keys and values of local models take.
fn said(seen: &Seen, elapsed: Duration) -> String {
    let share = match seen.made + seen.memo {
        0 => 0.0,
        all => 100.0 * seen.memo as f64 / all as f64,
    };
    let rate = seen.tokens as f64 / elapsed.as_secs_f64().max(0.001);
    let mut said = format!(
        "{} in flight · {} calls made · memo {share:.0} % · {rate:.0} tokens/s",
        seen.in_flight,
        count(seen.made)
    );
    if seen.cache_bytes.most > 0 {
        let mib = |bytes: usize| count((bytes >> 20) as u64);
        let (held, most) = (mib(seen.cache_bytes.held), mib(seen.cache_bytes.most));
        let _ = write!(said, " · cache {held} of {most} MiB");
    }
    if seen.cost_usd > 0.0 {
        let _ = write!(said, " · ${:.2}", seen.cost_usd);
    }
    said
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CacheBytes;

    #[test]
    fn the_calls_are_told_in_one_line() {
        let mut seen =
            Seen { in_flight: 8, made: 1500, memo: 500, tokens: 1625, ..Seen::default() };
        let told = |seen: &Seen| said(seen, Duration::from_secs(2));
        let calls = "8 in flight · 1,500 calls made · memo 25 % · 812 tokens/s";
        assert_eq!(told(&seen), calls);
        seen.cost_usd = 1.5;
        assert_eq!(told(&seen), format!("{calls} · $1.50"));
        seen.cache_bytes = CacheBytes { held: 300 << 20, most: 2 << 30 };
        assert_eq!(told(&seen), format!("{calls} · cache 300 of 2,048 MiB · $1.50"));
        assert!(told(&Seen::default()).starts_with("0 in flight · 0 calls made · memo 0 %"));
    }

    #[test]
    fn a_training_is_told_with_its_pace_and_the_time_left() {
        let (mut paces, began) = (BTreeMap::new(), Instant::now());
        let mut at = |seconds: u64, done: u64, tokens: f64| {
            let told = train::Progress { line: "loss 1.250", done, all: 50, tokens, metrics: &[] };
            paced(&mut paces, "sl", &told, began + Duration::from_secs(seconds))
        };
        // It goes on after a kill: what was done before is not of this pace.
        assert_eq!(at(0, 10, 5_000.0), "loss 1.250");
        assert_eq!(at(20, 20, 7_000.0), "loss 1.250 · 100 tokens/s · 1 min 00 s left");
        assert_eq!(at(90, 50, 9_000.0), "loss 1.250 · 44 tokens/s");
    }

    #[test]
    fn plain_lines_come_seldom() {
        let mut state = State::new(Instant::now());
        assert!(!state.is_due("drafts"));
        state.began = state.began.checked_sub(LINE_EVERY).unwrap();
        assert!(state.is_due("drafts") && !state.is_due("drafts") && state.is_due(""));
    }

    #[test]
    fn rows_are_told_with_what_is_known_and_the_time_left() {
        let (mut paces, began) = (Paces::new(), Instant::now());
        let mut at = |seconds: u64, done: u64, exact: bool| {
            let far = Far { name: "drafts".to_owned(), done, total: 1500, exact, begun: true };
            rows(&mut paces, &far, began + Duration::from_secs(seconds))
        };
        // What the memo knew was there at once, and is not of this pace.
        assert_eq!(at(0, 500, true), "500 of 1,500 rows");
        assert_eq!(at(10, 600, true), "600 of 1,500 rows · 1 min 30 s left");
        assert_eq!(at(20, 1500, false), "1,500 of up to 1,500 rows");
    }

    #[test]
    fn a_server_that_does_not_answer_is_named_while_it_does_not() {
        let (mut waits, began) = (Waits::default(), Instant::now());
        let waiting = |attempt| {
            let (server, reason) = ("http://h:1".to_owned(), "connection refused".to_owned());
            Waiting { server, reason, attempt }
        };
        let mut at = |ms: u64, attempt: Option<u32>| {
            waits.line(attempt.map(waiting).as_ref(), began + Duration::from_millis(ms))
        };
        assert_eq!(at(0, Some(2)), None, "it may be one request of many");
        assert_eq!(at(400, None), None);
        assert_eq!(at(450, Some(2)), None, "another did not answer since");
        let said = "waiting for http://h:1: connection refused, try";
        assert_eq!(at(1000, Some(2)), Some(format!("{said} 2")));
        assert_eq!(at(1500, Some(3)), None, "that is too often");
        assert_eq!(at(9000, Some(2)), None, "that was said");
        assert_eq!(at(9050, Some(4)), Some(format!("{said} 4")));
    }
}
