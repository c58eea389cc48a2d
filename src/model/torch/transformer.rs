//! A model: embeddings, blocks, a norm and a head.

mod recompute;

use tch::{Device, Kind, Tensor};

pub(super) use self::recompute::Tape;
use super::block::{Block, BlockShape, KeysValues, Mask, Norm, View, is_quick_apart};
use super::config::{Head, Joined, TransformerConfig};
use super::error::TorchError;
use super::kernels;
use super::linear::{Linear, Linears};
use super::rope::{Rope, Rotation};
use super::weights::Weights;

/// A model whose parameters are the tensors it was made of: gradients flow into them.
///
/// Shapes: B rows, T tokens, S keys, C hidden, V vocabulary.
pub struct Transformer {
    /// Its shape.
    pub config: TransformerConfig,
    /// The kind of what it computes; norms, softmax and logits are f32.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    pub(super) blocks: Vec<Block>,
    rope: Option<Rope>,
    embeddings: Tensor, // (V, C)
    /// Learned positions.
    positions: Option<Tensor>, // (P, C)
    norm: Norm,
    head: HeadWeight,
}

/// What stands on the backbone.
enum HeadWeight {
    /// To logits; its weight may be the embeddings.
    Lm(Linear), // (V, C)
    Score(Tensor), // (1, C)
}

/// What the model makes of positions.
pub(super) struct Positions {
    /// Added to the embeddings.
    added: Option<Tensor>, // (T, C) or (B, T, C)
    pub(super) rotation: Option<Rotation>,
}

/// An additive mask of attention, for [`Transformer::hidden_at`].
pub struct AttentionMask(pub(super) Mask);

/// Takes the weights of a model by name.
struct Parts<'a> {
    config: &'a TransformerConfig,
    weights: &'a Weights,
    kind: Kind,
    device: Device,
}

impl Parts<'_> {
    fn weight(&self, name: &str) -> Result<Tensor, TorchError> {
        let weight = self.weights.get(name)?;
        Ok(weight.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }

    fn norm(&self, name: &str) -> Result<Norm, TorchError> {
        let bias = self.config.family.has_layer_norms;
        let bias = bias.then(|| self.weight(&format!("{name}.bias"))).transpose()?;
        Ok(Norm {
            weight: self.weight(&format!("{name}.weight"))?,
            bias,
            eps: self.config.norm_eps,
            is_packed: false,
        })
    }

    fn linear(&self, name: &str, bias: bool) -> Result<Linear, TorchError> {
        let bias = bias.then(|| self.weight(&format!("{name}.bias"))).transpose()?;
        let weight = self.weight(&format!("{name}.weight"))?;
        let weight = if self.config.family.is_transposed { weight.tr() } else { weight };
        Ok(Linear::Plain { weight, bias })
    }

    fn block(&self, layer: usize) -> Result<Block, TorchError> {
        let (config, family) = (self.config, self.config.family);
        let (names, biases) = (family.names, config.has_biases);
        let norm = |part: &str| self.norm(&config.layer_name(layer, part));
        let linear = |part: &str, bias| self.linear(&config.layer_name(layer, part), bias);
        let apart = |parts: &[&str], bias| {
            let linears = parts.iter().map(|part| linear(part, bias));
            Ok::<_, TorchError>(Linears::Apart(linears.collect::<Result<_, _>>()?))
        };
        let joined = || linear(names.query_key_value[0], biases.query_key_value);
        let has_norms = family.has_query_key_norms;
        Ok(Block {
            input_norm: norm(names.input_norm)?,
            query_key_value: match family.query_key_value {
                Joined::Apart => apart(names.query_key_value, biases.query_key_value)?,
                Joined::Stacked => Linears::Stacked(joined()?, vec![config.hidden_size; 3]),
                Joined::ByHead => {
                    Linears::ByHead(joined()?, config.num_attention_heads, config.head_dim)
                }
            },
            query_key_norms: has_norms
                .then(|| Ok::<_, TorchError>((norm(names.query_norm)?, norm(names.key_norm)?)))
                .transpose()?,
            output: linear(names.output, biases.output)?,
            post_attention_norm: norm(names.post_attention_norm)?,
            up: apart(names.up, biases.mlp)?,
            down: linear(names.down, biases.mlp)?,
            shape: BlockShape::of(config, layer),
        })
    }
}

