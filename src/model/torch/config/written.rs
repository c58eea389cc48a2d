//! `config.json` as it is written, before it is checked: one type for all families, by their aliases.

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Kind;

use super::family::{Family, Windows};
use super::{Activation, Head, Layer, RopeConfig, RopeScaling};

/// No size in a config is larger: what a damaged file says must not be tried.
const SIZE_MAX: i64 = 1 << 24;

/// The most layers.
const LAYERS_MAX: i64 = 1024;

#[derive(Deserialize)]
pub(super) struct Written {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    pub(super) model_type: String,
    pub(super) vocab_size: i64,
    #[serde(alias = "n_embd")]
    pub(super) hidden_size: i64,
    #[serde(alias = "n_inner")]
    pub(super) intermediate_size: Option<i64>,
    #[serde(alias = "n_layer")]
    pub(super) num_hidden_layers: i64,
    #[serde(alias = "n_head")]
    pub(super) num_attention_heads: i64,
    pub(super) num_key_value_heads: Option<i64>,
    pub(super) head_dim: Option<i64>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: Option<usize>,
    #[serde(alias = "rms_norm_eps", alias = "layer_norm_eps", alias = "layer_norm_epsilon")]
    pub(super) norm_eps: Option<f64>,
    #[serde(alias = "rotary_emb_base")]
    rope_theta: Option<f64>,
    #[serde(alias = "rotary_pct")]
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<WrittenRope>,
    rope_parameters: Option<WrittenRope>,
    no_rope_layers: Option<Vec<i64>>,
    no_rope_layer_interval: Option<usize>,
    pub(super) sliding_window: Option<i64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(alias = "activation_function")]
    hidden_act: Option<String>,
    use_parallel_residual: Option<bool>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) bos_token_id: Option<i64>,
    pub(super) eos_token_id: Option<TokenIds>,
    pub(super) pad_token_id: Option<i64>,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    num_labels: Option<usize>,
    id2label: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct WrittenRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// One token or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

impl TokenIds {
    pub(crate) fn into_vec(self) -> Vec<i64> {
        match self {
            TokenIds::One(id) => vec![id],
            TokenIds::Many(ids) => ids,
        }
    }
}

