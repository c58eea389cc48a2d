//! What PyTorch says of losses and trainings: `tests/fixtures/make_training_golden.py` wrote it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Tensor};

use super::advantage::{KlEstimator, gae, leave_one_out, standardised, whiten};
use super::comparisons::Comparison;
use super::learner::Learner;
use super::optimizer::{AdamW, Schedule};
use super::rows::{Layout, Row, floats};
use super::{dpo, loss, pm, sl};
use crate::model::torch::config::Head;
use crate::model::train::{Compute, Init, LoraSettings, Optim};
use crate::record::Id;

#[derive(Deserialize)]
pub(super) struct Golden {
    losses: Value,
    sft: Sft,
    pm: Pm,
    pub(super) ppo: Vec<super::golden_ppo::Ppo>,
    dpo: Dpo,
    groups: Value,
    lora: Lora,
}

#[derive(Deserialize)]
struct Sft {
    rows: Vec<SftRow>,
    batch_size: usize,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

#[derive(Deserialize)]
struct SftRow {
    prompt: Vec<i64>,
    completion: Vec<i64>,
    weight: f32,
}

#[derive(Deserialize)]
struct Pm {
    head: Vec<Vec<f32>>,
    pairs: Vec<PmRow>,
    batch_size: usize,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

#[derive(Deserialize)]
struct Dpo {
    pure: Value,
    beta: f64,
    pairs: Vec<PmRow>,
    batch_size: usize,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

#[derive(Deserialize)]
struct Lora {
    r: usize,
    alpha: f64,
    target_modules: Vec<String>,
    start: Value,
    #[serde(flatten)]
    sft: Sft,
    merged: Value,
}

#[derive(Deserialize)]
struct PmRow {
    prompt: Vec<i64>,
    a: Vec<i64>,
    b: Vec<i64>,
    p: f32,
    weight: f32,
}

pub(super) fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training")
}

pub(super) fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap()
}

/// The numbers under a key, of any nesting.
fn numbers(of: &Value, key: &str) -> Vec<f32> {
    fn flatten(value: &Value, into: &mut Vec<f32>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| flatten(value, into)),
            value => into.push(value.as_f64().unwrap() as f32),
        }
    }
    let mut flat = Vec::new();
    flatten(&of[key], &mut flat);
    flat
}

fn tensor(of: &Value, key: &str) -> Tensor {
    Tensor::from_slice(&numbers(of, key))
}

fn matrix(of: &Value, key: &str) -> Tensor {
    tensor(of, key).view([of[key].as_array().unwrap().len() as i64, -1])
}

fn ids(of: &Value, key: &str) -> Tensor {
    tensor(of, key).to_kind(tch::Kind::Int64)
}

pub(super) fn check(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{name}: {found} is not {expected}");
    }
}

/// The loss and its gradient are those of the golden.
fn check_loss(name: &str, of: &Value, loss: &Tensor, input: &Tensor) {
    loss.backward();
    check(name, &[loss.double_value(&[]) as f32], &numbers(of, "loss"), 1e-5);
    check(&format!("gradient of {name}"), &floats(&input.grad()), &numbers(of, "grad"), 1e-5);
}

#[test]
fn each_loss_and_its_gradient_are_those_of_pytorch() {
    let golden = golden().losses;
    let of = &golden["cross_entropy"];
    let logits = matrix(of, "logits").set_requires_grad(true);
    let sum = loss::cross_entropy(&logits, &ids(of, "targets"), &tensor(of, "weights"));
    check_loss("cross_entropy", of, &sum, &logits);

    let of = &golden["bradley_terry"];
    let z = tensor(of, "z").set_requires_grad(true);
    let sum = loss::bradley_terry(&z, &tensor(of, "p"), &tensor(of, "weights"));
    check_loss("bradley_terry", of, &sum, &z);

    let of = &golden["policy"];
    let new = tensor(of, "new").set_requires_grad(true);
    let policy = loss::clipped_policy(&new, &tensor(of, "old"), &tensor(of, "advantages"), 0.2);
    check_loss("policy", of, &policy.sum, &new);
    check("clipped", &[policy.n_clipped.double_value(&[]) as f32], &numbers(of, "n_clipped"), 0.1);

    let of = &golden["value"];
    let values = tensor(of, "values").set_requires_grad(true);
    let (sum, n_clipped) =
        loss::clipped_value(&values, &tensor(of, "old"), &tensor(of, "returns"), 0.2);
    check_loss("value", of, &sum, &values);
    check("clipped", &[n_clipped.double_value(&[]) as f32], &numbers(of, "n_clipped"), 0.1);

    let of = &golden["temperature"];
    let logits = matrix(of, "logits");
    check(
        "log_probs",
        &floats(&loss::log_probs(&logits, &ids(of, "targets"), 0.7)),
        &numbers(of, "log_probs"),
        1e-5,
    );
    check("entropies", &floats(&loss::entropies(&logits, 0.7)), &numbers(of, "entropies"), 1e-5);
}

