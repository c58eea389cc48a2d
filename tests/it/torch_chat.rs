//! Conversations and texts as local models read them: byte for byte as transformers renders them,
//! and token for token as it cuts them. `make_chat.py` and `make_tokenizers.py` say what they make.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use amend::model::torch::{ChatTemplate, TextTokenizer, TorchBackend, TorchOptions};
use amend::model::{Backend, CallError, Estimator, Prompt, Request, Task};
use amend::record::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::torch_tiny::{ask, copied, fixture, greedy};

#[derive(Deserialize)]
struct Golden {
    templates: BTreeMap<String, String>,
    chats: BTreeMap<String, Vec<Message>>,
    rendered: Vec<Rendered>,
    begun_chat: Vec<Message>,
    begun: BTreeMap<String, String>,
    tokens: Vec<Tokens>,
}

#[derive(Deserialize)]
struct Rendered {
    template: String,
    chat: String,
    arguments: Map<String, Value>,
    prompt: bool,
    /// None where the template raises.
    text: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<i64>,
    decoded: String,
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixture("chat.json")).unwrap()).unwrap()
}

fn template(source: &str, arguments: &Map<String, Value>) -> ChatTemplate {
    let config = std::fs::read(fixture("llama_tiny").join("tokenizer_config.json")).unwrap();
    let files = BTreeMap::from([("tokenizer_config.json".to_owned(), config)]);
    ChatTemplate::of(&files, Some(source), arguments).unwrap().unwrap()
}

#[test]
fn templates_of_every_family_render_as_in_transformers() {
    let golden = golden();
    assert!(golden.rendered.len() > 100);
    for case in &golden.rendered {
        let template = template(&golden.templates[&case.template], &case.arguments);
        let text = template.render(&golden.chats[&case.chat], case.prompt);
        assert_eq!(text.ok(), case.text, "{} {} {:?}", case.template, case.chat, case.arguments);
    }
    for (name, text) in &golden.begun {
        let begun = template(&golden.templates[name], &Map::new()).prompt(&golden.begun_chat);
        assert_eq!(begun.as_ref(), Ok(text), "{name} with a begun answer");
    }
}

#[test]
fn texts_in_many_scripts_are_cut_into_the_same_tokens_and_back() {
    let tokenizer = TextTokenizer::read(&fixture("llama_tiny")).unwrap();
    for case in golden().tokens {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids), case.decoded, "{:?}", case.text);
    }
}

#[derive(Deserialize)]
struct Families {
    texts: Vec<String>,
    tokens: BTreeMap<String, Vec<Cut>>,
}

/// A text's tokens, without those that the tokenizer puts before it, and back; where left out, as
/// the one before.
#[derive(Deserialize)]
struct Cut {
    ids: Vec<i64>,
    plain: Option<Vec<i64>>,
    decoded: Option<String>,
}

#[test]
fn tokenizers_in_the_shape_of_each_familys_cut_texts_in_many_scripts_as_in_transformers() {
    let dir = fixture("tokenizers");
    let expected = std::fs::read(dir.join("expected.json")).unwrap();
    let Families { texts, tokens } = serde_json::from_slice(&expected).unwrap();
    assert!(texts.len() > 80 && tokens.len() == 7);
    for (family, cuts) in tokens {
        let path = dir.join(format!("{family}.json"));
        let tokenizer = TextTokenizer::from_bytes(&std::fs::read(&path).unwrap(), &path).unwrap();
        assert_eq!(cuts.len(), texts.len());
        for (text, cut) in texts.iter().zip(&cuts) {
            assert_eq!(tokenizer.encode(text).unwrap(), cut.ids, "{family}: {text:?}");
            let plain = cut.plain.as_ref().unwrap_or(&cut.ids);
            assert_eq!(&tokenizer.encode_rendered(text).unwrap(), plain, "{family}: {text:?}");
            let decoded = cut.decoded.as_ref().unwrap_or(text);
            assert_eq!(&tokenizer.decode(&cut.ids), decoded, "{family}: {text:?}");
        }
    }
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ tail }}";

