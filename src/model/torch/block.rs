//! One block: attention and a feed-forward layer, each behind a norm, each added.
//!
//! Families differ in what the fields hold ([`Family`](super::config)), not in code. The same code
//! reads whole sequences, sequences after a past, and single tokens with a cache, and is
//! differentiable in the first case. Attention is a product, a softmax and a product: the fused
//! kernels give a row other bits when its neighbours change.

use amend_kernels::{Pass, Sight};
use tch::{Device, Kind, Tensor};

use super::config::{Activation, TransformerConfig};
use super::linear::{Linear, Linears};
use super::rope::Rotation;
use super::{fused, kernels};

/// Keys of a cache are looked at in multiples of so many. With fewer, the products of small models
/// are so small that another kernel takes them.
pub(super) const KEYS_STEP: i64 = 64;

/// The longest sequences whose attention is computed apart where that is quicker.
const TOKENS_APART_MAX: i64 = 256;

/// A norm, computed in f32: by the root mean square (Zhang and Sennrich 2019), or with a bias by
/// mean and variance (Ba et al. 2016).
pub(super) struct Norm {
    pub(super) weight: Tensor,       // (C)
    pub(super) bias: Option<Tensor>, // (C)
    pub(super) eps: f64,
    /// It is only run, where there are kernels for it.
    pub(super) is_packed: bool,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        if self.bias.is_some() {
            let width = self.weight.size();
            return x.layer_norm(width, Some(&self.weight), self.bias.as_ref(), self.eps, false);
        }
        if self.is_packed {
            return kernels::normalise(x, &self.weight, self.eps);
        }
        let kind = x.kind();
        if kernels::are_for(kind, x.device()) {
            return fused::norm(x, &self.weight, self.eps);
        }
        let x = x.to_kind(Kind::Float);
        // By the length of x, which is read once; its square would be written and read again.
        let width = x.size().last().copied().unwrap_or(1) as f64;
        let length = x.norm_scalaropt_dim(2, [-1], true); // (…, 1)
        let normed = x * (length.square() / width + self.eps).rsqrt();
        normed.to_kind(kind) * &self.weight
    }

    /// The same, to be run without gradients.
    pub(super) fn ready(&self) -> Norm {
        let is_packed = kernels::are_for(self.weight.kind(), self.weight.device());
        let kind = if is_packed { Kind::Float } else { self.weight.kind() };
        let ready = |x: &Tensor| x.to_kind(kind).contiguous();
        let (weight, bias) = (ready(&self.weight), self.bias.as_ref().map(ready));
        Norm { weight, bias, eps: self.eps, is_packed }
    }
}

/// What queries may see of keys: additive, -∞ where they may not.
pub(super) struct Mask {
    pub(super) full: Tensor, // (B or 1, 1, T, S)
    /// The same for layers that see a window, where there are any.
    pub(super) windowed: Option<Tensor>,
}

impl Mask {
    fn of(&self, is_windowed: bool) -> &Tensor {
        self.windowed.as_ref().filter(|_| is_windowed).unwrap_or(&self.full)
    }
}

/// Keys and values of one block.
pub(super) type KeysValues = (Tensor, Tensor); // (B or 1, KV, S, D) each

/// What the queries of a block may see.
pub(super) enum View<'a> {
    /// What came before, if anything did, and the keys of the same sequences. The new keys and
    /// values are kept where others will come after them.
    Sequence { mask: &'a Mask, past: Option<&'a KeysValues>, keep: Option<&'a mut Vec<KeysValues>> },
    /// What comes before in the same sequences, or what a mask says, by the fused kernel: for
    /// training, where its speed and its memory count and the bits of a row may depend on its
    /// neighbours. With a mask, short sequences in 16 bits are not: see [`is_quick_apart`].
    Fused {
        mask: Option<&'a Mask>,
        /// Of which tokens the block's result is wanted, if not of all: places among all tokens of
        /// all sequences. The result is then one sequence of them.
        wanted: Option<&'a Tensor>, // (N)
    },
    /// One token a row: its key and value are written to the cache, and it sees the first `count`.
    Cache(CacheView<'a>),
    /// The next tokens of many texts, one after the other in one row.
    Pages(PagesView<'a>),
}

/// What the tokens of a pass see at one block.
pub(super) struct PagesView<'a> {
    pub(super) pass: &'a mut Pass,
    pub(super) layer: usize,
    pub(super) sights: &'a Sights,
    /// Of which tokens the block's result is wanted, if not of all; the others' keys and values are
    /// kept alike.
    pub(super) wanted: Option<&'a Tensor>, // (M)
}

/// What the tokens of a pass see.
pub(super) struct Sights {
    pub(super) full: Vec<Sight>,
    /// The same for layers that see a window, where there are any.
    pub(super) windowed: Option<Vec<Sight>>,
}

/// A block's cache as one step sees it.
pub(super) struct CacheView<'a> {
    pub(super) keys: &'a mut Tensor,   // (B·KV, S, D)
    pub(super) values: &'a mut Tensor, // (B·KV, S, D)
    /// Where each row and head writes, in the cache as (B·KV·S, D).
    pub(super) places: &'a Tensor, // (B·KV)
    /// How many keys are looked at.
    pub(super) count: i64,
    /// (B, 1, 1, count)
    pub(super) mask: &'a Mask,
}

