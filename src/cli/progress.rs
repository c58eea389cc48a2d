//! Progress of a run: bars on a terminal, plain lines elsewhere, nothing when quiet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::screen::Screen;
use super::table::{count, duration};
use crate::engine::dispatch::Seen;
use crate::engine::run::Progress;
use crate::model::train;

/// Plain lines are written as seldom as this.
const LINE_EVERY: Duration = Duration::from_secs(10);

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

/// Takes the bars away.
pub(super) fn end() {
    drop(bars().clear());
}

/// Shows nothing.
pub(super) struct Silent;

impl Progress for Silent {
    fn node(&self, _name: &str, _done: u64, _total: u64) {}
    fn calls(&self, _seen: &Seen) {}
    fn training(&self, _node: &str, _told: &train::Progress<'_>) {}
    fn message(&self, _line: &str) {}
}

/// A bar for each node at work, and one line for the calls of all.
#[derive(Default)]
struct Bars {
    nodes: Mutex<BTreeMap<String, ProgressBar>>,
    paces: Mutex<BTreeMap<String, Pace>>,
    calls: OnceLock<(ProgressBar, Instant)>,
}

impl Bars {
    /// Moves a node's bar, and lets it stand when it is full.
    fn show(&self, name: &str, done: u64, total: u64, line: &str) {
        let mut nodes = locked(&self.nodes);
        let bar = nodes.entry(name.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{prefix:28!} {bar:24} {human_pos:>9}/{human_len:9} {msg}",
            );
            let style = style.expect("the template is one").progress_chars("━╸ ");
            let bar = bars().insert(0, ProgressBar::new(total).with_style(style));
            bar.set_prefix(name.to_owned());
            bar
        });
        bar.set_length(total);
        bar.set_position(done.min(total));
        if line.is_empty() {
            let left = bar.eta().as_secs();
            let message = if done < total && left > 0 {
                format!("{} left", duration(left as f64))
            } else {
                String::new()
            };
            bar.set_message(message);
        } else {
            bar.set_message(line.to_owned());
        }
    }
}

impl Progress for Bars {
    fn node(&self, name: &str, done: u64, total: u64) {
        self.show(name, done, total, "");
    }

    fn calls(&self, seen: &Seen) {
        let (bar, since) = self.calls.get_or_init(|| {
            let style =
                ProgressStyle::with_template("{spinner} {msg}").expect("the template is one");
            (bars().add(ProgressBar::new_spinner().with_style(style)), Instant::now())
        });
        bar.set_message(said(seen, since.elapsed()));
        bar.tick();
    }

    fn training(&self, node: &str, told: &train::Progress<'_>) {
        let line = paced(&mut locked(&self.paces), node, told, Instant::now());
        self.show(node, told.done, told.all, &line);
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
    paces: BTreeMap<String, Pace>,
}

impl State {
    fn new(began: Instant) -> State {
        State { began, said: BTreeMap::new(), calls: 0, paces: BTreeMap::new() }
    }

    /// Whether a line of this name is due.
    fn is_due(&mut self, name: &str) -> bool {
        let now = Instant::now();
        let last = self.said.get(name).copied().unwrap_or(self.began);
        let due = now.duration_since(last) >= LINE_EVERY;
        if due {
            self.said.insert(name.to_owned(), now);
        }
        due
    }
}

impl Progress for Lines {
    fn node(&self, name: &str, done: u64, total: u64) {
        if locked(&self.state).is_due(name) {
            self.screen.note(&format!("{name}: {} of {} rows", count(done), count(total)));
        }
    }

    fn calls(&self, seen: &Seen) {
        let mut state = locked(&self.state);
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

/// Where a training was when it was told of first: what it did before, an earlier run did.
#[derive(Clone, Copy)]
struct Pace {
    since: Instant,
    done: u64,
    tokens: f64,
}

/// What is told of a training, with its tokens a second and the time that is left.
fn paced(
    paces: &mut BTreeMap<String, Pace>,
    node: &str,
    told: &train::Progress<'_>,
    now: Instant,
) -> String {
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
    if told.done < told.all {
        let left = seconds * (told.all - told.done) as f64 / steps as f64;
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
}
