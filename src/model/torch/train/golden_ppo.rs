//! What PyTorch says of whole updates of PPO: `tests/fixtures/make_training_golden.py` wrote it,
//! episode by episode and without padding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use tch::Tensor;

use super::critic::Trunk;
use super::experience::{Actors, Experience, FirstPass, Judge};
use super::golden::{check, fixture, golden};
use super::learner::Learner;
use super::optimizer::Schedule;
use super::reward::Reward;
use super::rollout::{Episode, Prompts};
use super::rows::{Row, floats};
use super::update::{Students, shuffled, update};
use crate::model::Finish;
use crate::model::torch::config::Head;
use crate::model::train::{Algorithm, Compute, CriticTrunk, Optim, PpoSettings};

#[derive(Deserialize)]
pub(super) struct Ppo {
    kl_coef: f64,
    cliprange: f64,
    cliprange_value: f64,
    vf_coef: f64,
    gamma: f64,
    lam: f64,
    missing_eos_penalty: f64,
    num_ppo_epochs: usize,
    num_mini_batches: usize,
    mean: f64,
    std: f64,
    learning_rate: f64,
    whiten_rewards: bool,
    shared: bool,
    name: String,
    head: Vec<Vec<f32>>,
    batches: Vec<Vec<Written>>,
    orders: Vec<Vec<usize>>,
    kl: Vec<f64>,
    rewarded: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Written {
    prompt: Vec<i64>,
    answer: Vec<i64>,
    ended: bool,
}

impl Written {
    fn texts(&self) -> [String; 2] {
        let text =
            |ids: &[i64]| ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
        [text(&self.prompt), format!(" {}", text(&self.answer))]
    }

