//! One block of a Llama: attention and a gated MLP, each behind a norm, each added.
//!
//! The same code reads whole sequences and single tokens with a cache, and is differentiable in
//! the first case. Attention is a product, a softmax and a product: the fused kernels give a row
//! other bits when its neighbours change.

use tch::{Kind, Tensor};

use super::config::LlamaConfig;
use super::rope::Rotation;

/// `y = x Wᵀ + b`.
pub(super) struct Linear {
    pub(super) weight: Tensor,       // (out, in)
    pub(super) bias: Option<Tensor>, // (out)
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// Several over the same input as one.
    fn stacked(linears: &[Linear]) -> Linear {
        let weights: Vec<&Tensor> = linears.iter().map(|linear| &linear.weight).collect();
        let biases: Option<Vec<&Tensor>> =
            linears.iter().map(|linear| linear.bias.as_ref()).collect();
        Linear {
            weight: Tensor::cat(&weights, 0),
            bias: biases.map(|biases| Tensor::cat(&biases, 0)),
        }
    }
}

/// Several linears over the same input: apart where each is trained, as one where they are run.
pub(super) enum Linears {
    Apart(Vec<Linear>),
    Stacked(Linear, Vec<i64>),
}

impl Linears {
    pub(super) fn stack(&self) -> Linears {
        match self {
            Linears::Apart(linears) => {
                let sizes = linears.iter().map(|linear| linear.weight.size()[0]).collect();
                Linears::Stacked(Linear::stacked(linears), sizes)
            }
            Linears::Stacked(linear, sizes) => {
                Linears::Stacked(linear.shallow_clone(), sizes.clone())
            }
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Vec<Tensor> {
        match self {
            Linears::Apart(linears) => linears.iter().map(|linear| linear.forward(x)).collect(),
            Linears::Stacked(linear, sizes) => {
                linear.forward(x).split_with_sizes(sizes.as_slice(), -1)
            }
        }
    }
}

impl Linear {
    pub(super) fn shallow_clone(&self) -> Linear {
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Linear { weight: self.weight.shallow_clone(), bias }
    }
}

/// Root mean square norm (Zhang and Sennrich 2019), computed in f32.
pub(super) struct Norm {
    pub(super) weight: Tensor, // (C)
    pub(super) eps: f64,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let x = x.to_kind(Kind::Float);
        let variance = x.square().mean_dim(-1, true, Kind::Float); // (…, 1)
        let normed = x * (variance + self.eps).rsqrt();
        normed.to_kind(kind) * &self.weight
    }

    pub(super) fn shallow_clone(&self) -> Norm {
        Norm { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

/// What the queries of a block may see.
pub(super) enum View<'a> {
    /// The keys of the same sequences, under an additive mask (B or 1, 1, T, T). The keys and
    /// values are kept where a cache will begin with them.
    Sequence { mask: &'a Tensor, keep: Option<&'a mut Vec<(Tensor, Tensor)>> },
    /// What comes before in the same sequences, or what a mask (B, 1, T, T) says, by the fused
    /// kernel: for training, where its speed and its memory count and the bits of a row may depend
    /// on its neighbours.
    Fused { mask: Option<&'a Tensor> },
    /// One token a row: its key and value are written to the cache, and it sees the first `count`.
    Cache(CacheView<'a>),
}

/// A block's cache as one step sees it.
pub(super) struct CacheView<'a> {
    pub(super) keys: &'a mut Tensor,   // (B·KV, S, D)
    pub(super) values: &'a mut Tensor, // (B·KV, S, D)
    /// Where each row and head writes, in the cache as (B·KV·S, D).
    pub(super) places: &'a Tensor, // (B·KV)
    /// How many keys are looked at.
    pub(super) count: i64,
    /// Additive, -∞ after a row's own position.
    pub(super) mask: &'a Tensor, // (B, 1, 1, count)
}

/// One block.
pub(super) struct Block {
    pub(super) input_norm: Norm,
    pub(super) query_key_value: Linears,
    pub(super) output: Linear,
    pub(super) post_attention_norm: Norm,
    pub(super) gate_up: Linears,
    pub(super) down: Linear,
    pub(super) shape: HeadShape,
}

/// How the heads divide the width.
#[derive(Clone, Copy)]
pub(super) struct HeadShape {
    heads: i64,
    key_heads: i64,
    dim: i64,
}

impl HeadShape {
    pub(super) fn of(config: &LlamaConfig) -> HeadShape {
        HeadShape {
            heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
            dim: config.head_dim,
        }
    }
}

impl Block {
    pub(super) fn forward(&self, x: &Tensor, rotation: &Rotation, view: View<'_>) -> Tensor {
        let attended = self.attend(&self.input_norm.forward(x), rotation, view);
        let x = x + attended; // (B, T, C)
        let gate_up = self.gate_up.forward(&self.post_attention_norm.forward(&x));
        let inner = gate_up[0].silu() * &gate_up[1]; // (B, T, I)
        &x + self.down.forward(&inner)
    }

    fn attend(&self, x: &Tensor, rotation: &Rotation, view: View<'_>) -> Tensor {
        let HeadShape { heads, key_heads, dim } = self.shape;
        let (rows, tokens, _) = x.size3().expect("the input of a block has three dimensions");
        let projected = self.query_key_value.forward(x);
        let query = rotation.apply(&projected[0].view([rows, tokens, heads, dim]));
        let key = rotation.apply(&projected[1].view([rows, tokens, key_heads, dim]));
        let value = projected[2].view([rows, tokens, key_heads, dim]);
        if let View::Fused { mask } = view {
            let context = self.weigh_fused(&query, &key, &value, mask); // (B, H, T, D)
            return self.output.forward(&context.transpose(1, 2).reshape([
                rows,
                tokens,
                heads * dim,
            ]));
        }
        // Heads that share a key are rows of one product.
        let query =
            query.transpose(1, 2).reshape([rows * key_heads, heads / key_heads * tokens, dim]);

        let context = match view {
            View::Fused { .. } => unreachable!("it was returned above"),
            View::Sequence { mask, keep } => {
                let key = key.transpose(1, 2).reshape([rows * key_heads, tokens, dim]);
                let value = value.transpose(1, 2).reshape([rows * key_heads, tokens, dim]);
                let context = self.weigh(&query, &key, &value, mask, rows);
                if let Some(kept) = keep {
                    kept.push((key, value));
                }
                context
            }
            View::Cache(cache) => {
                let flat = |cache: &Tensor| cache.view([-1, dim]);
                let _ = flat(cache.keys).index_copy_(0, cache.places, &key.reshape([-1, dim]));
                let _ = flat(cache.values).index_copy_(0, cache.places, &value.reshape([-1, dim]));
                let key = cache.keys.narrow(1, 0, cache.count); // (B·KV, S, D)
                let value = cache.values.narrow(1, 0, cache.count);
                self.weigh(&query, &key, &value, cache.mask, rows)
            }
        }; // (B, H, T, D)
        let context = context.transpose(1, 2).reshape([rows, tokens, heads * dim]);
        self.output.forward(&context)
    }

    /// The same over (B, T, H or KV, D), causal or as the mask says, by the fused kernel.
    fn weigh_fused(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let HeadShape { heads, key_heads, .. } = self.shape;
        let [query, key, value] = [query, key, value].map(|x| x.transpose(1, 2));
        let (is_causal, is_grouped) = (mask.is_none(), heads != key_heads);
        Tensor::scaled_dot_product_attention(
            &query, &key, &value, mask, 0.0, is_causal, None, is_grouped,
        )
    }

    /// softmax(q kᵀ / √d + mask) v.
    fn weigh(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: &Tensor,
        rows: i64,
    ) -> Tensor {
        let HeadShape { heads, key_heads, dim } = self.shape;
        let tokens = query.size()[1] * key_heads / heads;
        let scale = 1.0 / (dim as f64).sqrt();
        let scores = query.bmm(&key.transpose(1, 2)) * scale; // (B·KV, G·T, S)
        let scores = scores.view([rows, heads, tokens, -1]) + mask; // (B, H, T, S)
        let weights = scores.softmax(-1, Kind::Float).to_kind(value.kind());
        let weights = weights.view([rows * key_heads, heads / key_heads * tokens, -1]);
        weights.bmm(value).view([rows, heads, tokens, dim])
    }
}
