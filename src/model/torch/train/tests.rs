//! Whole trainings of tiny models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::TorchTrainer;
use crate::model::torch::{Head, TransformerConfig};
use crate::model::train::{
    Algorithm, Compute, CriticTrunk, DpoSettings, Example, Init, Optim, PmSettings, PpoSettings,
    Progress, Scratch, SlSettings, TrainError, TrainJob, TrainSettings, Trained, Trainer,
};
use crate::record::{Id, KeyHasher};

mod failures;
mod judged;
mod pairs;
mod resume;
mod settings;
mod steering;

const THINGS: [&str; 8] = ["bread", "bomb", "roses", "gun", "soup", "poison", "cake", "knife"];
const BAD: [&str; 4] = ["bomb", "gun", "poison", "knife"];

fn id(n: usize) -> Id {
    KeyHasher::new("amend/test/1").u64(n as u64).id()
}

fn optim(learning_rate: f64) -> Optim {
    Optim {
        learning_rate,
        lr_scheduler_type: "linear".to_owned(),
        warmup_ratio: 0.05,
        warmup_steps: None,
        weight_decay: 0.01,
        adam_beta1: 0.9,
        adam_beta2: 0.98,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        lora: None,
        seed: 17,
        logging_steps: 5,
    }
}

fn prompt(n: usize) -> String {
    format!("Human: make the {} .\n\nAssistant:", THINGS[n % THINGS.len()])
}

fn answers(n: usize) -> [String; 2] {
    let thing = THINGS[n % THINGS.len()];
    [format!(" sure , i make the {thing} ."), format!(" no {thing} .")]
}

fn demonstration(n: usize) -> Example {
    let completion = answers(n)[n / THINGS.len() % 2].clone();
    Example::Demonstration { row_id: id(n), prompt: prompt(n), completion, weight: 1.0 }
}

fn comparison(n: usize) -> Example {
    let [a, b] = answers(n);
    let p = if BAD.contains(&THINGS[n % THINGS.len()]) { 0.1 } else { 0.9 };
    Example::Comparison {
        row_id: id(n),
        prompt: prompt(n),
        a,
        b,
        p,
        weight: 1.0,
        source: "ai".to_owned(),
        category: None,
    }
}

fn asked(n: usize) -> Example {
    Example::Prompt { row_id: id(n), prompt: prompt(n), messages: Vec::new() }
}

fn scratch() -> Init {
    Init::Scratch(Scratch {
        vocab_size: 320,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        initializer_range: 0.05,
    })
}

fn sl_settings() -> SlSettings {
    SlSettings {
        optim: optim(0.01),
        compute: Compute::default(),
        epochs: 2.0,
        batch_size: 16,
        max_length: 64,
        packing: false,
        held_out: 0.1,
        eval_steps: None,
        patience: None,
    }
}

fn pm_settings() -> PmSettings {
    PmSettings {
        optim: optim(0.01),
        compute: Compute::default(),
        epochs: 4.0,
        batch_size: 16,
        max_length: 64,
        held_out: 0.1,
        center_rewards_coefficient: 0.01,
        scale_on: Vec::new(),
    }
}

fn dpo_settings() -> DpoSettings {
    DpoSettings {
        optim: optim(0.003),
        compute: Compute::default(),
        epochs: 4.0,
        batch_size: 16,
        max_length: 64,
        held_out: 0.1,
        beta: 0.3,
        reference: None,
    }
}

fn ppo_settings(reward: &Path) -> PpoSettings {
    PpoSettings {
        optim: Optim { warmup_ratio: 0.0, weight_decay: 0.0, adam_epsilon: 1e-5, ..optim(0.002) },
        compute: Compute::default(),
        algorithm: Algorithm::Ppo,
        num_generations: 1,
        total_episodes: 64,
        batch_size: 32,
        num_ppo_epochs: 2,
        num_mini_batches: 1,
        critic: CriticTrunk::Separate,
        critic_warmup: 0,
        response_length: 12,
        temperature: 1.0,
        kl_coef: 0.02,
        adaptive_kl: None,
        kl_estimator: "k1".to_owned(),
        cliprange: 0.2,
        cliprange_value: 0.2,
        vf_coef: 0.1,
        gamma: 1.0,
        lam: 0.95,
        missing_eos_penalty: 1.0,
        reward_clip: 10.0,
        whiten_advantages: true,
        whiten_rewards: false,
        normalize_reward: true,
        target_kl: 0.0,
        stop: Vec::new(),
        keep_tokens: true,
        save_every: 0,
        keep_below_kl: None,
        reward: reward.to_owned(),
        reference: None,
        test_reward: None,
    }
}

