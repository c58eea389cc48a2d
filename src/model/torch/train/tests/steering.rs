//! What steers a training on its way: losses held out, divergences, and what it tells.

use std::sync::{Arc, Mutex};

use super::settings::difference;
use super::*;
use crate::model::train::{AdaptiveKl, Dtype, Metric, Progress};

fn values(trained: &Trained, split: &str, name: &str) -> Vec<(u64, f64)> {
    let of = trained.metrics.iter().filter(|metric| metric.split == split && metric.name == name);
    of.map(|metric| (metric.step, metric.value)).collect()
}

/// Twelve rows, which are soon known by heart, and others that are held out.
fn overfit(patience: Option<u64>) -> (tempfile::TempDir, Trained) {
    let settings = SlSettings {
        optim: Optim { lr_scheduler_type: "constant".to_owned(), ..optim(0.02) },
        epochs: 40.0,
        batch_size: 4,
        held_out: 0.4,
        eval_steps: Some(5),
        patience,
        ..sl_settings()
    };
    // What is learnt of one half says nothing of the other.
    let row = |n: usize| Example::Demonstration {
        row_id: id(n),
        prompt: format!("Human: what is {n} ?\n\nAssistant:"),
        completion: format!(" it is {} .", THINGS[n * n * 7 % 11 % THINGS.len()]),
        weight: 1.0,
    };
    train(TrainSettings::TrainSl(settings), scratch(), (0..24).map(row).collect())
}

#[test]
fn a_fine_tuning_whose_held_out_loss_rises_ends_early_with_its_best_weights() {
    let (_dir, whole) = overfit(None);
    let losses = values(&whole, "heldout", "loss");
    let lowest = losses.iter().copied().reduce(|a, b| if b.1 < a.1 { b } else { a }).unwrap();
    assert!(lowest.0 + 10 < whole.steps, "it rises for long: {losses:?}");
    assert_eq!(losses.last().unwrap().0, whole.steps, "without patience it goes to its end");

    let (_dir, early) = overfit(Some(2));
    let seen = values(&early, "heldout", "loss");
    assert_eq!(seen, losses[..seen.len()], "the same on the way");
    // The first loss after which two were not lower.
    let best = seen[..seen.len() - 2].last().unwrap();
    assert_eq!(early.steps, best.0);
    assert!(seen[seen.len() - 2..].iter().all(|(_, loss)| loss >= &best.1), "{seen:?}");
    assert!(seen.len() < losses.len(), "it ended early");
    let kept = values(&early, "train", "kept/step").last().unwrap().1;
    assert_eq!(kept.to_bits(), (best.0 as f64).to_bits());
    assert_ne!(early.weights, whole.weights);
}

#[test]
fn a_killed_fine_tuning_that_may_end_early_ends_where_it_would_have() {
    let settings = SlSettings {
        compute: Compute { save_steps: 4, ..Compute::default() },
        optim: Optim { logging_steps: 1, ..optim(0.01) },
        held_out: 0.3,
        eval_steps: Some(3),
        patience: Some(2),
        ..sl_settings()
    };
    let training =
        (TrainSettings::TrainSl(settings), scratch(), (0..160).map(demonstration).collect());
    resume::check(&training, &[5, 10]);
}

#[test]
fn blocks_that_are_computed_again_give_the_same_gradients() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let sl = |recomputes: bool, packing: bool| {
            let mut settings = SlSettings { packing, ..sl_settings() };
            settings.compute.gradient_checkpointing = recomputes;
            settings.compute.dtype = dtype;
            train(TrainSettings::TrainSl(settings), scratch(), (0..80).map(demonstration).collect())
        };
        for packing in [false, true] {
            let ((kept, whole), (again, trained)) = (sl(false, packing), sl(true, packing));
            let norms = (first(&whole, "grad_norm"), first(&trained, "grad_norm"));
            let losses = (last(&whole, "train")["loss"], last(&trained, "train")["loss"]);
            let case = format!("{dtype:?}, packing: {packing}, {norms:?}, {losses:?}");
            if dtype == Dtype::F32 {
                assert!(difference(&kept, &again) < 1e-5, "{case}");
            }
            // In 16 bits what the embeddings gather from both ends is no longer added in 16 bits.
            assert!((norms.0 / norms.1 - 1.0).abs() < 0.01, "{case}");
            assert!((losses.0 - losses.1).abs() < 0.02, "{case}");
        }
    }
}

