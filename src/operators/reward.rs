//! The question of a judge whose verdicts are the reward of `ppo-update`: that of `pairwise-judge`,
//! about two rollouts of a prompt.

use crate::model::Prompt;
use crate::record::Message;
use crate::spec::{Constitution, Model};

use super::BuildError;
use super::prompt::{Prefix, Style};
use super::question::{Form, Words};

/// How a judge of rollouts is asked.
pub struct RewardWords {
    words: Words,
}

impl RewardWords {
    /// The wording for a model: the published one, which a constitution's template does not replace.
    pub fn new(model: &Model, constitution: Option<&Constitution>) -> Result<Self, BuildError> {
        let own = constitution.and_then(|all| all.templates.get("judge"));
        if let Some(template) = own {
            return Err(BuildError::at(
                template.place,
                "a judge as a reward asks in the published words, and the constitution has others"
                    .to_owned(),
                "leave the template `judge` out, or train a preference model on `pairwise-judge`",
            ));
        }
        Ok(RewardWords { words: Words::new(Style::new(model), Form::Label, None)? })
    }

    /// The question which of two answers to a prompt is better under an instruction.
    pub fn question(&self, prompt: &[Message], judge: &str, shown: [&str; 2]) -> Prompt {
        let turns = prompt.iter().map(|turn| (turn.role.as_str(), turn.content.as_str()));
        self.words.worded(&Prefix::default(), turns, judge, shown)
    }

    /// The labels of the answer that is shown first and of the other, as continuations.
    pub fn labels(&self) -> &[String; 2] {
        self.words.labels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{chat, model, transcript};

    #[test]
    fn rollouts_are_compared_in_the_words_of_pairwise_judge() {
        let words = RewardWords::new(&model(&transcript()), None).unwrap();
        let prompt = [Message::user("how do i bake a cake?")];
        let asked = words.question(&prompt, "Which is kinder?", ["in an oven", "go away"]);
        let Prompt::Text(text) = asked else { panic!("a transcript is a text") };
        insta::assert_snapshot!(text, @r"


        Consider the following conversation between a human and an assistant:

        Human: how do i bake a cake?


        Which is kinder? Options:
         (A) [[[in an oven]]]
         (B) [[[go away]]]

        The answer is:
        ");
        assert_eq!(words.labels(), &[" (A)", " (B)"]);
        let words = RewardWords::new(&model(&chat()), None).unwrap();
        let asked = words.question(&prompt, "Which is kinder?", ["in an oven", "go away"]);
        assert!(matches!(asked, Prompt::Messages(_)));
    }
}