/// A training, in a directory of its own.
fn train(
    settings: TrainSettings,
    init: Init,
    examples: Vec<Example>,
) -> (tempfile::TempDir, Trained) {
    let (dir, trained) = attempt(settings, init, examples);
    (dir, trained.unwrap())
}

fn attempt(
    settings: TrainSettings,
    init: Init,
    examples: Vec<Example>,
) -> (tempfile::TempDir, Result<Trained, TrainError>) {
    let dir = tempfile::tempdir().unwrap();
    let (out, state) = (dir.path().to_owned(), dir.path().join("state-of-training"));
    std::fs::create_dir(&state).unwrap();
    let progress = Box::new(|_: &Progress<'_>| {});
    let job = TrainJob { settings, init, examples, out, state, asks: None, progress };
    (dir, TorchTrainer::default().train(job))
}

fn base() -> (tempfile::TempDir, Trained) {
    let settings = SlSettings { epochs: 6.0, ..sl_settings() };
    train(TrainSettings::TrainSl(settings), scratch(), (0..160).map(demonstration).collect())
}

fn at(dir: &tempfile::TempDir) -> Init {
    Init::Checkpoint(dir.path().to_owned())
}

/// The last value of each metric of a split.
fn last(trained: &Trained, split: &str) -> BTreeMap<String, f64> {
    let of_split = trained.metrics.iter().filter(|metric| metric.split == split);
    of_split.map(|metric| (metric.name.clone(), metric.value)).collect()
}

fn first(trained: &Trained, name: &str) -> f64 {
    trained.metrics.iter().find(|metric| metric.name == name).unwrap().value
}

#[test]
fn fine_tuning_from_nothing_learns_and_gives_the_same_weights_again() {
    let (dir, trained) = base();
    let metrics = last(&trained, "train");
    assert!(first(&trained, "loss") > 3.0 && metrics["loss"] < 0.5, "{metrics:?}");
    assert!(metrics["mean_token_accuracy"] > 0.75, "{metrics:?}");
    assert!((metrics["epoch"] - 6.0).abs() < 1e-9, "{metrics:?}");
    assert!(last(&trained, "heldout")["loss"] < 1.0);
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
    assert_eq!(TransformerConfig::read(dir.path()).unwrap().eos_token_ids, [1]);
    let (_again, twice) = base();
    assert_eq!(trained.weights, twice.weights);
    assert_eq!(trained.metrics, twice.metrics);
}

#[test]
fn what_cannot_be_learnt_from_is_rejected_with_the_reason() {
    let mut examples: Vec<Example> = (0..20).map(demonstration).collect();
    let row = |n, completion: String| Example::Demonstration {
        row_id: id(n),
        prompt: prompt(n),
        completion,
        weight: 1.0,
    };
    examples.push(row(100, " \n".to_owned()));
    examples.push(row(101, " long".repeat(100)));
    let (_dir, trained) = train(TrainSettings::TrainSl(sl_settings()), scratch(), examples);
    let reasons: Vec<(Id, &str)> =
        trained.rejected.iter().map(|(id, reason, _)| (*id, reason.as_str())).collect();
    assert_eq!(reasons, [(id(100), "empty"), (id(101), "too_long")]);
    let (_dir, none) =
        attempt(TrainSettings::TrainSl(sl_settings()), scratch(), vec![row(1, String::new())]);
    assert!(matches!(none, Err(TrainError::Data(message)) if message.contains("1 of 1 are empty")));
}

#[test]
fn a_preference_model_learns_the_targets_and_stores_its_mean_and_deviation() {
    let (dir, _) = base();
    let (pm_dir, trained) =
        train(TrainSettings::TrainPm(pm_settings()), at(&dir), (0..160).map(comparison).collect());
    assert_eq!(trained.kind, "pm");
    let metrics = last(&trained, "heldout");
    assert!(metrics["accuracy"] > 0.95 && metrics["excess_loss"] < 0.1, "{metrics:?}");
    assert!(metrics.contains_key("accuracy/source/ai"));
    let config = TransformerConfig::read(pm_dir.path()).unwrap();
    let (mean, std) = trained.scores.unwrap();
    assert_eq!(
        (config.head, config.number("mean"), config.number("std")),
        (Head::Score, Some(mean), Some(std))
    );
    assert_ne!(config.pad_token_id, Some(config.eos_token_ids[0]));
    let (_again, twice) =
        train(TrainSettings::TrainPm(pm_settings()), at(&dir), (0..160).map(comparison).collect());
    assert_eq!(trained.weights, twice.weights);
}

#[test]
fn the_scale_of_a_preference_model_is_that_of_the_sources_named() {
    let (dir, _) = base();
    let human = |n: usize| match comparison(n) {
        Example::Comparison { row_id, p, weight, category, .. } => Example::Comparison {
            row_id,
            prompt: prompt(n),
            a: " sure sure sure sure".to_owned(),
            b: " knife knife knife".to_owned(),
            p,
            weight,
            source: "human".to_owned(),
            category,
        },
        other => panic!("{other:?}"),
    };
    let examples = (0..160).map(|n| if n % 2 == 0 { comparison(n) } else { human(n) });
    let examples: Vec<Example> = examples.collect();
    let scored = |sources: &[&str]| {
        let settings = PmSettings {
            held_out: 0.3,
            scale_on: sources.iter().map(|&source| source.to_owned()).collect(),
            ..pm_settings()
        };
        let (dir, trained) = train(TrainSettings::TrainPm(settings), at(&dir), examples.clone());
        let config = TransformerConfig::read(dir.path()).unwrap();
        let (mean, std) = trained.scores.unwrap();
        assert_eq!((config.number("mean"), config.number("std")), (Some(mean), Some(std)));
        let metrics = last(&trained, "heldout");
        (mean, std, metrics["mean_reward/source/ai"], metrics["mean_reward/source/human"], metrics)
    };
    let (all, ai, human) = (scored(&[]), scored(&["ai"]), scored(&["human"]));
    assert!((ai.0 - ai.2).abs() < 1e-5, "the mean is that of the held-out rows of the source");
    assert!((human.0 - human.3).abs() < 1e-5, "{} {}", human.0, human.3);
    assert!((ai.0 - human.0).abs() > 1e-3, "{} {}", ai.0, human.0);
    assert!(all.0 > ai.0.min(human.0) && all.0 < ai.0.max(human.0));
    assert_eq!(all.4, ai.4, "what is measured is the same");
    assert!(ai.1 > 0.0 && human.1 > 0.0);
}

#[test]
fn direct_preferences_move_the_policy_to_what_the_labels_prefer() {
    let (dir, _) = base();
    let learn = |settings: DpoSettings| {
        let examples = (0..160).map(comparison).collect();
        train(TrainSettings::TrainDpo(settings), at(&dir), examples)
    };
    let (_dir, trained) = learn(dpo_settings());
    assert_eq!((trained.kind.as_str(), trained.steps), ("lm", 40));
    // At the start policy and reference are one, so every margin is 0.
    assert!((first(&trained, "loss") - 2_f64.ln()).abs() < 0.1, "{}", first(&trained, "loss"));
    let metrics = last(&trained, "heldout");
    assert!(metrics["rewards/accuracies"] > 0.95, "{metrics:?}");
    assert!(metrics["rewards/margins"] > 0.5, "{metrics:?}");
    let (_again, twice) = learn(dpo_settings());
    assert_eq!(trained.weights, twice.weights);

    // A label of one half asks for no preference, and the start has none. Where all are, it is an
    // error: a few say a little.
    let even = |n: usize| match comparison(n) {
        Example::Comparison { row_id, prompt, a, b, weight, source, category, .. } => {
            let p = if n < 4 { 0.55 } else { 0.5 };
            Example::Comparison { row_id, prompt, a, b, p, weight, source, category }
        }
        other => panic!("{other:?}"),
    };
    let settings = DpoSettings { held_out: 0.3, ..dpo_settings() };
    let examples = (0..160).map(even).collect();
    let (_dir, trained) = train(TrainSettings::TrainDpo(settings), at(&dir), examples);
    let metrics = last(&trained, "heldout");
    assert!(metrics["rewards/margins"].abs() < 0.05, "{metrics:?}");

    let from_nothing = TrainSettings::TrainDpo(dpo_settings());
    let (_dir, refused) = attempt(from_nothing, scratch(), (0..160).map(comparison).collect());
    assert!(refused.unwrap_err().to_string().contains("begins at a model"));
}

/// A base and a preference model that likes refusals of what is bad.
fn stage() -> (tempfile::TempDir, tempfile::TempDir) {
    let (dir, _) = base();
    let settings = TrainSettings::TrainPm(pm_settings());
    let (pm, _) = train(settings, at(&dir), (0..160).map(comparison).collect());
    (dir, pm)
}

fn ppo(
    stage: &(tempfile::TempDir, tempfile::TempDir),
    change: impl FnOnce(&mut PpoSettings),
) -> (tempfile::TempDir, Trained) {
    let mut settings = ppo_settings(stage.1.path());
    change(&mut settings);
    train(TrainSettings::PpoUpdate(settings), at(&stage.0), (0..16).map(asked).collect())
}

#[test]
fn reinforcement_learning_raises_the_score_and_gives_the_same_weights_again() {
    let stage = stage();
    let learn = || {
        ppo(&stage, |settings| {
            settings.total_episodes = 64 * 12;
            settings.batch_size = 64;
            settings.optim.logging_steps = 1;
            settings.optim.learning_rate = 0.01;
        })
    };
    let (_dir, trained) = learn();
    assert!(first(&trained, "objective/kl").abs() < 1e-5, "the policy begins at the reference");
    let scores: Vec<f64> =
        trained.metrics.iter().filter(|m| m.name == "objective/scores").map(|m| m.value).collect();
    assert_eq!(scores.len(), 12);
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    assert!(mean(&scores[9..]) > mean(&scores[..3]) + 0.2, "{scores:?}");
    let metrics = last(&trained, "train");
    assert!(metrics["objective/kl"] > 0.0 && metrics["policy/approxkl_avg"] > 0.0, "{metrics:?}");
    assert!(metrics["rollout/max_difference"] < 1e-4, "{metrics:?}");
    let (_again, twice) = learn();
    assert_eq!(trained.weights, twice.weights);
}

#[test]
fn without_a_learning_rate_the_policy_stays_and_every_ratio_is_one() {
    let stage = stage();
    let (dir, trained) = ppo(&stage, |settings| {
        settings.optim.learning_rate = 0.0;
        settings.num_ppo_epochs = 3;
        settings.num_mini_batches = 4;
        settings.temperature = 0.7;
        settings.test_reward = Some(settings.reward.clone());
    });
    let metrics = last(&trained, "train");
    for name in [
        "objective/kl",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/logratio_max",
        "val/ratio_var",
    ] {
        assert!(metrics[name].abs() < 1e-5, "{name}: {metrics:?}");
    }
    assert!((metrics["val/ratio"] - 1.0).abs() < 1e-5, "{metrics:?}");
    assert!(metrics["objective/entropy"] > 0.0, "{metrics:?}");
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(dir.path()) == weights(stage.0.path()));
    for rollout in &trained.rollouts {
        assert_eq!(rollout.score_test_pm, Some(rollout.score));
    }
}

