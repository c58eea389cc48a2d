//! What an `evaluate` node found: the share of each label by source and group, with 95 % intervals.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::{IndexMap, IndexSet};

use super::screen::Screen;
use super::table::{TextTable, count};
use crate::record::{Batch, Relation};
use crate::store::Snapshot;

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The line for rows of every group.
const ALL: &str = "all";

/// The shares of one node.
#[derive(Debug, Default)]
pub(super) struct Shares {
    node: String,
    /// What tells the sources apart: `source` or `model`.
    by: &'static str,
    labels: IndexSet<String>,
    /// By source and group, how many rows have each label.
    counts: IndexMap<(String, String), BTreeMap<String, u64>>,
}

/// The shares of every `evaluate` node of a snapshot.
pub(super) fn of(snapshot: &Snapshot) -> anyhow::Result<Vec<Shares>> {
    let scores = |entry: &&crate::store::NodeEntry| entry.table.relation == Relation::Scores;
    let nodes = snapshot.manifest().nodes.iter().filter(|(_, entry)| scores(entry));
    let mut all = Vec::new();
    for (name, entry) in nodes {
        let inputs =
            entry.node.inputs.iter().filter(|name| snapshot.manifest().nodes.contains_key(*name));
        let sources: Vec<String> = inputs.cloned().collect();
        let batches = snapshot.read_batches(name)?;
        all.push(Shares::of(name, &batches, &sources));
    }
    Ok(all)
}

impl Shares {
    fn of(node: &str, batches: &[Batch], sources: &[String]) -> Shares {
        let rows = || batches.iter().flat_map(Batch::iter);
        let models: BTreeSet<&str> = rows().filter_map(|row| row.text("model")).collect();
        let by = if sources.len() > 1 || models.is_empty() { "source" } else { "model" };
        let mut counts: BTreeMap<(usize, String, String), BTreeMap<String, u64>> = BTreeMap::new();
        let mut labels: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows() {
            let (rank, source) = if by == "model" {
                (0, row.text("model").unwrap_or("-"))
            } else {
                let source = row.str("source");
                let rank = sources.iter().position(|name| name == source);
                (rank.unwrap_or(sources.len()), source)
            };
            // With a truth, what counts is whether the label is it.
            let label = match (row.str("name"), row.float("value")) {
                ("correct", Some(value)) if value >= 0.5 => "correct",
                ("correct", _) => "wrong",
                _ => row.text("label").unwrap_or("-"),
            };
            *labels.entry(label.to_owned()).or_default() += 1;
            let group = row.text("group").unwrap_or("-");
            for group in [ALL, group] {
                let key = (rank, source.to_owned(), group.to_owned());
                *counts.entry(key).or_default().entry(label.to_owned()).or_default() += 1;
            }
        }
        let mut labels: Vec<(String, u64)> = labels.into_iter().collect();
        // The label of what matched nothing comes last, the commonest one first.
        labels.sort_by_key(|(label, count)| {
            (label == "other", std::cmp::Reverse(*count), label.clone())
        });
        let mut shares = Shares { node: node.to_owned(), by, ..Shares::default() };
        shares.labels = labels.into_iter().map(|(label, _)| label).collect();
        let mut sorted: Vec<_> = counts.into_iter().collect();
        sorted.sort_by_key(|((rank, source, group), _)| {
            (*rank, source.clone(), group != ALL, group.clone())
        });
        for ((_, source, group), count) in sorted {
            shares.counts.insert((source, group), count);
        }
        shares.leave_out_single_groups();
        shares
    }

    /// Takes out the groups of a source that has one only: they say what `all` says.
    fn leave_out_single_groups(&mut self) {
        let mut groups: BTreeMap<String, usize> = BTreeMap::new();
        for (source, _) in self.counts.keys() {
            *groups.entry(source.clone()).or_default() += 1;
        }
        self.counts.retain(|(source, group), _| group == ALL || groups[source] > 2);
    }

