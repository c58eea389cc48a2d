//! `mix`: rows of several nodes together, as what their consumer needs.
//!
//! `responses | revisions | demonstrations -> demonstrations`; other relations stay what they are.
//! The engine runs one for each source, and takes the union. Trainings mix their inputs likewise.
//!
//! `share` and `count` choose by a hash of the row's id alone, so growth of a source moves only
//! what it must.

use crate::record::{Cell, Id, KeyHasher, Relation, Row};
use crate::spec::op::{Mix as Spec, Rounds, Source};

use super::{Build, Input, Operator, Out, Step};

/// One source of a `mix` node, or of a training.
pub struct Mix {
    reads: Relation,
    source: String,
    ordinal: u64,
    rounds: Rounds,
    rounds_of_source: u32,
    weight: f64,
    share: Option<f64>,
    count: Option<u64>,
    seed: u64,
}

impl Mix {
    /// The operator of one source of a node.
    pub fn new(source: &Source, seed: Option<u64>, build: &Build<'_>) -> Mix {
        Mix {
            reads: build.reads,
            source: build.source.to_owned(),
            ordinal: build.ordinal as u64,
            rounds: source.rounds,
            rounds_of_source: build.rounds,
            weight: source.weight.value,
            share: source.share.map(|share| share.value),
            count: source.count,
            seed: seed.unwrap_or(build.seed),
        }
    }

    fn takes(&self, row_id: Id, row: Row<'_>) -> bool {
        let round = row.has("round").then(|| row.int("round")).flatten();
        let rounds = self.rounds_of_source;
        round.is_none_or(|round| self.rounds.take(u32::try_from(round).unwrap_or(0), rounds))
            && self.share.is_none_or(|share| share_of(self.rank(row_id)) < share)
    }

    fn demonstration(&self, row: Row<'_>, out: &mut dyn Out) {
        let mut messages = row.messages("prompt");
        messages.extend(row.messages("completion"));
        let same = |name: &'static str| if row.has(name) { row.cell(name) } else { Cell::Null };
        out.row(&[
            ("prompt", row.cell("prompt")),
            ("completion", row.cell("completion")),
            ("messages", Cell::messages(messages)),
            ("source", Cell::text(&*self.source)),
            ("round", same("round")),
            ("principle_id", same("principle_id")),
            ("category", same("category")),
            ("weight", Cell::Float(self.weight(row))),
        ]);
    }

    fn weight(&self, row: Row<'_>) -> f64 {
        let own = if row.has("weight") { row.float("weight") } else { None };
        own.unwrap_or(1.0) * self.weight
    }
}

/// The place of a row in the order in which rows are taken under a seed.
pub fn rank(seed: u64, row_id: Id) -> u64 {
    KeyHasher::new("amend/mix/1").u64(seed).with(row_id).id().low()
}

/// Where a rank lies between 0 and 1.
fn share_of(rank: u64) -> f64 {
    (rank >> 11) as f64 / (1u64 << 53) as f64
}

impl Operator for Mix {
    fn relation(&self) -> Relation {
        match self.reads {
            Relation::Responses | Relation::Revisions => Relation::Demonstrations,
            same => same,
        }
    }

    fn role(&self) -> Option<&'static str> {
        Some("mix")
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        let row = input.row;
        if !self.takes(input.row_id, row) {
            return Step::Drop;
        }
        match self.reads {
            Relation::Responses | Relation::Revisions | Relation::Demonstrations => {
                self.demonstration(row, out);
            }
            Relation::Comparisons => {
                let mut cells = super::copy(row);
                super::set(&mut cells, "source", Cell::text(&*self.source));
                super::set(&mut cells, "weight", Cell::Float(self.weight(row)));
                out.row(&cells);
            }
            _ => out.row(&super::copy(row)),
        }
        Step::Done
    }

    fn calls_max(&self) -> u64 {
        0
    }

    fn sibling(&self, _index: u64) -> u64 {
        self.ordinal
    }

    /// The order in which `share` and `count` take rows.
    fn rank(&self, row_id: Id) -> u64 {
        rank(self.seed, row_id)
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text("mix");
        hasher.add_u64(u64::from(Spec::VERSION));
        hasher.add_text(self.reads.name());
        hasher.add_text(&self.source);
        hasher.add_u64(self.ordinal);
        match self.rounds {
            Rounds::All => hasher.add_text("all"),
            Rounds::Last => hasher.add_u64(u64::from(self.rounds_of_source)),
            Rounds::UpTo(last) => hasher.add_text(&format!("up to {last}")),
        }
        hasher.add_f64(self.weight);
        hasher.add_f64(self.share.unwrap_or(2.0));
        hasher.add_text(&format!("{:?}", self.count));
        hasher.add_u64(self.seed);
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, comparisons, prompts, responses, revisions};

    #[test]
    fn responses_become_demonstrations() {
        let bench = Bench::new("mix: { from: { rows: drafts, weight: 2.0 } }", "").from("drafts");
        let (table, asked) = bench.run(&responses(&[("hi", "hello")]), |_| unreachable!());
        let columns = ["prompt", "completion", "messages", "source", "round", "weight"];
        insta::assert_snapshot!(table.show(&columns), @r"
        | prompt     | completion         | messages                     | source | round | weight |
        | [user: hi] | [assistant: hello] | [user: hi, assistant: hello] | drafts |       | 2.0    |
        ");
        assert_eq!(asked, 0);
    }

    #[test]
    fn rounds_that_are_not_wanted_are_dropped_and_counted() {
        let rows = revisions(&[("hi", "one", 1), ("hi", "two", 2), ("hi", "three", 3)]);
        for (rounds, kept) in [("all", 3), ("last", 1), ("{ up_to: 2 }", 2)] {
            let node = format!("mix: {{ from: {{ rows: revisions, rounds: {rounds} }} }}");
            let (table, _) = Bench::new(&node, "").rounds(3).run(&rows, |_| unreachable!());
            assert_eq!((table.rows.len(), table.dropped), (kept, 3 - kept), "{rounds}");
        }
    }

    #[test]
    fn comparisons_are_weighed_and_prompts_stay_prompts() {
        let node = "mix: { from: { rows: human, weight: 0.5 } }";
        let rows = comparisons(&[("hi", "hello", "go away", 1.0)]);
        let (table, _) = Bench::new(node, "").from("human").run(&rows, |_| unreachable!());
        insta::assert_snapshot!(table.show(&["response_a", "p", "source", "weight"]), @r"
        | response_a         | p   | source | weight |
        | [assistant: hello] | 1.0 | human  | 0.5    |
        ");
        let (table, _) = Bench::new(node, "").run(&prompts(&["hi"]), |_| unreachable!());
        assert_eq!(table.rows.relation(), Relation::Prompts);
    }

    #[test]
    fn a_share_is_chosen_by_the_row_alone() {
        let texts: Vec<String> = (0..400).map(|n| n.to_string()).collect();
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        let bench = Bench::new("mix: { from: { rows: prompts, share: 0.25 } }", "");
        let (of_all, _) = bench.run(&prompts(&all), |_| unreachable!());
        let (of_half, _) = bench.run(&prompts(&all[..200]), |_| unreachable!());
        let ids =
            |rows: &crate::record::Batch| -> Vec<Id> { rows.iter().map(Row::row_id).collect() };
        assert_eq!(ids(&of_all.rows)[..of_half.rows.len()], ids(&of_half.rows));
        assert!((70..130).contains(&of_all.rows.len()), "{}", of_all.rows.len());
    }
}