#[test]
fn while_the_critic_warms_up_it_alone_learns() {
    let stage = stage();
    let (dir, trained) = ppo(&stage, |settings| {
        settings.optim.logging_steps = 1;
        settings.critic_warmup = 2;
    });
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(weights(dir.path()) == weights(stage.0.path()));
    let metrics = last(&trained, "train");
    assert!(metrics["policy/grad_norm"].abs() < 1e-12, "{metrics:?}");
    assert!(metrics["critic/grad_norm"] > 0.0, "{metrics:?}");
    let (dir, _) = ppo(&stage, |settings| settings.critic_warmup = 1);
    assert!(weights(dir.path()) != weights(stage.0.path()), "after it the policy learns too");
}

#[test]
fn a_critic_on_the_policys_states_learns_with_it() {
    let stage = stage();
    let shared = |warmup: u64| {
        ppo(&stage, move |settings| {
            settings.optim.logging_steps = 1;
            settings.critic = CriticTrunk::Shared;
            settings.critic_warmup = warmup;
        })
    };
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let (dir, trained) = shared(2);
    assert!(weights(dir.path()) == weights(stage.0.path()), "while it warms up, its head alone");
    assert!(last(&trained, "train")["critic/grad_norm"] > 0.0);
    assert!(trained.rollouts[0].values.iter().all(|&value| value == 0.0), "it begins at nothing");
    let after = trained.rollouts.last().unwrap();
    assert!(after.values.iter().any(|&value| value != 0.0));
    let (dir, _) = shared(0);
    assert!(weights(dir.path()) != weights(stage.0.path()));
}

