//! Rotary position embeddings (Su et al. 2021), with the stretched frequencies of Llama 3.1.

use std::cell::RefCell;

use amend_kernels::Turn;
use tch::{Device, Kind, Tensor};

use super::config::{RopeConfig, RopeScaling};
use super::{fused, int, kernels};

/// The fewest positions of a table.
const POSITIONS_MIN: usize = 256;

/// Cosines and sines of positions, made as they are asked for: a context may be of millions.
pub(super) struct Rope {
    frequencies: Vec<f32>,
    kind: Kind,
    device: Device,
    tables: RefCell<Tables>,
}

struct Tables {
    positions: usize,
    cos: Tensor, // (P, R)
    /// The sine, negated in the first half, so that a rotation is two products and a roll.
    sin: Tensor, // (P, R)
}

/// The rows of some positions, ready to be multiplied with queries and keys.
pub(super) struct Rotation {
    cos: Tensor, // (…, 1, R)
    sin: Tensor, // (…, 1, R)
    /// How many dimensions are rotated.
    dim: i64,
}

impl Rope {
    pub(super) fn new(config: &RopeConfig, kind: Kind, device: Device) -> Rope {
        let frequencies = frequencies(config);
        let tables = RefCell::new(Tables::new(&frequencies, POSITIONS_MIN, kind, device));
        Rope { frequencies, kind, device, tables }
    }

    /// So many positions from a first one on.
    pub(super) fn range(&self, first: i64, count: i64) -> Rotation {
        self.grow((first + count) as usize);
        let tables = self.tables.borrow();
        let rows = |table: &Tensor| table.narrow(0, first, count).unsqueeze(1);
        Rotation { cos: rows(&tables.cos), sin: rows(&tables.sin), dim: self.dim() } // (T, 1, R)
    }

    /// Positions given row by row, all below `end`.
    pub(super) fn at(&self, positions: &Tensor, end: usize) -> Rotation {
        self.grow(end);
        let tables = self.tables.borrow();
        let mut shape = positions.size(); // (B, T)
        shape.extend([1, self.dim()]);
        let flat = positions.reshape([-1]);
        let rows = |table: &Tensor| table.index_select(0, &flat).view(shape.as_slice());
        Rotation { cos: rows(&tables.cos), sin: rows(&tables.sin), dim: self.dim() }
    }

    fn dim(&self) -> i64 {
        int(self.frequencies.len() * 2)
    }

    fn grow(&self, positions: usize) {
        if self.tables.borrow().positions < positions {
            let positions = positions.next_power_of_two();
            let tables = Tables::new(&self.frequencies, positions, self.kind, self.device);
            self.tables.replace(tables);
        }
    }
}

impl Tables {
    fn new(frequencies: &[f32], positions: usize, kind: Kind, device: Device) -> Tables {
        let half = frequencies.len();
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
        Tables { positions, cos: table(cos), sin: table(sin) }
    }
}

impl Rotation {
    /// Rotates heads (…, H, D).
    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        if kernels::are_for(x.kind(), x.device()) {
            return fused::rotated(x, &self.cos, &self.sin);
        }
        let dim = x.size().last().copied().unwrap_or(0);
        if dim == self.dim {
            return self.rotate(x);
        }
        let rotated = self.rotate(&x.narrow(-1, 0, self.dim));
        Tensor::cat(&[rotated, x.narrow(-1, self.dim, dim - self.dim)], -1) // (B, T, H, D)
    }

    /// The same without gradients, where there are kernels for it.
    pub(super) fn apply_packed(&self, x: &Tensor) -> Tensor {
        kernels::rotate(x, &self.cos, &self.sin, Turn::Forward)
    }

    fn rotate(&self, x: &Tensor) -> Tensor {
        (x * &self.cos).addcmul(&x.roll([self.dim / 2], [-1]), &self.sin) // (B, T, H, R)
    }
}

/// One frequency for each pair of dimensions, in f32 as transformers computes them.
fn frequencies(config: &RopeConfig) -> Vec<f32> {
    let dim = config.dim as f32;
    (0..config.dim / 2)
        .map(|pair| 1.0 / libm::powf(config.theta as f32, (pair * 2) as f32 / dim))
        .map(|frequency| stretched(frequency, config.scaling))
        .collect()
}

/// By Llama 3.1, long waves are stretched by the factor, short ones left, those between
/// interpolated.
fn stretched(frequency: f32, scaling: RopeScaling) -> f32 {
    let plain = f64::from(frequency);
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => (plain / factor) as f32,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let turns = original_max_position_embeddings / (std::f64::consts::TAU / plain);
            if turns < low_freq_factor {
                return (plain / factor) as f32;
            }
            if turns > high_freq_factor {
                return frequency;
            }
            let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            ((1.0 - smooth) * plain / factor + smooth * plain) as f32
        }
    }
}
