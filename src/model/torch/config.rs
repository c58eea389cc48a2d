//! `config.json`: what is read of it, and all of it, to be written again.
//!
//! Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5
//! (`rope_parameters`, `dtype`). A config is written as it was read but for what changed.

mod family;
mod parameters;
mod written;

use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Kind;

pub(super) use family::{Family, Joined};
pub(super) use written::TokenIds;
use written::Written;

use super::error::TorchError;
use super::generation_config::GenerationConfig;
use crate::model::train::Scratch;

/// The file in a checkpoint's directory.
pub const CONFIG_FILE: &str = "config.json";

/// What stands on the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary: `LlamaForCausalLM` and its like.
    Lm,
    /// One number a position: `LlamaForSequenceClassification` and its like, with one label.
    Score,
}

/// Rotary position embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the wavelengths.
    pub theta: f64,
    /// How many dimensions of a head are rotated, from the first.
    pub dim: i64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How the frequencies of a rotary embedding are stretched for a longer context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// How much longer the context became.
        factor: f64,
    },
    /// Long waves and not short ones, as Llama 3.1 does.
    Llama3 {
        /// How much longer the context became.
        factor: f64,
        /// Wavelengths above the old context divided by this are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below the old context divided by this are left.
        high_freq_factor: f64,
        /// The old context.
        original_max_position_embeddings: f64,
    },
}

/// What the feed-forward layer applies to its inner values, or to the gate of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// By the error function.
    Gelu,
    /// By the hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// How one layer differs from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Whether queries and keys are rotated.
    pub is_rotated: bool,
    /// Whether a token sees only `sliding_window` tokens, itself among them.
    pub is_windowed: bool,
}

/// The shape of a model. Most field names are those of a Llama's `config.json`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are those of a Hugging Face config.json")]
pub struct TransformerConfig {
    pub head: Head,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    /// None where positions are learned.
    pub rope: Option<RopeConfig>,
    pub layers: Vec<Layer>,
    pub sliding_window: Option<i64>,
    pub activation: Activation,
    /// Attention and feed-forward layer read the same input, and both are added.
    pub has_parallel_residual: bool,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<i64>,
    /// The tokens that end a text; `generation_config.json` may name others.
    pub eos_token_ids: Vec<i64>,
    pub pad_token_id: Option<i64>,
    /// The kind of the weights as stored.
    pub dtype: Kind,
    pub(super) family: &'static Family,
    pub(super) has_biases: HasBiases,
    /// The whole file.
    raw: Map<String, Value>,
}

/// Which linears have a bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct HasBiases {
    pub(super) query_key_value: bool,
    pub(super) output: bool,
    pub(super) mlp: bool,
}