impl PagesView<'_> {
    /// Heads (1, N, H or KV, D) of the tokens of a pass: their context (1, N, H, D).
    fn attend(self, query: &Tensor, key: &Tensor, value: &Tensor, is_windowed: bool) -> Tensor {
        let sights = self.sights.windowed.as_ref().filter(|_| is_windowed);
        let sights = sights.unwrap_or(&self.sights.full);
        let (query, key, value) = (query.contiguous(), key.contiguous(), value.contiguous());
        let [query_numbers, key, value] = [&query, &key, &value].map(kernels::floats);
        kernels::filled(&query.size(), |context| {
            self.pass.attend(self.layer, query_numbers, key, value, sights, context);
        })
    }
}

/// One block.
pub(super) struct Block {
    pub(super) input_norm: Norm,
    pub(super) query_key_value: Linears,
    /// Norms of each head's queries and keys.
    pub(super) query_key_norms: Option<(Norm, Norm)>,
    pub(super) output: Linear,
    pub(super) post_attention_norm: Norm,
    /// The gate and what it lets through, or what is activated itself.
    pub(super) up: Linears,
    pub(super) down: Linear,
    pub(super) shape: BlockShape,
}

/// How the heads divide the width, and what is named in a config.
#[derive(Clone, Copy)]
pub(super) struct BlockShape {
    heads: i64,
    key_heads: i64,
    dim: i64,
    activation: Activation,
    is_rotated: bool,
    is_windowed: bool,
    is_parallel: bool,
}

impl BlockShape {
    pub(super) fn of(config: &TransformerConfig, layer: usize) -> BlockShape {
        BlockShape {
            heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
            dim: config.head_dim,
            activation: config.activation,
            is_rotated: config.layers[layer].is_rotated,
            is_windowed: config.layers[layer].is_windowed,
            is_parallel: config.has_parallel_residual,
        }
    }
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu("none"),
            Activation::GeluTanh => x.gelu("tanh"),
            Activation::Relu => x.relu(),
        }
    }
}

