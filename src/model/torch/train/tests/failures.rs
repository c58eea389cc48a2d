//! What trainings say of what cannot be done.

use super::*;

#[test]
fn what_is_not_a_number_stops_the_training() {
    let mut settings = sl_settings();
    settings.optim.learning_rate = f64::INFINITY;
    let (_dir, trained) =
        attempt(TrainSettings::TrainSl(settings), scratch(), (0..64).map(demonstration).collect());
    assert!(matches!(trained, Err(TrainError::Diverged { step: 2, .. })), "{trained:?}");
}

#[test]
fn preferences_that_diverge_stop_the_training() {
    let (dir, _) = base();
    for learning_rate in [30.0, f64::INFINITY] {
        let optim = Optim { logging_steps: 1, ..optim(learning_rate) };
        let pm = PmSettings { optim: optim.clone(), ..pm_settings() };
        let dpo = DpoSettings { optim, ..dpo_settings() };
        for settings in [TrainSettings::TrainPm(pm), TrainSettings::TrainDpo(dpo)] {
            let verb = format!("{settings:?}")[..8].to_owned();
            let examples = (0..160).map(comparison).collect();
            let (out, trained) = attempt(settings, at(&dir), examples);
            let Err(TrainError::Diverged { loss, .. }) = trained else {
                panic!("{verb} at {learning_rate}: {trained:?}")
            };
            assert!(loss.is_nan() || loss > 69.0, "{verb}: a hundred times ln 2 is 69: {loss}");
            assert!(!out.path().join("model.safetensors").exists());
        }
    }
}

#[test]
fn nothing_to_learn_from_is_said_by_every_trainer() {
    let stage = stage();
    let comparing = |n: usize, a: String| match comparison(n) {
        Example::Comparison { row_id, prompt, b, p, weight, source, category, .. } => {
            Example::Comparison { row_id, prompt, a, b, p, weight, source, category }
        }
        other => panic!("{other:?}"),
    };
    // Longer than the model's context of 64.
    let long = || vec![comparing(100, " long".repeat(100))];
    let reward = stage.1.path();
    let cases = [
        (TrainSettings::TrainSl(sl_settings()), "no demonstration is left to train on: 0 of 0"),
        (TrainSettings::TrainPm(pm_settings()), "no comparison is left to train on: 0 of 0"),
        (TrainSettings::TrainDpo(dpo_settings()), "no comparison is left to train on: 0 of 0"),
        (TrainSettings::PpoUpdate(ppo_settings(reward)), "no prompt is left to train on: 0 of 0"),
    ];
    for (settings, part) in cases {
        let message = attempt(settings, at(&stage.0), Vec::new()).1.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    for settings in [TrainSettings::TrainPm(pm_settings()), TrainSettings::TrainDpo(dpo_settings())]
    {
        let some = long().into_iter().chain((0..40).map(comparison)).collect();
        let trained = train(settings.clone(), at(&stage.0), some).1;
        let reasons: Vec<(Id, &str)> =
            trained.rejected.iter().map(|(id, reason, _)| (*id, reason.as_str())).collect();
        assert_eq!(reasons, [(id(100), "too_long")]);
        let message = attempt(settings, at(&stage.0), long()).1.unwrap_err().to_string();
        assert!(message.contains("no comparison is left to train on: 1 of 1"), "{message}");
    }
}

#[test]
fn what_the_last_step_broke_is_not_saved() {
    let stage = stage();
    let mut settings = PpoSettings {
        num_ppo_epochs: 1,
        total_episodes: 16,
        batch_size: 16,
        ..ppo_settings(stage.1.path())
    };
    settings.optim.learning_rate = f64::INFINITY;
    let examples = || (0..16).map(asked).collect::<Vec<_>>();
    let (dir, one) = attempt(TrainSettings::PpoUpdate(settings.clone()), at(&stage.0), examples());
    assert!(one.unwrap_err().to_string().contains("is not all numbers"));
    assert!(!dir.path().join("model.safetensors").exists());
    // The next batch is sampled from what is broken, and is said to be.
    settings.total_episodes = 32;
    let (_dir, two) = attempt(TrainSettings::PpoUpdate(settings), at(&stage.0), examples());
    assert!(matches!(two, Err(TrainError::Diverged { step: 2, .. })), "{two:?}");
}

#[test]
fn a_disk_that_is_full_is_said_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().to_owned(), dir.path().join("state-of-training"));
    std::fs::create_dir(&state).unwrap();
    // Every write to this device ends as on a full disk.
    std::os::unix::fs::symlink("/dev/full", out.join("model.safetensors")).unwrap();
    let progress = Box::new(|_: &Progress<'_>| {});
    let (settings, init) = (TrainSettings::TrainSl(sl_settings()), scratch());
    let examples = (0..20).map(demonstration).collect();
    let job = TrainJob { settings, init, examples, out, state, asks: None, progress };
    let message = TorchTrainer::default().train(job).unwrap_err().to_string();
    assert!(
        message.contains("model.safetensors") && message.contains("No space left"),
        "{message}"
    );
}