impl Transformer {
    /// A model of these weights. A weight of another kind or device is converted, in a way that
    /// gradients flow back through; others are shared.
    pub fn new(
        config: &TransformerConfig,
        weights: &Weights,
        kind: Kind,
        device: Device,
    ) -> Result<Transformer, TorchError> {
        let parts = Parts { config, weights, kind, device };
        let embeddings = parts.weight(&config.embeddings_name())?;
        let positions = config.family.has_learned_positions;
        let positions = positions.then(|| parts.weight(&config.positions_name())).transpose()?;
        let head = || match config.tie_word_embeddings && config.head == Head::Lm {
            true => Ok(embeddings.shallow_clone()),
            false => parts.weight(&config.head_name()),
        };
        let head = match config.head {
            Head::Lm => HeadWeight::Lm(Linear::Plain { weight: head()?, bias: None }),
            Head::Score => HeadWeight::Score(head()?),
        };
        Ok(Transformer {
            blocks: (0..config.layers.len())
                .map(|layer| parts.block(layer))
                .collect::<Result<_, _>>()?,
            rope: config.rope.as_ref().map(|rope| Rope::new(rope, kind, device)),
            embeddings,
            positions,
            norm: parts.norm(&config.norm_name())?,
            head,
            kind,
            device,
            config: config.clone(),
        })
    }

    /// The same model with stacked projections, for running without gradients.
    ///
    /// The stacked ones are copies: after a training step, stack again. On a processor they are
    /// packed, and [`Generator`](super::Generator) and [`score`](super::score()) read by pages; what
    /// is packed is shared with a model that is stacked again. Weights in bf16 stay so there, and
    /// what is computed with them is f32.
    #[must_use]
    pub fn stacked(&self) -> Transformer {
        let _guard = tch::no_grad_guard();
        let rope = self.config.rope.as_ref();
        let is_packed = kernels::are_for(self.kind, self.device);
        let kind = if is_packed { Kind::Float } else { self.kind };
        Transformer {
            blocks: self.blocks.iter().map(Block::stacked).collect(),
            rope: rope.map(|rope| Rope::new(rope, kind, self.device)),
            embeddings: self.embeddings.shallow_clone(),
            positions: self.positions.as_ref().map(|positions| positions.to_kind(kind)),
            norm: self.norm.ready(),
            head: match &self.head {
                HeadWeight::Lm(head) => HeadWeight::Lm(head.ready()),
                HeadWeight::Score(weight) => HeadWeight::Score(weight.shallow_clone()),
            },
            kind,
            device: self.device,
            config: self.config.clone(),
        }
    }

    /// What the head sees, for rows that begin at position 0 and are padded on the right.
    ///
    /// What stands at padding is of no meaning, and reaches no token before it.
    pub fn hidden(&self, ids: &Tensor) -> Tensor {
        let tokens = ids.size()[1];
        self.run(ids, &self.positions_from(0, tokens), &self.mask_after(0, tokens), None, None) // (B, T, C)
    }

    /// The same by the fused kernel of attention, for training: faster, and its memory grows with
    /// T and not with T²; but a row's last bits depend on its neighbours.
    pub fn hidden_fused(&self, ids: &Tensor) -> Tensor {
        let (positions, mask) = self.laid_out(ids, None);
        self.run_fused(ids, &positions, mask.as_ref(), None) // (B, T, C)
    }

    /// The same of some places among the tokens of all rows: what the last block has after its
    /// attention is computed of these alone.
    ///
    /// Where several rows share a sequence, with each token's position in its row (B, T) and a mask
    /// (B, 1, T, T) that is true where a token sees another.
    pub(super) fn hidden_wanted(
        &self,
        ids: &Tensor,
        shared: Option<(&Tensor, &Tensor)>,
        wanted: &Tensor, // (N)
    ) -> Tensor {
        let (positions, mask) = self.laid_out(ids, shared);
        self.run_fused(ids, &positions, mask.as_ref(), Some(wanted)).squeeze_dim(0) // (N, C)
    }

