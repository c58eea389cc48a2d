//! Shots: the worked examples put before a request, and the principles they are shown under.
//!
//! An example of a critique and revision brings its own requests. An example of a judge is shown
//! under a drawn principle: one of 32 sets of draws by the pair's bucket (`per_bucket`), one set
//! for the node (`fixed`), or a draw for every pair (`per_row`, the paper's).

use std::borrow::Cow;

use crate::record::transcript::{self, ASSISTANT, HUMAN};
use crate::record::{Id, KeyHasher, Message};
use crate::spec::op::{FewShot, Shots};
use crate::spec::{Constitution, Principle};

use super::prompt::Prefix;

/// Sets of draws of `per_bucket`.
const SETS: u64 = 32;

/// The domain of all draws made here.
const DOMAIN: &str = "amend/shots/1";

/// The examples of critique and revision that a node puts before its requests: the first `count`.
pub(super) fn critique_revise(
    few_shot: Option<&FewShot>,
    constitution: Option<&Constitution>,
) -> Prefix {
    let mut prefix = Prefix::default();
    let (Some(few_shot), Some(constitution)) = (few_shot, constitution) else { return prefix };
    let examples = constitution.few_shot.critique_revise.iter();
    for (at, example) in examples.take(few_shot.count.value as usize).enumerate() {
        let text = body(example);
        prefix.text.push_str("\n\n");
        prefix.text.push_str(text);
        prefix.messages.extend(paragraphs(text));
        prefix.ids.push(format!("critique_revise/{}", at + 1));
    }
    prefix
}

/// An example without the blank lines around it and without the `Human:` that published ones end
/// with.
fn body(example: &str) -> &str {
    let text = example.trim();
    text.strip_suffix("Human:").map_or(text, str::trim_end)
}

/// The named paragraphs of an example as turns: requests are the user's, what answers them the
/// assistant's.
fn paragraphs(text: &str) -> Vec<Message> {
    const NAMES: [(&str, &str); 6] = [
        ("Human:", "user"),
        ("Assistant:", "assistant"),
        ("CritiqueRequest:", "user"),
        ("Critique:", "assistant"),
        ("RevisionRequest:", "user"),
        ("Revision:", "assistant"),
    ];
    let mut turns: Vec<Message> = Vec::new();
    for paragraph in text.split("\n\n") {
        let named =
            NAMES.iter().find_map(|(name, role)| Some((role, paragraph.strip_prefix(name)?)));
        match (named, turns.last_mut()) {
            (Some((role, content)), _) => turns.push(Message {
                role: (*role).to_owned(),
                content: content.trim_start().to_owned(),
            }),
            (None, Some(turn)) => {
                turn.content.push_str("\n\n");
                turn.content.push_str(paragraph);
            }
            (None, None) => turns.push(Message::user(paragraph)),
        }
    }
    turns
}

/// One example as it is shown: the question, and the label that answers it.
pub(super) struct Shown {
    /// The question, as text that ends where the label begins.
    pub(super) text: String,
    /// The same as turns, the answer among them.
    pub(super) turns: Vec<Message>,
    /// What follows the question in the text.
    pub(super) answer: String,
}

/// Renders example `at` under an instruction; `swapped` shows the worse response first.
pub(super) type Show<'a> = dyn Fn(usize, &str, bool) -> Shown + 'a;

/// The examples of a judge.
pub(super) struct JudgeShots {
    mode: Shots,
    seed: u64,
    count: usize,
    principles: Vec<Candidate>,
    /// The rendered sets of `per_bucket` and `fixed`.
    sets: Vec<Prefix>,
}

/// A principle that examples may be shown under.
struct Candidate {
    id: String,
    draw_id: String,
    weight: f64,
    judge: String,
}

impl JudgeShots {
    /// No example, for a judge without `few_shot`.
    pub(super) fn none() -> JudgeShots {
        let sets = vec![Prefix::default()];
        JudgeShots { mode: Shots::Fixed, seed: 0, count: 0, principles: Vec::new(), sets }
    }

    /// The first `count` examples, under draws among `principles`.
    pub(super) fn new(
        few_shot: &FewShot,
        seed: u64,
        principles: &[&Principle],
        examples: usize,
        show: &Show<'_>,
    ) -> JudgeShots {
        let candidate = |principle: &&Principle| {
            Some(Candidate {
                id: principle.id.value.clone(),
                draw_id: principle.draw_id().to_owned(),
                weight: principle.weight.value,
                judge: principle.judge.as_ref()?.value.clone(),
            })
        };
        let count = (few_shot.count.value as usize).min(examples);
        let principles: Vec<Candidate> = principles.iter().filter_map(candidate).collect();
        let mode = few_shot.principles;
        let mut shots = JudgeShots { mode, seed, count, principles, sets: Vec::new() };
        let sets = match mode {
            Shots::PerBucket => SETS,
            Shots::Fixed => 1,
            Shots::PerRow => 0,
        };
        shots.sets = (0..sets)
            .map(|set| shots.set(&KeyHasher::new(DOMAIN).u64(seed).u64(set), show))
            .collect();
        shots
    }

