//! Shapes: what a record says, whichever of the field's shapes it has.
//!
//! | relation | shapes |
//! |---|---|
//! | prompts | `{prompt}`, `{messages}`; hh-rlhf `{chosen, rejected}` |
//! | comparisons | `{prompt, chosen, rejected}`, `{chosen, rejected}`, `{prompt, response_a, response_b, p}` |
//! | demonstrations | `{prompt, completion}`, `{messages}`; hh-rlhf: the chosen answer; verbatim: two texts |
//!
//! Messages are a list, or a text that holds one as JSON.
//! A prompt ends where the assistant would speak: a last answer is left out of it.

use std::borrow::Cow;

use serde_json::Value;

use super::conversation::{answer, check_prompt, common_prompt, listed, turns};
use super::fields::Fields;
use super::{Format, ReadOptions, json};
use crate::record::transcript;
use crate::record::{BatchBuilder, Cell, Id, KeyHasher, Message, Origin, Relation};

/// Why a record is no row.
pub(super) enum Fault {
    /// It cannot be read at all.
    Broken(String),
    /// It lacks a column.
    Lacks(String),
    /// What it says cannot be used.
    Row(String),
    /// Its two responses are equal.
    Identical,
}

impl Fault {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Fault::Identical => "identical_pair",
            _ => "bad_input",
        }
    }

    pub(super) fn detail(&self) -> String {
        match self {
            Fault::Broken(detail) | Fault::Lacks(detail) | Fault::Row(detail) => detail.clone(),
            Fault::Identical => "the two responses are equal".to_owned(),
        }
    }

    /// Whether two faults are the same fault of the whole file.
    pub(super) fn is_like(&self, other: &Fault) -> bool {
        matches!(
            (self, other),
            (Fault::Broken(_), Fault::Broken(_)) | (Fault::Lacks(_), Fault::Lacks(_))
        )
    }
}

/// What a record says.
pub(super) struct Shaped {
    prompt: Vec<Message>,
    said: Said,
    category: Option<String>,
    tags: Vec<String>,
    conversation: Option<String>,
    extra: Option<String>,
}

enum Said {
    Prompt,
    Demonstration(Vec<Message>),
    /// The better response and the worse: which is A is not yet chosen.
    Chosen([Vec<Message>; 2], f64),
    /// Two responses, P(first better) and the weight.
    Pair([Vec<Message>; 2], f64, f64),
}

/// Takes a record's fields apart.
///
/// `strangers` are columns that only seem to be ours: they are kept in `extra`.
pub(super) fn shape(
    mut fields: Fields,
    strangers: Fields,
    format: Format,
    options: &ReadOptions,
) -> Result<Shaped, Fault> {
    let (prompt, said) = match options.relation {
        Relation::Prompts => (prompt(&mut fields, format)?, Said::Prompt),
        Relation::Demonstrations if options.verbatim => texts(&mut fields)?,
        Relation::Demonstrations => demonstration(&mut fields, format)?,
        Relation::Comparisons => comparison(&mut fields)?,
        other => panic!("a file does not hold {other}"),
    };
    if !options.verbatim {
        check_prompt(&prompt).map_err(Fault::Row)?;
    }
    let category = text_of(&mut fields, "category")?;
    let conversation = text_of(&mut fields, "conversation_id")?;
    let tags = tags(fields.take("tags")?)?;
    let extra = fields.into_extra(strangers);
    Ok(Shaped { prompt, said, category, tags, conversation, extra })
}

fn prompt(fields: &mut Fields, format: Format) -> Result<Vec<Message>, Fault> {
    if format == Format::HhRlhf {
        return Ok(published_pair(fields)?.0);
    }
    for name in ["prompt", "messages"] {
        if let Some(value) = fields.take(name)? {
            let mut turns = turns_of(name, &value)?;
            if turns.len() > 1 {
                turns.pop_if(|turn| turn.role == "assistant");
            }
            return Ok(turns);
        }
    }
    Err(lacks("prompt"))
}

fn lacks(name: &str) -> Fault {
    Fault::Lacks(format!(
        "it has no column \"{name}\" (say what the file calls it: `columns: {{ {name}: … }}`)"
    ))
}

