//! The optimizer: AdamW with gradients clipped by their global norm, and its learning rates.
//!
//! tch's own keeps its state where it cannot be saved, so it is written out here, in f32 and in
//! the order of operations of `torch.optim.AdamW`.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use tch::{Tensor, no_grad_guard};

use crate::model::torch::kernels;
use crate::model::train::{Optim, TrainError};

/// AdamW (arXiv 1711.05101, algorithm 2) over the given weights.
pub(crate) struct AdamW {
    slots: Vec<Slot>,
    steps: i32,
    weight_decay: f64,
    betas: (f64, f64),
    epsilon: f64,
    max_grad_norm: f64,
}

/// One weight with its two moments.
struct Slot {
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    decays: bool,
}

impl Slot {
    /// Whether all of it, with its gradient, is what kernels take.
    fn is_in_one_piece(&self, grad: &Tensor) -> bool {
        [&self.weight, &self.first, &self.second, grad].iter().all(|tensor| {
            kernels::are_for(tensor.kind(), tensor.device()) && tensor.is_contiguous()
        })
    }
}

/// What one step does with every weight.
struct Update {
    clip: f64,
    decay: f64,
    betas: (f64, f64),
    step_size: f64,
    second_scale: f64,
    epsilon: f64,
}

impl Update {
    /// By the kernel: memory is gone through once, in place of thirteen times.
    fn in_one_pass(&self, slot: &mut Slot, grad: &Tensor) {
        let kernel = amend_kernels::AdamW {
            clip: self.clip as f32,
            keep: if slot.decays { (1.0 - self.decay) as f32 } else { 1.0 },
            betas: (self.betas.0 as f32, self.betas.1 as f32),
            step_size: self.step_size as f32,
            second_scale: self.second_scale as f32,
            epsilon: self.epsilon as f32,
        };
        kernels::step(&kernel, [&mut slot.weight, &mut slot.first, &mut slot.second], grad);
    }

    /// The same in libtorch's operations, on whatever device.
    fn by_torch(&self, slot: &mut Slot, grad: &mut Tensor) {
        let (beta1, beta2) = self.betas;
        let _ = grad.g_mul_scalar_(self.clip);
        if slot.decays {
            let _ = slot.weight.g_mul_scalar_(1.0 - self.decay);
        }
        let _ = slot.first.lerp_(&*grad, 1.0 - beta1);
        let _ = slot.second.g_mul_scalar_(beta2).addcmul_(&*grad, &(&*grad * (1.0 - beta2)));
        let mut scale = slot.second.sqrt();
        let _ = scale.g_div_scalar_(self.second_scale).g_add_scalar_(self.epsilon);
        let _ = slot.weight.addcdiv_(&(&slot.first * -self.step_size), &scale);
    }
}

impl AdamW {
    /// Over the weights, which require gradients. Matrices decay; vectors (norms, biases) do not.
    pub(crate) fn new(weights: impl IntoIterator<Item = Tensor>, optim: &Optim) -> AdamW {
        let slot = |weight: Tensor| {
            assert!(weight.requires_grad(), "a weight under training requires gradients");
            let decays = weight.dim() >= 2;
            Slot {
                first: weight.detach().zeros_like(),
                second: weight.detach().zeros_like(),
                decays,
                weight,
            }
        };
        AdamW {
            slots: weights.into_iter().map(slot).collect(),
            steps: 0,
            weight_decay: optim.weight_decay,
            betas: (optim.adam_beta1, optim.adam_beta2),
            epsilon: optim.adam_epsilon,
            max_grad_norm: optim.max_grad_norm,
        }
    }

    /// Steps made.
    pub(crate) fn steps(&self) -> i32 {
        self.steps
    }

    /// Weights and moments, for the state of a training: `NAME/0/weight`, `NAME/0/first`, …
    pub(crate) fn tensors(&self, name: &str) -> Vec<(String, Tensor)> {
        let of = |(place, slot): (usize, &Slot)| {
            let named =
                [("weight", &slot.weight), ("first", &slot.first), ("second", &slot.second)];
            named.map(|(part, tensor)| (format!("{name}/{place}/{part}"), tensor.detach()))
        };
        self.slots.iter().enumerate().flat_map(of).collect()
    }

