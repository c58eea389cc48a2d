//! LoRA: chosen matrices change by a product of two small ones (arXiv 2106.09685), and all other
//! weights stay.
//!
//! What is computed with is the whole weight, `W + (α/r)·B·A`, made anew after each step; before a
//! step its gradient is taken on to A and B. So no layer knows of it, every architecture has it, and
//! the merged weights are there at any time. What it saves is the moments of the optimizer, and the
//! gradients of what stays.

use std::collections::BTreeMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use tch::{Kind, Tensor, no_grad_guard};

use super::learner::refused;
use crate::model::torch::{Head, Weights};
use crate::model::train::{LoraSettings, TrainError};
use crate::record::KeyHasher;

/// The folder of a checkpoint in which the adapter lies by itself.
const ADAPTER: &str = "adapter";
/// The head of a preference model, which is new and learns whole.
const SCORE: &str = "score.weight";

/// The changes of a model's weights.
pub(super) struct Lora {
    settings: LoraSettings,
    /// By the name of the weight.
    changes: BTreeMap<String, Change>,
}

/// The change of one weight.
struct Change {
    /// The weight as it was.
    base: Tensor, // (out, in)
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
}

impl Lora {
    /// The beginning of a change: A is random, a function of the seed and the weight's name, and B
    /// is 0. Other weights no longer gather gradients, but for a score head.
    pub(super) fn new(
        weights: &Weights,
        settings: &LoraSettings,
        seed: u64,
    ) -> Result<Lora, TrainError> {
        let mut changes = BTreeMap::new();
        for (name, weight) in &weights.0 {
            let module = name.strip_suffix(".weight").and_then(|path| path.rsplit('.').next());
            let is_target = |module: &str| settings.target_modules.iter().any(|one| one == module);
            if module.is_some_and(is_target) && weight.dim() == 2 {
                changes.insert(name.clone(), Change::new(name, weight, settings.r, seed));
            } else if name != SCORE {
                let _ = weight.set_requires_grad(false);
            }
        }
        let names: Vec<&str> = changes.keys().map(String::as_str).collect();
        let is_there = |module: &&String| names.iter().any(|name| name.contains(module.as_str()));
        if let Some(module) = settings.target_modules.iter().find(|module| !is_there(module)) {
            return Err(TrainError::Data(format!(
                "lora: the model has no matrix \"{module}\": name others in `target_modules`"
            )));
        }
        Ok(Lora { settings: settings.clone(), changes })
    }

    fn scale(&self) -> f64 {
        self.settings.alpha / self.settings.r as f64
    }

    /// What learns, in order of the weights' names.
    pub(super) fn trainable(&self, weights: &Weights) -> Vec<Tensor> {
        let small = self.changes.values().flat_map(|change| [&change.a, &change.b]);
        small.chain(weights.0.get(SCORE)).map(Tensor::shallow_clone).collect()
    }

    /// Takes other tensors for what learns, in the same order.
    pub(super) fn hold(&mut self, tensors: Vec<Tensor>, weights: &mut Weights) {
        let small = self.changes.values_mut().flat_map(|change| [&mut change.a, &mut change.b]);
        small.chain(weights.0.get_mut(SCORE)).zip(tensors).for_each(|(own, tensor)| *own = tensor);
    }

    /// Takes the gradients of the whole weights on to A and B.
    pub(super) fn gather(&self, weights: &Weights) {
        for (name, change) in &self.changes {
            let gradient = weights.0[name].grad();
            if !gradient.defined() {
                continue;
            }
            // d⟨s·B·A, G⟩ is what A and B have of a loss whose gradient at the whole weight is G.
            let change = change.b.matmul(&change.a) * self.scale(); // (out, in)
            (change * gradient.detach()).sum(Kind::Float).backward();
            let _guard = no_grad_guard();
            let _ = weights.0[name].grad().zero_();
        }
    }

    /// Makes the whole weights anew.
    pub(super) fn merge(&self, weights: &Weights) {
        let _guard = no_grad_guard();
        for (name, change) in &self.changes {
            let mut whole = weights.0[name].shallow_clone();
            whole.copy_(&(&change.base + change.b.matmul(&change.a) * self.scale()));
        }
    }

    /// Writes the change by itself, as PEFT reads it, into a folder of a checkpoint.
    pub(super) fn write(
        &self,
        checkpoint: &Path,
        base: &str,
        head: Head,
        weights: &Weights,
    ) -> Result<(), TrainError> {
        let dir = checkpoint.join(ADAPTER);
        let file = |source| TrainError::File { path: dir.clone(), source };
        std::fs::create_dir(&dir).map_err(file)?;
        let mut tensors = BTreeMap::new();
        for (name, change) in &self.changes {
            let path = name.strip_suffix(".weight").expect("it was chosen by its ending");
            for (part, tensor) in [("lora_A", &change.a), ("lora_B", &change.b)] {
                let name = format!("base_model.model.{path}.{part}.weight");
                tensors.insert(name, tensor.shallow_clone());
            }
        }
        if let Some(score) = weights.0.get(SCORE) {
            tensors.insert(format!("base_model.model.{SCORE}"), score.shallow_clone());
        }
        let tensors = Weights(tensors).to_safetensors().map_err(refused)?;
        let (task, whole) = match head {
            Head::Lm => ("CAUSAL_LM", json!(null)),
            Head::Score => ("SEQ_CLS", json!(["classifier", "score"])),
        };
        let config = json!({
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": base,
            "r": self.settings.r,
            "lora_alpha": self.settings.alpha,
            "target_modules": self.settings.target_modules,
            "modules_to_save": whole,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "inference_mode": true,
        });
        std::fs::write(dir.join("adapter_model.safetensors"), tensors).map_err(file)?;
        std::fs::write(dir.join("adapter_config.json"), format!("{config:#}\n")).map_err(file)
    }

    /// Puts other numbers in place of a change's.
    #[cfg(test)]
    pub(super) fn set(&self, name: &str, a: &Tensor, b: &Tensor) {
        let _guard = no_grad_guard();
        let change = &self.changes[name];
        let (mut own_a, mut own_b) = (change.a.shallow_clone(), change.b.shallow_clone());
        own_a.copy_(a);
        own_b.copy_(b);
    }
}

impl Change {
    fn new(name: &str, weight: &Tensor, r: usize, seed: u64) -> Change {
        let (rows, columns) = weight.size2().expect("it has two dimensions");
        let (r, device) = (r as i64, weight.device());
        // Uniform in ±1/√in: what Kaiming's rule with a = √5 comes to, as in PEFT.
        let bound = 1.0 / (columns as f64).sqrt();
        let key = KeyHasher::new("amend/lora/1").u64(seed).text(name).call_key();
        let mut random = ChaCha8Rng::from_seed(key.0);
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64; // [0, 1)
        let a: Vec<f32> =
            (0..r * columns).map(|_| ((2.0 * uniform() - 1.0) * bound) as f32).collect();
        Change {
            base: weight.detach().copy(),
            a: Tensor::from_slice(&a).view([r, columns]).to_device(device).set_requires_grad(true),
            b: Tensor::zeros([rows, r], (Kind::Float, device)).set_requires_grad(true),
        }
    }
}
