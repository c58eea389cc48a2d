//! `config.json` of a Llama: what is read of it, and all of it, to be written again.
//!
//! Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5
//! (`rope_parameters`, `dtype`). A config is written as it was read but for what changed.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::Kind;

use super::error::TorchError;
use crate::model::train::Scratch;

/// The file in a checkpoint's directory.
pub const CONFIG_FILE: &str = "config.json";

/// What stands on the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary: `LlamaForCausalLM`.
    Lm,
    /// One number a position: `LlamaForSequenceClassification` with one label.
    Score,
}

/// How the frequencies of the rotary embedding are stretched, as Llama 3.1 does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// How much longer the context became.
    pub factor: f64,
    /// Wavelengths above the old context divided by this are stretched whole.
    pub low_freq_factor: f64,
    /// Wavelengths below the old context divided by this are left.
    pub high_freq_factor: f64,
    /// The old context.
    pub original_max_position_embeddings: f64,
}

/// The shape of a Llama. Field names are those of `config.json`.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are those of a Hugging Face config.json")]
pub struct LlamaConfig {
    pub head: Head,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: i64,
    pub head_dim: i64,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<i64>,
    /// The tokens that end a text; `generation_config.json` may name others.
    pub eos_token_ids: Vec<i64>,
    pub pad_token_id: Option<i64>,
    /// The kind of the weights as stored.
    pub dtype: Kind,
    /// The whole file.
    raw: Map<String, Value>,
}

/// The fields as they are written, before they are checked.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "two_thousand")]
    max_position_embeddings: usize,
    #[serde(default = "one_millionth")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<WrittenRope>,
    rope_parameters: Option<WrittenRope>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    bos_token_id: Option<i64>,
    eos_token_id: Option<TokenIds>,
    pad_token_id: Option<i64>,
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
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

fn two_thousand() -> usize {
    2048
}

fn one_millionth() -> f64 {
    1e-6
}

