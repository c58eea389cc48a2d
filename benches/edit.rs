//! The time of an edit in a live process: one of sixteen principles, over 100,000 rows.
//!
//! `cargo bench --bench edit` prints, for the first run and for each of some edits, the time in all,
//! the time inside the fake model, and the records through each node. `ROWS=1000` makes it smaller,
//! `WORKERS=1` takes fewer threads than there are cores, and `EDITS=64` edits more often.

#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says where")]
#![allow(dead_code, unreachable_pub, reason = "the lab is that of the tests")]

#[path = "../tests/it/lab.rs"]
mod lab;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amend::engine::session::Settled;
use amend::model::{Answer, CallError, Request};
use amend::operators::ModelRef;

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nanoseconds in the fake model.
static IN_CALLS: AtomicU64 = AtomicU64::new(0);

fn timed(model: &ModelRef, request: &Request) -> Result<Answer, CallError> {
    let began = Instant::now();
    let answer = lab::fake_answer(model, request);
    IN_CALLS.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
    answer
}

fn main() {
    let given = |name: &str, or: usize| std::env::var(name).map_or(or, |n| n.parse().unwrap());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (rows, workers) = (given("ROWS", 100_000), given("WORKERS", cores));
    let mut lab = lab::Lab::answering(workers, timed);
    lab.chunk = rows / 128 + 1;
    let mut files = lab::sixteen(rows);
    println!("{rows} rows, 16 principles, sample -> critique -> revise, {workers} worker(s)");
    let mut step = |what: &str, files: &lab::Files| {
        let began = Instant::now();
        let desired = lab.desired(files);
        let compiled = began.elapsed();
        IN_CALLS.store(0, Ordering::Relaxed);
        let began = Instant::now();
        let settled = lab.session.apply(&desired).unwrap();
        let took = began.elapsed();
        let in_calls = Duration::from_nanos(IN_CALLS.load(Ordering::Relaxed));
        let names = desired.shape.nodes.iter().map(|node| node.name.as_str());
        report(what, compiled, took, in_calls, names, &settled);
        took.saturating_sub(in_calls)
    };
    step("first run", &files);
    let mut times = Vec::new();
    for edit in 0..given("EDITS", 8) {
        let (n, round) = (edit % 16, edit / 16);
        let asked = |round: usize| format!("what{} breaks rule {n}?", ", in short,".repeat(round));
        files.constitution = files.constitution.replace(&asked(round), &asked(round + 1));
        times.push(step(&format!("edit of p{n}"), &files));
    }
    times.sort();
    println!(
        "an edit takes {:.1} ms outside calls in the median, {:.1} to {:.1}",
        ms(times[times.len() / 2]),
        ms(times[0]),
        ms(times[times.len() - 1]),
    );
}

fn report<'a>(
    what: &str,
    compiled: Duration,
    took: Duration,
    in_calls: Duration,
    names: impl Iterator<Item = &'a str>,
    settled: &Settled,
) {
    let made: u64 = settled.calls.iter().map(|calls| calls.made).sum();
    let through = names.zip(&settled.records).filter(|(_, records)| **records > 0);
    let through: Vec<String> = through.map(|(name, records)| format!("{name} {records}")).collect();
    println!(
        "{what:12} {:8.1} ms, of which {:.1} in {made} calls; files compiled in {:.1} ms; records: {}",
        ms(took),
        ms(in_calls),
        ms(compiled),
        if through.is_empty() { "none".to_owned() } else { through.join(", ") },
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
