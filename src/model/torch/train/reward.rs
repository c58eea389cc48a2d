//! Rewards: what a batch of episodes is given a score by.

use tch::{Tensor, no_grad_guard};

use super::experience::{Judge, layout, logits};
use super::learner::Learner;
use super::loss::log_probs;
use super::rollout::{Episode, Prompts};
use super::rows::{Row, micro_batches};
use crate::model::train::{Asks, PpoSettings, TrainError};

/// Where scores come from.
pub(super) enum Reward<'a> {
    /// A preference model.
    Model(Judge),
    /// A language model that compares the episodes of a prompt with each other.
    Asked(Asked<'a>),
}

impl Reward<'_> {
    /// The scores of episodes; those of a prompt stand in a row, `num_generations` of them.
    pub(super) fn scores(
        &self,
        prompts: &Prompts<'_>,
        episodes: &[Episode],
        update: u64,
        settings: &PpoSettings,
    ) -> Result<Vec<f64>, TrainError> {
        match self {
            Reward::Model(judge) => judge.scores(&prompts.texts, episodes, settings),
            Reward::Asked(asked) => asked.scores(prompts, episodes, update, settings),
        }
    }

    /// The score at the scale at which it is rewarded.
    pub(super) fn normalized(&self, score: f64) -> f64 {
        match self {
            Reward::Model(judge) => judge.normalized(score),
            Reward::Asked(_) => score,
        }
    }
}

/// A language model that is asked which of two episodes is better.
pub(super) struct Asked<'a> {
    /// The model.
    pub(super) model: Learner,
    /// How it is asked.
    pub(super) asks: &'a dyn Asks,
}

/// A question with either label behind it.
struct Question {
    rows: [Row; 2],
    /// The episodes in the order in which they are shown.
    shown: [usize; 2],
}

impl Asked<'_> {
    /// The share of its comparisons that an episode wins: each is compared with the next of its
    /// prompt, in both orders, by the softmax over the two labels. Equal answers are even.
    fn scores(
        &self,
        prompts: &Prompts<'_>,
        episodes: &[Episode],
        update: u64,
        settings: &PpoSettings,
    ) -> Result<Vec<f64>, TrainError> {
        let mut won = vec![(0.0, 0.0); episodes.len()];
        let mut add = |episode: usize, p: f64| {
            won[episode].0 += p;
            won[episode].1 += 1.0;
        };
        let mut questions = Vec::new();
        for (a, b) in pairs(episodes.len(), settings.num_generations) {
            if episodes[a].text == episodes[b].text {
                add(a, 0.5);
                add(b, 0.5);
                continue;
            }
            for shown in [[a, b], [b, a]] {
                questions.push(self.question(prompts, episodes, update, shown)?);
            }
        }
        for (question, p) in questions.iter().zip(self.answers(&questions, settings)) {
            add(question.shown[0], p);
            add(question.shown[1], 1.0 - p);
        }
        Ok(won.into_iter().map(|(sum, n)| if n > 0.0 { sum / n } else { 0.5 }).collect())
    }

    fn question(
        &self,
        prompts: &Prompts<'_>,
        episodes: &[Episode],
        update: u64,
        shown: [usize; 2],
    ) -> Result<Question, TrainError> {
        let prompt = episodes[shown[0]].prompt;
        let texts = shown.map(|episode| episodes[episode].text.trim());
        let (row, messages) = (prompts.ids[prompt], prompts.messages[prompt]);
        let question =
            self.asks.question(row, update, messages, texts).map_err(TrainError::Data)?;
        let labels = self.asks.labels();
        let rows = self.model.choices(&question, [&labels[0], &labels[1]])?;
        let (longest, most) =
            (rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0), self.model.length_max());
        if longest > most {
            return Err(TrainError::Data(format!(
                "a question to the judge has {longest} tokens, of at most {most}: shorten \
                 response_length, or leave long prompts out"
            )));
        }
        Ok(Question { rows, shown })
    }

    /// For each question the probability of the first label.
    fn answers(&self, questions: &[Question], settings: &PpoSettings) -> Vec<f64> {
        let _guard = no_grad_guard();
        let rows: Vec<Row> = questions.iter().flat_map(|question| question.rows.clone()).collect();
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut tokens = vec![Vec::new(); rows.len()];
        for micro in micro_batches(&rows, &all, &layout(settings, self.model.device())) {
            let of_labels: Tensor = log_probs(&logits(&self.model, &micro), &micro.targets, 1.0); // (N)
            micro.scatter(&of_labels, &mut tokens);
        }
        let sum = |row: &Vec<f32>| row.iter().map(|&x| f64::from(x)).sum::<f64>();
        tokens
            .chunks(2)
            .map(|pair| 1.0 / (1.0 + libm::exp(sum(&pair[1]) - sum(&pair[0]))))
            .collect()
    }
}

/// The pairs that are compared: each episode with the next of its group, the last with the first.
fn pairs(n_episodes: usize, group: usize) -> Vec<(usize, usize)> {
    let of_group = |first: usize| {
        let size = group.min(n_episodes - first);
        let pair = move |at: usize| (first + at, first + (at + 1) % size);
        // Of two, the second with the first would be the same pair again.
        (0..if size == 2 { 1 } else { size }).filter(move |_| size > 1).map(pair)
    };
    (0..n_episodes).step_by(group.max(1)).flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_episode_is_compared_with_the_next_of_its_prompt() {
        assert_eq!(pairs(6, 3), [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]);
        assert_eq!(pairs(4, 2), [(0, 1), (2, 3)]);
        assert_eq!(pairs(5, 4), [(0, 1), (1, 2), (2, 3), (3, 0)], "the last is alone");
    }
}