    /// Takes weights and moments back, out of `tensors`, or says what is wrong with them.
    pub(crate) fn restore(
        &mut self,
        name: &str,
        steps: i32,
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        let _guard = no_grad_guard();
        self.steps = steps;
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let parts = [
                ("weight", &mut slot.weight),
                ("first", &mut slot.first),
                ("second", &mut slot.second),
            ];
            for (part, into) in parts {
                let name = format!("{name}/{place}/{part}");
                let tensor = tensors.remove(&name).filter(|tensor| tensor.size() == into.size());
                into.copy_(&tensor.ok_or_else(|| format!("has no fitting \"{name}\""))?);
            }
        }
        Ok(())
    }

    /// Clips and makes one step; [`AdamW::renewed`] forgets the gradients. Gives their norm before
    /// clipping; where that is not a number, no weight is moved.
    pub(crate) fn step(&mut self, learning_rate: f64) -> f64 {
        let _guard = no_grad_guard();
        let norm = self.grad_norm();
        if !norm.is_finite() {
            return norm;
        }
        let clip = if self.max_grad_norm > 0.0 { self.max_grad_norm / (norm + 1e-6) } else { 1.0 };
        self.steps += 1;
        let (beta1, beta2) = self.betas;
        let update = Update {
            clip: clip.min(1.0),
            decay: learning_rate * self.weight_decay,
            betas: self.betas,
            step_size: learning_rate / (1.0 - beta1.powi(self.steps)),
            second_scale: (1.0 - beta2.powi(self.steps)).sqrt(),
            epsilon: self.epsilon,
        };
        for slot in &mut self.slots {
            let mut grad = slot.weight.grad();
            if !grad.defined() {
                continue;
            }
            match slot.is_in_one_piece(&grad) {
                true => update.in_one_pass(slot, &grad),
                false => update.by_torch(slot, &mut grad),
            }
        }
        norm
    }

    /// The weights without their gradients, in the order in which they were given: the same numbers,
    /// which the optimizer takes for its own from now on.
    ///
    /// The next pass puts its gradients in place. To gradients that are there, be they 0, it would
    /// add them, which is two more ways through memory.
    pub(crate) fn renewed(&mut self) -> Vec<Tensor> {
        let renew = |slot: &mut Slot| {
            slot.weight = slot.weight.detach().set_requires_grad(true);
            slot.weight.shallow_clone()
        };
        self.slots.iter_mut().map(renew).collect()
    }

    /// The global norm of the gradients.
    fn grad_norm(&self) -> f64 {
        let squares = |slot: &Slot| {
            let grad = slot.weight.grad();
            if grad.defined() { grad.norm().double_value(&[]).powi(2) } else { 0.0 }
        };
        self.slots.iter().map(squares).sum::<f64>().sqrt()
    }
}

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Constant,
    Linear,
    Cosine,
}

/// The learning rate of each step, as Transformers' schedulers have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    shape: Shape,
    peak: f64,
    steps_warmup: u64,
    steps_total: u64,
}

impl Schedule {
    /// The schedule of a training of so many steps.
    pub(crate) fn new(optim: &Optim, steps_total: u64) -> Result<Schedule, TrainError> {
        let shape = match optim.lr_scheduler_type.as_str() {
            "constant" | "constant_with_warmup" => Shape::Constant,
            "linear" => Shape::Linear,
            "cosine" => Shape::Cosine,
            other => {
                return Err(TrainError::Data(format!(
                    "lr_scheduler_type \"{other}\" is not one of constant, linear, cosine"
                )));
            }
        };
        let share = (optim.warmup_ratio * steps_total as f64).ceil() as u64;
        let steps_warmup = optim.warmup_steps.unwrap_or(share).min(steps_total);
        Ok(Schedule { shape, peak: optim.learning_rate, steps_warmup, steps_total })
    }

    /// The learning rate of a step, counted from 0.
    pub(crate) fn rate(&self, step: u64) -> f64 {
        if step < self.steps_warmup {
            return self.peak * step as f64 / self.steps_warmup as f64;
        }
        let after = (self.steps_total - self.steps_warmup).max(1) as f64;
        let progress = ((step - self.steps_warmup) as f64 / after).min(1.0);
        self.peak
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => 1.0 - progress,
                Shape::Cosine => 0.5 * (1.0 + libm::cos(PI * progress)),
            }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn optim() -> Optim {
        Optim {
            learning_rate: 0.1,
            lr_scheduler_type: "linear".to_owned(),
            warmup_ratio: 0.2,
            warmup_steps: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lora: None,
            seed: 0,
            logging_steps: 1,
        }
    }