fn messages() -> Prompt {
    Prompt::Messages(vec![Message::system("Wait."), Message::user("Tell me a secret.")])
}

/// A tiny checkpoint with a template of its own.
fn chatty() -> tempfile::TempDir {
    let dir = copied("llama_tiny");
    std::fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    dir
}

#[test]
fn a_conversation_is_answered_and_scored_as_its_rendered_text() {
    let dir = chatty();
    let backend = TorchBackend::open(dir.path(), TorchOptions::default()).unwrap();
    let text = "<system>Wait.<user>Tell me a secret.<assistant>";
    let requests = |prompt: Prompt| {
        let choices = vec!["(A)".to_owned(), "(B)".to_owned()];
        let score = Task::Score { choices, estimator: Estimator::Echo };
        vec![
            Request { prompt: prompt.clone(), task: Task::Generate(greedy(8)) },
            Request { prompt, task: score },
        ]
    };
    let chat = ask(&backend, requests(messages()));
    let written = chat[0].as_ref().unwrap();
    // The tokenizer puts nothing before a text, and the template the first token.
    assert_eq!(written.prompt_tokens as usize, 1 + tokens(dir.path(), text));
    let plain = ask(&backend, requests(Prompt::Text(format!("<s>{text}"))));
    assert_eq!(written.text, plain[0].as_ref().unwrap().text);
    let scores = |answers: &[Result<amend::model::Answer, CallError>]| {
        answers[1].as_ref().unwrap().choice_logprobs.clone().unwrap()
    };
    assert_eq!(scores(&chat), scores(&plain));
}

fn tokens(dir: &Path, text: &str) -> usize {
    TextTokenizer::read(dir).unwrap().encode(text).unwrap().len()
}

#[test]
fn a_pipelines_template_and_arguments_come_before_the_checkpoints() {
    let dir = chatty();
    let asked = |options: TorchOptions| {
        let backend: Arc<dyn Backend> = Arc::new(TorchBackend::open(dir.path(), options).unwrap());
        let request = Request { prompt: messages(), task: Task::Generate(greedy(1)) };
        ask(&*backend, vec![request]).remove(0).unwrap().prompt_tokens as usize
    };
    let own = asked(TorchOptions::default());
    let mut arguments = Map::new();
    arguments.insert("tail".to_owned(), Value::from("xyz"));
    let with_argument = asked(TorchOptions { template_args: arguments, ..TorchOptions::default() });
    assert_eq!(with_argument, own + tokens(dir.path(), "xyz"));
    let given = Some("{{ messages[1].content }}".to_owned());
    let given = asked(TorchOptions { chat_template: given, ..TorchOptions::default() });
    assert_eq!(given, tokens(dir.path(), "Tell me a secret."));
}

#[test]
fn a_conversation_that_cannot_be_rendered_is_refused_with_the_reason() {
    let refused = |dir: &Path, prompt: Prompt| {
        let backend = match TorchBackend::open(dir, TorchOptions::default()) {
            Ok(backend) => backend,
            Err(error) => return error.to_string(),
        };
        let request = Request { prompt, task: Task::Generate(greedy(1)) };
        match ask(&backend, vec![request]).remove(0) {
            Err(CallError::Permanent { message, .. } | CallError::Outage { message }) => message,
            other => panic!("{other:?}"),
        }
    };
    let message = refused(&fixture("llama_tiny"), messages());
    assert!(message.contains("`format: transcript`"), "{message}");
    let dir = chatty();
    let path = dir.path().join("chat_template.jinja");
    std::fs::write(&path, "{{ raise_exception('no system here') }}").unwrap();
    assert!(refused(dir.path(), messages()).contains("no system here"));
    std::fs::write(&path, "{% for %}").unwrap();
    assert!(refused(dir.path(), messages()).contains("chat_template.jinja"));
}