    fn episode(&self, place: usize) -> Episode {
        let (end, finish) =
            if self.ended { (&[1][..], Finish::Stop) } else { (&[][..], Finish::Length) };
        let tokens = [&self.answer, end].concat();
        let [_, text] = self.texts();
        let sampled = vec![0.0; tokens.len()];
        let row = Row::new(&self.prompt, &tokens);
        Episode { prompt: place, row, text, finish, ended: self.ended, sampled }
    }
}

fn settings(of: &Ppo, parts: usize) -> PpoSettings {
    PpoSettings {
        optim: Optim {
            learning_rate: of.learning_rate,
            lr_scheduler_type: "linear".to_owned(),
            warmup_ratio: 0.0,
            warmup_steps: None,
            weight_decay: 0.05,
            adam_beta1: 0.9,
            adam_beta2: 0.98,
            adam_epsilon: 1e-5,
            max_grad_norm: 1.0,
            lora: None,
            seed: 0,
            logging_steps: 1,
        },
        compute: Compute { gradient_accumulation_steps: parts, ..Compute::default() },
        algorithm: Algorithm::Ppo,
        num_generations: 1,
        total_episodes: of.batches.iter().map(Vec::len).sum(),
        batch_size: of.batches[0].len(),
        num_ppo_epochs: of.num_ppo_epochs,
        num_mini_batches: of.num_mini_batches,
        critic: CriticTrunk::default(),
        critic_warmup: 0,
        response_length: 8,
        temperature: 1.0,
        kl_coef: of.kl_coef,
        adaptive_kl: None,
        kl_estimator: "k1".to_owned(),
        cliprange: of.cliprange,
        cliprange_value: of.cliprange_value,
        vf_coef: of.vf_coef,
        gamma: of.gamma,
        lam: of.lam,
        missing_eos_penalty: of.missing_eos_penalty,
        reward_clip: 0.0,
        whiten_advantages: true,
        whiten_rewards: of.whiten_rewards,
        normalize_reward: true,
        target_kl: 0.0,
        stop: Vec::new(),
        keep_tokens: false,
        save_every: 0,
        keep_below_kl: None,
        reward: PathBuf::new(),
        reference: None,
        test_reward: None,
    }
}

fn judge(of: &Ppo) -> Judge {
    let head = Tensor::from_slice(&of.head[0]).view([1, -1]);
    let mut model = Learner::scorer_with(&fixture(), &head);
    model.set_number("mean", of.mean);
    model.set_number("std", of.std);
    Judge::new(model, true)
}

/// The critic that the golden's learnt by, beside that policy.
fn trunk(of: &Ppo, policy: &Learner) -> Trunk {
    if of.shared { Trunk::of_policy(policy) } else { Trunk::Own(Box::new(judge(of))) }
}

fn language_model() -> Learner {
    Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap()
}

/// The weights are those of a file of the fixture, in order of their names.
fn check_weights(file: &str, weights: &[Tensor]) {
    let path = fixture().join(format!("{file}.safetensors"));
    let expected: BTreeMap<String, Tensor> =
        Tensor::read_safetensors(path).unwrap().into_iter().collect();
    assert_eq!(expected.len(), weights.len(), "{file}");
    for ((name, expected), found) in expected.iter().zip(weights) {
        check(&format!("{file}: {name}"), &floats(found), &floats(expected), 1e-5);
    }
}

/// Learns from the golden's batches, each optimizer step cut into so many parts.
fn check_ppo(of: &Ppo, parts: usize) {
    let settings = settings(of, parts);
    let orders: Vec<Vec<usize>> = (0..4).map(|pass| shuffled(0, pass, 6)).collect();
    assert_eq!(orders, of.orders, "the golden takes rows in the order of the hash");
    let (mut reference, policy) = (language_model().frozen(), language_model());
    let reward = Reward::Model(judge(of));
    let steps = of.batches.len() * of.num_ppo_epochs * of.num_mini_batches;
    let schedule = Schedule::new(&settings.optim, steps as u64).unwrap();
    let critic = trunk(of, &policy);
    let mut students = Students::new(policy, Some(critic), schedule, &settings);
    let start = students.policy.weights().iter().map(floats).collect::<Vec<_>>();
    for (number, batch) in of.batches.iter().enumerate() {
        let texts: Vec<String> = batch.iter().map(|one| one.texts()[0].clone()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let prompts = Prompts { texts, ..Prompts::default() };
        let episodes: Vec<Episode> =
            batch.iter().enumerate().map(|(place, one)| one.episode(place)).collect();
        let actors = Actors {
            policy: &students.policy,
            reference: &mut reference,
            critic: students.critic.as_mut().map(|critic| &mut critic.trunk),
            reward: &reward,
        };
        let (experience, first) =
            Experience::of(actors, &prompts, &episodes, number as u64, &settings).unwrap();
        let rewarded: Vec<f32> = experience.rewarded.iter().map(|&score| score as f32).collect();
        check("rewarded", &rewarded, &of.rewarded[number], 1e-5);
        check("kl", &[experience.mean_kl() as f32], &[of.kl[number] as f32], 1e-5);

        let sums = update(&mut students, &experience, first, &settings, number as u64).unwrap();
        assert!(sums.first_difference < 1e-5, "{}", sums.first_difference);
    }
    let moved = start.iter().zip(students.policy.weights());
    let moved = moved.map(|(start, now)| (start[0] - floats(&now)[0]).abs()).sum::<f32>();
    assert!(moved > 0.01, "the weights moved: {moved}");
    check_weights(&format!("{}_policy", of.name), &students.policy.weights());
    check_weights(&format!("{}_critic", of.name), &students.critic.unwrap().trunk.weights());
}

/// The weights of policy and critic after an update on the golden's first batch, taken whole, which
/// begins with the passes that were kept or makes them again.
fn updated(of: &Ppo, is_kept: bool) -> Vec<Vec<f32>> {
    let settings = PpoSettings { num_mini_batches: 1, ..settings(of, 1) };
    let schedule = Schedule::new(&settings.optim, 4).unwrap();
    let policy = language_model();
    let critic = trunk(of, &policy);
    let mut students = Students::new(policy, Some(critic), schedule, &settings);
    let texts: Vec<String> = of.batches[0].iter().map(|one| one.texts()[0].clone()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let prompts = Prompts { texts, ..Prompts::default() };
    let episodes: Vec<Episode> =
        of.batches[0].iter().enumerate().map(|(place, one)| one.episode(place)).collect();
    let actors = Actors {
        policy: &students.policy,
        reference: &mut language_model().frozen(),
        critic: students.critic.as_mut().map(|critic| &mut critic.trunk),
        reward: &Reward::Model(judge(of)),
    };
    let (experience, first) = Experience::of(actors, &prompts, &episodes, 0, &settings).unwrap();
    assert!(first.policy.is_some(), "the batch is one piece");
    assert_eq!(first.values.is_some(), !of.shared, "a critic's own pass is kept too");
    let first = if is_kept { first } else { FirstPass::default() };
    update(&mut students, &experience, first, &settings, 0).unwrap();
    let critic = students.critic.unwrap().trunk.weights();
    students.policy.weights().iter().chain(&critic).map(floats).collect()
}

#[test]
fn an_update_that_begins_with_what_was_measured_has_the_same_bits() {
    for of in golden().ppo {
        assert!(updated(&of, true) == updated(&of, false), "{}", of.name);
    }
}

#[test]
fn policy_and_critic_learn_the_same_bits_beside_each_other_and_one_after_the_other() {
    for of in golden().ppo {
        let by = |threads: i32| {
            tch::set_num_threads(threads);
            updated(&of, true)
        };
        let after = by(1);
        assert!(by(2) == after, "{}", of.name);
        assert_eq!(tch::get_num_threads(), 2, "the threads are given back");
        tch::set_num_threads(1);
    }
}

#[test]
fn whole_updates_of_ppo_are_those_of_pytorch() {
    for of in golden().ppo {
        for parts in [1, 3] {
            check_ppo(&of, parts);
        }
    }
}
