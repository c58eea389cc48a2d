//! Rotary position embeddings (Su et al. 2021), with the stretched frequencies of Llama 3.1.

use tch::{Device, Kind, Tensor};

use super::config::{LlamaConfig, RopeScaling};
use super::int;

/// Cosines and sines of every position.
pub(super) struct Rope {
    cos: Tensor, // (P, D)
    /// The sine, negated in the first half, so that a rotation is two products and a roll.
    sin: Tensor, // (P, D)
}

/// The rows of some positions, ready to be multiplied with queries and keys.
pub(super) struct Rotation {
    cos: Tensor, // (…, 1, D)
    sin: Tensor, // (…, 1, D)
    half: i64,
}

impl Rope {
    pub(super) fn new(config: &LlamaConfig, kind: Kind, device: Device) -> Rope {
        let frequencies = frequencies(config);
        let (positions, half) = (config.max_position_embeddings, frequencies.len());
        let mut cos = Vec::with_capacity(positions * half * 2);
        let mut sin = Vec::with_capacity(positions * half * 2);
        for position in 0..positions {
            let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
            cos.extend(angles.clone().chain(angles.clone()).map(libm::cosf));
            sin.extend(angles.clone().map(|angle| -libm::sinf(angle)));
            sin.extend(angles.map(libm::sinf));
        }
        let shape = [int(positions), int(half * 2)];
        let table = |values: Vec<f32>| {
            Tensor::from_slice(&values).view(shape).to_device(device).to_kind(kind)
        };
        Rope { cos: table(cos), sin: table(sin) }
    }

    /// The first positions, for rows that all begin at 0.
    pub(super) fn first(&self, count: i64) -> Rotation {
        let rows = |table: &Tensor| table.narrow(0, 0, count).unsqueeze(1);
        Rotation { cos: rows(&self.cos), sin: rows(&self.sin), half: self.half() } // (T, 1, D)
    }

    /// Positions given row by row.
    pub(super) fn at(&self, positions: &Tensor) -> Rotation {
        let mut shape = positions.size(); // (B, T)
        shape.extend([1, self.half() * 2]);
        let flat = positions.reshape([-1]);
        let rows = |table: &Tensor| table.index_select(0, &flat).view(shape.as_slice());
        Rotation { cos: rows(&self.cos), sin: rows(&self.sin), half: self.half() }
    }

    fn half(&self) -> i64 {
        self.cos.size()[1] / 2
    }
}

impl Rotation {
    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        x * &self.cos + x.roll([self.half], [-1]) * &self.sin // (B, T, H, D)
    }
}

/// One frequency for each pair of dimensions, in f32 as transformers computes them.
fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    let dim = config.head_dim as f32;
    let plain = (0..config.head_dim / 2)
        .map(|pair| 1.0 / libm::powf(config.rope_theta as f32, (pair * 2) as f32 / dim));
    match config.rope_scaling {
        None => plain.collect(),
        Some(scaling) => plain.map(|frequency| stretched(frequency, scaling)).collect(),
    }
}

/// Long waves are stretched by the factor, short ones left, those between interpolated.
fn stretched(frequency: f32, scaling: RopeScaling) -> f32 {
    let wavelength = std::f64::consts::TAU / f64::from(frequency);
    let turns = scaling.original_max_position_embeddings / wavelength;
    if turns < scaling.low_freq_factor {
        return (f64::from(frequency) / scaling.factor) as f32;
    }
    if turns > scaling.high_freq_factor {
        return frequency;
    }
    let smooth =
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    let frequency = f64::from(frequency);
    ((1.0 - smooth) * frequency / scaling.factor + smooth * frequency) as f32
}
