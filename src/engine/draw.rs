//! The draw: which principles a row gets, by weighted rendezvous hashing on virtual buckets.
//!
//! A row falls into one of 65,536 buckets by the id of its draft or pair; a bucket draws the
//! principle of the greatest score `-w / ln u`. The draw names ids alone: editing a text moves
//! nobody, removing a principle moves only its rows, adding one moves about 1/(n+1) of them.

use std::sync::Arc;

use crate::record::{Id, KeyHasher};

/// How many virtual buckets there are.
pub const BUCKETS: u64 = 65_536;

/// What a principle is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// A critique and the revision that follows it.
    Critique,
    /// A judgement of a pair.
    Judge,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Purpose::Critique => "critique",
            Purpose::Judge => "judge",
        }
    }
}

/// A principle that can be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The id that scores hash: the principle's, or the one it was renamed from.
    pub id: Arc<str>,
    /// The hash of the principle's present id, which its texts are found under.
    pub key: Id,
    /// The weight, above 0.
    pub weight: f64,
}

/// Stands in a draw for the principles that are not there: of what selects too few, nothing is drawn, and
/// its rows are rejects.
pub const NOBODY: Id = Id::ZERO;

/// The key that a principle's texts are found under.
pub fn principle_key(id: &str) -> Id {
    KeyHasher::new("amend/principle/1").text(id).id()
}

/// One draw: everything that is the same for all rows of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Draw {
    /// The seed of the draws of the pipeline.
    pub seed: u64,
    /// What for.
    pub purpose: Purpose,
    /// The round, from 1; 0 for judgements.
    pub round: u32,
}

impl Draw {
    /// The bucket of a draft or pair.
    pub fn bucket(self, root: Id) -> u64 {
        let mut hasher = KeyHasher::new("amend/bucket/1");
        self.add_to(&mut hasher);
        hasher.add_id(root);
        hasher.id().low() % BUCKETS
    }

    /// The keys of the `count` principles of the greatest score in a bucket, best first.
    pub fn winners(self, bucket: u64, candidates: &[Candidate], count: usize) -> Vec<Id> {
        let mut hasher = KeyHasher::new("amend/draw/1");
        self.add_to(&mut hasher);
        hasher.add_u64(bucket);
        let score = |candidate: &Candidate| {
            let bits = hasher.clone().text(&candidate.id).id().low() >> 11;
            // 53 bits, and never 0 or 1: the logarithm is finite and below 0.
            let u = (bits as f64 + 0.5) / (1u64 << 53) as f64;
            -candidate.weight / libm::log(u)
        };
        let mut scored: Vec<(f64, &Candidate)> =
            candidates.iter().map(|candidate| (score(candidate), candidate)).collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
        scored.iter().take(count).map(|(_, candidate)| candidate.key).collect()
    }

    fn add_to(self, hasher: &mut KeyHasher) {
        hasher.add_u64(self.seed);
        hasher.add_text(self.purpose.name());
        hasher.add_u64(u64::from(self.round));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAW: Draw = Draw { seed: 17, purpose: Purpose::Critique, round: 1 };

    fn constitution(count: usize) -> Vec<Candidate> {
        let candidate = |n: usize| {
            let id: Arc<str> = format!("p{n:02}").into();
            Candidate { key: principle_key(&id), id, weight: 1.0 }
        };
        (0..count).map(candidate).collect()
    }

    fn draws(candidates: &[Candidate]) -> Vec<Id> {
        (0..8192).map(|bucket| DRAW.winners(bucket, candidates, 1)[0]).collect()
    }

    #[test]
    fn every_principle_gets_its_share() {
        let all = draws(&constitution(16));
        for candidate in constitution(16) {
            let share = all.iter().filter(|key| **key == candidate.key).count();
            assert!((400..630).contains(&share), "{share} of 8192, expected about 512");
        }
    }

    #[test]
    fn removing_a_principle_moves_only_its_rows() {
        let (with, without) = (constitution(16), constitution(15));
        for (before, after) in draws(&with).iter().zip(draws(&without)) {
            assert!(*before == after || *before == with[15].key);
        }
    }

    #[test]
    fn adding_a_principle_moves_its_share_and_only_to_itself() {
        let (before, after) = (constitution(16), constitution(17));
        let moved = draws(&before).into_iter().zip(draws(&after)).filter(|(old, new)| old != new);
        let moved: Vec<Id> = moved.map(|(_, new)| new).collect();
        assert!(moved.iter().all(|new| *new == after[16].key));
        assert!((380..590).contains(&moved.len()), "{} of 8192, expected 482", moved.len());
    }

    #[test]
    fn a_weight_of_two_gets_twice_the_share() {
        let mut candidates = constitution(3);
        candidates[0].weight = 2.0;
        let share = draws(&candidates).iter().filter(|key| **key == candidates[0].key).count();
        assert!((3900..4300).contains(&share), "{share} of 8192, expected 4096");
    }

    #[test]
    fn order_of_the_constitution_moves_nobody() {
        let mut reversed = constitution(16);
        reversed.reverse();
        assert_eq!(draws(&constitution(16)), draws(&reversed));
    }
}
