//! A Llama: embeddings, blocks, a norm and a head.

use tch::{Device, Kind, Tensor};

use super::block::{Block, HeadShape, Linear, Linears, Norm, View};
use super::config::{Head, LlamaConfig};
use super::error::TorchError;
use super::rope::Rope;
use super::weights::Weights;

/// A model whose parameters are the tensors it was made of: gradients flow into them.
///
/// Shapes: B rows, T tokens, C hidden, V vocabulary.
pub struct Llama {
    /// Its shape.
    pub config: LlamaConfig,
    /// The kind it computes in; norms, softmax and logits are f32.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    pub(super) blocks: Vec<Block>,
    pub(super) rope: Rope,
    embeddings: Tensor, // (V, C)
    norm: Norm,
    /// `lm_head.weight`, which may be the embeddings, or `score.weight`.
    head: Tensor, // (V or 1, C)
}

impl Llama {
    /// A model of these weights. A weight of another kind or device is converted, in a way that
    /// gradients flow back through; others are shared.
    pub fn new(
        config: &LlamaConfig,
        weights: &Weights,
        kind: Kind,
        device: Device,
    ) -> Result<Llama, TorchError> {
        let get = |name: &str| -> Result<Tensor, TorchError> {
            let weight = weights.get(name)?;
            Ok(weight.f_to_device(device)?.f_to_kind(kind)?)
        };
        let norm = |name: String| -> Result<Norm, TorchError> {
            Ok(Norm { weight: get(&format!("{name}.weight"))?, eps: config.rms_norm_eps })
        };
        let linear = |name: String, bias: bool| -> Result<Linear, TorchError> {
            let bias = if bias { Some(get(&format!("{name}.bias"))?) } else { None };
            Ok(Linear { weight: get(&format!("{name}.weight"))?, bias })
        };
        let linears = |layer: &str, names: &[&str], bias: bool| -> Result<Linears, TorchError> {
            let apart = names.iter().map(|name| linear(format!("{layer}.{name}"), bias));
            Ok(Linears::Apart(apart.collect::<Result<_, _>>()?))
        };
        let block = |index: i64| -> Result<Block, TorchError> {
            let layer = format!("model.layers.{index}");
            let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            Ok(Block {
                input_norm: norm(format!("{layer}.input_layernorm"))?,
                query_key_value: linears(&layer, &attention, config.attention_bias)?,
                output: linear(format!("{layer}.self_attn.o_proj"), config.attention_bias)?,
                post_attention_norm: norm(format!("{layer}.post_attention_layernorm"))?,
                gate_up: linears(&layer, &["mlp.gate_proj", "mlp.up_proj"], config.mlp_bias)?,
                down: linear(format!("{layer}.mlp.down_proj"), config.mlp_bias)?,
                shape: HeadShape::of(config),
            })
        };
        let embeddings = get("model.embed_tokens.weight")?;
        let head = match config.head {
            Head::Lm if config.tie_word_embeddings => embeddings.shallow_clone(),
            Head::Lm => get("lm_head.weight")?,
            Head::Score => get("score.weight")?,
        };
        Ok(Llama {
            blocks: (0..config.num_hidden_layers).map(block).collect::<Result<_, _>>()?,
            rope: Rope::new(config, kind, device),
            embeddings,
            norm: norm("model.norm".to_owned())?,
            head,
            kind,
            device,
            config: config.clone(),
        })
    }

    /// The same model with stacked projections, for running without gradients.
    ///
    /// The stacked ones are copies: after a training step, stack again.
    #[must_use]
    pub fn stacked(&self) -> Llama {
        let block = |block: &Block| Block {
            input_norm: block.input_norm.shallow_clone(),
            query_key_value: block.query_key_value.stack(),
            output: block.output.shallow_clone(),
            post_attention_norm: block.post_attention_norm.shallow_clone(),
            gate_up: block.gate_up.stack(),
            down: block.down.shallow_clone(),
            shape: block.shape,
        };
        let _guard = tch::no_grad_guard();
        Llama {
            blocks: self.blocks.iter().map(block).collect(),
            rope: Rope::new(&self.config, self.kind, self.device),
            embeddings: self.embeddings.shallow_clone(),
            norm: self.norm.shallow_clone(),
            head: self.head.shallow_clone(),
            kind: self.kind,
            device: self.device,
            config: self.config.clone(),
        }
    }

    /// What the head sees, for rows that begin at position 0 and are padded on the right.
    ///
    /// What stands at padding is of no meaning, and reaches no token before it.
    pub fn hidden(&self, ids: &Tensor) -> Tensor {
        let tokens = ids.size()[1];
        let mask = self.causal_mask(tokens);
        self.run(self.embed(ids), &self.rope.first(tokens), &mask, None) // (B, T, C)
    }

