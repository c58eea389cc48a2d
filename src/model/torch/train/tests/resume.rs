//! Trainings that are stopped and go on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::*;
use crate::model::train::LoraSettings;

/// One try at a training whose state lies in `state`, stopped as by a kill at the report of a step.
/// Gives the steps that were reported, and what came of it.
fn one_try(
    training: &(TrainSettings, Init, Vec<Example>),
    state: &Path,
    killed_at: Option<u64>,
) -> (Vec<u64>, Option<(tempfile::TempDir, Trained)>) {
    let dir = tempfile::tempdir().unwrap();
    let (settings, init, examples) = training.clone();
    let reported = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reported);
    let progress = Box::new(move |told: &Progress<'_>| {
        let done = told.done;
        heard.lock().unwrap().push(done);
        // Nothing of the trainer catches it, and nothing of it is left but what is on the disk.
        assert!(Some(done) != killed_at, "killed");
    });
    let (out, state) = (dir.path().to_owned(), state.to_owned());
    let job = TrainJob { settings, init, examples, out, state, asks: None, progress };
    let trained = catch_unwind(AssertUnwindSafe(|| TorchTrainer::default().train(job)));
    let reported = reported.lock().unwrap().clone();
    (reported, trained.ok().map(|trained| (dir, trained.unwrap())))
}

/// Killed at each of these steps in turn, the training reaches what it reaches undisturbed.
pub(super) fn check(training: &(TrainSettings, Init, Vec<Example>), kills: &[u64]) {
    let undisturbed = tempfile::tempdir().unwrap();
    let (_, whole) = one_try(training, undisturbed.path(), None);
    let (whole_dir, whole) = whole.unwrap();

    let state = tempfile::tempdir().unwrap();
    let save_steps = training.0.compute().save_steps;
    let mut before = 0;
    for &at in kills {
        let (reported, trained) = one_try(training, state.path(), Some(at));
        assert!(trained.is_none(), "it was killed at step {at}");
        if before >= save_steps {
            let saved = before / save_steps * save_steps;
            assert_eq!(reported[0], saved, "it went on after the last state before step {before}");
        }
        // A report comes before the state of its step.
        before = at - 1;
    }
    let (reported, trained) = one_try(training, state.path(), None);
    let (dir, trained) = trained.unwrap();
    assert_eq!(reported[0], before / save_steps * save_steps);
    assert_eq!(trained.weights, whole.weights, "the same bits");
    let file =
        |dir: &tempfile::TempDir| std::fs::read(dir.path().join("model.safetensors")).unwrap();
    assert!(file(&dir) == file(&whole_dir));
    let json = |trained: &Trained| serde_json::to_string(trained).unwrap();
    assert_eq!(json(&trained), json(&whole), "metrics, episodes and snapshots too");
}

fn saving(save_steps: u64) -> Compute {
    Compute { save_steps, ..Compute::default() }
}

#[test]
fn a_killed_fine_tuning_goes_on_to_the_same_weights() {
    let settings = SlSettings {
        compute: saving(3),
        optim: Optim { logging_steps: 1, ..optim(0.01) },
        ..sl_settings()
    };
    let training =
        (TrainSettings::TrainSl(settings), scratch(), (0..160).map(demonstration).collect());
    check(&training, &[2, 5, 9, 14, 17]);
}

#[test]
fn a_killed_low_rank_change_goes_on_to_the_same_weights() {
    let (dir, _) = base();
    let target_modules = vec!["q_proj".to_owned(), "up_proj".to_owned()];
    let lora = Some(LoraSettings { r: 2, alpha: 4.0, target_modules });
    let settings = SlSettings {
        compute: saving(3),
        optim: Optim { logging_steps: 1, lora, ..optim(0.01) },
        ..sl_settings()
    };
    let training =
        (TrainSettings::TrainSl(settings), at(&dir), (0..160).map(demonstration).collect());
    check(&training, &[5, 11]);
}

#[test]
fn a_killed_preference_model_goes_on_to_the_same_weights() {
    let (dir, _) = base();
    let settings = PmSettings {
        compute: saving(4),
        epochs: 2.0,
        optim: Optim { logging_steps: 1, ..optim(0.01) },
        ..pm_settings()
    };
    let training = (TrainSettings::TrainPm(settings), at(&dir), (0..160).map(comparison).collect());
    check(&training, &[3, 6, 9, 10, 17]);
}

#[test]
fn killed_direct_preferences_go_on_to_the_same_weights() {
    let (dir, _) = base();
    let settings = DpoSettings {
        compute: saving(4),
        epochs: 2.0,
        optim: Optim { logging_steps: 1, ..optim(0.003) },
        ..dpo_settings()
    };
    let training =
        (TrainSettings::TrainDpo(settings), at(&dir), (0..160).map(comparison).collect());
    check(&training, &[3, 7, 15]);
}

#[test]
fn a_killed_policy_goes_on_to_the_same_weights() {
    let stage = stage();
    let settings = PpoSettings {
        compute: saving(2),
        total_episodes: 16 * 8 - 5,
        batch_size: 16,
        save_every: 3,
        // Passed on the way, so that the policy to be kept is carried over a kill.
        keep_below_kl: Some(0.5),
        optim: Optim { logging_steps: 1, ..ppo_settings(stage.1.path()).optim },
        ..ppo_settings(stage.1.path())
    };
    let training = (TrainSettings::PpoUpdate(settings), at(&stage.0), (0..16).map(asked).collect());
    check(&training, &[2, 3, 5, 7, 8]);
}

#[test]
fn a_killed_policy_without_a_critic_goes_on_to_the_same_weights() {
    let stage = stage();
    let settings = PpoSettings {
        algorithm: Algorithm::Grpo,
        num_generations: 4,
        compute: saving(2),
        total_episodes: 16 * 6,
        batch_size: 16,
        optim: Optim { logging_steps: 1, ..ppo_settings(stage.1.path()).optim },
        ..ppo_settings(stage.1.path())
    };
    let training = (TrainSettings::PpoUpdate(settings), at(&stage.0), (0..16).map(asked).collect());
    check(&training, &[3, 6]);
}

#[test]
fn the_log_that_goes_on_has_every_step_once() {
    let settings = SlSettings {
        compute: saving(2),
        optim: Optim { logging_steps: 3, ..optim(0.01) },
        ..sl_settings()
    };
    let training =
        (TrainSettings::TrainSl(settings), scratch(), (0..160).map(demonstration).collect());
    // The state of step 4 holds what was added since the row of step 3.
    check(&training, &[6]);
}
