//! Families of models: what `config.json` calls them, what their weights are called, and in which of
//! a few named ways their blocks differ. One row each; there is no code of a family's own.

/// A family, as `model_type` of `config.json` names it.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) model_type: &'static str,
    /// The class of transformers with logits.
    pub(crate) language_model: &'static str,
    /// The class of transformers with one score.
    pub(crate) preference_model: &'static str,
    pub(crate) names: &'static Names,
    /// Norms with a mean and a bias; else by the root mean square.
    pub(crate) has_layer_norms: bool,
    /// A table of positions that are added to the embeddings; else rotations.
    pub(crate) has_learned_positions: bool,
    /// Queries and keys of each head have a norm before they are rotated.
    pub(crate) has_query_key_norms: bool,
    /// Linears are stored as (in, out), by a class called Conv1D.
    pub(crate) is_transposed: bool,
    pub(crate) query_key_value: Joined,
    pub(crate) biases: Biases,
    pub(crate) windows: Windows,
    pub(crate) defaults: Defaults,
}

/// What the parts are called in a checkpoint.
#[derive(Debug)]
pub(crate) struct Names {
    /// Before all but the head; a backbone saved alone goes without.
    pub(crate) backbone: &'static str,
    pub(crate) embeddings: &'static str,
    pub(crate) positions: &'static str,
    /// Before a layer's number.
    pub(crate) layers: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    pub(crate) input_norm: &'static str,
    pub(crate) query_key_value: &'static [&'static str],
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) output: &'static str,
    pub(crate) post_attention_norm: &'static str,
    /// Gate and up, or the one.
    pub(crate) up: &'static [&'static str],
    pub(crate) down: &'static str,
}

/// How the projections of queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// Each by itself.
    Apart,
    /// One after the other in one weight.
    Stacked,
    /// In one weight, head by head.
    ByHead,
}

/// Which linears have a bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Biases {
    pub(crate) query_key_value: Bias,
    pub(crate) output: Bias,
    pub(crate) mlp: Bias,
}

/// Whether a linear has a bias.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bias {
    Never,
    Always,
    /// As `attention_bias` says, or as here when it says nothing.
    Attention(bool),
    /// As `mlp_bias` says.
    Mlp,
}

/// Which layers see a window of `sliding_window` tokens only, where `layer_types` does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    None,
    /// All.
    All,
    /// With `use_sliding_window`, those from `max_window_layers` on.
    FromLayer,
    /// With `use_sliding_window`, those that do not rotate.
    WithoutRope,
}

/// What holds where `config.json` says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) activation: &'static str,
    pub(crate) norm_eps: f64,
    pub(crate) rope_theta: f64,
    /// The share of a head's dimensions that is rotated.
    pub(crate) rotated: f64,
    pub(crate) max_position_embeddings: usize,
    pub(crate) tie_word_embeddings: bool,
    /// Every so many layers one does not rotate; 0 is never.
    pub(crate) no_rope_layer_interval: usize,
}

const LLAMA_NAMES: Names = Names {
    backbone: "model",
    embeddings: "embed_tokens",
    positions: "",
    layers: "layers",
    norm: "norm",
    head: "lm_head",
    input_norm: "input_layernorm",
    query_key_value: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    output: "self_attn.o_proj",
    post_attention_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
};

const GPT2_NAMES: Names = Names {
    backbone: "transformer",
    embeddings: "wte",
    positions: "wpe",
    layers: "h",
    norm: "ln_f",
    head: "lm_head",
    input_norm: "ln_1",
    query_key_value: &["attn.c_attn"],
    query_norm: "",
    key_norm: "",
    output: "attn.c_proj",
    post_attention_norm: "ln_2",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
};

const GPT_NEOX_NAMES: Names = Names {
    backbone: "gpt_neox",
    embeddings: "embed_in",
    positions: "",
    layers: "layers",
    norm: "final_layer_norm",
    head: "embed_out",
    input_norm: "input_layernorm",
    query_key_value: &["attention.query_key_value"],
    query_norm: "",
    key_norm: "",
    output: "attention.dense",
    post_attention_norm: "post_attention_layernorm",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
};

