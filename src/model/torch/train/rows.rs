//! Rows of tokens, and the micro-batches that they are run in.
//!
//! Rows are padded on the right and attention is causal, so no token ever sees padding: no
//! attention mask is needed, positions count from 0, and lengths are carried beside the tokens,
//! never read back from them.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::pack::packs;

/// A row: what is read, then what is written.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The tokens of prompt and completion.
    pub(crate) tokens: Vec<i64>,
    /// How many of them are the prompt's.
    pub(crate) prompt_len: usize,
}

impl Row {
    /// A row of a prompt and its completion.
    pub(crate) fn new(prompt: &[i64], completion: &[i64]) -> Row {
        Row { tokens: [prompt, completion].concat(), prompt_len: prompt.len() }
    }

    /// The tokens that are predicted. The first token of all is not: nothing comes before it.
    pub(crate) fn predicted(&self) -> Range<usize> {
        self.prompt_len.max(1)..self.tokens.len()
    }
}

/// How rows are laid out in micro-batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The most rows of a micro-batch.
    pub(crate) rows_max: usize,
    /// Where rows share sequences, the most tokens of one.
    pub(crate) packed: Option<usize>,
    /// Where the tokens go.
    pub(crate) device: Device,
}

impl Layout {
    /// The layout of optimizer steps of so many rows, cut into so many parts at least.
    pub(crate) fn of_parts(batch_size: usize, parts: usize, device: Device) -> Layout {
        let rows_max = batch_size.max(1).div_ceil(parts.max(1));
        Layout { rows_max, packed: None, device }
    }
}

/// What tokens need to know where several rows share a sequence.
pub(crate) struct Shared {
    /// The position of each token in its row.
    pub(crate) positions: Tensor, // (B, T)
    /// True where a token sees another: itself and those before it in its row.
    pub(crate) mask: Tensor, // (B, 1, T, T)
}

/// Rows padded to one length.
pub(crate) struct MicroBatch {
    /// The rows' places in the list that the batch was cut from, in the order of this batch.
    pub(crate) rows: Vec<usize>,
    /// The tokens, with zeros at the right.
    pub(crate) ids: Tensor, // (B, T)
    /// Where several rows share a sequence, who sees whom.
    pub(crate) shared: Option<Shared>,
    /// The places in `ids`, flattened, of the states that predict, or of the last ones.
    pub(crate) positions: Tensor, // (N)
    /// The tokens that they predict.
    pub(crate) targets: Tensor, // (N)
    /// How many tokens each row predicts.
    pub(crate) counts: Vec<usize>,
}

impl MicroBatch {
    /// The given rows as one batch, to predict their completions.
    pub(crate) fn new(all: &[Row], rows: &[usize], device: Device) -> MicroBatch {
        let width = width(all, rows);
        let (mut positions, mut targets): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
        for (place, &row) in rows.iter().enumerate() {
            let predicted = all[row].predicted();
            positions.extend(predicted.clone().map(|t| (place * width + t - 1) as i64));
            targets.extend(&all[row].tokens[predicted]);
        }
        MicroBatch {
            ids: padded(all, rows, width, device),
            shared: None,
            positions: Tensor::from_slice(&positions).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            counts: rows.iter().map(|&row| all[row].predicted().len()).collect(),
            rows: rows.to_vec(),
        }
    }

    /// Packs of rows as one batch, a sequence each, to predict the rows' completions.
    pub(crate) fn packed(all: &[Row], packs: &[Vec<usize>], device: Device) -> MicroBatch {
        let used = |pack: &Vec<usize>| pack.iter().map(|&row| all[row].tokens.len()).sum();
        let width: usize = packs.iter().map(used).max().unwrap_or(0);
        let mut tokens = vec![0_i64; packs.len() * width];
        // Padding is a row of its own, number 0.
        let (mut owners, mut places) = (tokens.clone(), tokens.clone());
        let (mut positions, mut targets): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
        for (sequence, pack) in packs.iter().enumerate() {
            let mut at = sequence * width;
            for (owner, &row) in (1..).zip(pack) {
                let own = &all[row].tokens;
                tokens[at..at + own.len()].copy_from_slice(own);
                owners[at..at + own.len()].fill(owner);
                (places[at..].iter_mut()).zip(0..own.len()).for_each(|(p, t)| *p = t as i64);
                let predicted = all[row].predicted();
                positions.extend(predicted.clone().map(|t| (at + t - 1) as i64));
                targets.extend(&own[predicted]);
                at += own.len();
            }
        }
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let wide = |numbers: &[i64]| tensor(numbers).view([packs.len() as i64, width as i64]);
        let owners = wide(&owners); // (B, T)
        let same = owners.unsqueeze(2).eq_tensor(&owners.unsqueeze(1)); // (B, T, T)
        let before = Tensor::ones([width as i64; 2], (Kind::Bool, device)).tril(0); // (T, T)
        let rows = packs.concat();
        MicroBatch {
            ids: wide(&tokens),
            shared: Some(Shared {
                positions: wide(&places),
                mask: same.logical_and(&before).unsqueeze(1),
            }),
            positions: tensor(&positions),
            targets: tensor(&targets),
            counts: rows.iter().map(|&row| all[row].predicted().len()).collect(),
            rows,
        }
    }