    /// The shares as a table.
    pub(super) fn render(&self, screen: Screen) -> String {
        let mut text = format!("{}: share of rows, 95 % interval\n", screen.bold(&self.node));
        let mut heads = vec![self.by.to_owned(), "group".to_owned(), ">rows".to_owned()];
        heads.extend(self.labels.iter().map(|label| format!(">{label}")));
        let mut table = TextTable::new(&heads);
        for ((source, group), counts) in &self.counts {
            let all: u64 = counts.values().sum();
            let mut cells = vec![source.clone(), group.clone(), count(all)];
            cells.extend(
                self.labels
                    .iter()
                    .map(|label| share(counts.get(label).copied().unwrap_or_default(), all)),
            );
            table.row(cells);
        }
        text.push_str(&table.render(|head| screen.dim(head)));
        text
    }
}

/// `12.5 % (8.1–18.9)`.
fn share(count: u64, all: u64) -> String {
    let (low, high) = wilson(count, all);
    let share = if all == 0 { 0.0 } else { count as f64 / all as f64 };
    format!("{:.1} % ({:.1}–{:.1})", 100.0 * share, 100.0 * low, 100.0 * high)
}

/// The Wilson score interval of a share, 95 %.
fn wilson(count: u64, all: u64) -> (f64, f64) {
    if all == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (all as f64, count as f64 / all as f64);
    let center = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((center - half).max(0.0), (center + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, Cell, Id, KeyHasher, Origin};

    fn id(n: u64) -> Id {
        KeyHasher::new("amend/test/1").u64(n).id()
    }

    fn scores(rows: &[(u64, &str, &str)], first: u64) -> Batch {
        let mut batch = BatchBuilder::new(Relation::Scores);
        for (at, (subject, label, group)) in rows.iter().enumerate() {
            let row_id = id(1000 + at as u64);
            let origin =
                Origin { row_id, root_id: id(*subject), parents: vec![], call_keys: vec![] };
            let cells = [
                ("subject_id", Cell::id(id(*subject))),
                ("evaluator", Cell::text("refusals")),
                ("source", Cell::text(if *subject <= first { "drafts" } else { "revisions" })),
                ("name", Cell::text("label")),
                ("label", Cell::text(*label)),
                ("group", Cell::text(*group)),
                ("model", Cell::text("assistant")),
            ];
            batch.push(&origin, &cells);
        }
        batch.finish().0
    }

    #[test]
    fn the_interval_is_wilsons() {
        // statsmodels.stats.proportion.proportion_confint(count, n, method="wilson")
        let close = |(low, high): (f64, f64), (l, h): (f64, f64)| {
            (low - l).abs() < 1e-6 && (high - h).abs() < 1e-6
        };
        assert!(close(wilson(0, 10), (0.0, 0.277_532_8)));
        assert!(close(wilson(5, 10), (0.236_593_1, 0.763_406_9)));
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    #[test]
    fn shares_are_told_by_source_and_group_with_other_last() {
        let batch = scores(
            &[
                (1, "refused", "red"),
                (2, "other", "red"),
                (3, "answered", "benign"),
                (4, "answered", "benign"),
                (5, "answered", "red"),
            ],
            3,
        );
        let sources = ["drafts".to_owned(), "revisions".to_owned()];
        let screen = Screen {
            json: false,
            color_out: false,
            color_err: false,
            live: false,
            quiet: false,
            verbose: false,
        };
        insta::assert_snapshot!(Shares::of("refusals", &[batch], &sources).render(screen), @r"
        refusals: share of rows, 95 % interval
        source     group   rows              answered            refused              other
        drafts     all        3     33.3 % (6.1–79.2)  33.3 % (6.1–79.2)  33.3 % (6.1–79.2)
        drafts     benign     1  100.0 % (20.7–100.0)   0.0 % (0.0–79.3)   0.0 % (0.0–79.3)
        drafts     red        2      0.0 % (0.0–65.8)  50.0 % (9.5–90.5)  50.0 % (9.5–90.5)
        revisions  all        2  100.0 % (34.2–100.0)   0.0 % (0.0–65.8)   0.0 % (0.0–65.8)
        revisions  benign     1  100.0 % (20.7–100.0)   0.0 % (0.0–79.3)   0.0 % (0.0–79.3)
        revisions  red        1  100.0 % (20.7–100.0)   0.0 % (0.0–79.3)   0.0 % (0.0–79.3)
        ");
    }
}