    fn weight(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    #[test]
    fn the_first_step_moves_each_weight_by_the_learning_rate() {
        let w = weight(&[2, 2]);
        let mut adamw = AdamW::new([w.shallow_clone()], &optim());
        (&w * 3.0).sum(Kind::Float).backward();
        let norm = adamw.step(0.1);
        assert!((norm - 6.0).abs() < 1e-6, "the norm before clipping");
        assert!((w.double_value(&[0, 0]) - 0.9).abs() < 1e-6);
        let renewed = adamw.renewed();
        assert!(renewed[0].equal(&w) && renewed[0].requires_grad(), "the same numbers");
        assert!(!renewed[0].grad().defined(), "gradients are forgotten");
    }

    #[test]
    fn only_matrices_decay_and_a_learning_rate_of_zero_changes_nothing() {
        let (matrix, vector) = (weight(&[2, 2]), weight(&[2]));
        let weights = [matrix.shallow_clone(), vector.shallow_clone()];
        let mut adamw = AdamW::new(weights, &Optim { weight_decay: 0.5, ..optim() });
        let mut step = |rate: f64| {
            ((&matrix * 0.0).sum(Kind::Float) + (&vector * 0.0).sum(Kind::Float)).backward();
            adamw.step(rate);
            (matrix.double_value(&[0, 0]), vector.double_value(&[0]))
        };
        let still = step(0.0);
        assert!((still.0 - 1.0).abs() < 1e-9 && (still.1 - 1.0).abs() < 1e-9);
        let moved = step(0.1);
        assert!((moved.0 - 0.95).abs() < 1e-6 && (moved.1 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_pass_over_memory_steps_as_libtorch_does() {
        let optim = Optim { weight_decay: 0.1, max_grad_norm: 0.5, ..optim() };
        let wave = |scale: f64| (Tensor::arange(3000, (Kind::Float, Device::Cpu)) * scale).sin();
        let fresh = || wave(0.7).view([50, 60]).set_requires_grad(true);
        // A matrix that is stored by columns is not in one piece, and libtorch takes it.
        let by_columns = || wave(0.7).view([50, 60]).tr().contiguous().tr();
        let (one, other) = (fresh(), by_columns().set_requires_grad(true));
        let steps: Vec<Tensor> = [&one, &other]
            .into_iter()
            .map(|weight| {
                let mut weight = weight.shallow_clone();
                let mut adamw = AdamW::new([weight.shallow_clone()], &optim);
                for step in 1..=5 {
                    (&weight * wave(0.3 * f64::from(step)).view([50, 60]))
                        .sum(Kind::Float)
                        .backward();
                    let norm = adamw.step(0.05);
                    assert!(norm > 0.5, "it is clipped");
                    weight = adamw.renewed().remove(0);
                    assert!(!weight.grad().defined(), "gradients are forgotten");
                }
                weight.detach()
            })
            .collect();
        assert!(one.is_contiguous() && !other.is_contiguous(), "both ways were gone");
        let difference = (&steps[0] - &steps[1]).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference:e}");
        assert!((&steps[0] - fresh()).abs().max().double_value(&[]) > 0.1, "it moved");
    }

    #[test]
    fn the_rate_warms_up_and_goes_down_to_zero() {
        let rates = |kind: &str| -> Vec<f64> {
            let optim = Optim { lr_scheduler_type: kind.to_owned(), ..optim() };
            let schedule = Schedule::new(&optim, 10).unwrap();
            (0..=10).map(|step| (schedule.rate(step) * 1e4).round() / 1e4).collect()
        };
        assert_eq!(rates("constant")[..4], [0.0, 0.05, 0.1, 0.1]);
        assert_eq!(
            rates("linear")[1..],
            [0.05, 0.1, 0.0875, 0.075, 0.0625, 0.05, 0.0375, 0.025, 0.0125, 0.0]
        );
        assert_eq!(rates("cosine")[6..7], [0.05]);
        let stated = |steps| {
            let optim = Optim { warmup_steps: Some(steps), ..optim() };
            (0..3).map(|step| Schedule::new(&optim, 10).unwrap().rate(step)).collect::<Vec<_>>()
        };
        assert_eq!(
            stated(1),
            [0.0, 0.1, 0.1 * (1.0 - 1.0 / 9.0)],
            "the count goes before the share"
        );
        assert_eq!(stated(99)[..2], [0.0, 0.1 / 10.0], "of more steps than there are, all");
        assert!(
            Schedule::new(&Optim { lr_scheduler_type: "step".to_owned(), ..optim() }, 1).is_err()
        );
    }
}
