//! The order of training: which rows are held out, and which rows each step takes.
//!
//! All of it is a function of the seed and the rows' ids.

use crate::record::{Id, KeyHasher};

/// Whether a row is held out: by its own hash, so that an edit of other rows does not move it.
pub(crate) fn is_held_out(seed: u64, row_id: Id, share: f64) -> bool {
    let hash = KeyHasher::new("amend/held-out/1").u64(seed).with(row_id).id().low();
    // The highest 53 bits as a number in [0, 1).
    ((hash >> 11) as f64) / ((1_u64 << 53) as f64) < share
}

/// The order of the rows in an epoch: as given in the first, by hash(seed, epoch, row id) later.
pub(crate) fn epoch_order(seed: u64, epoch: u64, rows: &[Id]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    if epoch > 0 {
        order.sort_by_cached_key(|&row| {
            (KeyHasher::new("amend/order/1").u64(seed).u64(epoch).with(rows[row]).id(), row)
        });
    }
    order
}

/// The rows of each step of a training.
pub(crate) struct Steps<'a> {
    seed: u64,
    rows: &'a [Id],
    batch_size: usize,
    count: u64,
}

impl Steps<'_> {
    /// The steps of so many passes over the rows; the last batch of an epoch may be smaller, and
    /// the last epoch may end early.
    pub(crate) fn new(seed: u64, rows: &[Id], batch_size: usize, epochs: f64) -> Steps<'_> {
        let batch_size = batch_size.max(1);
        let per_epoch = rows.len().div_ceil(batch_size) as f64;
        Steps { seed, rows, batch_size, count: (epochs * per_epoch).ceil() as u64 }
    }

    /// How many there are.
    pub(crate) fn total(&self) -> u64 {
        self.count
    }

    /// Passes over the data after so many steps.
    pub(crate) fn epoch_after(&self, steps: u64) -> f64 {
        steps as f64 / self.rows.len().div_ceil(self.batch_size).max(1) as f64
    }

    /// The rows of each step, as places in the list of rows.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Vec<usize>> {
        (0_u64..)
            .flat_map(|epoch| {
                let order = epoch_order(self.seed, epoch, self.rows);
                order.chunks(self.batch_size).map(<[usize]>::to_vec).collect::<Vec<_>>()
            })
            .take(self.count as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: u64) -> Vec<Id> {
        (0..n).map(|row| KeyHasher::new("amend/test/1").u64(row).id()).collect()
    }

    #[test]
    fn every_epoch_takes_every_row_once_and_the_first_as_given() {
        let rows = ids(5);
        let batches: Vec<_> = Steps::new(7, &rows, 2, 2.0).batches().collect();
        assert_eq!(batches.len(), 6);
        assert_eq!(batches[..3].concat(), [0, 1, 2, 3, 4]);
        let mut second = batches[3..].concat();
        assert_ne!(second, [0, 1, 2, 3, 4]);
        second.sort_unstable();
        assert_eq!(second, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_part_of_an_epoch_is_rounded_up_to_whole_steps() {
        let rows = ids(10);
        let steps = Steps::new(7, &rows, 4, 1.5);
        assert_eq!(steps.total(), 5);
        assert_eq!(steps.batches().count(), 5);
        assert!((steps.epoch_after(3) - 1.0).abs() < 1e-9);
        assert_eq!(Steps::new(7, &[], 4, 1.0).batches().count(), 0);
    }

    #[test]
    fn what_is_held_out_does_not_depend_on_other_rows_and_is_about_the_share() {
        let held = ids(2000).into_iter().filter(|&row| is_held_out(3, row, 0.1)).count();
        assert!((150..250).contains(&held), "{held}");
        assert!(ids(100).into_iter().all(|row| !is_held_out(3, row, 0.0)));
        assert!(ids(100).into_iter().all(|row| is_held_out(3, row, 1.0)));
    }
}