fn demonstration(fields: &mut Fields, format: Format) -> Result<(Vec<Message>, Said), Fault> {
    if format == Format::HhRlhf {
        let (prompt, [chosen, _]) = published_pair(fields)?;
        let completion = answer("chosen", &chosen).map_err(Fault::Row)?;
        return Ok((prompt, Said::Demonstration(completion)));
    }
    if !fields.has("prompt")
        && let Some(value) = fields.take("messages")?
    {
        let mut all = turns_of("messages", &value)?;
        let last = all.pop();
        let completion = answer("messages", last.as_slice()).map_err(Fault::Row)?;
        return Ok((all, Said::Demonstration(completion)));
    }
    let prompt = stated_prompt(fields)?;
    let completion = response(fields, "completion", &prompt)?;
    Ok((prompt, Said::Demonstration(completion)))
}

/// A prompt and its completion as texts, with every space; the prompt may be empty.
fn texts(fields: &mut Fields) -> Result<(Vec<Message>, Said), Fault> {
    let mut text = |name: &str| match fields.take(name)? {
        None => Err(lacks(name)),
        Some(Value::String(text)) => Ok(vec![Message::text(text)]),
        Some(_) => Err(Fault::Row(format!("`{name}` is not a text, and the node is `verbatim`"))),
    };
    let (prompt, completion) = (text("prompt")?, text("completion")?);
    if completion[0].content.is_empty() {
        return Err(Fault::Row("`completion` is empty".to_owned()));
    }
    Ok((prompt, Said::Demonstration(completion)))
}

fn stated_prompt(fields: &mut Fields) -> Result<Vec<Message>, Fault> {
    let value = fields.take("prompt")?.ok_or_else(|| lacks("prompt"))?;
    turns_of("prompt", &value)
}

/// The turns that the value of a column says.
fn turns_of(name: &str, value: &Value) -> Result<Vec<Message>, Fault> {
    turns(name, value).map_err(|detail| Fault::Row(format!("`{name}`: {detail}")))
}

/// A response after a prompt: a text, or messages that may begin with the prompt again.
fn response(fields: &mut Fields, name: &str, prompt: &[Message]) -> Result<Vec<Message>, Fault> {
    let value = fields.take(name)?.ok_or_else(|| lacks(name))?;
    let fault = |detail| Fault::Row(format!("`{name}`: {detail}"));
    match &*listed(name, &value).map_err(fault)? {
        Value::String(text) => {
            answer(name, &[Message::assistant(text.as_str())]).map_err(Fault::Row)
        }
        value => {
            let turns = turns_of(name, value)?;
            let own = turns.strip_prefix(prompt).unwrap_or(&turns);
            answer(name, own).map_err(Fault::Row)
        }
    }
}

fn comparison(fields: &mut Fields) -> Result<(Vec<Message>, Said), Fault> {
    let weight = number(fields, "weight")?.unwrap_or(1.0);
    if fields.has("response_a") {
        let prompt = stated_prompt(fields)?;
        let a = response(fields, "response_a", &prompt)?;
        let b = response(fields, "response_b", &prompt)?;
        let p = number(fields, "p")?.ok_or_else(|| lacks("p"))?;
        if !(0.0..=1.0).contains(&p) {
            return Err(Fault::Row(format!("`p` is {p}, not a probability")));
        }
        return distinct(prompt, [a, b], |pair| Said::Pair(pair, p, weight));
    }
    let (prompt, [chosen, rejected]) = if fields.has("prompt") {
        let prompt = stated_prompt(fields)?;
        let chosen = response(fields, "chosen", &prompt)?;
        (prompt.clone(), [chosen, response(fields, "rejected", &prompt)?])
    } else {
        published_pair(fields)?
    };
    let chosen = answer("chosen", &chosen).map_err(Fault::Row)?;
    let rejected = answer("rejected", &rejected).map_err(Fault::Row)?;
    distinct(prompt, [chosen, rejected], |pair| Said::Chosen(pair, weight))
}

fn distinct(
    prompt: Vec<Message>,
    pair: [Vec<Message>; 2],
    said: impl FnOnce([Vec<Message>; 2]) -> Said,
) -> Result<(Vec<Message>, Said), Fault> {
    if pair[0] == pair[1] { Err(Fault::Identical) } else { Ok((prompt, said(pair))) }
}