    /// Positions and mask of rows for [`View::Fused`].
    fn laid_out(
        &self,
        ids: &Tensor,
        shared: Option<(&Tensor, &Tensor)>,
    ) -> (Positions, Option<Mask>) {
        if let Some((positions, mask)) = shared {
            let end = positions.max().int64_value(&[]) as usize + 1;
            let mask = self.mask(&mask.squeeze_dim(1), positions, positions);
            return (self.positions_at(positions, end), Some(mask));
        }
        let tokens = ids.size()[1];
        let is_seen_whole = self.config.sliding_window.is_none_or(|window| tokens <= window);
        let is_masked = (self.has_windows() && !is_seen_whole)
            || is_quick_apart(self.kind, self.device, tokens);
        let mask = is_masked.then(|| self.mask_after(0, tokens));
        (self.positions_from(0, tokens), mask)
    }

    fn run_fused(
        &self,
        ids: &Tensor,
        positions: &Positions,
        mask: Option<&Mask>,
        wanted: Option<&Tensor>,
    ) -> Tensor {
        let run = |x: Tensor, (layer, block): (usize, &Block)| {
            let view = View::Fused { mask, wanted: wanted.filter(|_| self.is_last(layer)) };
            block.forward(&x, positions.rotation.as_ref(), view)
        };
        let blocks = self.blocks.iter().enumerate();
        self.finish(&blocks.fold(self.embed(ids, positions), run)) // (B, T, C) or (1, N, C)
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.blocks.len()
    }

    /// What the head sees, with positions (B, T) and a mask.
    pub fn hidden_at(&self, ids: &Tensor, positions: &Tensor, mask: &AttentionMask) -> Tensor {
        let end = positions.max().int64_value(&[]) as usize + 1;
        self.run(ids, &self.positions_at(positions, end), &mask.0, None, None) // (B, T, C)
    }

