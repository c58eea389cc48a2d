//! Renamed principles: an id that vanished since the last snapshot while another says nearly the same.
//!
//! Draws go by ids, so a renamed principle is a removal and an addition: rows are asked again that no
//! text changed for. The manifest keeps the constitution as it was, with ids and texts.

use std::collections::BTreeMap;

use crate::engine::run::Options;
use crate::plan::Plan;
use crate::spec::{Constitution, Mistakes, Principle, parse_constitution};
use crate::store::{Inputs, Snapshot, Store};

/// The share of words in common from which on two texts are the same text, edited.
const NEAR: f64 = 0.8;

/// Warns of principles that seem to be renamed since the last snapshot. A snapshot that cannot be
/// read warns of nothing: the run will say so.
pub fn renamed(plan: &Plan, options: &Options, warnings: &mut Mistakes) {
    let Some(now) = plan.constitution() else { return };
    let snapshots = Store::new(&options.store).snapshots(&plan.pipeline().name);
    if let Ok(Some(latest)) = snapshots.latest()
        && let Some(before) = constitution_of(snapshots.given(&latest).as_ref(), &latest)
    {
        compare(&before, now, latest.manifest().number, warnings);
    }
}

/// The constitution that a snapshot was made by last: by what gave it again, if something did.
fn constitution_of(again: Option<&Inputs>, snapshot: &Snapshot) -> Option<Constitution> {
    let inputs = again.unwrap_or(&snapshot.manifest().inputs);
    // The pipeline's file comes first.
    parse_constitution(&inputs.files.get(1)?.text)
}

fn compare(before: &Constitution, now: &Constitution, snapshot: u64, warnings: &mut Mistakes) {
    let has = |all: &Constitution, id: &str| all.principles.iter().any(|one| one.draw_id() == id);
    let gone = before.principles.iter().filter(|was| !has(now, was.draw_id()));
    let mut gone: Vec<(&str, Words)> = gone.map(|was| (was.draw_id(), Words::of(was))).collect();
    let new = now.principles.iter().filter(|is| !has(before, is.draw_id()) && is.was.is_none());
    for is in new {
        let words = Words::of(is);
        let nearest = gone.iter().enumerate().map(|(at, (_, was))| (words.in_common(was), at));
        let nearest = nearest.max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, at)) = nearest.filter(|(share, _)| *share >= NEAR) else { continue };
        let (was, _) = gone.remove(at);
        warnings.push(
            is.id.place,
            format!(
                "principle \"{}\" says nearly what \"{was}\" said, which is gone since snapshot {snapshot}",
                is.id
            ),
            format!("if it is the same rule, add `was: {was}`: rows keep what they drew"),
        );
    }
}

/// The words of a principle's texts, each with how often it stands there.
struct Words {
    counts: BTreeMap<String, usize>,
    total: usize,
}

impl Words {
    fn of(principle: &Principle) -> Words {
        let texts = [&principle.critique, &principle.revise, &principle.judge];
        let mut counts = BTreeMap::new();
        let words = texts.into_iter().flatten();
        let words = words.flat_map(|text| text.split(|letter: char| !letter.is_alphanumeric()));
        for word in words.filter(|word| !word.is_empty()) {
            *counts.entry(word.to_lowercase()).or_insert(0) += 1;
        }
        let total = counts.values().sum();
        Words { counts, total }
    }

    /// The share of the words of both that are common to both: 1 where they are the same.
    fn in_common(&self, other: &Words) -> f64 {
        let count = |word: &String| other.counts.get(word).copied().unwrap_or(0);
        let common: usize = self.counts.iter().map(|(word, own)| count(word).min(*own)).sum();
        match self.total + other.total {
            0 => 0.0,
            all => 2.0 * common as f64 / all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The warnings about an edit of a constitution, a line each.
    fn edit(before: &str, now: &str) -> Vec<String> {
        let parse = |text: &str| parse_constitution(&format!("principles: [{text}]")).unwrap();
        let mut warnings = Mistakes::warnings(Vec::new());
        compare(&parse(before), &parse(now), 3, &mut warnings);
        let told = |one: &crate::spec::Mistake| {
            format!("{} | {}", one.message, one.help.as_deref().unwrap_or("-"))
        };
        warnings.iter().map(told).collect()
    }

    const TEN: &str = "one two three four five six seven eight nine ten";

    #[test]
    fn a_vanished_id_whose_text_stays_is_taken_for_a_rename() {
        let before = format!("{{ id: a, critique: {TEN} }}, {{ id: b, critique: other words }}");
        let said = edit(&before, &before.replace("id: a", "id: c").replace("nine", "NINE"));
        assert_eq!(
            said,
            ["principle \"c\" says nearly what \"a\" said, which is gone since snapshot 3 | \
              if it is the same rule, add `was: a`: rows keep what they drew"]
        );
    }

    #[test]
    fn an_edit_an_addition_and_a_stated_rename_are_none() {
        let before = format!("{{ id: a, critique: {TEN} }}");
        for now in [
            before.replace("nine", "9"),
            format!("{before}, {{ id: c, critique: {TEN} }}"),
            format!("{{ id: c, was: a, critique: {TEN} }}"),
            "{ id: c, critique: one two three and nothing else }".to_owned(),
        ] {
            assert_eq!(edit(&before, &now), [""; 0], "{now}");
        }
    }

    #[test]
    fn a_rename_that_is_no_longer_stated_is_one() {
        let before = format!("{{ id: c, was: a, critique: {TEN} }}");
        let said = edit(&before, &before.replace(" was: a,", ""));
        assert!(said.len() == 1 && said[0].contains("`was: a`"), "{said:?}");
    }
}