impl TransformerConfig {
    /// Reads `config.json` of a checkpoint's directory, and the end tokens that
    /// `generation_config.json` names.
    pub fn read(dir: &Path) -> Result<TransformerConfig, TorchError> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(TorchError::file(&path))?;
        let raw: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| TorchError::content(&path, error))?;
        let mut config = TransformerConfig::from_json(raw, &path)?;
        if let Some(eos) = GenerationConfig::read(dir)?.eos_token_ids() {
            config.eos_token_ids = eos;
        }
        Ok(config)
    }

    /// Takes the file's content; `path` is for messages.
    pub fn from_json(
        raw: Map<String, Value>,
        path: &Path,
    ) -> Result<TransformerConfig, TorchError> {
        let written: Written = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| TorchError::content(path, error))?;
        let config = TransformerConfig::from_written(written, raw);
        let config = config.and_then(|config| config.check().map(|()| config));
        config.map_err(|message| TorchError::content(path, message))
    }

    fn from_written(
        written: Written,
        raw: Map<String, Value>,
    ) -> Result<TransformerConfig, String> {
        let family = Family::of(&written.model_type)?;
        written.check_sizes()?;
        let heads = written.num_attention_heads;
        let head_dim = written.head_dim.unwrap_or(written.hidden_size / heads);
        let (attention, mlp) = (written.attention_bias, written.mlp_bias);
        Ok(TransformerConfig {
            head: written.head(family)?,
            vocab_size: written.vocab_size,
            hidden_size: written.hidden_size,
            intermediate_size: written.intermediate_size.unwrap_or(4 * written.hidden_size),
            num_attention_heads: heads,
            num_key_value_heads: written.num_key_value_heads.unwrap_or(heads),
            head_dim,
            max_position_embeddings: written.positions(family),
            norm_eps: written.norm_eps.unwrap_or(family.defaults.norm_eps),
            rope: written.rope(family, head_dim)?,
            layers: written.layers(family)?,
            sliding_window: written.sliding_window,
            activation: written.activation(family)?,
            has_parallel_residual: written.has_parallel_residual(family),
            tie_word_embeddings: written
                .tie_word_embeddings
                .unwrap_or(family.defaults.tie_word_embeddings),
            has_biases: HasBiases {
                query_key_value: family.biases.query_key_value.is_there(attention, mlp),
                output: family.biases.output.is_there(attention, mlp),
                mlp: family.biases.mlp.is_there(attention, mlp),
            },
            bos_token_id: written.bos_token_id,
            dtype: written.dtype()?,
            pad_token_id: written.pad_token_id,
            eos_token_ids: written.eos_token_id.map_or_else(Vec::new, TokenIds::into_vec),
            family,
            raw,
        })
    }

    /// The config of a model that begins at random weights, with one end and one padding token.
    pub fn scratch(
        shape: &Scratch,
        vocab_size: usize,
        bos: Option<i64>,
        eos: i64,
        pad: i64,
    ) -> TransformerConfig {
        let raw = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "dtype": "float32",
            "eos_token_id": eos,
            "head_dim": shape.hidden_size / shape.num_attention_heads.max(1),
            "hidden_act": "silu",
            "hidden_size": shape.hidden_size,
            "initializer_range": shape.initializer_range,
            "intermediate_size": shape.intermediate_size,
            "max_position_embeddings": shape.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": shape.num_attention_heads,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_key_value_heads": shape.num_key_value_heads,
            "pad_token_id": pad,
            "rms_norm_eps": 1e-6,
            "rope_parameters": { "rope_theta": shape.rope_theta, "rope_type": "default" },
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": vocab_size,
        });
        let Value::Object(raw) = raw else { unreachable!("the literal above is an object") };
        TransformerConfig::from_json(raw, Path::new("init: scratch"))
            .expect("`spec` has checked the shape of a model from scratch")
    }

    /// This backbone under another head. A preference model needs a padding token: readers find
    /// a row's last token by it.
    #[must_use]
    pub fn with_head(mut self, head: Head, pad_token_id: i64) -> TransformerConfig {
        self.set("architectures", json!([self.architecture(head)]));
        match head {
            Head::Lm => {
                for key in ["problem_type", "num_labels", "id2label", "label2id"] {
                    self.raw.remove(key);
                }
            }
            Head::Score => {
                self.set("problem_type", json!("regression"));
                self.set("num_labels", json!(1));
                self.set("id2label", json!({ "0": "LABEL_0" }));
                self.set("label2id", json!({ "LABEL_0": 0 }));
            }
        }
        self.set("pad_token_id", json!(pad_token_id));
        self.pad_token_id = Some(pad_token_id);
        self.head = head;
        self
    }

    fn architecture(&self, head: Head) -> &'static str {
        match head {
            Head::Lm => self.family.language_model,
            Head::Score => self.family.preference_model,
        }
    }

    /// Sets a key of the file that says nothing of the shape, such as `mean`.
    pub fn set(&mut self, key: &str, value: Value) {
        self.raw.insert(key.to_owned(), value);
    }

    /// A number in the file that says nothing of the shape, such as `mean`.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.raw.get(key)?.as_f64()
    }

    /// The file's text.
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(&self.raw).expect("its keys are text");
        text + "\n"
    }

    fn check(&self) -> Result<(), String> {
        if self.num_key_value_heads < 1 || self.num_attention_heads % self.num_key_value_heads != 0
        {
            return Err(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if self.family.query_key_value != Joined::Apart
            && (self.num_key_value_heads != self.num_attention_heads
                || self.num_attention_heads * self.head_dim != self.hidden_size)
        {
            return Err("\"num_attention_heads\" does not divide the width".to_owned());
        }
        if let Some(rope) = self.rope
            && (rope.dim < 2 || rope.dim % 2 != 0 || rope.dim > self.head_dim)
        {
            return Err(format!(
                "{} of the {} dimensions of a head are rotated; it must be an even number",
                rope.dim, self.head_dim
            ));
        }
        if self.head_dim < 1 || self.sliding_window.is_some_and(|window| window < 1) {
            return Err("sizes are positive".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[(&str, Value)]) -> Result<TransformerConfig, String> {
        let mut raw = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64,
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": 2,
        });
        for (key, value) in changes {
            raw[*key] = value.clone();
        }
        let Value::Object(raw) = raw else { unreachable!("an object") };
        TransformerConfig::from_json(raw, Path::new("c.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn both_dialects_of_transformers_are_read() {
        let four =
            config(&[("rope_theta", json!(5e5)), ("torch_dtype", json!("bfloat16"))]).unwrap();
        let five = config(&[
            ("rope_parameters", json!({ "rope_theta": 5e5, "rope_type": "default" })),
            ("dtype", json!("bfloat16")),
        ])
        .unwrap();
        assert_eq!((four.rope, four.dtype), (five.rope, five.dtype));
        assert_eq!(four.rope.map(|rope| rope.theta), Some(5e5));
        assert_eq!(config(&[("eos_token_id", json!([2, 3]))]).unwrap().eos_token_ids, [2, 3]);
    }

    #[test]
    fn what_does_not_run_here_is_said_with_the_file_and_a_way_out() {
        let message = config(&[("model_type", json!("mamba"))]).unwrap_err();
        assert!(message.starts_with("c.json: model type \"mamba\""), "{message}");
        assert!(message.contains("endpoint"), "{message}");
        let message = config(&[("rope_scaling", json!({ "type": "yarn" }))]).unwrap_err();
        assert!(message.contains("\"yarn\""), "{message}");
        let scorer = ("architectures", json!(["LlamaForSequenceClassification"]));
        let message = config(&[scorer]).unwrap_err();
        assert!(message.contains("num_labels"), "{message}");
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_before_anything_is_made_of_them() {
        for (key, size) in [
            ("num_hidden_layers", 1i64 << 60),
            ("vocab_size", 0),
            ("max_position_embeddings", i64::MAX),
            ("head_dim", -2),
        ] {
            let message = config(&[(key, json!(size))]).unwrap_err();
            assert!(message.contains(key), "{message}");
        }
        let message = config(&[("num_key_value_heads", json!(3))]).unwrap_err();
        assert!(message.contains("evenly"), "{message}");
    }

    #[test]
    fn layers_without_rotation_and_with_a_window_are_those_that_transformers_takes() {
        let layers = |changes: &[(&str, Value)]| -> (Vec<bool>, Vec<bool>) {
            let layers = [&[("num_hidden_layers", json!(4))], changes].concat();
            let config = config(&layers).unwrap();
            config.layers.iter().map(|layer| (layer.is_rotated, layer.is_windowed)).unzip()
        };
        let smollm3 = |more: &[(&str, Value)]| {
            let family = [
                ("model_type", json!("smollm3")),
                ("architectures", json!(["SmolLM3ForCausalLM"])),
                ("sliding_window", json!(8)),
            ];
            layers(&[&family, more].concat())
        };
        assert_eq!(smollm3(&[]), (vec![true, true, true, false], vec![false; 4]));
        let windowed = smollm3(&[("use_sliding_window", json!(true))]);
        assert_eq!(windowed.1, [false, false, false, true]);
        let written = smollm3(&[("no_rope_layers", json!([0, 1, 1, 0]))]);
        assert_eq!(written.0, [false, true, true, false]);

        let qwen2 = [
            ("model_type", json!("qwen2")),
            ("architectures", json!(["Qwen2ForCausalLM"])),
            ("sliding_window", json!(8)),
            ("max_window_layers", json!(2)),
        ];
        assert_eq!(layers(&qwen2).1, [false; 4], "a window that is not used");
        let used = ("use_sliding_window", json!(true));
        assert_eq!(layers(&[&qwen2[..], &[used]].concat()).1, [false, false, true, true]);
    }

    #[test]
    fn a_head_is_changed_and_the_rest_of_the_file_is_kept() {
        let scorer = config(&[("mine", json!("kept"))]).unwrap().with_head(Head::Score, 0);
        let Value::Object(raw) = serde_json::from_str(&scorer.json()).unwrap() else { panic!() };
        let back = TransformerConfig::from_json(raw, Path::new("c.json")).unwrap();
        assert_eq!((back.head, back.pad_token_id), (Head::Score, Some(0)));
        assert_eq!(back.raw["mine"], "kept");
        assert!(back.parameters().contains_key("score.weight"));
    }
}
