//! How good a preference model's scores are: accuracy, margin and calibration.

use std::collections::BTreeMap;

use super::advantage::moments;

/// A comparison with the scores that it was given.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The score of the first completion.
    pub(crate) a: f64,
    /// The score of the second completion.
    pub(crate) b: f64,
    /// The target, P(A better).
    pub(crate) p: f64,
    /// The node that the comparison came from.
    pub(crate) source: String,
    /// Its category.
    pub(crate) category: Option<String>,
}

/// Bins of the calibration error.
const N_BINS: usize = 15;

impl Judged {
    /// The difference of the scores: the log-odds of A.
    fn z(&self) -> f64 {
        self.a - self.b
    }

    /// The loss, `p·softplus(−z) + (1−p)·softplus(z)`.
    fn loss(&self) -> f64 {
        self.p * softplus(-self.z()) + (1.0 - self.p) * softplus(self.z())
    }

    /// 1 when the scores prefer what the target prefers, ½ when either has no preference.
    fn accuracy(&self) -> f64 {
        let agreement = self.z() * (self.p - 0.5);
        if agreement > 0.0 {
            1.0
        } else if agreement < 0.0 {
            0.0
        } else {
            0.5
        }
    }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// The entropy of a coin of bias p: the least loss that there is.
fn entropy(p: f64) -> f64 {
    let term = |q: f64| if q > 0.0 { -q * libm::log(q) } else { 0.0 };
    term(p) + term(1.0 - p)
}

/// The metrics of a set of comparisons, as (name, value), in order of their names; none of an
/// empty set.
pub(crate) fn metrics(judged: &[&Judged]) -> Vec<(&'static str, f64)> {
    if judged.is_empty() {
        return Vec::new();
    }
    let n = judged.len() as f64;
    let mean = |of: &dyn Fn(&Judged) -> f64| judged.iter().map(|j| of(j)).sum::<f64>() / n;
    let scores = || judged.iter().flat_map(|j| [j.a, j.b]);
    let (mean_reward, variance) = moments(scores());
    vec![
        ("accuracy", mean(&Judged::accuracy)),
        ("brier", mean(&|j| (sigmoid(j.z()) - j.p).powi(2))),
        ("ece", calibration_error(judged)),
        ("excess_loss", mean(&|j| j.loss() - entropy(j.p))),
        ("loss", mean(&Judged::loss)),
        ("margin", mean(&|j| j.z().abs() * if j.z() * (j.p - 0.5) < 0.0 { -1.0 } else { 1.0 })),
        ("max_reward", scores().fold(f64::NEG_INFINITY, f64::max)),
        ("mean_reward", mean_reward),
        ("min_reward", scores().fold(f64::INFINITY, f64::min)),
        ("std_reward", variance.sqrt()),
    ]
}

/// The expected calibration error: per bin of σ(z), the distance of its mean to that of p,
/// weighted by the bin's share (arXiv 1706.04599, equation 3, with soft targets).
fn calibration_error(judged: &[&Judged]) -> f64 {
    let mut bins = [(0.0, 0.0); N_BINS];
    for comparison in judged {
        let said = sigmoid(comparison.z());
        let bin = &mut bins[((said * N_BINS as f64) as usize).min(N_BINS - 1)];
        bin.0 += said;
        bin.1 += comparison.p;
    }
    bins.iter().map(|(said, p)| (said - p).abs()).sum::<f64>() / judged.len() as f64
}

/// The metrics of all comparisons, then of each source (`accuracy/source/NODE`) and of each
/// category (`accuracy/category/NAME`).
pub(crate) fn metrics_by_group(judged: &[Judged]) -> Vec<(String, f64)> {
    let all: Vec<&Judged> = judged.iter().collect();
    let mut groups: BTreeMap<String, Vec<&Judged>> = BTreeMap::new();
    for comparison in judged {
        groups.entry(format!("source/{}", comparison.source)).or_default().push(comparison);
        if let Some(category) = &comparison.category {
            groups.entry(format!("category/{category}")).or_default().push(comparison);
        }
    }
    let named = metrics(&all).into_iter().map(|(name, value)| (name.to_owned(), value));
    let grouped = groups.iter().flat_map(|(group, members)| {
        metrics(members).into_iter().map(move |(name, value)| (format!("{name}/{group}"), value))
    });
    named.chain(grouped).collect()
}

/// From how many comparisons it can be said whether scores say anything of them.
const COMPARISONS_LEAST: usize = 20;

/// The sources with whose targets the scores agree no more than by chance: by less than one standard
/// error. Neither the scale of the scores nor how soft the targets are matters.
///
/// If each difference of scores had either sign alike, `Σ z (p − ½)` would be 0 in the mean, with the
/// variance `Σ z² (p − ½)²`.
pub(crate) fn told_by_chance(judged: &[Judged]) -> Vec<&str> {
    let mut of_source: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
    for comparison in judged {
        let agreement = comparison.z() * (comparison.p - 0.5);
        let (n, sum, squares) = of_source.entry(&comparison.source).or_default();
        *n += 1;
        *sum += agreement;
        *squares += agreement * agreement;
    }
    let by_chance = |(_, (n, sum, squares)): &(&str, (usize, f64, f64))| {
        *n >= COMPARISONS_LEAST && *sum <= squares.sqrt()
    };
    of_source.into_iter().filter(by_chance).map(|(source, _)| source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(z: f64, p: f64, source: &str) -> Judged {
        Judged { a: z, b: 0.0, p, source: source.to_owned(), category: Some("x".to_owned()) }
    }

    fn value(metrics: &[(String, f64)], name: &str) -> f64 {
        metrics.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    #[test]
    fn scores_that_say_the_target_are_calibrated_and_cost_nothing_in_excess() {
        let z = (0.8_f64 / 0.2).ln();
        let metrics = metrics_by_group(&[judged(z, 0.8, "ai"), judged(-z, 0.2, "ai")]);
        for (name, expected) in
            [("ece", 0.0), ("excess_loss", 0.0), ("brier", 0.0), ("accuracy", 1.0), ("margin", z)]
        {
            assert!((value(&metrics, name) - expected).abs() < 1e-12, "{name}");
        }
    }

    #[test]
    fn the_distribution_of_the_scores_is_that_of_both_texts() {
        let of = |a: f64, b: f64| Judged { a, b, ..judged(0.0, 0.9, "ai") };
        let metrics = metrics_by_group(&[of(3.0, -1.0), of(1.0, 1.0)]);
        for (name, expected) in [
            ("mean_reward", 1.0),
            ("min_reward", -1.0),
            ("max_reward", 3.0),
            // With Bessel's correction: four numbers, eight squared.
            ("std_reward", (8.0_f64 / 3.0).sqrt()),
        ] {
            assert!((value(&metrics, name) - expected).abs() < 1e-12, "{name}: {metrics:?}");
        }
    }

    #[test]
    fn each_source_and_category_is_measured_by_itself() {
        let metrics = metrics_by_group(&[
            judged(1.0, 0.9, "ai"),
            judged(-1.0, 0.9, "human"),
            judged(0.0, 0.9, "human"),
        ]);
        assert!((value(&metrics, "accuracy") - 0.5).abs() < 1e-12);
        assert!((value(&metrics, "accuracy/source/ai") - 1.0).abs() < 1e-12);
        assert!((value(&metrics, "accuracy/source/human") - 0.25).abs() < 1e-12);
        assert!((value(&metrics, "accuracy/category/x") - 0.5).abs() < 1e-12);
        assert!(value(&metrics, "margin/source/human") < 0.0);
        assert!(metrics_by_group(&[]).is_empty());
    }

    #[test]
    fn a_source_that_scores_say_nothing_of_is_known_whatever_their_scale() {
        let all = |n: usize, z: f64, p: f64, source: &str| vec![judged(z, p, source); n];
        let comparisons: Vec<Judged> = [
            // Soft targets near a half are learnt by differences as small.
            all(30, 0.04, 0.51, "soft"),
            // Two in three are right, of which the model is far too sure: its loss is above a coin's.
            [all(30, 6.0, 0.9, "sure"), all(15, 6.0, 0.1, "sure")].concat(),
            all(30, 0.0, 0.6, "silent"),
            [all(16, 1.0, 0.9, "permuted"), all(14, 1.0, 0.1, "permuted")].concat(),
            all(30, -1.0, 0.9, "reversed"),
            all(5, -1.0, 0.9, "few"),
        ]
        .concat();
        assert_eq!(told_by_chance(&comparisons), ["permuted", "reversed", "silent"]);
    }
}
