//! What holds of any training, on the model of the goldens.

use tch::{Device, Kind, Tensor, no_grad_guard};

use super::calibration::metrics_by_group;
use super::comparisons::Comparison;
use super::golden::{check, fixture, gradients, layout};
use super::learner::Learner;
use super::loss::log_probs;
use super::rows::{Layout, Row, floats, micro_batches};
use super::{pm, sl};
use crate::model::torch::config::Head;
use crate::model::train::{Compute, Dtype};
use crate::record::Id;

fn model() -> Learner {
    Learner::read(&fixture(), Head::Lm, &Compute::default()).unwrap()
}

/// Rows of several lengths; no two are alike.
fn rows() -> Vec<Row> {
    let token = |n: usize| 2 + (n * 7919 % 45) as i64;
    let tokens = |from: usize, count: usize| (from..from + count).map(token).collect::<Vec<_>>();
    (0..9)
        .map(|n| {
            Row::new(
                &tokens(31 * n, 1 + n * 5 % 11),
                &[tokens(31 * n + 15, 1 + n % 6), vec![1]].concat(),
            )
        })
        .collect()
}

/// The logits at the tokens that each row predicts.
fn logits(model: &Learner, rows: &[Row], layout: &Layout) -> Vec<Vec<f32>> {
    let _guard = no_grad_guard();
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut found = vec![Vec::new(); rows.len()];
    for micro in micro_batches(rows, &all, layout) {
        let flat = floats(&model.logits(&model.states(&micro)));
        let vocab = flat.len() / micro.counts.iter().sum::<usize>();
        let mut rest = flat.as_slice();
        for (&row, &count) in micro.rows.iter().zip(&micro.counts) {
            let (own, others) = rest.split_at(count * vocab);
            found[row] = own.to_vec();
            rest = others;
        }
    }
    found
}

fn demonstrations(rows: Vec<Row>) -> sl::Demonstrations {
    let (ids, weights) = (vec![Id::ZERO; rows.len()], vec![1.0; rows.len()]);
    sl::Demonstrations { ids, rows, weights }
}

#[test]
fn packing_changes_no_logit_and_no_gradient() {
    let (model, rows) = (model(), rows());
    let packed = Layout { packed: Some(40), ..layout() };
    let n_packed = micro_batches(&rows, &(0..rows.len()).collect::<Vec<_>>(), &packed)
        .iter()
        .map(|micro| micro.ids.size()[0])
        .sum::<i64>();
    assert!(n_packed < rows.len() as i64, "rows share sequences");
    // Alone, a row has no neighbour to see.
    let alone = logits(&model, &rows, &Layout { rows_max: 1, ..layout() });
    for (row, (packed, alone)) in logits(&model, &rows, &packed).iter().zip(&alone).enumerate() {
        check(&format!("row {row}"), packed, alone, 1e-5);
    }

    let (data, all) = (demonstrations(rows), (0..9).collect::<Vec<_>>());
    sl::accumulate(&model, &data, &all, &layout());
    let expected = gradients(&model);
    sl::accumulate(&model, &data, &all, &packed);
    check("gradient", &gradients(&model), &expected, 1e-6);
}

#[test]
fn the_side_and_the_amount_of_padding_change_no_log_probability() {
    let (model, rows) = (model(), rows());
    let _guard = no_grad_guard();
    for row in &rows {
        let targets = Tensor::from_slice(&row.tokens[1..]);
        let (len, width) = (row.tokens.len() as i64, 24);
        let ids = |left: i64| {
            let padding = |count: i64| Tensor::zeros([count], (Kind::Int64, Device::Cpu));
            let row = Tensor::from_slice(&row.tokens);
            Tensor::cat(&[padding(left), row, padding(width - len - left)], 0).unsqueeze(0) // (1, T)
        };
        let of = |hidden: &Tensor, left: i64| {
            let states = hidden.get(0).narrow(0, left, len - 1); // (T - 1, d)
            floats(&log_probs(&model.logits(&states), &targets, 1.0))
        };
        let right = ids(0);
        let expected = of(&model.transformer().hidden_fused(&right.narrow(1, 0, len)), 0);
        check("right", &of(&model.transformer().hidden_fused(&right), 0), &expected, 1e-5);
        for left in [1, width - len] {
            let positions = (Tensor::arange(width, (Kind::Int64, Device::Cpu)) - left).clamp_min(0);
            let real = positions.ge(0).to_kind(Kind::Int64).unsqueeze(0);
            let column = Tensor::arange(width, (Kind::Int64, Device::Cpu)).unsqueeze(0);
            let real = real * column.ge(left).to_kind(Kind::Int64); // (1, T)
            let positions = positions.unsqueeze(0); // (1, T)
            let mask = model.transformer().padding_mask(&real, &positions);
            let hidden = model.transformer().hidden_at(&ids(left), &positions, &mask);
            check("left", &of(&hidden, left), &expected, 1e-5);
        }
    }
}