    /// The given rows as one batch, to be read to their last token, one number each.
    pub(crate) fn of_ends(all: &[Row], rows: &[usize], device: Device) -> MicroBatch {
        let width = width(all, rows);
        let last = |(place, &row): (usize, &usize)| {
            assert!(!all[row].tokens.is_empty(), "a row that is scored has a token");
            (place * width + all[row].tokens.len() - 1) as i64
        };
        let positions: Vec<i64> = rows.iter().enumerate().map(last).collect();
        MicroBatch {
            ids: padded(all, rows, width, device),
            shared: None,
            positions: Tensor::from_slice(&positions).to_device(device),
            targets: Tensor::from_slice::<i64>(&[]).to_device(device),
            counts: vec![1; rows.len()],
            rows: rows.to_vec(),
        }
    }

    /// A number of each row, repeated for each of its tokens.
    pub(crate) fn per_token(&self, number: impl Fn(usize) -> f32) -> Tensor {
        let numbers: Vec<f32> = (self.rows.iter().zip(&self.counts))
            .flat_map(|(&row, &count)| std::iter::repeat_n(number(row), count))
            .collect();
        Tensor::from_slice(&numbers).to_device(self.ids.device()) // (N)
    }

    /// The numbers of the rows' tokens, one after the other.
    pub(crate) fn gathered(&self, numbers: &[Vec<f32>]) -> Tensor {
        let flat: Vec<f32> =
            self.rows.iter().flat_map(|&row| numbers[row].iter().copied()).collect();
        assert_eq!(flat.len(), self.counts.iter().sum::<usize>(), "a number for each token");
        Tensor::from_slice(&flat).to_device(self.ids.device()) // (N)
    }

    /// Puts the numbers of this batch's tokens where their rows are.
    pub(crate) fn scatter(&self, numbers: &Tensor, into: &mut [Vec<f32>]) {
        let flat = floats(numbers);
        let mut rest = flat.as_slice();
        for (&row, &count) in self.rows.iter().zip(&self.counts) {
            let (own, others) = rest.split_at(count);
            into[row] = own.to_vec();
            rest = others;
        }
        assert!(rest.is_empty(), "a row for each number");
    }
}

fn width(all: &[Row], rows: &[usize]) -> usize {
    rows.iter().map(|&row| all[row].tokens.len()).max().unwrap_or(0)
}

fn padded(all: &[Row], rows: &[usize], width: usize, device: Device) -> Tensor {
    let mut ids = vec![0_i64; rows.len() * width];
    for (place, &row) in rows.iter().enumerate() {
        let tokens = &all[row].tokens;
        ids[place * width..place * width + tokens.len()].copy_from_slice(tokens);
    }
    Tensor::from_slice(&ids).view([rows.len() as i64, width as i64]).to_device(device) // (B, T)
}

/// The numbers of a tensor, in a list.
pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.detach().to_kind(Kind::Float).contiguous().view([-1]);
    Vec::<f32>::try_from(tensor).expect("a tensor of one dimension and of floats is a list")
}

/// The most tokens, padding included, of a micro-batch.
const TOKENS_MAX: usize = 16_384;
/// A row this much shorter than the longest of its bucket opens a new one.
const FILL_MIN: f64 = 0.8;
/// A bucket has at least so many tokens before a short row closes it.
const TOKENS_MIN: usize = 1_024;

/// Cuts rows of the given lengths into buckets of similar length, longest first.
///
/// Padding is computed and thrown away, so what it costs is bounded here; a function of the
/// lengths alone. No bucket has more than `rows_max` rows.
pub(crate) fn buckets(
    rows: &[usize],
    rows_max: usize,
    len: impl Fn(usize) -> usize,
) -> Vec<Vec<usize>> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|&row| std::cmp::Reverse(len(row)));
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    let mut width = 0;
    for row in sorted {
        let opens = match buckets.last() {
            None => true,
            Some(bucket) => {
                let short = (len(row) as f64) < FILL_MIN * width as f64;
                (short && bucket.len() * width >= TOKENS_MIN)
                    || (bucket.len() + 1) * width > TOKENS_MAX
                    || bucket.len() >= rows_max
            }
        };
        if opens {
            width = len(row);
            buckets.push(Vec::new());
        }
        buckets.last_mut().expect("a bucket was opened").push(row);
    }
    buckets
}