    /// The examples before a question about this pair.
    pub(super) fn before(&self, pair: Id, show: &Show<'_>) -> Cow<'_, Prefix> {
        match self.mode {
            Shots::Fixed => Cow::Borrowed(&self.sets[0]),
            Shots::PerBucket => {
                let bucket = KeyHasher::new(DOMAIN).text("bucket").u64(self.seed).with(pair);
                Cow::Borrowed(&self.sets[(bucket.id().low() % SETS) as usize])
            }
            Shots::PerRow => {
                Cow::Owned(self.set(&KeyHasher::new(DOMAIN).u64(self.seed).with(pair), show))
            }
        }
    }

    fn set(&self, draw: &KeyHasher, show: &Show<'_>) -> Prefix {
        let mut prefix = Prefix::default();
        for at in 0..self.count {
            let draw = draw.clone().u64(at as u64);
            let swapped = draw.clone().text("side").id().low() & 1 == 1;
            let Some(principle) = rendezvous(&draw, &self.principles) else { continue };
            let shown = show(at, &principle.judge, swapped);
            prefix.text.push_str(&shown.text);
            prefix.text.push_str(&shown.answer);
            prefix.messages.extend(shown.turns);
            prefix.ids.push(format!("judge/{}@{}", at + 1, principle.id));
        }
        prefix
    }

    pub(super) fn hash_into(&self, hasher: &mut KeyHasher) {
        hasher.add_u64(self.mode as u64);
        hasher.add_u64(self.seed);
        hasher.add_u64(self.count as u64);
        for principle in &self.principles {
            hasher.add_text(&principle.id);
            hasher.add_text(&principle.draw_id);
            hasher.add_f64(principle.weight);
            hasher.add_text(&principle.judge);
        }
        for set in &self.sets {
            hasher.add_text(&set.text);
            set.ids.iter().for_each(|id| hasher.add_text(id));
        }
    }
}

/// Weighted rendezvous hashing over ids: the argmax of `-weight / ln u`, ties by id. A change of
/// one principle moves what it wins and nothing else.
fn rendezvous<'a>(draw: &KeyHasher, candidates: &'a [Candidate]) -> Option<&'a Candidate> {
    let score = |candidate: &Candidate| {
        let bits = draw.clone().text(&candidate.draw_id).id().low() >> 11; // 53 bits
        let u = (bits as f64 + 0.5) / (1u64 << 53) as f64; // in (0, 1)
        -candidate.weight / libm::log(u)
    };
    candidates
        .iter()
        .map(|candidate| (score(candidate), candidate))
        .max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.draw_id.cmp(&x.draw_id)))
        .map(|(_, candidate)| candidate)
}

/// The better and the worse answer of an example, and its conversation.
pub(super) fn conversation(prompt: &str) -> Vec<Message> {
    let prompt = prompt.trim_end();
    let prompt = prompt.strip_suffix(ASSISTANT).unwrap_or(prompt);
    let turns = transcript::parse(prompt).unwrap_or_default();
    if turns.is_empty() { vec![Message::user(prompt.trim())] } else { turns }
}

/// The parts of an example with a chain of thought, of which the answer is the last.
pub(super) struct Thought<'a> {
    /// The question, with one `{}` where the instruction goes.
    pub(super) question: &'a str,
    /// What the assistant thinks.
    pub(super) steps: &'a str,
    /// The last question, such as `So the answer is:`.
    pub(super) last: &'a str,
    /// The label, such as `(A)`.
    pub(super) label: &'a str,
}

/// Takes an example with a chain of thought apart; nothing where it has another form.
pub(super) fn thought(example: &str) -> Option<Thought<'_>> {
    let text = example.trim();
    let question = text.strip_prefix("Human:").unwrap_or(text);
    let (question, rest) = question.rsplit_once(ASSISTANT)?;
    let (thought, last) = rest.rsplit_once(HUMAN)?;
    let (last, label) = last.rsplit_once(':')?;
    Some(Thought {
        question: question.trim(),
        steps: thought.trim(),
        last: last.trim(),
        label: label.trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_becomes_turns_by_its_named_paragraphs() {
        let text = "\n\nHuman: a\n\nb\n\nAssistant: c\n\nCritiqueRequest: d\n\nCritique: e\n\n\
                    RevisionRequest: f\n\nRevision: g\n\nHuman:";
        let turns = paragraphs(body(text));
        let turns: Vec<String> =
            turns.iter().map(|turn| format!("{}: {:?}", turn.role, turn.content)).collect();
        insta::assert_snapshot!(turns.join("\n"), @r#"
        user: "a\n\nb"
        assistant: "c"
        user: "d"
        assistant: "e"
        user: "f"
        assistant: "g"
        "#);
    }

    #[test]
    fn a_principle_taken_away_moves_what_it_had_won_and_nothing_else() {
        let candidate = |id: &str| Candidate {
            id: id.to_owned(),
            draw_id: id.to_owned(),
            weight: 1.0,
            judge: String::new(),
        };
        let four = ["a", "b", "c", "d"].map(candidate);
        let mut won = [0u32; 4];
        for n in 0..400u64 {
            let draw = KeyHasher::new(DOMAIN).u64(n);
            let before = rendezvous(&draw, &four).unwrap().id.clone();
            let after = rendezvous(&draw, &four[..3]).unwrap().id.clone();
            assert!(before == after || before == "d");
            won[(before.as_bytes()[0] - b'a') as usize] += 1;
        }
        assert!(won.iter().all(|wins| (70..130).contains(wins)), "{won:?}");
    }
}