/// The prompt that two whole conversations share, and what comes after it in each.
fn published_pair(fields: &mut Fields) -> Result<(Vec<Message>, [Vec<Message>; 2]), Fault> {
    let mut whole = |name: &str| {
        let value = fields.take(name)?.ok_or_else(|| lacks(name))?;
        let listed = listed(name, &value).map(Cow::into_owned);
        listed.map_err(|detail| Fault::Row(format!("`{name}`: {detail}")))
    };
    let (chosen, rejected) = (whole("chosen")?, whole("rejected")?);
    if let (Value::String(chosen), Value::String(rejected)) = (&chosen, &rejected) {
        let found = common_prompt(chosen, rejected);
        let (prompt, rest) = found.ok_or_else(|| {
            Fault::Row("`chosen` and `rejected` share no prompt that ends in Assistant:".to_owned())
        })?;
        let after = |rest: &str| {
            let text = format!("{}{rest}", transcript::ASSISTANT);
            transcript::parse(&text).expect("the text begins with Assistant:")
        };
        let prompt = transcript::parse(prompt).map_err(|error| Fault::Row(error.to_string()))?;
        return Ok((prompt, rest.map(after)));
    }
    let (chosen, rejected) = (turns_of("chosen", &chosen)?, turns_of("rejected", &rejected)?);
    let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    // Equal conversations share their answer too, which is no part of the prompt.
    let same = if same == chosen.len() { same.saturating_sub(1) } else { same };
    let prompt = chosen[..same].to_vec();
    Ok((prompt, [chosen[same..].to_vec(), rejected[same..].to_vec()]))
}

fn text_of(fields: &mut Fields, name: &str) -> Result<Option<String>, Fault> {
    Ok(match fields.take(name)? {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    })
}