impl LlamaConfig {
    /// Reads `config.json` of a checkpoint's directory, and the end tokens that
    /// `generation_config.json` names.
    pub fn read(dir: &Path) -> Result<LlamaConfig, TorchError> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(TorchError::file(&path))?;
        let raw: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| TorchError::content(&path, error))?;
        let mut config = LlamaConfig::from_json(raw, &path)?;
        if let Some(eos) = read_generation_eos(dir)? {
            config.eos_token_ids = eos;
        }
        Ok(config)
    }

    /// Takes the file's content; `path` is for messages.
    pub fn from_json(raw: Map<String, Value>, path: &Path) -> Result<LlamaConfig, TorchError> {
        let written: Written = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| TorchError::content(path, error))?;
        let fault = |message: String| TorchError::content(path, message);
        let head = written.head().map_err(&fault)?;
        let (rope_theta, rope_scaling) = written.rope().map_err(&fault)?;
        let dtype = written.dtype().map_err(&fault)?;
        if written.num_attention_heads < 1 || written.hidden_size < 1 {
            return Err(fault("\"num_attention_heads\" and \"hidden_size\" are positive".into()));
        }
        let heads = written.num_attention_heads;
        let config = LlamaConfig {
            head,
            vocab_size: written.vocab_size,
            hidden_size: written.hidden_size,
            intermediate_size: written.intermediate_size,
            num_hidden_layers: written.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: written.num_key_value_heads.unwrap_or(heads),
            head_dim: written.head_dim.unwrap_or(written.hidden_size / heads),
            max_position_embeddings: written.max_position_embeddings,
            rms_norm_eps: written.rms_norm_eps,
            rope_theta,
            rope_scaling,
            attention_bias: written.attention_bias,
            mlp_bias: written.mlp_bias,
            tie_word_embeddings: written.tie_word_embeddings,
            bos_token_id: written.bos_token_id,
            eos_token_ids: written.eos_token_id.map_or_else(Vec::new, TokenIds::into_vec),
            pad_token_id: written.pad_token_id,
            dtype,
            raw,
        };
        config.check().map_err(fault)?;
        Ok(config)
    }

    /// The config of a model that begins at random weights, with one end and one padding token.
    pub fn scratch(
        shape: &Scratch,
        vocab_size: usize,
        bos: Option<i64>,
        eos: i64,
        pad: i64,
    ) -> LlamaConfig {
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
        LlamaConfig::from_json(raw, Path::new("init: scratch"))
            .expect("`spec` has checked the shape of a model from scratch")
    }

    /// This backbone under another head. A preference model needs a padding token: readers find
    /// a row's last token by it.
    #[must_use]
    pub fn with_head(mut self, head: Head, pad_token_id: i64) -> LlamaConfig {
        self.set("architectures", json!([architecture(head)]));
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

    /// Every parameter with its shape, by name.
    pub fn parameters(&self) -> BTreeMap<String, Vec<i64>> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let query = self.num_attention_heads * self.head_dim;
        let key = self.num_key_value_heads * self.head_dim;
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ]);
        match self.head {
            Head::Lm if self.tie_word_embeddings => {}
            Head::Lm => {
                shapes.insert("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]);
            }
            Head::Score => {
                shapes.insert("score.weight".to_owned(), vec![1, hidden]);
            }
        }
        let linears = [
            ("self_attn.q_proj", query, hidden, self.attention_bias),
            ("self_attn.k_proj", key, hidden, self.attention_bias),
            ("self_attn.v_proj", key, hidden, self.attention_bias),
            ("self_attn.o_proj", hidden, query, self.attention_bias),
            ("mlp.gate_proj", inner, hidden, self.mlp_bias),
            ("mlp.up_proj", inner, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inner, self.mlp_bias),
        ];
        for layer in 0..self.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.insert(format!("model.layers.{layer}.{norm}.weight"), vec![hidden]);
            }
            for (name, rows, columns, bias) in linears {
                shapes.insert(format!("model.layers.{layer}.{name}.weight"), vec![rows, columns]);
                if bias {
                    shapes.insert(format!("model.layers.{layer}.{name}.bias"), vec![rows]);
                }
            }
        }
        shapes
    }

    fn check(&self) -> Result<(), String> {
        if self.num_key_value_heads < 1 || self.num_attention_heads % self.num_key_value_heads != 0
        {
            return Err(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if self.head_dim < 2 || self.head_dim % 2 != 0 {
            return Err(format!(
                "\"head_dim\" is {}; rotary embeddings need an even one",
                self.head_dim
            ));
        }
        let sizes = [self.vocab_size, self.intermediate_size, self.num_hidden_layers];
        if sizes.iter().any(|&size| size < 1) || self.max_position_embeddings < 1 {
            return Err("sizes are positive".to_owned());
        }
        Ok(())
    }
}

impl Written {
    fn head(&self) -> Result<Head, String> {
        let architecture = self.architectures.first().map_or("LlamaForCausalLM", String::as_str);
        let labels = self.num_labels.or(self.id2label.as_ref().map(Map::len));
        match architecture {
            _ if self.model_type != "llama" => Err(format!(
                "model type {:?} does not run in this process yet (\"llama\" does): serve it and \
                 name it by `endpoint:`, or convert it",
                self.model_type
            )),
            "LlamaForCausalLM" => Ok(Head::Lm),
            "LlamaForSequenceClassification" if labels == Some(1) => Ok(Head::Score),
            "LlamaForSequenceClassification" => Err(format!(
                "a preference model has \"num_labels\": 1, not {}",
                labels.map_or("none (which is 2)".to_owned(), |count| count.to_string())
            )),
            other => Err(format!(
                "architecture {other:?} does not run in this process (LlamaForCausalLM and \
                 LlamaForSequenceClassification do): serve it and name it by `endpoint:`"
            )),
        }
        .and_then(|head| match self.hidden_act.as_deref() {
            None | Some("silu") => Ok(head),
            Some(other) => Err(format!("\"hidden_act\" is {other:?}; only \"silu\" runs here")),
        })
    }

    fn rope(&self) -> Result<(f64, Option<RopeScaling>), String> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let Some(rope) = rope else { return Ok((theta, None)) };
        match rope.rope_type.as_deref() {
            None | Some("default") => Ok((theta, None)),
            Some("llama3") => {
                let need = |name: &str, value: Option<f64>| {
                    value.ok_or_else(|| format!("rope type \"llama3\" needs {name:?}"))
                };
                let original = rope.original_max_position_embeddings;
                let scaling = RopeScaling {
                    factor: need("factor", rope.factor)?,
                    low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
                    high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
                    original_max_position_embeddings: need(
                        "original_max_position_embeddings",
                        original,
                    )?,
                };
                Ok((theta, Some(scaling)))
            }
            Some(other) => Err(format!(
                "rope type {other:?} does not run in this process (\"default\" and \"llama3\" do): \
                 serve the model and name it by `endpoint:`"
            )),
        }
    }

    fn dtype(&self) -> Result<Kind, String> {
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

impl TokenIds {
    fn into_vec(self) -> Vec<i64> {
        match self {
            TokenIds::One(id) => vec![id],
            TokenIds::Many(ids) => ids,
        }
    }
}

fn architecture(head: Head) -> &'static str {
    match head {
        Head::Lm => "LlamaForCausalLM",
        Head::Score => "LlamaForSequenceClassification",
    }
}

/// The end tokens of `generation_config.json`: a chat model often has several, and its
/// `config.json` names one.
fn read_generation_eos(dir: &Path) -> Result<Option<Vec<i64>>, TorchError> {
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<TokenIds>,
    }
    let path = dir.join("generation_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TorchError::file(path)(error)),
    };
    let generation: Generation =
        serde_json::from_str(&text).map_err(|error| TorchError::content(&path, error))?;
    Ok(generation.eos_token_id.map(TokenIds::into_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[(&str, Value)]) -> Result<LlamaConfig, String> {
        let mut raw = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64,
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": 2,
        });
        for (key, value) in changes {
            raw[*key] = value.clone();
        }
        let Value::Object(raw) = raw else { unreachable!("an object") };
        LlamaConfig::from_json(raw, Path::new("c.json")).map_err(|error| error.to_string())
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
        assert_eq!((four.rope_theta, four.dtype), (five.rope_theta, five.dtype));
        assert_eq!(config(&[("eos_token_id", json!([2, 3]))]).unwrap().eos_token_ids, [2, 3]);
    }

    #[test]
    fn what_does_not_run_here_is_said_with_the_file_and_a_way_out() {
        let message = config(&[("model_type", json!("qwen2"))]).unwrap_err();
        assert!(message.starts_with("c.json: model type \"qwen2\""), "{message}");
        assert!(message.contains("endpoint"), "{message}");
        let message = config(&[("rope_scaling", json!({ "type": "yarn" }))]).unwrap_err();
        assert!(message.contains("\"yarn\""), "{message}");
        let scorer = ("architectures", json!(["LlamaForSequenceClassification"]));
        let message = config(&[scorer]).unwrap_err();
        assert!(message.contains("num_labels"), "{message}");
    }

    #[test]
    fn a_head_is_changed_and_the_rest_of_the_file_is_kept() {
        let scorer = config(&[("mine", json!("kept"))]).unwrap().with_head(Head::Score, 0);
        let Value::Object(raw) = serde_json::from_str(&scorer.json()).unwrap() else { panic!() };
        let back = LlamaConfig::from_json(raw, Path::new("c.json")).unwrap();
        assert_eq!((back.head, back.pad_token_id), (Head::Score, Some(0)));
        assert_eq!(back.raw["mine"], "kept");
        assert!(back.parameters().contains_key("score.weight"));
    }
}