#[test]
fn every_trainer_can_compute_blocks_again() {
    let (base, _) = base();
    let init = || Init::Checkpoint(base.path().to_owned());
    let compute = |again: bool| Compute { gradient_checkpointing: again, ..Compute::default() };
    let check = |of: &dyn Fn(Compute) -> (tempfile::TempDir, Trained)| {
        let ((kept, _), (again, _)) = (of(compute(false)), of(compute(true)));
        assert!(difference(&kept, &again) < 1e-5);
        kept
    };
    let comparisons = || (0..32).map(comparison).collect();
    let pm = check(&|compute| {
        let settings = PmSettings { compute, epochs: 1.0, ..pm_settings() };
        train(TrainSettings::TrainPm(settings), init(), comparisons())
    });
    check(&|compute| {
        let settings = DpoSettings { compute, epochs: 1.0, ..dpo_settings() };
        train(TrainSettings::TrainDpo(settings), init(), comparisons())
    });
    check(&|compute| {
        let settings = PpoSettings { compute, total_episodes: 32, ..ppo_settings(pm.path()) };
        train(TrainSettings::PpoUpdate(settings), init(), (0..8).map(asked).collect())
    });
}

#[test]
fn the_weight_of_the_divergence_follows_it() {
    let adaptive = AdaptiveKl { target: 6.0, horizon: 1000.0 };
    // Off by a tenth: moved by a tenth of 100 episodes in 1,000; farther off counts as a fifth.
    for (kl, expected) in [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (0.0, 0.098)] {
        assert!((adaptive.next(0.1, kl, 100) - expected).abs() < 1e-12, "{kl}");
    }
    let stage = stage();
    let run = |target: f64| {
        let (_dir, trained) = ppo(&stage, |settings| {
            settings.adaptive_kl = Some(AdaptiveKl { target, horizon: 32.0 });
            settings.total_episodes = 32 * 4;
            settings.optim.logging_steps = 1;
        });
        let coefs = values(&trained, "train", "objective/kl_coef");
        coefs.into_iter().map(|(_, coef)| coef).collect::<Vec<f64>>()
    };
    let (low, high) = (run(1e6), run(1e-6));
    let expected = |factor: f64| (0..4).map(move |n| 0.02 * factor.powi(n));
    assert!(low.iter().zip(expected(0.8)).all(|(a, b)| (a - b).abs() < 1e-9), "{low:?}");
    // The first divergence is 0 but for rounding, which may be on either side of so low a target.
    assert!(high[3] > high[1] && high[1] > 0.0, "{high:?}");
}

#[test]
fn an_update_that_has_gone_far_enough_is_left_there() {
    let stage = stage();
    let run = |epochs: usize, target_kl: f64| {
        ppo(&stage, |settings| {
            settings.optim.lr_scheduler_type = "constant".to_owned();
            settings.num_ppo_epochs = epochs;
            settings.target_kl = target_kl;
        })
    };
    let (_, once) = run(1, 0.0);
    // In the first pass the policy has not moved yet, and so has no divergence.
    let (_, stopped) = run(4, 1e-12);
    let (_, twice) = run(2, 0.0);
    let (_, whole) = run(4, 0.0);
    assert_eq!(stopped.weights, twice.weights);
    assert_ne!(stopped.weights, once.weights);
    assert_ne!(stopped.weights, whole.weights);
    let (_, wide) = run(4, 1e9);
    assert_eq!(wide.weights, whole.weights);
}