fn number(fields: &mut Fields, name: &str) -> Result<Option<f64>, Fault> {
    let number = match fields.take(name)? {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    let number = number.filter(|number: &f64| number.is_finite());
    number.map(Some).ok_or_else(|| Fault::Row(format!("`{name}` is not a number")))
}

/// Tags: a list of texts, or a text that separates them by commas or holds such a list as JSON.
fn tags(value: Option<Value>) -> Result<Vec<String>, Fault> {
    let value = match value {
        Some(Value::String(text)) if text.trim_start().starts_with('[') => {
            let is_quoted = text.trim_start()[1..].trim_start().starts_with(['"', '\'']);
            match json::value(text.trim()) {
                Ok(list) => Some(list),
                Err(detail) if is_quoted => {
                    let detail = detail.replacen(": it is not JSON: ", ": ", 1);
                    let what =
                        "`tags` seems to be a list, and is not JSON but what a program printed";
                    return Err(Fault::Row(format!("{what} ({detail}): write it as JSON")));
                }
                Err(_) => Some(Value::String(text)),
            }
        }
        value => value,
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(text
            .split(',')
            .map(|tag| tag.trim().to_owned())
            .filter(|tag| !tag.is_empty())
            .collect()),
        Some(Value::Array(items)) => {
            let tag = |item: &Value| item.as_str().map(str::to_owned);
            let tags: Option<Vec<String>> = items.iter().map(tag).collect();
            tags.ok_or_else(|| Fault::Row("`tags` is not a list of texts".to_owned()))
        }
        Some(_) => Err(Fault::Row("`tags` is not a list of texts".to_owned())),
    }
}

impl Shaped {
    /// Adds what the record says to a hash.
    pub(super) fn hash_into(&self, hasher: &mut KeyHasher) {
        let conversation = |turns: &[Message], hasher: &mut KeyHasher| {
            Cell::Messages(turns.into()).hash_into(hasher);
        };
        conversation(&self.prompt, hasher);
        match &self.said {
            Said::Prompt => hasher.add_text("prompt"),
            Said::Demonstration(completion) => {
                hasher.add_text("demonstration");
                conversation(completion, hasher);
            }
            Said::Chosen(pair, weight) => {
                hasher.add_text("chosen");
                for turns in pair {
                    conversation(turns, hasher);
                }
                hasher.add_f64(*weight);
            }
            Said::Pair(pair, p, weight) => {
                hasher.add_text("pair");
                for turns in pair {
                    conversation(turns, hasher);
                }
                hasher.add_f64(*p);
                hasher.add_f64(*weight);
            }
        }
        hasher.add_text(self.category.as_deref().unwrap_or(""));
        hasher.add_u64(self.tags.len() as u64);
        self.tags.iter().for_each(|tag| hasher.add_text(tag));
        hasher.add_text(self.conversation.as_deref().unwrap_or(""));
        if let Said::Prompt = self.said {
            hasher.add_text(self.extra.as_deref().unwrap_or(""));
        }
    }

    /// Adds the row.
    pub(super) fn push(
        self,
        id: Id,
        (source, line): (&str, u64),
        options: &ReadOptions,
        to: &mut BatchBuilder,
    ) {
        let origin = Origin { row_id: id, root_id: id, parents: Vec::new(), call_keys: Vec::new() };
        let category = Cell::or_null(self.category.as_deref(), Cell::text);
        let prompt = Cell::messages(&self.prompt[..]);
        let (pair, p, weight) = match &self.said {
            Said::Prompt => {
                let turn = self.prompt.iter().filter(|turn| turn.role == "user").count();
                let cells = [
                    ("prompt", prompt),
                    ("conversation_id", Cell::id(self.conversation_id(id, options))),
                    ("turn", Cell::Int(turn.saturating_sub(1) as i64)),
                    ("category", category),
                    ("tags", Cell::Texts(self.tags.clone())),
                    ("source", Cell::text(source)),
                    ("source_line", Cell::Int(line as i64)),
                    ("extra", Cell::or_null(self.extra.as_deref(), Cell::text)),
                ];
                to.push(&origin, &cells);
                return;
            }
            Said::Demonstration(completion) => {
                let messages: Vec<Message> =
                    self.prompt.iter().chain(completion).cloned().collect();
                let cells = [
                    ("prompt", prompt),
                    ("completion", Cell::messages(&completion[..])),
                    ("messages", Cell::messages(messages)),
                    ("source", Cell::text(source)),
                    ("category", category),
                    ("weight", Cell::Float(1.0)),
                ];
                to.push(&origin, &cells);
                return;
            }
            // The better one is A as often as not, so that a model cannot learn the place.
            Said::Chosen([chosen, rejected], weight) => {
                if KeyHasher::new("amend/side/1").with(id).id().low() & 1 == 0 {
                    ([chosen, rejected], 1.0, *weight)
                } else {
                    ([rejected, chosen], 0.0, *weight)
                }
            }
            Said::Pair([a, b], p, weight) => ([a, b], *p, *weight),
        };
        let [a, b] = pair.map(|turns| Cell::messages(&turns[..]));
        let tie = KeyHasher::new("amend/tie/1").with(id).id().low() & 1 == 0;
        let a_wins = p > 0.5 || (p >= 0.5 && tie);
        let (chosen, rejected) =
            if a_wins { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
        let cells = [
            ("prompt", prompt),
            ("response_a", a),
            ("response_b", b),
            ("chosen", chosen),
            ("rejected", rejected),
            ("p", Cell::Float(p)),
            ("estimator", Cell::text("human")),
            ("label_kind", Cell::text("human")),
            ("order", Cell::text("fixed")),
            ("category", category),
            ("source", Cell::text(source)),
            ("weight", Cell::Float(weight)),
        ];
        to.push(&origin, &cells);
    }

    /// What a split keeps together: what the file says is one conversation, else a keyed row, else
    /// rows that begin with the same words of the human.
    fn conversation_id(&self, id: Id, options: &ReadOptions) -> Id {
        let hasher = KeyHasher::new("amend/conversation/1");
        let first = self.prompt.iter().find(|turn| turn.role == "user");
        match (&self.conversation, first) {
            (Some(name), _) => hasher.text("named").text(name).id(),
            (None, Some(first)) if options.key.is_empty() => {
                hasher.text("begins").text(&first.content).id()
            }
            _ => id,
        }
    }
}
