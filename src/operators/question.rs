//! The question of a judge: the published wording, byte for byte, and that of a chain of thought.

use minijinja::{Value, context};

use crate::model::Prompt;
use crate::record::{KeyHasher, Message, Turns};
use crate::spec::Constitution;

use super::prompt::{Prefix, Style, Writer};
use super::shots::{self, Shown};
use super::template::Template;
use super::{BuildError, Reject};

/// What is asked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The label.
    Label,
    /// A chain of thought, and the label after it.
    Thought,
}

/// The wording of one judge.
pub(super) struct Words {
    pub(super) style: Style,
    form: Form,
    template: Option<Template>,
    /// The labels as options are called: without the space of a continuation.
    names: [String; 2],
}

/// One question: a conversation, an instruction, the responses in the order they are shown.
pub(super) struct Question<'a> {
    pub(super) turns: Turns<'a>,
    pub(super) judge: &'a str,
    pub(super) shown: [&'a str; 2],
}

const LABEL: &str = "Consider the following conversation between a human and an assistant:";
const THOUGHT: &str =
    "Consider the following conversation between a human (H) and an assistant (A):";
const STEPS: &str = "Let's think step by step:";
const LAST: &str = "So the answer is:";

impl Words {
    pub(super) fn new(
        style: Style,
        form: Form,
        constitution: Option<&Constitution>,
    ) -> Result<Words, BuildError> {
        let name = match form {
            Form::Label => "judge",
            Form::Thought => "judge_cot",
        };
        let names = ["principle", "a", "b", "label_a", "label_b"];
        let template = Template::of(constitution, name, &names)?;
        let names = style.labels.clone().map(|label| label.trim().to_owned());
        Ok(Words { style, form, template, names })
    }

    /// What is scored after a question.
    pub(super) fn labels(&self) -> &[String; 2] {
        &self.style.labels
    }

    /// The prompt that asks a question, after the examples.
    pub(super) fn prompt(
        &self,
        prefix: &Prefix,
        question: Question<'_>,
        principle: impl FnOnce() -> Value,
    ) -> Result<Prompt, Reject> {
        if let Some(template) = &self.template {
            let [a, b] = question.shown;
            let [label_a, label_b] = &self.names;
            let own = context! { principle => principle(), a, b, label_a, label_b };
            let text = template.render(question.turns, &prefix.text, own)?;
            return Ok(self.style.whole(text).done());
        }
        Ok(self.worded(prefix, question.turns, question.judge, question.shown))
    }

    /// The same in the published words, whatever the constitution's template.
    pub(super) fn worded<'a>(
        &self,
        prefix: &Prefix,
        turns: impl Iterator<Item = (&'a str, &'a str)>,
        judge: &str,
        shown: [&str; 2],
    ) -> Prompt {
        let mut writer = self.style.open(prefix, None);
        match &mut writer {
            Writer::Text(text) => self.write(text, turns, judge, shown),
            Writer::Messages(messages) => {
                let mut text = String::with_capacity(1024);
                self.write_message(&mut text, turns, judge, shown);
                messages.push(Message::user(text));
            }
        }
        writer.done()
    }

    /// The question as text to continue: with what comes before the label, or before the thought.
    fn write<'a>(
        &self,
        to: &mut String,
        turns: impl Iterator<Item = (&'a str, &'a str)>,
        judge: &str,
        shown: [&str; 2],
    ) {
        to.push_str(if self.form == Form::Label { "\n\n" } else { "\n\nHuman: " });
        self.write_options(to, turns, judge, shown);
        match self.form {
            Form::Label => to.push_str("\n\nThe answer is:"),
            Form::Thought => {
                to.push_str("\n\nAssistant: ");
                to.push_str(STEPS);
            }
        }
    }

    /// The question as one message.
    fn write_message<'a>(
        &self,
        to: &mut String,
        turns: impl Iterator<Item = (&'a str, &'a str)>,
        judge: &str,
        shown: [&str; 2],
    ) {
        self.write_options(to, turns, judge, shown);
        to.push_str("\n\n");
        to.push_str(if self.form == Form::Label { "The answer is:" } else { STEPS });
    }

    fn write_options<'a>(
        &self,
        to: &mut String,
        turns: impl Iterator<Item = (&'a str, &'a str)>,
        judge: &str,
        shown: [&str; 2],
    ) {
        let (head, human, assistant) = match self.form {
            Form::Label => (LABEL, "Human", "Assistant"),
            Form::Thought => (THOUGHT, "H", "A"),
        };
        to.push_str(head);
        for (role, content) in turns {
            to.push_str("\n\n");
            match role {
                "user" => to.push_str(human),
                "assistant" => to.push_str(assistant),
                other => to.push_str(other),
            }
            to.push_str(": ");
            to.push_str(content);
        }
        to.push_str("\n\n\n");
        to.push_str(judge);
        to.push_str(" Options:");
        for (name, response) in self.names.iter().zip(shown) {
            to.push_str("\n ");
            to.push_str(name);
            to.push_str(" [[[");
            to.push_str(response);
            to.push_str("]]]");
        }
    }

    /// The prompt that asks for the label after a thought.
    pub(super) fn after_thought(prompt: Prompt, thought: &str) -> Prompt {
        match prompt {
            Prompt::Text(mut text) => {
                text.push(' ');
                text.push_str(thought);
                text.push_str("\n\nHuman:\n");
                text.push_str(LAST);
                Prompt::Text(text)
            }
            Prompt::Messages(mut messages) => {
                messages.extend([Message::assistant(thought), Message::user(LAST)]);
                Prompt::Messages(messages)
            }
        }
    }

    /// An example of a judged pair; `best` is the place of the better response.
    pub(super) fn pair_shown<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        judge: &str,
        shown: [&str; 2],
        best: usize,
    ) -> Shown {
        let (mut text, mut message) = (String::new(), String::new());
        self.write(&mut text, turns.clone(), judge, shown);
        self.write_message(&mut message, turns, judge, shown);
        let answer = self.style.labels[best].clone();
        let turns = vec![Message::user(message), Message::assistant(answer.trim())];
        Shown { text, turns, answer }
    }

    /// An example with a chain of thought, its `{}` filled with the instruction.
    pub(super) fn thought_shown(example: &str, judge: &str) -> Shown {
        let filled = example.trim().replacen("{}", &format!("\n{judge} Options:"), 1);
        let mut text = String::from("\n\n");
        text.push_str(&filled);
        let turns = match shots::thought(&filled) {
            Some(parts) => vec![
                // The steps are asked for in the question and not part of the thought.
                Message::user(format!("{}\n\n{STEPS}", parts.question)),
                Message::assistant(parts.steps.trim_start_matches(STEPS).trim_start()),
                Message::user(format!("{}:", parts.last)),
                Message::assistant(parts.label),
            ],
            None => vec![Message::user(filled.clone())],
        };
        Shown { text, turns, answer: String::new() }
    }

    pub(super) fn hash_into(&self, hasher: &mut KeyHasher) {
        self.style.hash_into(hasher);
        hasher.add_u64(u64::from(self.form == Form::Thought));
        Template::hash_into(self.template.as_ref(), hasher);
    }
}