    /// The same by the fused kernel of attention, for training: faster, and its memory grows with
    /// T and not with T²; but a row's last bits depend on its neighbours.
    pub fn hidden_fused(&self, ids: &Tensor) -> Tensor {
        let rotation = self.rope.first(ids.size()[1]);
        let run =
            |x: Tensor, block: &Block| block.forward(&x, &rotation, View::Fused { mask: None });
        self.finish(&self.blocks.iter().fold(self.embed(ids), run)) // (B, T, C)
    }

    /// The same for sequences that several rows share: with each token's position in its row (B, T)
    /// and a mask (B, 1, T, T) that is true where a token sees another.
    pub fn hidden_shared(&self, ids: &Tensor, positions: &Tensor, mask: &Tensor) -> Tensor {
        let rotation = self.rope.at(positions);
        let run = |x: Tensor, block: &Block| {
            block.forward(&x, &rotation, View::Fused { mask: Some(mask) })
        };
        self.finish(&self.blocks.iter().fold(self.embed(ids), run)) // (B, T, C)
    }

    /// What the head sees, with positions (B, T) and an additive mask (B or 1, 1, T, T).
    pub fn hidden_at(&self, ids: &Tensor, positions: &Tensor, mask: &Tensor) -> Tensor {
        self.run(self.embed(ids), &self.rope.at(positions), mask, None) // (B, T, C)
    }

    /// Logits in f32 over the vocabulary, of hidden states (…, C).
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        debug_assert_eq!(self.config.head, Head::Lm, "a preference model has no logits");
        hidden.linear(&self.head, None::<&Tensor>).to_kind(Kind::Float) // (…, V)
    }

    /// Scores in f32, one for each hidden state (…, C).
    ///
    /// A product and a sum: a matrix product with one column is another kernel for other rows.
    pub fn scores(&self, hidden: &Tensor) -> Tensor {
        debug_assert_eq!(self.config.head, Head::Score, "a language model has no scores");
        let weight = self.head.select(0, 0).to_kind(Kind::Float); // (C)
        (hidden.to_kind(Kind::Float) * weight).sum_dim_intlist(-1, false, Kind::Float) // (…)
    }

    /// An additive mask in which a token sees itself and those before it.
    pub fn causal_mask(&self, tokens: i64) -> Tensor {
        Tensor::full([tokens, tokens], f64::NEG_INFINITY, (self.kind, self.device))
            .triu(1)
            .view([1, 1, tokens, tokens])
    }

    /// An additive causal mask for rows padded anywhere, from a mask (B, T) that is 0 at padding.
    pub fn padding_mask(&self, attention_mask: &Tensor) -> Tensor {
        let (_, tokens) = attention_mask.size2().expect("a mask has rows and tokens");
        let real = attention_mask.to_device(self.device).ne(0).view([-1, 1, 1, tokens]);
        // Padding sees itself, so that no softmax is over nothing.
        let itself = Tensor::eye(tokens, (Kind::Bool, self.device)).view([1, 1, tokens, tokens]);
        let visible = real.logical_or(&itself);
        self.causal_mask(tokens)
            .where_self(&visible, &Tensor::full([], f64::NEG_INFINITY, (self.kind, self.device))) // (B, 1, T, T)
    }

    /// Whether products of this model's shapes give a row the same bits among 8 rows and among 64.
    ///
    /// It holds on every CPU that was tried; kernels are chosen by the CPU, so it is asked.
    pub fn ignores_neighbours(&self) -> bool {
        let _guard = tch::no_grad_guard();
        let config = &self.config;
        let same = |width: i64, product: &dyn Fn(&Tensor) -> Tensor| {
            let x = Tensor::arange(64 * width, (Kind::Float, self.device)).sin();
            let x = x.view([64, width]).to_kind(self.kind);
            product(&x).narrow(0, 24, 8).equal(&product(&x.narrow(0, 24, 8)))
        };
        let of_block = |block: &Block| {
            let cat = |linears: &Linears, x: &Tensor| Tensor::cat(&linears.forward(x), -1);
            same(config.hidden_size, &|x| cat(&block.query_key_value, x))
                && same(config.hidden_size, &|x| cat(&block.gate_up, x))
                && same(config.num_attention_heads * config.head_dim, &|x| block.output.forward(x))
                && same(config.intermediate_size, &|x| block.down.forward(x))
        };
        self.blocks.first().is_none_or(of_block)
            && same(config.hidden_size, &|x| x.linear(&self.head, None::<&Tensor>))
    }

    pub(super) fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embeddings, ids, -1, false, false) // (B, T, C)
    }

    pub(super) fn finish(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// The blocks over whole sequences; `keep` takes the keys and values of each.
    pub(super) fn run(
        &self,
        mut x: Tensor,
        rotation: &super::rope::Rotation,
        mask: &Tensor,
        mut keep: Option<&mut Vec<(Tensor, Tensor)>>,
    ) -> Tensor {
        for block in &self.blocks {
            let view = View::Sequence { mask, keep: keep.as_deref_mut() };
            x = block.forward(&x, rotation, view);
        }
        self.finish(&x) // (B, T, C)
    }
}