#[test]
fn a_prompt_that_leaves_no_room_to_answer_is_rejected() {
    let stage = stage();
    let mut examples: Vec<Example> = (0..8).map(asked).collect();
    let row = |n, prompt: String| Example::Prompt { row_id: id(n), prompt, messages: Vec::new() };
    examples.push(row(100, " long".repeat(200)));
    examples.push(row(101, String::new()));
    let settings = PpoSettings { total_episodes: 32, ..ppo_settings(stage.1.path()) };
    let (_dir, trained) =
        train(TrainSettings::PpoUpdate(settings.clone()), at(&stage.0), examples.clone());
    let reasons: Vec<(Id, &str)> =
        trained.rejected.iter().map(|(id, reason, _)| (*id, reason.as_str())).collect();
    assert_eq!(reasons, [(id(100), "too_long"), (id(101), "empty")]);
    let none = examples.split_off(8);
    let (_dir, none) = attempt(TrainSettings::PpoUpdate(settings), at(&stage.0), none);
    let message = none.unwrap_err().to_string();
    assert!(message.contains("no prompt is left to train on: 2 of 2"), "{message}");
}

/// That every label prefers the first text is no degenerate dataset: a comparison and its mirror image
/// are one to the loss (`the_order_of_the_options_changes_no_gradient`), so that no position can be
/// learnt in place of what the texts say. One class in truth is a half everywhere, which is an error.
#[test]
fn comparisons_of_one_class_are_learnt_and_give_a_scale() {
    let (dir, _) = base();
    let sure = |n: usize| match comparison(n) {
        Example::Comparison { row_id, prompt, a, b, weight, source, category, .. } => {
            Example::Comparison { row_id, prompt, a, b, p: 1.0, weight, source, category }
        }
        other => panic!("{other:?}"),
    };
    let settings = TrainSettings::TrainPm(pm_settings());
    let (_dir, trained) = train(settings, at(&dir), (0..160).map(sure).collect());
    let metrics = last(&trained, "heldout");
    assert!((metrics["accuracy"] - 1.0).abs() < 1e-9, "{metrics:?}");
    let (mean, std) = trained.scores.unwrap();
    assert!(mean.is_finite() && std > 0.0);
}

#[test]
fn a_training_says_what_it_cannot_begin_with() {
    let (dir, _) = base();
    let examples = || (0..16).map(comparison).collect::<Vec<_>>();
    let (pm_dir, _) = train(TrainSettings::TrainPm(pm_settings()), at(&dir), examples());
    let check = |settings: TrainSettings, init: Init, examples: Vec<Example>, part: &str| {
        let (_dir, trained) = attempt(settings, init, examples);
        let message = trained.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    let sl = || TrainSettings::TrainSl(sl_settings());
    check(sl(), at(&pm_dir), vec![demonstration(1)], "is a preference model");
    check(sl(), at(&dir), examples(), "demonstrations only");
    check(
        TrainSettings::PpoUpdate(ppo_settings(dir.path())),
        at(&dir),
        vec![asked(1)],
        "not a preference model",
    );
    check(sl(), Init::Checkpoint(PathBuf::from("/nowhere")), vec![demonstration(1)], "/nowhere");
}
