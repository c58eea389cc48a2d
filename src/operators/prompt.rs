//! Prompts: how a conversation and what is asked about it become what a model reads, and how its
//! answer becomes text.
//!
//! A transcript appends named paragraphs (`\n\nCritiqueRequest: …\n\nCritique:`), as in the paper;
//! a chat appends turns: what is asked is the user's, what was answered is the assistant's.

use crate::model::{Answer, Finish, Prompt, Sampling};
use crate::record::transcript::{self, push_turn};
use crate::record::{Cell, Id, KeyHasher, Message, Turns};
use crate::spec;
use crate::spec::model::Format;

use super::{Reason, Reject};

/// How one model is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Style {
    format: Format,
    system: Option<String>,
    stop: Vec<String>,
    strip_thinking: bool,
    /// What the two options of a pair are called, as continuations.
    pub(super) labels: [String; 2],
}

/// What stands before a conversation: worked examples, in both forms.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    pub(super) text: String,
    pub(super) messages: Vec<Message>,
    /// Which examples, as the column `few_shot_ids` names them.
    pub(super) ids: Vec<String>,
}

/// What a model wrote, as rows hold it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written<'a> {
    pub(super) text: &'a str,
    pub(super) reasoning: Option<&'a str>,
}

/// What a row says of how its answers were had: parameters that the server refused, and token counts
/// that are estimates. Null where there is nothing to say.
pub(super) fn warnings<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Cell<'static> {
    let mut warnings: Vec<String> = Vec::new();
    let mut add = |warning: String| {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    };
    for answer in answers {
        for name in &answer.omitted {
            add(format!("the server refuses `{name}`: the answer was given without it"));
        }
        if answer.estimated_usage {
            add("the server counts no tokens: token counts are upper bounds".to_owned());
        }
    }
    Cell::or_null((!warnings.is_empty()).then_some(warnings), Cell::Texts)
}

impl Style {
    pub(super) fn new(model: &spec::Model) -> Style {
        let [a, b] = &model.label_tokens;
        // A chat's answer does not begin with the space that continues a text.
        let label = |text: &String| match model.format {
            Format::Transcript => text.clone(),
            Format::Chat => text.trim_start().to_owned(),
        };
        Style {
            format: model.format,
            system: model.system.clone(),
            stop: model.stop.clone(),
            strip_thinking: model.strip_thinking,
            labels: [label(a), label(b)],
        }
    }

    /// How tokens are drawn: a transcript also ends where the next named paragraph begins.
    pub(super) fn sampling(&self, node: &spec::op::Sampling, paragraphs: &[&str]) -> Sampling {
        let mut stop: Vec<String> = Vec::new();
        let of_form = match self.format {
            Format::Transcript => paragraphs,
            Format::Chat => &[],
        };
        let of_form = of_form.iter().map(|text| (*text).to_owned());
        for text in node.stop.iter().chain(&self.stop).cloned().chain(of_form) {
            if !stop.contains(&text) {
                stop.push(text);
            }
        }
        Sampling {
            temperature: node.temperature,
            top_p: node.top_p,
            top_k: node.top_k,
            min_p: node.min_p,
            repetition_penalty: node.repetition_penalty,
            max_tokens: node.max_tokens,
            stop,
            seed: None,
        }
    }

    /// Begins a prompt: the system message, the examples, the conversation.
    pub(super) fn begin(&self, prefix: &Prefix, turns: Turns<'_>) -> Writer {
        let mut turns = turns.peekable();
        let own = turns.next_if(|(role, _)| *role == "system").map(|(_, content)| content);
        let mut writer = self.open(prefix, own);
        turns.for_each(|(role, content)| writer.turn(role, content));
        writer
    }

    /// A conversation as a transcript, whatever the format, with the model's system message.
    pub(super) fn transcript(&self, turns: Turns<'_>) -> String {
        let mut text = String::new();
        let own = turns.clone().next().is_some_and(|(role, _)| role == "system");
        if let (false, Some(system)) = (own, &self.system) {
            push_turn(&mut text, "system", system);
        }
        turns.for_each(|(role, content)| push_turn(&mut text, role, content));
        text
    }

    /// Begins a prompt that holds no conversation yet; `system` goes before the model's own.
    pub(super) fn open(&self, prefix: &Prefix, system: Option<&str>) -> Writer {
        let mut writer = match self.format {
            Format::Transcript => Writer::Text(String::with_capacity(prefix.text.len() + 1024)),
            Format::Chat => Writer::Messages(Vec::with_capacity(prefix.messages.len() + 8)),
        };
        if let Some(system) = system.or(self.system.as_deref()) {
            writer.turn("system", system);
        }
        match &mut writer {
            Writer::Text(text) => text.push_str(&prefix.text),
            Writer::Messages(messages) => messages.extend_from_slice(&prefix.messages),
        }
        writer
    }

    /// The whole of a prompt that a template rendered: the text to continue, or the one message.
    pub(super) fn whole(&self, text: String) -> Writer {
        match self.format {
            Format::Transcript => Writer::Text(text),
            Format::Chat => {
                let system = self.system.iter().map(Message::system);
                Writer::Messages(system.chain([Message::user(text)]).collect())
            }
        }
    }