    /// Logits in f32 over the vocabulary, of hidden states (…, C).
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let HeadWeight::Lm(head) = &self.head else { panic!("a preference model has no logits") };
        head.forward(hidden).to_kind(Kind::Float) // (…, V)
    }

    /// Scores in f32, one for each hidden state (…, C).
    ///
    /// A product and a sum: a matrix product with one column is another kernel for other rows.
    pub fn scores(&self, hidden: &Tensor) -> Tensor {
        let HeadWeight::Score(weight) = &self.head else {
            panic!("a language model has no scores")
        };
        let weight = weight.select(0, 0).to_kind(Kind::Float); // (C)
        (hidden.to_kind(Kind::Float) * weight).sum_dim_intlist(-1, false, Kind::Float) // (…)
    }

    /// A causal mask for rows padded anywhere, from a mask (B, T) that is 0 at padding and the
    /// positions (B, T).
    pub fn padding_mask(&self, attention_mask: &Tensor, positions: &Tensor) -> AttentionMask {
        let (_, tokens) = attention_mask.size2().expect("a mask has rows and tokens");
        let real = attention_mask.to_device(self.device).ne(0).unsqueeze(1); // (B, 1, T)
        // Padding sees itself, so that no softmax is over nothing.
        let options = (Kind::Bool, self.device);
        let itself = Tensor::eye(tokens, options).unsqueeze(0);
        let causal = Tensor::ones([1, tokens, tokens], options).tril(0);
        let visible = causal.logical_and(&real).logical_or(&itself); // (B, T, T)
        AttentionMask(self.mask(&visible, positions, positions))
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
                && same(config.hidden_size, &|x| cat(&block.up, x))
                && same(config.num_attention_heads * config.head_dim, &|x| block.output.forward(x))
                && same(config.intermediate_size, &|x| block.down.forward(x))
        };
        self.blocks.first().is_none_or(of_block)
            && match &self.head {
                HeadWeight::Lm(head) => same(config.hidden_size, &|x| head.forward(x)),
                HeadWeight::Score(_) => true,
            }
    }

    /// So many positions from a first one on, the same for every row.
    pub(super) fn positions_from(&self, first: i64, count: i64) -> Positions {
        let rows = |table: &Tensor| {
            // Padding may reach past the last position.
            let index = Tensor::arange_start(first, first + count, (Kind::Int64, self.device));
            table.index_select(0, &index.clamp_max(table.size()[0] - 1))
        };
        Positions {
            added: self.positions.as_ref().map(rows),
            rotation: self.rope.as_ref().map(|rope| rope.range(first, count)),
        }
    }

    /// Positions (B, T) row by row, all below `end`.
    pub(super) fn positions_at(&self, positions: &Tensor, end: usize) -> Positions {
        let rows = |table: &Tensor| Tensor::embedding(table, positions, -1, false, false);
        Positions {
            added: self.positions.as_ref().map(rows),
            rotation: self.rope.as_ref().map(|rope| rope.at(positions, end)),
        }
    }

    /// The mask of tokens that see themselves, those before them, and a past.
    pub(super) fn mask_after(&self, past: i64, tokens: i64) -> Mask {
        let options = (Kind::Int64, self.device);
        let keys = Tensor::arange(past + tokens, options).unsqueeze(0); // (1, S)
        let queries = keys.narrow(1, past, tokens); // (1, T)
        self.mask(&keys.unsqueeze(1).le_tensor(&queries.unsqueeze(2)), &queries, &keys)
    }

    /// The mask of what is visible (B or 1, T, S), given the positions of queries (B or 1, T) and
    /// keys (B or 1, S).
    pub(super) fn mask(&self, visible: &Tensor, queries: &Tensor, keys: &Tensor) -> Mask {
        let additive = |visible: &Tensor| {
            let mask = Tensor::zeros(visible.size(), (self.kind, self.device));
            mask.masked_fill(&visible.logical_not(), f64::NEG_INFINITY).unsqueeze(1) // (B, 1, T, S)
        };
        let within = |window: i64| {
            let distance = queries.unsqueeze(2) - keys.unsqueeze(1); // (B, T, S)
            additive(&visible.logical_and(&distance.lt(window)))
        };
        let window = self.config.sliding_window.filter(|_| self.has_windows());
        Mask { full: additive(visible), windowed: window.map(within) }
    }

    /// Whether it was made to be run by kernels.
    pub(super) fn is_packed(&self) -> bool {
        self.norm.is_packed
    }

    pub(super) fn has_windows(&self) -> bool {
        self.config.layers.iter().any(|layer| layer.is_windowed)
    }

    pub(super) fn embed(&self, ids: &Tensor, positions: &Positions) -> Tensor {
        let x = Tensor::embedding(&self.embeddings, ids, -1, false, false).to_kind(self.kind); // (B, T, C)
        positions.added.as_ref().map_or_else(|| x.shallow_clone(), |added| &x + added)
    }

    pub(super) fn finish(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// What the head sees of tokens (B, T) that may come after a past, one entry for each block;
    /// `keep` takes the new keys and values of each.
    pub(super) fn run(
        &self,
        ids: &Tensor,
        positions: &Positions,
        mask: &Mask,
        past: Option<&[KeysValues]>,
        mut keep: Option<&mut Vec<KeysValues>>,
    ) -> Tensor {
        let mut x = self.embed(ids, positions);
        for (layer, block) in self.blocks.iter().enumerate() {
            let past = past.map(|past| &past[layer]);
            let view = View::Sequence { mask, past, keep: keep.as_deref_mut() };
            x = block.forward(&x, positions.rotation.as_ref(), view);
        }
        self.finish(&x) // (B, T, C)
    }

    /// What the head sees of one token for each row of a cache; `view` gives each block's.
    pub(super) fn run_cached<'a>(
        &self,
        ids: &Tensor,
        positions: &Positions,
        views: impl Iterator<Item = View<'a>>,
    ) -> Tensor {
        let mut x = self.embed(ids, positions); // (B, 1, C)
        for (block, view) in self.blocks.iter().zip(views) {
            x = block.forward(&x, positions.rotation.as_ref(), view);
        }
        self.finish(&x).select(1, 0) // (B, C)
    }
}