/// Rows as micro-batches: buckets of similar length, or sequences that rows share.
pub(crate) fn micro_batches(all: &[Row], rows: &[usize], layout: &Layout) -> Vec<MicroBatch> {
    let len = |row: usize| all[row].tokens.len();
    let Some(capacity) = layout.packed else {
        let buckets = buckets(rows, layout.rows_max, len);
        return buckets.iter().map(|bucket| MicroBatch::new(all, bucket, layout.device)).collect();
    };
    let mut batches: Vec<Vec<Vec<usize>>> = Vec::new();
    let mut n_rows = 0;
    for pack in packs(rows, capacity, layout.rows_max, len) {
        let fits = |batch: &Vec<Vec<usize>>| {
            n_rows + pack.len() <= layout.rows_max && (batch.len() + 1) * capacity <= TOKENS_MAX
        };
        if !batches.last().is_some_and(fits) {
            batches.push(Vec::new());
            n_rows = 0;
        }
        n_rows += pack.len();
        batches.last_mut().expect("a batch was opened").push(pack);
    }
    batches.iter().map(|packs| MicroBatch::packed(all, packs, layout.device)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_completion_is_predicted_also_where_padding_and_end_are_one_token() {
        // The end token has id 0, which is also what fills the shorter row.
        let rows = [Row::new(&[5, 6], &[7, 0]), Row::new(&[5], &[0])];
        let batch = MicroBatch::new(&rows, &[0, 1], Device::Cpu);
        assert_eq!(batch.ids.size(), [2, 4]);
        assert_eq!(Vec::<i64>::try_from(&batch.positions).unwrap(), [1, 2, 4]);
        assert_eq!(Vec::<i64>::try_from(&batch.targets).unwrap(), [7, 0, 0]);
        assert_eq!(batch.counts, [2, 1]);
        assert_eq!(floats(&batch.per_token(|row| row as f32)), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn numbers_go_out_and_come_back_to_their_rows() {
        let rows = [Row::new(&[1], &[2]), Row::new(&[1], &[2, 3, 4])];
        let batch = MicroBatch::new(&rows, &[1, 0], Device::Cpu);
        let numbers = vec![vec![0.5], vec![1.0, 2.0, 3.0]];
        let flat = batch.gathered(&numbers);
        assert_eq!(floats(&flat), [1.0, 2.0, 3.0, 0.5]);
        let mut back = vec![Vec::new(); 2];
        batch.scatter(&flat, &mut back);
        assert_eq!(back, numbers);
    }

    #[test]
    fn an_empty_prompt_leaves_the_first_token_out() {
        let row = Row::new(&[], &[4, 5]);
        assert_eq!(row.predicted(), 1..2);
    }

    #[test]
    fn buckets_hold_every_row_once_and_little_padding() {
        let lens: Vec<usize> = (0..200).map(|row| 20 + (row * 37) % 90).collect();
        let rows: Vec<usize> = (0..200).collect();
        let buckets = buckets(&rows, 60, |row| lens[row]);
        let mut seen = buckets.concat();
        seen.sort_unstable();
        assert_eq!(seen, rows);
        assert!(buckets.iter().all(|bucket| bucket.len() <= 60));
        let padded: usize = buckets.iter().map(|b| b.len() * lens[b[0]]).sum();
        assert!(padded * 100 < lens.iter().sum::<usize>() * 120, "{padded}");
    }

    #[test]
    fn rows_that_share_a_sequence_see_themselves_alone() {
        let rows = [Row::new(&[5, 6], &[7]), Row::new(&[8], &[9, 3]), Row::new(&[4], &[2])];
        let batch = MicroBatch::packed(&rows, &[vec![0, 2], vec![1]], Device::Cpu);
        let list = |tensor: &Tensor| {
            Vec::<i64>::try_from(tensor.to_kind(Kind::Int64).reshape([-1])).unwrap()
        };
        assert_eq!(list(&batch.ids), [5, 6, 7, 4, 2, 8, 9, 3, 0, 0]);
        assert_eq!(list(&batch.positions), [1, 3, 5, 6]);
        assert_eq!(list(&batch.targets), [7, 2, 9, 3]);
        assert_eq!((batch.rows, batch.counts), (vec![0, 2, 1], vec![1, 1, 2]));
        let shared = batch.shared.unwrap();
        assert_eq!(list(&shared.positions), [0, 1, 2, 0, 1, 0, 1, 2, 0, 0]);
        let first = list(&shared.mask.get(0));
        let rows: Vec<&[i64]> = first.chunks(5).collect();
        assert_eq!(rows[1], [1, 1, 0, 0, 0]);
        assert_eq!(rows[3], [0, 0, 0, 1, 0]);
        assert_eq!(rows[4], [0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_step_is_cut_into_the_parts_that_were_asked_for() {
        let all: Vec<Row> = (0..12).map(|n| Row::new(&[1; 3], &vec![2; 1 + n % 4])).collect();
        let rows: Vec<usize> = (0..12).collect();
        for packed in [None, Some(20)] {
            let layout = Layout { packed, ..Layout::of_parts(12, 4, Device::Cpu) };
            let batches = micro_batches(&all, &rows, &layout);
            assert!(batches.len() >= 4 && batches.iter().all(|batch| batch.rows.len() <= 3));
            let mut seen: Vec<usize> = batches.into_iter().flat_map(|batch| batch.rows).collect();
            seen.sort_unstable();
            assert_eq!(seen, rows);
        }
    }
}