    /// What a model wrote, without its reasoning (where it is stripped) and without white space
    /// around it.
    pub(super) fn written<'a>(&self, answer: &'a Answer) -> Result<Written<'a>, Reject> {
        let reject = |reason, detail: &str| Reject {
            reason,
            detail: detail.to_owned(),
            answer: Some(answer.text.clone()),
        };
        let is_cut = answer.finish == Finish::Length;
        match answer.finish {
            Finish::ContentFilter => {
                return Err(reject(Reason::Refused, "a filter of the server cut the answer"));
            }
            Finish::ToolCalls => {
                let detail = "the model called a tool instead of answering";
                return Err(reject(Reason::Unparseable, detail));
            }
            Finish::Stop | Finish::Length => {}
        }
        let mut text = answer.text.trim();
        let mut reasoning = answer.reasoning.as_deref().map(str::trim);
        let cut =
            "the answer was cut by `max_tokens` before its reasoning ended; raise `max_tokens`";
        if self.strip_thinking {
            // The opening tag may be part of the chat template, and then it is not in the answer.
            if let Some((before, after)) = text.split_once("</think>") {
                let before = before.trim();
                reasoning = Some(before.strip_prefix("<think>").map_or(before, str::trim_start));
                text = after.trim();
            } else if text.starts_with("<think>") && !is_cut {
                return Err(reject(Reason::Empty, "the answer is a thought that does not end"));
            } else if is_cut && reasoning.is_none() {
                return Err(reject(Reason::Truncated, cut));
            }
        }
        if text.is_empty() {
            return Err(match reasoning {
                Some(_) if is_cut => reject(Reason::Truncated, cut),
                Some(_) => reject(Reason::Empty, "the answer is empty after its reasoning"),
                None => reject(Reason::Empty, "the answer is empty"),
            });
        }
        Ok(Written { text, reasoning: reasoning.filter(|text| !text.is_empty()) })
    }

    pub(super) fn hash_into(&self, hasher: &mut KeyHasher) {
        hasher.add_text(match self.format {
            Format::Transcript => "transcript",
            Format::Chat => "chat",
        });
        hasher.add_text(self.system.as_deref().unwrap_or("no system message"));
        hasher.add_u64(u64::from(self.strip_thinking));
        self.labels.iter().for_each(|label| hasher.add_text(label));
    }
}

/// A prompt being written.
#[derive(Clone, Debug)]
pub(super) enum Writer {
    Text(String),
    Messages(Vec<Message>),
}

impl Writer {
    /// A turn of the conversation.
    pub(super) fn turn(&mut self, role: &str, content: &str) {
        match self {
            Writer::Text(text) => push_turn(text, role, content),
            Writer::Messages(messages) => {
                messages.push(Message { role: role.to_owned(), content: content.to_owned() });
            }
        }
    }

    /// Several turns.
    pub(super) fn turns(&mut self, turns: Turns<'_>) {
        turns.for_each(|(role, content)| self.turn(role, content));
    }

    /// What is asked about the conversation: a named paragraph, or a turn of the user.
    pub(super) fn ask(&mut self, name: &str, content: &str) {
        self.paragraph(name, "user", content);
    }

    /// What was answered to that: a named paragraph, or a turn of the assistant.
    pub(super) fn reply(&mut self, name: &str, content: &str) {
        self.paragraph(name, "assistant", content);
    }

    fn paragraph(&mut self, name: &str, role: &str, content: &str) {
        match self {
            Writer::Text(text) => {
                text.push_str("\n\n");
                text.push_str(name);
                text.push_str(": ");
                text.push_str(content);
            }
            Writer::Messages(_) => self.turn(role, content),
        }
    }

    /// The prompt: a text ends with the name of what comes, a chat with the user's turn.
    pub(super) fn cue(self, name: &str) -> Prompt {
        match self {
            Writer::Text(mut text) => {
                text.push_str("\n\n");
                text.push_str(name);
                text.push(':');
                Prompt::Text(text)
            }
            Writer::Messages(messages) => Prompt::Messages(messages),
        }
    }

    /// The prompt as it is.
    pub(super) fn done(self) -> Prompt {
        match self {
            Writer::Text(text) => Prompt::Text(text),
            Writer::Messages(messages) => Prompt::Messages(messages),
        }
    }
}

/// The seed of one sampled request; none for a greedy one, so that equal ones are one call.
///
/// It has 31 bits: servers that keep a seed in a signed 32-bit number are many.
pub(super) fn seed(
    sampling: &Sampling,
    seed: u64,
    role: &str,
    made: Id,
    index: u64,
) -> Option<u64> {
    (!sampling.is_greedy()).then(|| {
        let hasher = KeyHasher::new("amend/seed/1").u64(seed).text(role).with(made).u64(index);
        hasher.id().low() & 0x7fff_ffff
    })
}

/// The transcript of a conversation.
pub(super) fn conversation(turns: Turns<'_>) -> String {
    transcript::render(turns)
}
