//! Edits that are made while an earlier one still runs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use amend::record::CallKey;

use crate::incremental::files;
use crate::lab::{Files, Lab, fake_answer, fake_weights};
use crate::oracle::{Truth, oracle};
use crate::property::compare;

/// Begins files and leaves them where their calls wait to be answered.
fn begin(lab: &mut Lab, files: &Files, in_flight: usize) {
    lab.model.held.store(true, Ordering::SeqCst);
    let desired = lab.desired(files);
    lab.session.submit(&desired);
    while lab.model.kept() < in_flight {
        std::thread::yield_now();
    }
}

/// Makes an edit meanwhile, lets the calls be answered, and gives what the oracle says of it.
fn overtake(lab: &mut Lab, files: &Files) -> Truth {
    let desired = lab.desired(files);
    lab.session.submit(&desired);
    lab.model.release();
    lab.session.wait().unwrap();
    let truth = oracle(&desired, &lab.rows, &fake_answer, &fake_weights);
    compare(&desired, lab.session.tables(), &truth);
    truth
}

/// What was made and is not needed: it was under way.
fn in_vain(lab: &Lab, truth: &Truth) -> usize {
    let needed: BTreeSet<CallKey> = truth.calls.keys().copied().collect();
    lab.memo.keys().difference(&needed).count()
}

/// The run stood still for ever: the chunks of the first edit waited for the second one's changes,
/// which waited to be fed behind those chunks.
#[test]
fn an_overtaken_edit_of_many_chunks_ends() {
    for workers in [1, 2] {
        let mut lab = Lab::new(workers);
        lab.chunk = 1;
        let mut files = files(40);
        begin(&mut lab, &files, 1);
        files.constitution = files.constitution.replace("spite", "malice");
        files.prompts.get_mut("red").unwrap().truncate(30);
        overtake(&mut lab, &files);
    }
}

/// What waited in the queue of the dataflow that was given up was asked all the same, and counted
/// for whatever node now stood in that place.
#[test]
fn an_edit_to_another_shape_takes_back_what_was_not_sent() {
    let mut lab = Lab::new(1);
    let mut files = files(200);
    begin(&mut lab, &files, 64);
    let edits = [
        ("times: 2", "times: 1"),
        ("from: red, model: assistant }", "from: red, model: assistant, temperature: 0.5 }"),
        ("model: assistant, n: 2 }", "model: assistant, n: 2, temperature: 0.5 }"),
    ];
    for (from, to) in edits {
        assert!(files.pipeline.contains(from), "{from}");
        files.pipeline = files.pipeline.replace(from, to);
    }
    let truth = overtake(&mut lab, &files);
    let extra = in_vain(&lab, &truth);
    assert!(extra <= 64, "{extra} calls in vain, at most max_in_flight");
}

/// An edit was made and taken back while a model was trained: the same training began anew.
#[test]
fn a_recipe_that_is_asked_for_again_while_it_is_trained_is_trained_once() {
    for to_another_shape in [false, true] {
        let mut lab = Lab::new(1);
        let files = files(20);
        let mut edited = files.clone();
        edited.constitution = edited.constitution.replace("spite", "malice");
        if to_another_shape {
            edited.pipeline = edited.pipeline.replace("times: 2", "times: 3");
        }
        lab.trainings.held.store(true, Ordering::SeqCst);
        let desired = lab.desired(&files);
        lab.session.submit(&desired);
        while lab.trainings.trained() == 0 {
            std::thread::yield_now();
        }
        let recalled = lab.trainings.recalled_first();
        for files in [&edited, &files] {
            let desired = lab.desired(files);
            lab.session.submit(&desired);
        }
        // It is asked for again once the edits have come to it, and then it ends.
        while lab.trainings.recalled_first() == recalled {
            std::thread::yield_now();
        }
        lab.trainings.held.store(false, Ordering::SeqCst);
        lab.session.wait().unwrap();
        assert_eq!(lab.trainings.trained(), 2, "sl and pm, to another shape: {to_another_shape}");
    }
}
