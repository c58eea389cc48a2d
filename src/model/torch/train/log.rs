//! The log of a training: numbers gathered over steps, and a row of each when it is time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::train::Metric;

/// Gathers numbers and logs their means.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Log {
    metrics: Vec<Metric>,
    /// By name, what is to be divided and what by.
    sums: BTreeMap<String, (Exact, Exact)>,
    /// How many were told of already, by this process.
    #[serde(skip)]
    n_told: usize,
}

/// A number that is written as its bits: JSON has no NaN.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
struct Exact(f64);

impl From<u64> for Exact {
    fn from(bits: u64) -> Exact {
        Exact(f64::from_bits(bits))
    }
}

impl From<Exact> for u64 {
    fn from(Exact(number): Exact) -> u64 {
        number.to_bits()
    }
}

impl Log {
    /// Adds a number with a weight, for the mean since the last row.
    pub(crate) fn add(&mut self, name: &str, value: f64, weight: f64) {
        let sum = self.sums.entry(name.to_owned()).or_default();
        sum.0.0 += value * weight;
        sum.1.0 += weight;
    }

    /// Logs the means of what was added since the last time, in order of their names, and gives
    /// them.
    pub(crate) fn flush(&mut self, step: u64, epoch: f64, split: &str) -> BTreeMap<String, f64> {
        let means: BTreeMap<String, f64> = std::mem::take(&mut self.sums)
            .into_iter()
            .map(|(name, (Exact(sum), Exact(weight)))| {
                (name, if weight > 0.0 { sum / weight } else { f64::NAN })
            })
            .collect();
        for (name, &value) in &means {
            self.push(step, epoch, split, name, value);
        }
        means
    }

    /// Logs one number.
    pub(crate) fn push(&mut self, step: u64, epoch: f64, split: &str, name: &str, value: f64) {
        let (split, name) = (split.to_owned(), name.to_owned());
        self.metrics.push(Metric { step, epoch, split, name, value });
    }

    /// What was logged since this was last asked.
    pub(crate) fn untold(&mut self) -> &[Metric] {
        let from = std::mem::replace(&mut self.n_told, self.metrics.len());
        &self.metrics[from.min(self.metrics.len())..]
    }

    /// All that was logged.
    pub(crate) fn into_metrics(self) -> Vec<Metric> {
        self.metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_weighted_mean_since_the_row_before() {
        let mut log = Log::default();
        log.add("loss", 1.0, 1.0);
        log.add("loss", 4.0, 2.0);
        log.flush(2, 0.5, "train");
        log.add("loss", 7.0, 1.0);
        log.flush(3, 1.0, "train");
        let values: Vec<f64> = log.into_metrics().iter().map(|metric| metric.value).collect();
        assert_eq!(values, [3.0, 7.0]);
    }
}