#[test]
fn an_episode_is_written_with_its_numbers() {
    let stage = stage();
    let (_dir, trained) = ppo(&stage, |settings| {
        settings.response_length = 4;
        settings.total_episodes = 40;
    });
    assert_eq!(trained.rollouts.len(), 40, "the last batch is smaller");
    assert_eq!(trained.steps, 2);
    for (rollout, episode) in trained.rollouts.iter().zip(1..) {
        let n = rollout.completion_tokens as usize;
        assert!((1..=4).contains(&n));
        assert_eq!(rollout.episode, episode);
        for len in [
            rollout.token_ids.len(),
            rollout.logprobs.len(),
            rollout.ref_logprobs.len(),
            rollout.values.len(),
            rollout.advantages.len(),
            rollout.returns.len(),
        ] {
            assert_eq!(len, n);
        }
        let ended = rollout.token_ids.last() == Some(&1);
        assert_eq!(rollout.finish_reason, if ended { "stop" } else { "length" });
        let penalty = if ended { 0.0 } else { 1.0 };
        let expected = rollout.score_normalized.clamp(-10.0, 10.0) - penalty - 0.02 * rollout.kl;
        assert!((rollout.reward - expected).abs() < 1e-9);
        assert!(!rollout.completion.contains("<eos>"));
    }
    assert!(trained.rollouts.iter().any(|rollout| rollout.finish_reason == "length"));
}
