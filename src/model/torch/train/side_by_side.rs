//! Two computations that need nothing of each other, each with half of the threads.
//!
//! Two threads that share an operation both wait for the slower, and between two products much is too
//! small to be shared at all: an update of PPO left a tenth of two cores idle. Policy and critic are
//! two models, so each takes a core and waits for nobody (ADR 0018).

use std::panic::resume_unwind;
use std::thread;

/// Runs both: at once where that is asked for and there are two threads or more.
pub(super) fn side_by_side<A, B: Send>(
    at_once: bool,
    here: impl FnOnce() -> A,
    there: impl FnOnce() -> B + Send,
) -> (A, B) {
    let threads = tch::get_num_threads();
    if !at_once || threads < 2 {
        return (here(), there());
    }
    // libtorch keeps the number by thread.
    tch::set_num_threads(threads - threads / 2);
    let both = thread::scope(|scope| {
        let there = scope.spawn(move || {
            tch::set_num_threads(threads / 2);
            there()
        });
        let here = here();
        (here, there.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    tch::set_num_threads(threads);
    both
}
