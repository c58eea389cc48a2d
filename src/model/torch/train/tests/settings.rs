//! Settings of trainings, each by what it changes.

use super::*;
use crate::model::train::{Dtype, LoraSettings};

fn sl(change: impl FnOnce(&mut SlSettings)) -> (tempfile::TempDir, Trained) {
    let mut settings = sl_settings();
    change(&mut settings);
    train(TrainSettings::TrainSl(settings), scratch(), (0..160).map(demonstration).collect())
}

fn losses(trained: &Trained) -> Vec<f64> {
    let losses = trained.metrics.iter().filter(|metric| metric.name == "loss");
    losses.map(|metric| metric.value).collect()
}

fn weights(dir: &tempfile::TempDir) -> BTreeMap<String, tch::Tensor> {
    let path = dir.path().join("model.safetensors");
    tch::Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// The largest difference of a weight.
pub(super) fn difference(a: &tempfile::TempDir, b: &tempfile::TempDir) -> f64 {
    let b = weights(b);
    let of = |(name, a): (String, tch::Tensor)| (a - &b[&name]).abs().max().double_value(&[]);
    weights(a).into_iter().map(of).fold(0.0, f64::max)
}

#[test]
fn neither_parts_nor_packing_change_what_is_learnt() {
    let plain = sl(|_| {});
    let parts = sl(|settings| settings.compute.gradient_accumulation_steps = 4);
    let packed = sl(|settings| settings.packing = true);
    let both = sl(|settings| {
        settings.packing = true;
        settings.compute.gradient_accumulation_steps = 3;
    });
    for (name, other) in [("parts", parts), ("packed", packed), ("both", both)] {
        for (expected, loss) in losses(&plain.1).iter().zip(losses(&other.1)) {
            assert!((expected - loss).abs() < 1e-3, "{name}: {loss} is not {expected}");
        }
        // Sums are rounded in another order, so the bits differ, and little else.
        assert_ne!(plain.1.weights, other.1.weights, "{name} is another way to compute");
        assert!(difference(&plain.0, &other.0) < 2e-3, "{name}");
    }
}

#[test]
fn in_16_bits_products_are_rough_and_weights_are_not() {
    let fine = sl(|settings| settings.epochs = 6.0);
    let rough = sl(|settings| {
        settings.epochs = 6.0;
        settings.compute.dtype = Dtype::Bf16;
    });
    assert_ne!(fine.1.weights, rough.1.weights);
    let (fine, losses) = (losses(&fine.1), losses(&rough.1));
    assert!(losses.last().unwrap() < &0.5, "{losses:?}");
    assert!((fine[0] - losses[0]).abs() < 0.02, "{} is near {}", losses[0], fine[0]);
    // A step of the learning rate is below the spacing of 16-bit floats: only f32 weights move.
    let rounded = |weight: &tch::Tensor| weight.to_kind(tch::Kind::BFloat16);
    let is_fine = |weight: &tch::Tensor| !rounded(weight).to_kind(tch::Kind::Float).equal(weight);
    for (name, weight) in weights(&rough.0) {
        assert_eq!(weight.kind(), tch::Kind::Float, "{name}");
        assert!(is_fine(&weight), "{name} holds what 16 bits do not");
    }
}

#[test]
fn every_trainer_computes_in_16_bits() {
    let stage = stage();
    let (_dir, pm) = train(
        TrainSettings::TrainPm(PmSettings {
            compute: Compute { dtype: Dtype::Bf16, ..Compute::default() },
            ..pm_settings()
        }),
        at(&stage.0),
        (0..160).map(comparison).collect(),
    );
    let metrics = last(&pm, "heldout");
    assert!(metrics["accuracy"] > 0.95, "{metrics:?}");
    let (_dir, rl) = ppo(&stage, |settings| {
        settings.compute.dtype = Dtype::Bf16;
        settings.num_mini_batches = 4;
    });
    let metrics = last(&rl, "train");
    // Rough, yet near: the sampler and the trainer are one model.
    assert!(metrics["rollout/max_difference"] < 0.2, "{metrics:?}");
    assert!(metrics["policy/approxkl_avg"] > 0.0 && metrics["loss/value_avg"].is_finite());
}

#[test]
fn a_low_rank_change_learns_is_merged_and_lies_beside_as_peft_has_it() {
    let stage = stage();
    let lora = |optim: Optim| {
        let target_modules = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
        Optim { lora: Some(LoraSettings { r: 4, alpha: 8.0, target_modules }), ..optim }
    };
    let changed = |dir: &tempfile::TempDir| -> Vec<String> {
        let before = weights(&stage.0);
        let now = weights(dir).into_iter();
        now.filter(|(name, weight)| before.get(name).is_none_or(|old| !old.equal(weight)))
            .map(|(name, _)| name)
            .collect()
    };
    let is_chosen =
        |name: &String| ["q_proj", "v_proj", "down_proj"].iter().any(|m| name.contains(m));

    let settings = SlSettings { optim: lora(optim(0.02)), ..sl_settings() };
    let examples = (0..160).map(demonstration).collect();
    let (dir, sl) = train(TrainSettings::TrainSl(settings.clone()), at(&stage.0), examples);
    assert!(last(&sl, "train")["loss"] < first(&sl, "loss") + 0.1);
    assert!(changed(&dir).iter().all(is_chosen) && changed(&dir).len() == 6, "{:?}", changed(&dir));
    let path = dir.path().join("adapter/adapter_model.safetensors");
    let adapter: BTreeMap<String, tch::Tensor> =
        tch::Tensor::read_safetensors(path).unwrap().into_iter().collect();
    assert_eq!(adapter.len(), 12);
    let of = |part: &str| {
        &adapter[&format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight")]
    };
    let name = "model.layers.0.self_attn.q_proj.weight";
    let merged = &weights(&stage.0)[name] + of("lora_B").matmul(of("lora_A")) * 2.0;
    assert!((merged - &weights(&dir)[name]).abs().max().double_value(&[]) < 1e-6);
    let config = std::fs::read_to_string(dir.path().join("adapter/adapter_config.json")).unwrap();
    assert!(
        config.contains("\"task_type\": \"CAUSAL_LM\"") && config.contains("\"lora_alpha\": 8.0")
    );

    let settings_pm = PmSettings { optim: lora(optim(0.01)), epochs: 12.0, ..pm_settings() };
    let examples = (0..160).map(comparison).collect();
    let (dir, pm) = train(TrainSettings::TrainPm(settings_pm), at(&stage.0), examples);
    let losses = losses(&pm);
    assert!(losses[losses.len() - 2] < losses[0] - 0.15, "{losses:?}");
    let is_chosen_or_head = |name: &String| is_chosen(name) || name == "score.weight";
    assert!(changed(&dir).iter().all(is_chosen_or_head), "{:?}", changed(&dir));

    let (dir, rl) = ppo(&stage, |settings| {
        settings.optim = lora(settings.optim.clone());
        settings.keep_below_kl = Some(1e9);
    });
    assert!(last(&rl, "train")["policy/grad_norm"] > 0.0);
    assert!(changed(&dir).iter().all(is_chosen) && !changed(&dir).is_empty());

    let refused = attempt(TrainSettings::TrainSl(settings), scratch(), vec![demonstration(1)]).1;
    assert!(refused.unwrap_err().to_string().contains("lora changes a model that is there"));
}

#[test]
fn two_threads_give_the_same_weights_again() {
    let train = || sl(|settings| settings.compute.threads = Some(2)).1;
    assert_eq!(train().weights, train().weights);
}

#[test]
fn the_kl_is_measured_from_the_reference() {
    let stage = stage();
    let other = sl(|settings| settings.epochs = 1.0).0;
    let first_kl = |reference: Option<&Path>| {
        let (_dir, trained) = ppo(&stage, |settings| {
            settings.reference = reference.map(Path::to_owned);
            settings.total_episodes = settings.batch_size;
        });
        first(&trained, "objective/kl")
    };
    assert!(first_kl(None).abs() < 1e-5);
    assert!(first_kl(Some(stage.0.path())).abs() < 1e-5, "the start by its name is the start");
    assert!(first_kl(Some(other.path())) > 0.1, "another model is far");
}

#[test]
fn the_last_policy_within_the_limit_is_kept() {
    let stage = stage();
    let kept_below = |limit: Option<f64>| {
        let (dir, trained) = ppo(&stage, |settings| {
            settings.keep_below_kl = limit;
            settings.total_episodes = 32 * 6;
            settings.optim.learning_rate = 0.01;
            settings.optim.logging_steps = 1;
        });
        let kls: Vec<f64> =
            trained.metrics.iter().filter(|m| m.name == "objective/kl").map(|m| m.value).collect();
        (dir, trained, kls)
    };
    let (last_dir, last, kls) = kept_below(None);
    assert_eq!((last.steps, kls.len()), (6, 6));
    let (_dir, all, _) = kept_below(Some(1e9));
    assert_eq!((all.steps, all.weights), (6, last.weights), "the last is within a wide limit");
    let (start_dir, start, _) = kept_below(Some(1e-4));
    assert_eq!(start.steps, 0, "{kls:?}");
    assert!(difference(&start_dir, &stage.0) < 1e-12, "the start is kept as it was");
    assert!(difference(&last_dir, &stage.0) > 1e-3);
    // The KL measured in an update is that of the policy before it.
    let limit = f64::midpoint(kls[1], kls[2]);
    assert!(kls[1] < kls[2], "{kls:?}");
    let (dir, within, _) = kept_below(Some(limit));
    let metrics = super::last(&within, "train");
    let step = within.steps as usize;
    assert!((metrics["kept/step"] - step as f64).abs() < 1e-9 && metrics["kept/kl"] <= limit);
    let measured = kls.iter().rposition(|&kl| kl <= limit).unwrap();
    assert!(step == measured || step == kls.len(), "{step} of {kls:?}");
    assert!(step == kls.len() || (kls[step] - metrics["kept/kl"]).abs() < 1e-9);
    assert!(difference(&dir, &stage.0) > 1e-4, "it has learnt");
}

#[test]
fn without_a_critic_the_rollouts_of_a_prompt_judge_each_other() {
    let stage = stage();
    for algorithm in [Algorithm::Rloo, Algorithm::Grpo] {
        let (_dir, trained) = ppo(&stage, |settings| {
            settings.algorithm = algorithm;
            settings.num_generations = 4;
            settings.total_episodes = 64 * 12;
            settings.batch_size = 64;
            settings.optim.logging_steps = 1;
            settings.optim.learning_rate = 0.01;
        });
        let scores: Vec<f64> = (trained.metrics.iter())
            .filter(|metric| metric.name == "objective/scores")
            .map(|metric| metric.value)
            .collect();
        let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
        assert!(mean(&scores[9..]) > mean(&scores[..3]) + 0.2, "{algorithm:?}: {scores:?}");
        for group in trained.rollouts.chunks(4) {
            assert!(group.iter().all(|rollout| rollout.prompt_row == group[0].prompt_row));
            let indices: Vec<i64> = group.iter().map(|rollout| rollout.sample_index).collect();
            assert_eq!(indices, [0, 1, 2, 3]);
            let of = |rollout: &crate::model::train::Rollout| f64::from(rollout.advantages[0]);
            let sum: f64 = group.iter().map(of).sum();
            assert!(sum.abs() < 1e-3, "{algorithm:?}: a prompt's advantages cancel: {sum}");
            for rollout in group {
                assert!(rollout.values.is_empty() && rollout.returns.is_empty());
                assert_eq!(rollout.advantages.len(), rollout.token_ids.len());
                assert!(
                    rollout.advantages.iter().all(|a| (a - rollout.advantages[0]).abs() < 1e-9)
                );
            }
        }
    }
    let mut settings = ppo_settings(stage.1.path());
    (settings.algorithm, settings.num_generations) = (Algorithm::Grpo, 3);
    let (_dir, refused) =
        attempt(TrainSettings::PpoUpdate(settings), at(&stage.0), (0..16).map(asked).collect());
    assert!(refused.unwrap_err().to_string().contains("num_generations is 3"));
}

#[test]
fn without_a_learning_rate_no_algorithm_moves_the_policy() {
    let stage = stage();
    for algorithm in [Algorithm::Rloo, Algorithm::Grpo] {
        let (dir, trained) = ppo(&stage, |settings| {
            settings.algorithm = algorithm;
            settings.num_generations = 4;
            settings.optim.learning_rate = 0.0;
            settings.num_mini_batches = 4;
        });
        let metrics = last(&trained, "train");
        for name in ["objective/kl", "policy/approxkl_avg", "policy/logratio_max"] {
            assert!(metrics[name].abs() < 1e-5, "{algorithm:?} {name}: {metrics:?}");
        }
        assert!(difference(&dir, &stage.0) < 1e-12);
    }
}

#[test]
fn snapshots_of_the_policy_are_kept_on_the_way() {
    let stage = stage();
    let (dir, trained) = ppo(&stage, |settings| {
        settings.total_episodes = 32 * 4;
        settings.save_every = 2;
    });
    let steps: Vec<u64> = trained.snapshots.iter().map(|kept| kept.step).collect();
    assert_eq!(steps, [2, 4]);
    assert_eq!(trained.snapshots[1].weights, trained.weights, "the last is the model");
    assert_ne!(trained.snapshots[0].weights, trained.weights);
    for kept in &trained.snapshots {
        let path = dir.path().join("state-of-training").join(&kept.dir);
        assert_eq!(crate::model::torch::weights_id(&path).unwrap(), kept.weights);
        assert!(path.join("tokenizer.json").exists() && path.join("config.json").exists());
    }
}