#[test]
fn advantages_and_kl_are_those_of_pytorch() {
    let golden = golden().losses;
    let of = &golden["gae"];
    let (advantages, returns) = gae(&numbers(of, "rewards"), &numbers(of, "values"), 0.99, 0.95);
    check("advantages", &advantages, &numbers(of, "advantages"), 1e-5);
    check("returns", &returns, &numbers(of, "returns"), 1e-5);
    let mut batch = [advantages[..3].to_vec(), advantages[3..].to_vec()];
    whiten(&mut batch);
    check("whitened", &batch.concat(), &numbers(of, "whitened"), 1e-5);

    let of = &golden["kl"];
    for name in ["k1", "k2", "k3"] {
        let estimator = KlEstimator::named(name).unwrap();
        let pairs = numbers(of, "log_probs").into_iter().zip(numbers(of, "reference"));
        let found: Vec<f32> = pairs.map(|(lp, reference)| estimator.at(lp, reference)).collect();
        check(name, &found, &numbers(of, name), 1e-6);
    }
}

#[test]
fn what_rollouts_of_a_prompt_are_worth_is_that_of_pytorch() {
    let of = golden().groups;
    let rewards: Vec<f64> = numbers(&of, "rewards").into_iter().map(f64::from).collect();
    let narrow = |numbers: Vec<f64>| numbers.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    check("rloo", &narrow(leave_one_out(&rewards, 4)), &numbers(&of, "rloo"), 1e-5);
    check("grpo", &narrow(standardised(&rewards, 4)), &numbers(&of, "grpo"), 1e-5);
    let log_probs = tensor(&of, "log_probs").set_requires_grad(true);
    let loss = loss::kl_to_reference(&log_probs, &tensor(&of, "reference"));
    check_loss("kl_to_reference", &of, &loss, &log_probs);
}

fn optim() -> Optim {
    Optim {
        learning_rate: 0.01,
        lr_scheduler_type: "linear".to_owned(),
        warmup_ratio: 0.2,
        warmup_steps: None,
        weight_decay: 0.05,
        adam_beta1: 0.9,
        adam_beta2: 0.98,
        adam_epsilon: 1e-8,
        max_grad_norm: 1.0,
        lora: None,
        seed: 0,
        logging_steps: 1,
    }
}

/// All rows of a step in one micro-batch, if they are alike.
pub(super) fn layout() -> Layout {
    Layout::of_parts(usize::MAX, 1, Device::Cpu)
}

/// Ten steps over rows taken in turn; `accumulate` gives a batch's loss.
fn check_ten_steps(
    mut model: Learner,
    n_rows: usize,
    batch_size: usize,
    losses: &[f64],
    norms: &[f64],
    accumulate: impl Fn(&Learner, &[usize]) -> f64,
) {
    let mut adamw = AdamW::new(model.weights(), &optim());
    let schedule = Schedule::new(&optim(), 10).unwrap();
    for step in 0..10 {
        let batch: Vec<usize> = (0..batch_size).map(|i| (step * batch_size + i) % n_rows).collect();
        let loss = accumulate(&model, &batch);
        let norm = model.step(&mut adamw, schedule.rate(step as u64)).unwrap();
        assert!((loss - losses[step]).abs() < 1e-4, "step {step}: {loss} is not {}", losses[step]);
        assert!((norm - norms[step]).abs() < 1e-3, "step {step}: {norm} is not {}", norms[step]);
    }
}

fn demonstrations(rows: &[SftRow]) -> sl::Demonstrations {
    sl::Demonstrations {
        ids: vec![Id::ZERO; rows.len()],
        rows: rows.iter().map(|row| Row::new(&row.prompt, &row.completion)).collect(),
        weights: rows.iter().map(|row| row.weight).collect(),
    }
}

#[test]
fn ten_steps_of_fine_tuning_are_those_of_pytorch() {
    let golden = golden().sft;
    let model = Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap();
    let data = demonstrations(&golden.rows);
    check_ten_steps(
        model,
        data.rows.len(),
        golden.batch_size,
        &golden.losses,
        &golden.grad_norms,
        |model, batch| {
            let outcome = sl::accumulate(model, &data, batch, &layout());
            outcome.loss / outcome.n_predicted
        },
    );
}

