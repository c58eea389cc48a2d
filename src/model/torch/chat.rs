//! Chat templates: how a checkpoint's own template makes text of a conversation, byte for byte as
//! transformers does.
//!
//! Templates are programs of strangers: they run with bounded fuel and see nothing but the
//! messages, the special tokens and the pipeline's `template_args`. They cannot see the clock
//! either, or a prompt would change overnight: `strftime_now` tells the day that Llama's templates
//! take for granted, or the one that the argument `today` states.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::error::TorchError;
use crate::model::bounded;
use crate::record::Message;

/// The name under which the one template of an environment stands.
const NAME: &str = "chat template";

/// Steps after which a template is taken not to end.
const FUEL: u64 = 50_000_000;

/// What `strftime_now` tells unless the argument `today` states another: year, month, day.
const TODAY: &str = "2024-07-26";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// A compiled chat template with its arguments.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens and arguments, by name.
    variables: BTreeMap<String, Value>,
}

impl ChatTemplate {
    /// The template of a checkpoint, or the one that is given in its place; none where there is
    /// neither.
    pub fn of(
        files: &BTreeMap<String, Vec<u8>>,
        given: Option<&str>,
        arguments: &Map<String, Json>,
    ) -> Result<Option<ChatTemplate>, TorchError> {
        let json = |name: &str| -> Result<Json, TorchError> {
            let Some(bytes) = files.get(name) else { return Ok(Json::Null) };
            serde_json::from_slice(bytes)
                .map_err(|error| TorchError::content(Path::new(name), error))
        };
        let config = json(TOKENIZER_CONFIG)?;
        let (source, file) = match (given, files.get(TEMPLATE_FILE)) {
            (Some(given), _) => (Some(given.to_owned()), "the pipeline's chat_template"),
            (None, Some(bytes)) => {
                (Some(String::from_utf8_lossy(bytes).into_owned()), TEMPLATE_FILE)
            }
            (None, None) => match template_in(&config) {
                Some(source) => (Some(source), TOKENIZER_CONFIG),
                None => (template_in(&json(TEMPLATE_JSON)?), TEMPLATE_JSON),
            },
        };
        let Some(source) = source else { return Ok(None) };
        let mut variables = special_tokens(&json(SPECIAL_TOKENS)?);
        variables.extend(special_tokens(&config));
        let today = arguments.get("today").and_then(Json::as_str).unwrap_or(TODAY);
        let environment = environment(&source, today.to_owned())
            .map_err(|error| TorchError::content(Path::new(file), format!("{error:#}")))?;
        for (name, argument) in arguments {
            variables.insert(name.clone(), Value::from_serialize(argument));
        }
        Ok(Some(ChatTemplate { environment, variables }))
    }

    /// What a model reads to answer a conversation. A turn of the assistant at the end is the
    /// beginning of its answer, and is continued.
    pub fn prompt(&self, messages: &[Message]) -> Result<String, String> {
        let begun = messages.last().filter(|last| last.role == "assistant");
        let Some(begun) = begun.map(|last| last.content.as_str()) else {
            return self.render(messages, true);
        };
        let mut text = self.render(messages, false)?;
        let at = text.rfind(begun.trim()).ok_or_else(|| {
            "the chat template changes the beginning of an answer, which can then not be continued"
                .to_owned()
        })?;
        // White space at its end is kept where the template keeps it.
        let whole = begun.trim_start();
        let is_kept = text[at..].starts_with(whole);
        text.truncate(at + if is_kept { whole.len() } else { begun.trim().len() });
        Ok(text)
    }

    /// The text of a conversation, with the beginning of an answer or as a whole.
    pub fn render(&self, messages: &[Message], with_answer: bool) -> Result<String, String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role, content => message.content })
            .collect();
        let own = context! { messages, add_generation_prompt => with_answer };
        let defaults = context! { tools => (), documents => () };
        let variables = Value::from_serialize(&self.variables);
        let template = self.environment.get_template(NAME).expect("it was compiled");
        bounded::render(&template, context! { ..own, ..variables, ..defaults })
            .map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
    }
}

/// `chat_template` of a JSON file: a text, or several with names, of which one is the default.
fn template_in(config: &Json) -> Option<String> {
    match config.get("chat_template")? {
        Json::String(text) => Some(text.clone()),
        Json::Array(named) => {
            let is_default = |entry: &&Json| entry.get("name") == Some(&Json::from("default"));
            let entry = named.iter().find(is_default).or(named.first())?;
            entry.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// The special tokens of a JSON file, each written as a text or as an object with `content`.
fn special_tokens(config: &Json) -> BTreeMap<String, Value> {
    let token = |value: &Json| match value {
        Json::String(text) => Some(text.clone()),
        other => other.get("content")?.as_str().map(str::to_owned),
    };
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), Value::from(token(value)?))))
        .collect()
}

/// A template with what transformers gives it.
fn environment(source: &str, today: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_filter("tojson", tojson);
    bounded::bound(&mut environment, minijinja_contrib::pycompat::unknown_method_callback);
    // None can be iterated over in minijinja, and not in Jinja.
    environment.add_test("iterable", |value: Value| {
        !value.is_none() && !value.is_undefined() && value.try_iter().is_ok()
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, &today));
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// `{% generation %}` marks for training what the assistant wrote, and renders as what is in it.
fn without_generation_tags(source: &str) -> String {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").expect("the pattern is one")
    });
    static END: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").expect("the pattern is one")
    });
    let begun = BEGIN.replace_all(source, "{%$1 if true $2%}");
    END.replace_all(&begun, "{%$1 endif $2%}").into_owned()
}