impl Written {
    /// Refuses sizes that no model has, before anything is made of them.
    pub(super) fn check_sizes(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size, SIZE_MAX),
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("intermediate_size", self.intermediate_size.unwrap_or(1), SIZE_MAX),
            ("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX),
            ("num_attention_heads", self.num_attention_heads, SIZE_MAX),
            ("num_key_value_heads", self.num_key_value_heads.unwrap_or(1), SIZE_MAX),
            ("head_dim", self.head_dim.unwrap_or(1), SIZE_MAX),
            (
                "max_position_embeddings",
                i64::try_from(self.max_position_embeddings.unwrap_or(1)).unwrap_or(i64::MAX),
                SIZE_MAX,
            ),
        ];
        for (name, size, size_max) in sizes {
            if !(1..=size_max).contains(&size) {
                return Err(format!("\"{name}\" is {size}; it is between 1 and {size_max}"));
            }
        }
        Ok(())
    }

    pub(super) fn head(&self, family: &Family) -> Result<Head, String> {
        let labels = self.num_labels.or(self.id2label.as_ref().map(Map::len));
        let architecture = self.architectures.as_ref().and_then(|names| names.first());
        match architecture.map_or(family.language_model, String::as_str) {
            name if name == family.language_model => Ok(Head::Lm),
            name if name == family.preference_model => match labels {
                Some(1) => Ok(Head::Score),
                _ => Err(format!(
                    "a preference model has \"num_labels\": 1, not {}",
                    labels.map_or("none (which is 2)".to_owned(), |count| count.to_string())
                )),
            },
            other => Err(format!(
                "architecture {other:?} does not run in this process ({} and {} do): serve it and \
                 name it by `endpoint:`",
                family.language_model, family.preference_model
            )),
        }
    }

    pub(super) fn positions(&self, family: &Family) -> usize {
        self.max_position_embeddings.unwrap_or(family.defaults.max_position_embeddings)
    }

    pub(super) fn has_parallel_residual(&self, family: &Family) -> bool {
        // Only GPT-NeoX has the key, and there it is the default.
        family.model_type == "gpt_neox" && self.use_parallel_residual.unwrap_or(true)
    }

    pub(super) fn activation(&self, family: &Family) -> Result<Activation, String> {
        if self.scale_attn_weights == Some(false)
            || self.scale_attn_by_inverse_layer_idx == Some(true)
        {
            return Err(
                "attention is scaled in a way that does not run in this process: serve the \
                        model and name it by `endpoint:`"
                    .to_owned(),
            );
        }
        match self.hidden_act.as_deref().unwrap_or(family.defaults.activation) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(format!(
                "\"hidden_act\" is {other:?}, which does not run in this process (silu, gelu, \
                 gelu_new and relu do): serve the model and name it by `endpoint:`"
            )),
        }
    }

    pub(super) fn rope(
        &self,
        family: &Family,
        head_dim: i64,
    ) -> Result<Option<RopeConfig>, String> {
        if family.has_learned_positions {
            return Ok(None);
        }
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta);
        let rotated = rope.and_then(|rope| rope.partial_rotary_factor);
        let rotated = rotated.or(self.partial_rotary_factor).unwrap_or(family.defaults.rotated);
        Ok(Some(RopeConfig {
            theta: theta.unwrap_or(family.defaults.rope_theta),
            dim: (head_dim as f64 * rotated) as i64,
            scaling: rope.map_or(Ok(RopeScaling::None), WrittenRope::scaling)?,
        }))
    }

    pub(super) fn layers(&self, family: &Family) -> Result<Vec<Layer>, String> {
        let count = self.num_hidden_layers as usize;
        let is_rotated = |layer: usize| match (&self.no_rope_layers, self.interval(family)) {
            (Some(rotated), _) => rotated.get(layer).copied().unwrap_or(1) != 0,
            (None, 0) => true,
            (None, interval) => !(layer + 1).is_multiple_of(interval),
        };
        let has_window = self.sliding_window.is_some() && self.use_sliding_window != Some(false);
        let is_used = has_window && self.use_sliding_window == Some(true);
        let is_windowed = |layer: usize| match &self.layer_types {
            _ if family.windows == Windows::None => Ok(false),
            Some(types) => match types.get(layer).map(String::as_str) {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(has_window),
                Some(other) => Err(format!(
                    "\"layer_types\" has {other:?}, which does not run in this process: serve the \
                     model and name it by `endpoint:`"
                )),
                None => Err(format!("\"layer_types\" has {} of {count} layers", types.len())),
            },
            None => Ok(match family.windows {
                Windows::None => false,
                Windows::All => has_window,
                Windows::FromLayer => is_used && layer >= self.max_window_layers.unwrap_or(28),
                Windows::WithoutRope => is_used && !is_rotated(layer),
            }),
        };
        let layer =
            |layer| Ok(Layer { is_rotated: is_rotated(layer), is_windowed: is_windowed(layer)? });
        (0..count).map(layer).collect()
    }

    /// Every so many layers one is not rotated.
    fn interval(&self, family: &Family) -> usize {
        match family.defaults.no_rope_layer_interval {
            0 => 0,
            default => self.no_rope_layer_interval.unwrap_or(default),
        }
    }

    pub(super) fn dtype(&self) -> Result<Kind, String> {
        match self.dtype.as_deref().or(self.torch_dtype.as_deref()) {
            None | Some("float32") => Ok(Kind::Float),
            Some("bfloat16") => Ok(Kind::BFloat16),
            Some("float16") => Ok(Kind::Half),
            Some(other) => {
                Err(format!("\"dtype\" is {other:?}, not \"float32\", \"bfloat16\" or \"float16\""))
            }
        }
    }
}

impl WrittenRope {
    fn scaling(&self) -> Result<RopeScaling, String> {
        let name = self.rope_type.as_deref().unwrap_or("default");
        let need = |key: &str, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(format!("rope type {name:?} has {key:?} {value}")),
            None => Err(format!("rope type {name:?} needs {key:?}")),
        };
        match name {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: need("factor", self.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: need(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            other => Err(format!(
                "rope type {other:?} does not run in this process (default, linear and llama3 \
                 do): serve the model and name it by `endpoint:`"
            )),
        }
    }
}
