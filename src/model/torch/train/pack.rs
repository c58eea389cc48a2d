//! Packing: which rows share a sequence.

/// Cuts rows of the given lengths into packs of at most `capacity` tokens and `rows_max` rows, best
/// fit first and longest first. A row that is longer than the capacity is alone.
///
/// A function of the lengths alone.
pub(crate) fn packs(
    rows: &[usize],
    capacity: usize,
    rows_max: usize,
    len: impl Fn(usize) -> usize,
) -> Vec<Vec<usize>> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|&row| std::cmp::Reverse(len(row)));
    let mut packs: Vec<(usize, Vec<usize>)> = Vec::new();
    for row in sorted {
        let len = len(row);
        let fitting = packs
            .iter_mut()
            .filter(|(used, rows)| used + len <= capacity && rows.len() < rows_max)
            .max_by_key(|(used, _)| *used);
        match fitting {
            Some((used, rows)) => {
                *used += len;
                rows.push(row);
            }
            None => packs.push((len, vec![row])),
        }
    }
    packs.into_iter().map(|(_, rows)| rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_hold_every_row_once_and_are_full() {
        let lens: Vec<usize> = (0..200).map(|row| 20 + (row * 37) % 90).collect();
        let rows: Vec<usize> = (0..200).collect();
        let packs = packs(&rows, 256, usize::MAX, |row| lens[row]);
        let mut seen = packs.concat();
        seen.sort_unstable();
        assert_eq!(seen, rows);
        let used = |pack: &Vec<usize>| pack.iter().map(|&row| lens[row]).sum::<usize>();
        assert!(packs.iter().all(|pack| used(pack) <= 256));
        let least = lens.iter().sum::<usize>().div_ceil(256);
        assert!(packs.len() <= least + 1, "{} packs, of at least {least}", packs.len());
    }

    #[test]
    fn a_pack_has_no_more_rows_than_it_may_and_a_long_row_is_alone() {
        let packs = packs(&[0, 1, 2, 3], 10, 2, |row| [1, 1, 1, 12][row]);
        assert_eq!(packs, [vec![3], vec![0, 1], vec![2]]);
    }
}
