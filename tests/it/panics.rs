//! Panics of threads: whoever waits for what such a thread was to bring is told, and the run ends.

use std::sync::atomic::Ordering;

use amend::model::{Answer, CallError, Request};
use amend::operators::ModelRef;

use crate::incremental::files;
use crate::lab::Lab;

fn panicking(_: &ModelRef, _: &Request) -> Result<Answer, CallError> {
    panic!("the fake model panics")
}

/// What a run over a lab ends with.
fn end_of(lab: &mut Lab) -> String {
    let desired = lab.desired(&files(12));
    lab.session.apply(&desired).unwrap_err().to_string()
}

#[test]
fn a_training_that_panics_ends_the_run_with_its_message() {
    for workers in [1, 3] {
        let mut lab = Lab::new(workers);
        lab.trainings.panics.store(true, Ordering::SeqCst);
        let told = end_of(&mut lab);
        assert!(told.contains("node \"sl\"") && told.contains("the fake trainer panics"), "{told}");
    }
}

#[test]
fn after_a_training_that_panicked_the_next_run_trains_it() {
    let mut lab = Lab::new(1);
    lab.trainings.panics.store(true, Ordering::SeqCst);
    end_of(&mut lab);
    lab.trainings.panics.store(false, Ordering::SeqCst);
    let mut next = lab.again(1);
    let desired = next.desired(&files(12));
    next.session.apply(&desired).unwrap();
    assert_eq!(next.trainings.trained(), 1 + 2, "the one that panicked, and both");
}

#[test]
fn a_model_that_panics_in_its_own_thread_ends_the_run() {
    for workers in [1, 3] {
        let mut lab = Lab::answering(workers, panicking);
        lab.model.later.store(true, Ordering::SeqCst);
        let told = end_of(&mut lab);
        assert!(told.contains("the thread that had it is gone"), "{told}");
    }
}

#[test]
fn a_worker_of_the_dataflow_that_panics_ends_the_run_with_its_message() {
    for workers in [1, 3] {
        // Asked at once, this fake answers in the worker's own thread.
        let mut lab = Lab::answering(workers, panicking);
        let told = end_of(&mut lab);
        assert!(
            told.contains("a fault of amend") && told.contains("the fake model panics"),
            "{told}"
        );
    }
}