impl Block {
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rotation: Option<&Rotation>,
        view: View<'_>,
    ) -> Tensor {
        let wanted = match &view {
            View::Pages(PagesView { wanted, .. }) | View::Fused { wanted, .. } => {
                wanted.map(|wanted| chosen(x, wanted))
            }
            _ => None,
        };
        let attended = self.attend(&self.input_norm.forward(x), rotation, view);
        let x = wanted.as_ref().unwrap_or(x);
        if self.shape.is_parallel {
            return x + attended + self.feed(&self.post_attention_norm.forward(x));
        }
        let x = x + attended; // (B, T, C)
        &x + self.feed(&self.post_attention_norm.forward(&x))
    }

    /// The same block with stacked projections, to be run without gradients.
    pub(super) fn stacked(&self) -> Block {
        let norms = self.query_key_norms.as_ref();
        Block {
            input_norm: self.input_norm.ready(),
            query_key_value: self.query_key_value.stack(),
            query_key_norms: norms.map(|(query, key)| (query.ready(), key.ready())),
            output: self.output.ready(),
            post_attention_norm: self.post_attention_norm.ready(),
            up: self.up.stack(),
            down: self.down.ready(),
            shape: self.shape,
        }
    }

    fn feed(&self, x: &Tensor) -> Tensor {
        let is_silu = self.shape.activation == Activation::Silu;
        if let Some(pair) = self.up.packed_pair().filter(|_| is_silu) {
            return self.down.forward(&kernels::gate(&pair.forward(x)));
        }
        let up = self.up.forward(x);
        let inner = match up.as_slice() {
            [gate, up] if is_silu && kernels::are_for(up.kind(), up.device()) => {
                fused::gated(gate, up)
            }
            [gate, up] => self.shape.activation.apply(gate) * up,
            _ => self.shape.activation.apply(&up[0]),
        }; // (B, T, I)
        self.down.forward(&inner)
    }

    fn attend(&self, x: &Tensor, rotation: Option<&Rotation>, view: View<'_>) -> Tensor {
        let BlockShape { heads, key_heads, dim, is_windowed, .. } = self.shape;
        let (rows, tokens, _) = x.size3().expect("the input of a block has three dimensions");
        let is_packed = matches!(view, View::Pages(_));
        let [query, key, value] = self.project(x, rotation, is_packed); // (B, T, H or KV, D)
        let context = match view {
            View::Pages(view) => {
                let wanted = view.wanted;
                let context = view.attend(&query, &key, &value, is_windowed);
                let context = context.view([rows, tokens, heads * dim]);
                return match wanted {
                    Some(wanted) => self.output.forward(&chosen(&context, wanted)),
                    None => self.output.forward(&context),
                };
            }
            View::Fused { mask, wanted } => {
                let mask = mask.map(|mask| mask.of(is_windowed));
                let context = self.weigh_fused(&query, &key, &value, mask);
                let context = context.transpose(1, 2).reshape([rows, tokens, heads * dim]);
                return match wanted {
                    Some(wanted) => self.output.forward(&chosen(&context, wanted)),
                    None => self.output.forward(&context),
                };
            }
            View::Sequence { mask, past, keep } => {
                let (mut all_keys, mut all_values) = (key.transpose(1, 2), value.transpose(1, 2));
                if let Some(keep) = keep {
                    keep.push((all_keys.shallow_clone(), all_values.shallow_clone()));
                }
                if let Some((keys, values)) = past {
                    let after = |past: &Tensor, new: &Tensor| {
                        let past = past.expand([rows, key_heads, -1, dim], false);
                        Tensor::cat(&[&past, new], 2)
                    };
                    (all_keys, all_values) = (after(keys, &all_keys), after(values, &all_values));
                }
                let flat = |x: &Tensor| x.reshape([rows * key_heads, -1, dim]);
                let (keys, values) = (flat(&all_keys), flat(&all_values));
                self.weigh(&self.grouped(&query), &keys, &values, mask.of(is_windowed), rows)
            }
            View::Cache(cache) => {
                let flat = |cache: &Tensor| cache.view([-1, dim]);
                let _ = flat(cache.keys).index_copy_(0, cache.places, &key.reshape([-1, dim]));
                let _ = flat(cache.values).index_copy_(0, cache.places, &value.reshape([-1, dim]));
                let key = cache.keys.narrow(1, 0, cache.count); // (B·KV, S, D)
                let value = cache.values.narrow(1, 0, cache.count);
                let mask = cache.mask.of(is_windowed);
                let weights = self.weights(&self.grouped(&query), &key, mask, rows);
                mix_in_pieces(&weights, &value).view([rows, heads, tokens, dim])
            }
        }; // (B, H, T, D)
        let context = context.transpose(1, 2).reshape([rows, tokens, heads * dim]);
        self.output.forward(&context)
    }

    /// Queries, keys and values, rotated: (B, T, H or KV, D).
    fn project(&self, x: &Tensor, rotation: Option<&Rotation>, is_packed: bool) -> [Tensor; 3] {
        let BlockShape { heads, key_heads, dim, is_rotated, .. } = self.shape;
        let (rows, tokens, _) = x.size3().expect("the input of a block has three dimensions");
        let projected = self.query_key_value.forward(x);
        let mut query = projected[0].reshape([rows, tokens, heads, dim]);
        let mut key = projected[1].reshape([rows, tokens, key_heads, dim]);
        if let Some((query_norm, key_norm)) = &self.query_key_norms {
            (query, key) = (query_norm.forward(&query), key_norm.forward(&key));
        }
        if let Some(rotation) = rotation.filter(|_| is_rotated) {
            let rotate = |x: &Tensor| match is_packed {
                true => rotation.apply_packed(x),
                false => rotation.apply(x),
            };
            (query, key) = (rotate(&query), rotate(&key));
        }
        [query, key, projected[2].reshape([rows, tokens, key_heads, dim])]
    }

    /// Heads that share a key are rows of one product.
    fn grouped(&self, query: &Tensor) -> Tensor {
        let BlockShape { heads, key_heads, dim, .. } = self.shape;
        let (rows, tokens) = (query.size()[0], query.size()[1]);
        query.transpose(1, 2).reshape([rows * key_heads, heads / key_heads * tokens, dim])
    }

    /// softmax(q kᵀ / √d) v over (B, T, H or KV, D), causal or as the mask says, by the fused kernel
    /// where it is not slower.
    fn weigh_fused(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let BlockShape { heads, key_heads, dim, .. } = self.shape;
        let (rows, tokens) = (query.size()[0], query.size()[1]);
        let [q, key, value] = [query, key, value].map(|x| x.transpose(1, 2));
        if let Some(mask) = mask.filter(|_| is_quick_apart(q.kind(), q.device(), tokens)) {
            let flat = |x: &Tensor| x.reshape([rows * key_heads, tokens, dim]);
            return self.weigh(&self.grouped(query), &flat(&key), &flat(&value), mask, rows);
        }
        let (is_causal, is_grouped) = (mask.is_none(), heads != key_heads);
        Tensor::scaled_dot_product_attention(
            &q, &key, &value, mask, 0.0, is_causal, None, is_grouped,
        )
    }

    /// softmax(q kᵀ / √d + mask) v.
    fn weigh(
        &self,
        query: &Tensor, // (B·KV, G·T, D)
        key: &Tensor,   // (B·KV, S, D)
        value: &Tensor, // (B·KV, S, D)
        mask: &Tensor,
        rows: i64,
    ) -> Tensor {
        if query.size()[0] == 1 {
            // A batch of one product is another kernel than one of several, with other bits.
            let twice = |x: &Tensor| x.repeat([2, 1, 1]);
            let (query, key, value) = (twice(query), twice(key), twice(value));
            return self.weigh(&query, &key, &value, mask, 2).narrow(0, 0, 1);
        }
        let BlockShape { heads, dim, .. } = self.shape;
        let context = self.weights(query, key, mask, rows).bmm(value);
        context.view([rows, heads, -1, dim]) // (B, H, T, D)
    }

    /// softmax(q kᵀ / √d + mask).
    fn weights(&self, query: &Tensor, key: &Tensor, mask: &Tensor, rows: i64) -> Tensor {
        let BlockShape { heads, key_heads, dim, .. } = self.shape;
        let grouped = query.size()[1]; // G·T
        let tokens = grouped * key_heads / heads;
        let scale = 1.0 / (dim as f64).sqrt();
        let scores = query.bmm(&key.transpose(1, 2)) * scale; // (B·KV, G·T, S)
        let scores = scores.view([rows, heads, tokens, -1]) + mask; // (B, H, T, S)
        let weights = scores.softmax(-1, Kind::Float).to_kind(key.kind());
        weights.view([rows * key_heads, grouped, -1]) // (B·KV, G·T, S)
    }
}