/// A day in the words of `strftime`, at midnight.
fn strftime(format: &str, today: &str) -> String {
    let mut parts = today.splitn(3, '-').map(|part| part.parse::<usize>().unwrap_or(1));
    let mut next = || parts.next().unwrap_or(1);
    let (year, month, day) = (next(), next().clamp(1, 12), next());
    let name = MONTHS[month - 1];
    let mut text = String::with_capacity(format.len() + 8);
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let word = match letters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => name.to_owned(),
            Some('b') => name[..3].to_owned(),
            Some('-') => match letters.next() {
                Some('m') => month.to_string(),
                _ => day.to_string(),
            },
            Some('F') => today.to_owned(),
            Some('H' | 'M' | 'S') => "00".to_owned(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        text.push_str(&word);
    }
    text
}

/// JSON as Python writes it, with the options of transformers' filter.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let is_sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Value> = options.get("separators")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let separators = match separators {
        Some(pair) if pair.kind() == ValueKind::Seq && pair.len() == Some(2) => {
            let text = |at: usize| pair.get_item_by_index(at).map(|item| item.to_string());
            (text(0)?, text(1)?)
        }
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    let mut text = String::new();
    let style = JsonStyle { indent, separators, is_sorted: is_sorted.unwrap_or(false) };
    style.write(&json, 1, &mut text);
    Ok(Value::from_safe_string(text))
}

struct JsonStyle {
    indent: Option<usize>,
    separators: (String, String),
    is_sorted: bool,
}

impl JsonStyle {
    fn write(&self, json: &Json, level: usize, text: &mut String) {
        match json {
            Json::Object(map) if !map.is_empty() => {
                let mut entries: Vec<(&String, &Json)> = map.iter().collect();
                if self.is_sorted {
                    entries.sort_by_key(|(key, _)| *key);
                }
                let entry = |(key, value): &(&String, &Json), text: &mut String| {
                    text.push_str(&Json::from(key.as_str()).to_string());
                    text.push_str(&self.separators.1);
                    self.write(value, level + 1, text);
                };
                self.write_all('{', &entries, entry, '}', level, text);
            }
            Json::Array(items) if !items.is_empty() => {
                let item = |item: &Json, text: &mut String| self.write(item, level + 1, text);
                self.write_all('[', items, item, ']', level, text);
            }
            other => text.push_str(&other.to_string()),
        }
    }

    fn write_all<T>(
        &self,
        open: char,
        items: &[T],
        write: impl Fn(&T, &mut String),
        close: char,
        level: usize,
        text: &mut String,
    ) {
        let new_line = |level: usize, text: &mut String| {
            if let Some(indent) = self.indent {
                text.push('\n');
                text.extend(std::iter::repeat_n(' ', indent * level));
            }
        };
        text.push(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                text.push_str(&self.separators.0);
            }
            new_line(level, text);
            write(item, text);
        }
        new_line(level - 1, text);
        text.push(close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message], arguments: Json) -> Result<String, String> {
        let Json::Object(arguments) = arguments else { panic!("arguments are an object") };
        let files = BTreeMap::from([
            (TOKENIZER_CONFIG.to_owned(), br#"{ "bos_token": { "content": "<s>" } }"#.to_vec()),
            (TEMPLATE_FILE.to_owned(), source.as_bytes().to_vec()),
        ]);
        let template = ChatTemplate::of(&files, None, &arguments).map_err(|e| e.to_string())?;
        template.unwrap().render(messages, true)
    }

    #[test]
    fn a_template_sees_messages_special_tokens_and_arguments() {
        let source = "{{ bos_token }}{% for m in messages %}\n  [{{ m.role }}] {{ m['content'].strip() }}\n{% endfor %}\n{%- if add_generation_prompt and thinks is defined %}>{{ thinks }}{% endif %}";
        let messages = [Message::system("Be kind."), Message::user(" hi ")];
        let text = render(source, &messages, serde_json::json!({ "thinks": "yes" })).unwrap();
        assert_eq!(text, "<s>  [system] Be kind.\n  [user] hi\n>yes");
    }

    #[test]
    fn a_template_that_raises_or_does_not_end_is_an_error() {
        let raise = "{{ raise_exception('roles must alternate') }}";
        let error = render(raise, &[], serde_json::json!({})).unwrap_err();
        assert_eq!(error, "roles must alternate");
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless, &[], serde_json::json!({})).is_err());
        let error = render("{% if %}", &[], serde_json::json!({})).unwrap_err();
        assert!(error.starts_with("chat_template.jinja: "), "{error}");
    }

    #[test]
    fn a_day_is_that_of_the_arguments_and_never_that_of_the_clock() {
        let source = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %-d, %y') }}";
        let text = render(source, &[], serde_json::json!({})).unwrap();
        assert_eq!(text, "26 Jul 2024 July 26, 24");
        let text = render(source, &[], serde_json::json!({ "today": "2026-11-05" })).unwrap();
        assert_eq!(text, "05 Nov 2026 November 5, 26");
    }

    #[test]
    fn the_default_of_several_templates_is_taken_and_a_given_one_before_all() {
        let config = br#"{ "chat_template": [
            { "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" } ] }"#;
        let files = BTreeMap::from([(TOKENIZER_CONFIG.to_owned(), config.to_vec())]);
        let text = |given| {
            let template = ChatTemplate::of(&files, given, &Map::new()).unwrap().unwrap();
            template.render(&[], true).unwrap()
        };
        assert_eq!((text(None), text(Some("given"))), ("plain".to_owned(), "given".to_owned()));
        assert!(ChatTemplate::of(&BTreeMap::new(), None, &Map::new()).unwrap().is_none());
    }
}
