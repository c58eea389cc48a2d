//! `split`: the rows of one part.
//!
//! `relation -> the same`, with the column `split` set where there is one.
//!
//! A row's part is a function of the seed and of its conversation, else of its root, alone: an
//! edit moves no other row, and all turns of a conversation stay together. The engine runs one
//! operator for each part; rows of other parts are left out there.

use crate::record::{Cell, Id, KeyHasher, Relation, Row};
use crate::spec::op::Split as Spec;

use super::{Build, BuildError, Input, Operator, Out, Step};

/// One part of a `split` node.
pub struct Split {
    reads: Relation,
    part: String,
    /// The stretch of [0, 1) that is the part's.
    stretch: (f64, f64),
    seed: u64,
}

impl Split {
    /// The operator of the part that `build` names.
    pub fn new(op: &Spec, build: &Build<'_>) -> Result<Split, BuildError> {
        let (mut below, count) = (0.0, op.parts.len());
        for (at, (name, share)) in op.parts.iter().enumerate() {
            let above = if at + 1 == count { 1.0 } else { below + share.value };
            if name.value == build.part {
                let (part, seed) = (name.value.clone(), op.seed.unwrap_or(build.seed));
                return Ok(Split { reads: build.reads, part, stretch: (below, above), seed });
            }
            below = above;
        }
        let names: Vec<&str> = op.parts.keys().map(|name| name.value.as_str()).collect();
        Err(BuildError::at(
            op.from.place,
            format!("the split has no part \"{}\"", build.part),
            format!("its parts are {}", names.join(", ")),
        ))
    }

    fn takes(&self, row: Row<'_>) -> bool {
        let key = if row.has("conversation_id") { "conversation_id" } else { "root_id" };
        let hasher = KeyHasher::new("amend/split/1").u64(self.seed).text(row.str(key));
        let place = (hasher.id().low() >> 11) as f64 / (1u64 << 53) as f64; // in [0, 1)
        self.stretch.0 <= place && place < self.stretch.1
    }
}

impl Operator for Split {
    fn relation(&self) -> Relation {
        self.reads
    }

    fn role(&self) -> Option<&'static str> {
        None
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        if !self.takes(input.row) {
            return Step::Drop;
        }
        let mut cells = super::copy(input.row);
        if input.row.has("split") {
            super::set(&mut cells, "split", Cell::text(&*self.part));
        }
        out.row(&cells);
        Step::Done
    }

    fn calls_max(&self) -> u64 {
        0
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text("split");
        hasher.add_u64(u64::from(Spec::VERSION));
        hasher.add_text(self.reads.name());
        hasher.add_text(&self.part);
        hasher.add_f64(self.stretch.0);
        hasher.add_f64(self.stretch.1);
        hasher.add_u64(self.seed);
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, prompts};

    const SPLIT: &str = "split: { from: prompts, parts: { train: 0.75, test: 0.25 } }";

    #[test]
    fn every_row_is_in_one_part_and_parts_have_their_shares() {
        let texts: Vec<String> = (0..400).map(|n| n.to_string()).collect();
        let rows = prompts(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let part = |name| Bench::new(SPLIT, "").part(name).run(&rows, |_| unreachable!()).0;
        let (train, test) = (part("train"), part("test"));
        assert_eq!(train.rows.len() + test.rows.len(), 400);
        assert!((75..125).contains(&test.rows.len()), "{}", test.rows.len());
        assert_eq!(test.dropped, train.rows.len());
        assert!(test.rows.iter().all(|row| row.str("split") == "test"));
        let kept: Vec<Id> = test.rows.iter().map(Row::row_id).collect();
        assert!(train.rows.iter().all(|row| !kept.contains(&row.row_id())));
    }
}
