//! The digest of a dataset, kept as a differential difference: rows add to it, retractions
//! subtract from it, so that watching a dataset costs O(changed rows).

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Multiply, Semigroup};
use serde::{Deserialize, Serialize};

use crate::record::{Id, KeyHasher};

/// An order-free sum of row hashes, with the number of rows and of those not yet known.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub(super) struct Digest {
    rows: i64,
    unknown: i64,
    sum: [u128; 2],
    /// 1 in the digest that a dataset without rows has too: a difference of nothing is not seen.
    base: i64,
}

impl Digest {
    /// What every dataset has, with rows or without.
    pub(super) fn base() -> Digest {
        Digest { base: 1, ..Digest::default() }
    }

    /// The digest of one row: where it comes from, and what the consumer reads of it.
    pub(super) fn of(row: Id, content: Id) -> Digest {
        let mut hasher = KeyHasher::new("amend/dataset-row/1");
        hasher.add_id(row);
        hasher.add_id(content);
        let hash = hasher.call_key().0;
        let lane = |at: usize| {
            let mut bytes = [0u8; 16];
            bytes.copy_from_slice(&hash[at..at + 16]);
            u128::from_le_bytes(bytes)
        };
        let (unknown, sum) = (i64::from(content.is_unknown()), [lane(0), lane(16)]);
        Digest { rows: 1, unknown, sum, base: 0 }
    }

    /// How many rows.
    pub(super) fn rows(&self) -> u64 {
        self.rows.max(0) as u64
    }

    /// The digest as an id, unknown where a row is.
    pub(super) fn id(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/dataset/1");
        hasher.add_u64(self.rows as u64);
        self.sum.iter().for_each(|lane| hasher.add_bytes(&lane.to_le_bytes()));
        if self.unknown == 0 { hasher.id() } else { hasher.id().unknown() }
    }
}

impl IsZero for Digest {
    fn is_zero(&self) -> bool {
        *self == Digest::default()
    }
}

impl Semigroup for Digest {
    fn plus_equals(&mut self, other: &Self) {
        self.rows += other.rows;
        self.unknown += other.unknown;
        self.base += other.base;
        for (lane, more) in self.sum.iter_mut().zip(other.sum) {
            *lane = lane.wrapping_add(more);
        }
    }
}

impl Monoid for Digest {
    fn zero() -> Self {
        Digest::default()
    }
}

impl Abelian for Digest {
    fn negate(&mut self) {
        self.rows = -self.rows;
        self.unknown = -self.unknown;
        self.base = -self.base;
        self.sum.iter_mut().for_each(|lane| *lane = lane.wrapping_neg());
    }
}

impl Multiply<isize> for Digest {
    type Output = Digest;

    fn multiply(mut self, by: &isize) -> Digest {
        self.rows *= *by as i64;
        self.unknown *= *by as i64;
        self.base *= *by as i64;
        self.sum.iter_mut().for_each(|lane| *lane = lane.wrapping_mul(*by as i128 as u128));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> Id {
        KeyHasher::new("amend/test/1").u64(n).id()
    }

    #[test]
    fn what_was_added_and_taken_away_leaves_no_trace_whatever_the_order() {
        let (a, b) = (Digest::of(id(1), id(2)), Digest::of(id(3), id(4)));
        let mut sum = Digest::zero();
        sum.plus_equals(&b);
        sum.plus_equals(&a);
        sum.plus_equals(&b.multiply(&-1));
        assert_eq!(sum, a);
        sum.plus_equals(&a.multiply(&-1));
        assert!(sum.is_zero());
    }

    #[test]
    fn an_edit_in_place_changes_the_digest_and_not_the_count() {
        let (before, after) = (Digest::of(id(1), id(2)), Digest::of(id(1), id(3)));
        assert_ne!(before.id(), after.id());
        assert_eq!(before.rows(), after.rows());
    }

    #[test]
    fn a_dataset_with_an_unknown_row_is_unknown() {
        assert!(Digest::of(id(1), id(2).unknown()).id().is_unknown());
    }
}