#[test]
fn ten_steps_of_a_low_rank_change_and_its_merging_are_those_of_pytorch() {
    let golden = golden().lora;
    let settings = LoraSettings {
        r: golden.r,
        alpha: golden.alpha,
        target_modules: golden.target_modules.clone(),
    };
    let optim = Optim { lora: Some(settings), ..optim() };
    let model = Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap();
    let before = model.named_weights();
    let mut model = model.adapted(&Init::Checkpoint(fixture()), &optim).unwrap();
    for (name, _) in &before {
        let (a, b) = (format!("{name}/a"), format!("{name}/b"));
        if golden.start.get(&a).is_some() {
            let (a, b) = (matrix(&golden.start, &a), matrix(&golden.start, &b));
            model.lora().set(name, &a, &b);
        }
    }
    model.refresh().unwrap();
    let frozen = |model: &Learner| floats(&model.named_weights()[0].1);
    let embeddings = frozen(&model);

    let data = demonstrations(&golden.sft.rows);
    let mut adamw = AdamW::new(model.weights(), &optim);
    let schedule = Schedule::new(&optim, 10).unwrap();
    for step in 0..10 {
        let size = golden.sft.batch_size;
        let batch: Vec<usize> = (0..size).map(|i| (step * size + i) % data.rows.len()).collect();
        let outcome = sl::accumulate(&model, &data, &batch, &layout());
        let (loss, expected) = (outcome.loss / outcome.n_predicted, golden.sft.losses[step]);
        assert!((loss - expected).abs() < 1e-4, "step {step}: {loss} is not {expected}");
        let norm = model.step(&mut adamw, schedule.rate(step as u64)).unwrap();
        let expected = golden.sft.grad_norms[step];
        assert!((norm - expected).abs() < 1e-3, "step {step}: {norm} is not {expected}");
    }
    assert_eq!(frozen(&model), embeddings, "what is not chosen stays");
    let mut n_merged = 0;
    for (name, weight) in model.named_weights() {
        if golden.merged.get(&name).is_some() {
            check(&name, &floats(&weight), &numbers(&golden.merged, &name), 1e-4);
            n_merged += 1;
        }
    }
    assert_eq!(n_merged, 3);
}

#[test]
fn ten_steps_of_a_preference_model_are_those_of_pytorch() {
    let golden = golden().pm;
    let model =
        Learner::scorer_with(&fixture(), &Tensor::from_slice(&golden.head[0]).view([1, -1]));
    let data: Vec<Comparison> = golden.pairs.iter().map(comparison).collect();
    check_ten_steps(
        model,
        data.len(),
        golden.batch_size,
        &golden.losses,
        &golden.grad_norms,
        |model, batch| pm::accumulate(model, &data, batch, 0.01, &layout()).0,
    );
}

fn comparison(row: &PmRow) -> Comparison {
    Comparison {
        id: Id::ZERO,
        rows: [Row::new(&row.prompt, &row.a), Row::new(&row.prompt, &row.b)],
        p: row.p,
        weight: row.weight,
        source: "ai".to_owned(),
        category: None,
    }
}

#[test]
fn ten_steps_of_direct_preferences_are_those_of_pytorch() {
    let golden = golden().dpo;
    let of = &golden.pure;
    let policy = matrix(of, "policy").set_requires_grad(true);
    let (p, weights) = (tensor(of, "p"), tensor(of, "weights"));
    let sum = loss::dpo(&policy, &matrix(of, "reference"), golden.beta, &p, &weights);
    check_loss("dpo", of, &sum, &policy);

    let model = Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap();
    let data: Vec<Comparison> = golden.pairs.iter().map(comparison).collect();
    let reference = dpo::measure(&model, &data, &layout());
    check_ten_steps(
        model,
        data.len(),
        golden.batch_size,
        &golden.losses,
        &golden.grad_norms,
        |model, batch| {
            let outcome = dpo::accumulate(model, &data, &reference, batch, golden.beta, &layout());
            outcome.loss / batch.len() as f64
        },
    );
}

/// The gradients that a batch leaves, and then forgets.
pub(super) fn gradients(model: &Learner) -> Vec<f32> {
    let taken = |weight: Tensor| {
        let grad = floats(&weight.grad());
        let _ = weight.grad().zero_();
        grad
    };
    model.weights().into_iter().flat_map(taken).collect()
}

#[test]
fn neither_order_nor_padding_nor_the_cut_into_micro_batches_changes_the_gradient() {
    let golden = golden().sft;
    let model = Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap();
    let data = |pick: &[usize]| sl::Demonstrations {
        ids: vec![Id::ZERO; pick.len()],
        rows: pick
            .iter()
            .map(|&row| Row::new(&golden.rows[row].prompt, &golden.rows[row].completion))
            .collect(),
        weights: pick.iter().map(|&row| golden.rows[row].weight).collect(),
    };
    let all: Vec<usize> = (0..12).collect();
    let whole = data(&all);
    sl::accumulate(&model, &whole, &all, &layout());
    let expected = gradients(&model);

    sl::accumulate(&model, &whole, &all.iter().rev().copied().collect::<Vec<_>>(), &layout());
    check("reversed", &gradients(&model), &expected, 1e-6);

    // One row at a time without padding; each mean per token is weighed by its tokens.
    let n_all: usize = whole.rows.iter().map(|row| row.predicted().len()).sum();
    let mut summed = vec![0.0; expected.len()];
    for &row in &all {
        let outcome = sl::accumulate(&model, &data(&[row]), &[0], &layout());
        let share = outcome.n_predicted as f32 / n_all as f32;
        for (sum, gradient) in summed.iter_mut().zip(gradients(&model)) {
            *sum += share * gradient;
        }
    }
    check("row by row", &summed, &expected, 1e-6);
}