const LLAMA: Family = Family {
    model_type: "llama",
    language_model: "LlamaForCausalLM",
    preference_model: "LlamaForSequenceClassification",
    names: &LLAMA_NAMES,
    has_layer_norms: false,
    has_learned_positions: false,
    has_query_key_norms: false,
    is_transposed: false,
    query_key_value: Joined::Apart,
    biases: Biases {
        query_key_value: Bias::Attention(false),
        output: Bias::Attention(false),
        mlp: Bias::Mlp,
    },
    windows: Windows::None,
    defaults: Defaults {
        activation: "silu",
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rotated: 1.0,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        no_rope_layer_interval: 0,
    },
};

/// The families that run here. SmolLM2 is a Llama, Pythia a GPT-NeoX.
pub(crate) const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mistral",
        language_model: "MistralForCausalLM",
        preference_model: "MistralForSequenceClassification",
        biases: Biases { query_key_value: Bias::Never, output: Bias::Never, mlp: Bias::Never },
        windows: Windows::All,
        defaults: Defaults { max_position_embeddings: 131_072, ..LLAMA.defaults },
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        language_model: "Qwen2ForCausalLM",
        preference_model: "Qwen2ForSequenceClassification",
        biases: Biases { query_key_value: Bias::Always, output: Bias::Never, mlp: Bias::Never },
        windows: Windows::FromLayer,
        defaults: Defaults { max_position_embeddings: 32_768, ..LLAMA.defaults },
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        language_model: "Qwen3ForCausalLM",
        preference_model: "Qwen3ForSequenceClassification",
        has_query_key_norms: true,
        biases: Biases { mlp: Bias::Never, ..LLAMA.biases },
        windows: Windows::FromLayer,
        defaults: Defaults { max_position_embeddings: 32_768, ..LLAMA.defaults },
        ..LLAMA
    },
    Family {
        model_type: "smollm3",
        language_model: "SmolLM3ForCausalLM",
        preference_model: "SmolLM3ForSequenceClassification",
        windows: Windows::WithoutRope,
        defaults: Defaults {
            rope_theta: 2_000_000.0,
            max_position_embeddings: 32_768,
            tie_word_embeddings: true,
            no_rope_layer_interval: 4,
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Family {
        model_type: "gpt2",
        language_model: "GPT2LMHeadModel",
        preference_model: "GPT2ForSequenceClassification",
        names: &GPT2_NAMES,
        has_layer_norms: true,
        has_learned_positions: true,
        is_transposed: true,
        query_key_value: Joined::Stacked,
        biases: Biases { query_key_value: Bias::Always, output: Bias::Always, mlp: Bias::Always },
        defaults: Defaults {
            activation: "gelu_new",
            norm_eps: 1e-5,
            max_position_embeddings: 1024,
            tie_word_embeddings: true,
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Family {
        model_type: "gpt_neox",
        language_model: "GPTNeoXForCausalLM",
        preference_model: "GPTNeoXForSequenceClassification",
        names: &GPT_NEOX_NAMES,
        has_layer_norms: true,
        query_key_value: Joined::ByHead,
        biases: Biases {
            query_key_value: Bias::Attention(true),
            output: Bias::Attention(true),
            mlp: Bias::Always,
        },
        defaults: Defaults { activation: "gelu", norm_eps: 1e-5, rotated: 0.25, ..LLAMA.defaults },
        ..LLAMA
    },
];

impl Family {
    /// The family of a `model_type`, or why it does not run here.
    pub(crate) fn of(model_type: &str) -> Result<&'static Family, String> {
        let found = FAMILIES.iter().find(|family| family.model_type == model_type);
        found.ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
            format!(
                "model type {model_type:?} does not run in this process ({} do): serve the model \
                 and name it by `endpoint:`",
                known.join(", ")
            )
        })
    }
}

impl Bias {
    /// Whether it is there, under what the config says.
    pub(crate) fn is_there(self, attention: Option<bool>, mlp: Option<bool>) -> bool {
        match self {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Attention(default) => attention.unwrap_or(default),
            Bias::Mlp => mlp.unwrap_or(false),
        }
    }
}