#[test]
fn in_16_bits_short_sequences_are_seen_as_long_ones_are() {
    let compute = Compute { dtype: Dtype::Bf16, ..Compute::default() };
    let (rough, fine) = (Learner::read(&fixture(), Head::Lm, &compute).unwrap(), model());
    let _guard = no_grad_guard();
    let ids = Tensor::arange(24, (Kind::Int64, Device::Cpu)).view([2, 12]) + 3; // (B, T)
    // Behind so much padding another way to compute attention is taken.
    let long = Tensor::cat(&[&ids, &Tensor::zeros([2, 300], (Kind::Int64, Device::Cpu))], 1);
    let of = |model: &Learner, ids: &Tensor| {
        floats(&model.logits(&model.transformer().hidden_fused(ids).narrow(1, 0, 12).contiguous()))
    };
    let (short, long, expected) = (of(&rough, &ids), of(&rough, &long), of(&fine, &ids));
    assert_ne!(short, long, "these are two ways");
    check("short and long", &short, &long, 0.05);
    check("16 bits and 32", &short, &expected, 0.05);
}

#[test]
fn what_a_prompt_says_is_not_learnt() {
    let model = model();
    let loss = |prompt: &[i64]| {
        let data = demonstrations(vec![Row::new(prompt, &[9, 8, 1])]);
        let outcome = sl::accumulate(&model, &data, &[0], &layout());
        (outcome.loss, outcome.n_predicted, gradients(&model))
    };
    // With attention off a state depends on its own token alone, and the first answer is predicted
    // from the last token of the prompt: what stands before can be felt through the loss only.
    for (name, mut weight) in model.named_weights() {
        if name.ends_with("o_proj.weight") {
            let _guard = no_grad_guard();
            let _ = weight.zero_();
        }
    }
    let (expected, n, gradient) = loss(&[20, 21, 22, 7]);
    assert!((n - 3.0).abs() < f64::EPSILON, "three tokens are answers");
    for prompt in [&[30, 31, 32, 7][..], &[40, 7], &[7]] {
        let (other, n_other, other_gradient) = loss(prompt);
        assert!((expected - other).abs() < 1e-6 && (n - n_other).abs() < f64::EPSILON);
        // The gradients of the attention that is off differ: it is what would look back.
        assert_eq!(gradient.len(), other_gradient.len());
    }
    let (other, ..) = loss(&[20, 21, 22, 6]);
    assert!((expected - other).abs() > 1e-3, "the last token is what the answer follows");
}

#[test]
fn equal_answers_teach_a_preference_model_nothing_at_one_half() {
    let head = Tensor::arange(16, (Kind::Float, Device::Cpu)).sin().view([1, -1]);
    let model = Learner::scorer_with(&fixture(), &head);
    let gradient = |p: f32, b: &[i64]| {
        let comparison = Comparison {
            id: Id::ZERO,
            rows: [Row::new(&[5, 6], &[7, 8, 1]), Row::new(&[5, 6], b)],
            p,
            weight: 1.0,
            source: "ai".to_owned(),
            category: None,
        };
        pm::accumulate(&model, &[comparison], &[0], 0.0, &layout());
        gradients(&model).iter().fold(0.0_f32, |most, gradient| most.max(gradient.abs()))
    };
    assert!(gradient(0.5, &[7, 8, 1]) < 1e-9);
    assert!(gradient(0.5, &[9, 1]) > 1e-4, "unequal answers are drawn together");
    // Equal answers have one score whatever is said of them: what one loses, the other gains.
    let equal = gradient(0.9, &[7, 8, 1]);
    assert!(equal < 1e-5, "{equal}");
}

#[test]
fn the_order_of_the_options_changes_no_gradient() {
    let head = Tensor::arange(16, (Kind::Float, Device::Cpu)).sin().view([1, -1]);
    let model = Learner::scorer_with(&fixture(), &head);
    let learnt = |is_swapped: bool| {
        let comparison = |(row, p): (usize, f32)| {
            let pair = [rows()[row].clone(), Row::new(&[5, 6], &[9, 4 + row as i64, 1])];
            let [a, b] = pair;
            let (rows, p) = if is_swapped { ([b, a], 1.0 - p) } else { ([a, b], p) };
            let (weight, source, category) = (1.0, "ai".to_owned(), None);
            Comparison { id: Id::ZERO, rows, p, weight, source, category }
        };
        let data: Vec<Comparison> =
            (0..6).zip([1.0, 0.75, 1.0, 0.25, 0.5, 1.0]).map(comparison).collect();
        let all: Vec<usize> = (0..data.len()).collect();
        let (loss, judged) = pm::accumulate(&model, &data, &all, 0.01, &layout());
        (loss, metrics_by_group(&judged), gradients(&model))
    };
    let (as_given, swapped) = (learnt(false), learnt(true));
    assert!((as_given.0 - swapped.0).abs() < 1e-6, "{} is {}", as_given.0, swapped.0);
    check("gradient", &swapped.2, &as_given.2, 1e-6);
    assert!(as_given.2.iter().any(|gradient| gradient.abs() > 1e-3), "there is something to learn");
    for ((name, given), (_, swapped)) in as_given.1.iter().zip(&swapped.1) {
        // Scores that say 0.7 of A say 0.3 of B, which is another bin.
        assert!(name.starts_with("ece") || (given - swapped).abs() < 1e-5, "{name}");
    }
}