/// Whether, of so many tokens, a product, a softmax and a product are done sooner than the fused
/// kernel.
///
/// In 16 bits on a processor the fused kernel's way back takes three times as long as they do
/// (measured at 128 and 192 tokens). They keep what grows with T², so sequences are short.
pub(super) fn is_quick_apart(kind: Kind, device: Device, tokens: i64) -> bool {
    kind == Kind::BFloat16 && device == Device::Cpu && tokens <= TOKENS_APART_MAX
}

/// The given places among the tokens of all sequences (B, T, C), as one sequence (1, N, C).
fn chosen(x: &Tensor, places: &Tensor) -> Tensor {
    let width = x.size()[2];
    x.reshape([-1, width]).index_select(0, places).unsqueeze(0)
}

/// Weights (N, G, S) times values (N, S, D), [`KEYS_STEP`] keys at a time.
///
/// How many keys are looked at follows the longest row of a step. A product over all of them would
/// be summed in other portions for another number of keys; pieces of one size are summed in order,
/// and those after a row's end add nothing.
fn mix_in_pieces(weights: &Tensor, value: &Tensor) -> Tensor {
    let (keys, kind) = (value.size()[1], value.kind());
    let piece = |first: i64| {
        let weights = weights.narrow(2, first, KEYS_STEP);
        weights.bmm(&value.narrow(1, first, KEYS_STEP)).to_kind(Kind::Float)
    };
    let pieces = (KEYS_STEP..keys).step_by(KEYS_STEP as usize);
    pieces.fold(piece(0), |sum, first| sum + piece(first)).to_kind(kind) // (N, G, D)
}