#[test]
fn a_second_preference_model_looks_on_and_changes_nothing() {
    let stage = stage();
    let run = |second: Option<&Path>| {
        ppo(&stage, |settings| {
            settings.test_reward = second.map(Path::to_owned);
            settings.optim.logging_steps = 1;
        })
    };
    let (_, alone) = run(None);
    let (other, _) = {
        let (base, _) = base();
        let settings = PmSettings { optim: Optim { seed: 5, ..optim(0.01) }, ..pm_settings() };
        train(TrainSettings::TrainPm(settings), at(&base), (0..80).map(comparison).collect())
    };
    let (_, watched) = run(Some(other.path()));
    assert_eq!(alone.weights, watched.weights);
    let config = TransformerConfig::read(other.path()).unwrap();
    let (mean, std) = (config.number("mean").unwrap(), config.number("std").unwrap());
    let raw = values(&watched, "train", "objective/scores_test_pm");
    let scaled = values(&watched, "train", "objective/scores_test_pm_normalized");
    assert_eq!(raw.len(), 2);
    for ((step, raw), (_, scaled)) in raw.iter().zip(&scaled) {
        assert!((scaled - (raw - mean) / std).abs() < 1e-9);
        let of_step = watched.rollouts.iter().filter(|rollout| rollout.step == *step as i64);
        let scores: Vec<f64> = of_step.map(|rollout| rollout.score_test_pm.unwrap()).collect();
        assert!((scores.iter().sum::<f64>() / scores.len() as f64 - raw).abs() < 1e-9);
        assert_ne!(
            scores,
            watched.rollouts[..scores.len()].iter().map(|r| r.score).collect::<Vec<_>>()
        );
    }
}

#[test]
fn comparisons_that_prefer_nothing_are_said_to_teach_nothing() {
    let (dir, _) = base();
    let undecided = |n: usize| match comparison(n) {
        Example::Comparison { row_id, prompt, a, b, weight, source, category, .. } => {
            Example::Comparison { row_id, prompt, a, b, p: 0.5, weight, source, category }
        }
        other => panic!("{other:?}"),
    };
    for settings in [TrainSettings::TrainPm(pm_settings()), TrainSettings::TrainDpo(dpo_settings())]
    {
        let (_dir, trained) = attempt(settings, at(&dir), (0..40).map(undecided).collect());
        let message = trained.unwrap_err().to_string();
        assert!(message.contains("comparisons has p = 0.5"), "{message}");
    }
}

#[test]
fn a_loss_far_above_a_guess_is_no_learning() {
    let mut settings = sl_settings();
    settings.optim.learning_rate = 20.0;
    let examples = (0..160).map(demonstration).collect();
    let (_dir, trained) = attempt(TrainSettings::TrainSl(settings), scratch(), examples);
    let Err(TrainError::Diverged { loss, .. }) = trained else { panic!("{trained:?}") };
    assert!(loss > 57.0 || !loss.is_finite(), "ten times ln 320 is 57: {loss}");
}

#[test]
fn a_training_tells_each_number_once_and_the_tokens_it_read() {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().to_owned(), dir.path().join("state-of-training"));
    std::fs::create_dir(&state).unwrap();
    let told: Arc<Mutex<(Vec<Metric>, Vec<f64>)>> = Arc::default();
    let heard = Arc::clone(&told);
    let progress = Box::new(move |told: &Progress<'_>| {
        let mut heard = heard.lock().unwrap();
        heard.0.extend_from_slice(told.metrics);
        heard.1.push(told.tokens);
    });
    let (settings, init) = (TrainSettings::TrainSl(sl_settings()), scratch());
    let examples = (0..80).map(demonstration).collect();
    let job = TrainJob { settings, init, examples, out, state, asks: None, progress };
    let trained = TorchTrainer::default().train(job).unwrap();
    let (metrics, tokens) = told.lock().unwrap().clone();
    assert_eq!(metrics, trained.metrics);
    assert!(tokens.is_sorted() && tokens[0] > 0.0, "{tokens:?}");
}
