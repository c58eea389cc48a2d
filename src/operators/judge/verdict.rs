//! The verdict: what the answers about a pair say together.

use crate::model::Answer;
use crate::operators::{Reason, Reject};

/// What the questions about a pair say together.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) p: f64,
    /// P(A better) where A was shown first, and where B was.
    pub(super) p_of: [Option<f64>; 2],
    /// Log-probabilities of A's and B's label, likewise.
    pub(super) logp_of: [Option<[f64; 2]>; 2],
    /// The least log-mass of the two labels together.
    pub(super) label_logmass: f64,
    pub(super) votes: Option<i64>,
}

impl Verdict {
    /// Averages thoughts, then orders, then principles.
    ///
    /// `sides` says of each question whether the second response was shown first: `orders`
    /// questions a principle, each with equally many answers, which are its thoughts.
    pub(super) fn of(
        sides: &[bool],
        orders: usize,
        answers: &[Answer],
        label_temperature: f64,
    ) -> Result<Verdict, Reject> {
        let samples = answers.len() / sides.len();
        assert_eq!(answers.len(), sides.len() * samples, "every question has its answers");
        let mut of_principle = Vec::with_capacity(sides.len() / orders);
        let mut of_order: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        let mut logps: [[Vec<f64>; 2]; 2] = Default::default();
        let mut verdict = Verdict { label_logmass: f64::INFINITY, ..Verdict::default() };
        for (sides, answers) in sides.chunks(orders).zip(answers.chunks(orders * samples)) {
            let mut ps = Vec::with_capacity(orders);
            for (swapped, answers) in sides.iter().zip(answers.chunks(samples)) {
                let side = usize::from(*swapped);
                let mut thoughts = Vec::with_capacity(samples);
                for answer in answers {
                    let [a, b] = logprobs(answer, *swapped)?;
                    logps[side][0].push(a);
                    logps[side][1].push(b);
                    thoughts.push(1.0 / (1.0 + libm::exp((b - a) / label_temperature)));
                    let mass = libm::log(libm::exp(a) + libm::exp(b));
                    verdict.label_logmass = verdict.label_logmass.min(mass);
                    if let Some(votes) = answer.votes {
                        *verdict.votes.get_or_insert(0) += i64::from(votes);
                    }
                }
                of_order[side].push(mean(&thoughts));
                ps.push(mean(&thoughts));
            }
            of_principle.push(mean(&ps));
        }
        verdict.p = mean(&of_principle);
        for side in 0..2 {
            if !of_order[side].is_empty() {
                verdict.p_of[side] = Some(mean(&of_order[side]));
                verdict.logp_of[side] = Some([mean(&logps[side][0]), mean(&logps[side][1])]);
            }
        }
        Ok(verdict)
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The log-probabilities of the label of response A and of that of response B.
fn logprobs(answer: &Answer, swapped: bool) -> Result<[f64; 2], Reject> {
    let reject = |reason, detail: &str| Reject {
        reason,
        detail: detail.to_owned(),
        answer: Some(answer.text.clone()),
    };
    let Some([first, second]) = answer.choice_logprobs.as_deref() else {
        return Err(reject(
            Reason::Unparseable,
            "the answer has no log-probability for each label",
        ));
    };
    if first.is_nan() || second.is_nan() {
        return Err(reject(Reason::Unparseable, "the log-probability of a label is not a number"));
    }
    if first.max(*second) == f64::NEG_INFINITY {
        return Err(reject(Reason::LabelMass, "neither label has any probability"));
    }
    Ok(if swapped { [*second, *first] } else { [*first, *second] })
}
