//! How near a model comes to what its machine can do: a step of decoding has to read all weights once,
//! and a prompt has to be multiplied with them.

use std::time::Instant;

use amend::model::torch::{TransformerConfig, Weights};
use tch::{Device, Kind, Tensor};

const TIMES: usize = 5;

/// Far more than a cache holds.
const BYTES: i64 = 512 << 20;

/// The edge of the matrices whose product is timed.
const EDGE: i64 = 2048;

/// What the machine does, measured with libtorch at the threads that are set.
pub(crate) struct Machine {
    /// Bytes read in a second.
    pub(crate) bandwidth: f64,
    /// Additions and multiplications in a second, of large products of the kind of number.
    pub(crate) flops: f64,
}

/// What a model needs for a token.
pub(crate) struct Needs {
    /// Bytes of weights that one row reads for its next token.
    bytes: f64,
    /// Additions and multiplications for each token of a prompt, not counting attention.
    flops_per_token: f64,
    /// Those of attention, times tokens squared.
    flops_per_pair: f64,
    /// Those of the head, for the last token of a prompt.
    flops_of_head: f64,
}

impl Machine {
    /// Measures it, each figure as the best of several.
    pub(crate) fn measured(kind: Kind) -> Machine {
        let _guard = tch::no_grad_guard();
        // Sums and products with a vector both read a tensor once; either may be the better kernel.
        let rows = BYTES / 8192 / kind.elt_size_in_bytes() as i64;
        let matrix = Tensor::ones([rows, 8192], (kind, Device::Cpu));
        let vector = Tensor::ones([8192, 1], (kind, Device::Cpu));
        let sum = best(|| drop(matrix.sum(kind)));
        let product = best(|| drop(matrix.matmul(&vector)));
        let square = || Tensor::randn([EDGE, EDGE], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (left, right) = (square(), square());
        let squared = best(|| drop(left.matmul(&right)));
        Machine {
            bandwidth: BYTES as f64 / sum.min(product),
            flops: 2.0 * (EDGE as f64).powi(3) / squared,
        }
    }
}

impl Needs {
    /// Those of a model whose embedding is its head.
    pub(crate) fn of(config: &TransformerConfig, weights: &Weights, kind: Kind) -> Needs {
        let all: usize = weights.0.values().map(Tensor::numel).sum();
        let head = (config.vocab_size * config.hidden_size) as f64;
        let heads = (config.num_attention_heads * config.head_dim) as f64;
        Needs {
            bytes: all as f64 * kind.elt_size_in_bytes() as f64,
            flops_per_token: 2.0 * (all as f64 - head),
            // A token sees half of the others: a product for its weights, and one with the values.
            flops_per_pair: 4.0 * heads * config.layers.len() as f64 / 2.0,
            flops_of_head: 2.0 * head,
        }
    }

    /// The most tokens that one row can be given in a second.
    pub(crate) fn decoded_most(&self, machine: &Machine) -> f64 {
        machine.bandwidth / self.bytes
    }

    /// The most tokens of prompts that can be read in a second.
    pub(crate) fn read_most(&self, machine: &Machine, prompts: &[Vec<i64>]) -> f64 {
        let lengths = prompts.iter().map(|prompt| prompt.len() as f64);
        let flops = lengths.clone().map(|length| {
            self.flops_per_token * length
                + self.flops_per_pair * length * length
                + self.flops_of_head
        });
        lengths.sum::<f64>() * machine.flops / flops.sum::<f64>()
    }
}

fn best(work: impl Fn()) -> f64 {
    let time = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed().as_secs_f64()
    };
    (0..TIMES).map(time).fold(f64::INFINITY, f64::min)
}
