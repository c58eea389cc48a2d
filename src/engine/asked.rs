//! A judge whose verdicts are a reward: the trainer compares rollouts, and is given the questions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::draw::{Candidate, Draw};
use crate::model::Prompt;
use crate::model::train::Asks;
use crate::operators::RewardWords;
use crate::operators::train::Chat;
use crate::record::{Id, Message};

/// The principles that a judge draws from, and how it is asked.
pub struct JudgeSetup {
    /// How it is asked.
    pub words: RewardWords,
    /// The draw of a prompt and an update: rounds are updates.
    pub draw: Draw,
    /// The principles that can be drawn.
    pub candidates: Vec<Candidate>,
    /// Their instructions, by key.
    pub texts: BTreeMap<Id, Arc<str>>,
}

impl JudgeSetup {
    /// What decides its verdicts besides its weights and its rendering.
    pub(super) fn recipe(&self) -> Value {
        let principle = |candidate: &Candidate| {
            json!([*candidate.id, candidate.weight, *self.texts[&candidate.key]])
        };
        let principles: Vec<Value> = self.candidates.iter().map(principle).collect();
        json!({ "seed": self.draw.seed, "principles": principles, "labels": self.words.labels() })
    }
}

impl fmt::Debug for JudgeSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JudgeSetup").field("candidates", &self.candidates).finish_non_exhaustive()
    }
}

/// Asks one judge.
pub(super) struct Asker {
    /// Which, and about what.
    pub(super) judge: Arc<JudgeSetup>,
    /// How conversations are rendered, if it is spoken to in such.
    pub(super) chat: Option<Box<Chat>>,
}

impl Asks for Asker {
    fn question(
        &self,
        row: Id,
        update: u64,
        prompt: &[Message],
        shown: [&str; 2],
    ) -> Result<String, String> {
        let JudgeSetup { words, draw, candidates, texts } = &*self.judge;
        // Round 0 is that of judgements of pairs.
        let draw = Draw { round: update as u32 + 1, ..*draw };
        let drawn = draw.winners(draw.bucket(row), candidates, 1)[0];
        match (words.question(prompt, &texts[&drawn], shown), &self.chat) {
            (Prompt::Text(text), _) => Ok(text),
            (Prompt::Messages(messages), Some(chat)) => chat(&messages, true),
            (Prompt::Messages(_), None) => Err("the judge has no chat template".to_owned()),
        }
    }

    fn labels(&self) -> &[String; 2] {
        self.judge.words.labels()
    }
}
