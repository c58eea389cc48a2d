//! The client of endpoints against a real server in a process of its own.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use amend::model::openai::{OpenAi, OpenAiOptions, Secret};
use amend::model::{
    Answer, Backend, CallError, Estimator, Finish, Prompt, Request, Sampling, Task,
};
use amend::record::Message;
use serde_json::{Value, json};

use crate::support::fake_model::LABEL_MASS;
use crate::support::server::FakeServer;

fn options(server: &FakeServer) -> OpenAiOptions {
    let mut options = OpenAiOptions::new(server.base_url(), "fake");
    options.backoff = Duration::from_millis(2);
    options.timeout = Duration::from_secs(20);
    options
}

fn client(server: &FakeServer) -> OpenAi {
    OpenAi::new(options(server)).expect("the options are in order")
}

fn chat(text: &str) -> Prompt {
    Prompt::Messages(vec![Message::user(text)])
}

fn sampled(prompt: Prompt) -> Request {
    let task = Task::Generate(Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_tokens: 64,
        stop: vec![],
        seed: Some(7),
    });
    Request { prompt, task }
}

fn scored(prompt: Prompt, estimator: Estimator) -> Request {
    let choices = vec![" (A)".to_owned(), " (B)".to_owned()];
    Request { prompt, task: Task::Score { choices, estimator } }
}

/// Asks all at once and gives the outcomes in the order of the requests.
fn ask_all(model: &OpenAi, requests: Vec<Request>) -> Vec<Result<Answer, CallError>> {
    let (sender, outcomes) = mpsc::channel();
    let n_requests = requests.len();
    for (nth, request) in requests.into_iter().enumerate() {
        let sender = sender.clone();
        model.submit(
            Arc::new(request),
            Box::new(move |outcome| sender.send((nth, outcome)).expect("the test waits")),
        );
    }
    let outcome = |_| outcomes.recv_timeout(Duration::from_mins(1)).expect("an answer comes");
    let mut outcomes: Vec<_> = (0..n_requests).map(outcome).collect();
    outcomes.sort_by_key(|(nth, _)| *nth);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn ask(model: &OpenAi, request: Request) -> Result<Answer, CallError> {
    ask_all(model, vec![request]).remove(0)
}

fn bodies(server: &FakeServer) -> Vec<Value> {
    server
        .requests()
        .iter()
        .map(|asked| serde_json::from_str(&asked.body).expect("it is JSON"))
        .collect()
}

#[test]
fn a_conversation_is_answered_by_chat() {
    let server = FakeServer::start();
    let answer = ask(&client(&server), sampled(chat("say [[echo:hello there]]"))).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("hello there", Finish::Stop));
    assert!(answer.prompt_tokens > 0 && answer.completion_tokens == 2 && answer.attempts == 1);
    assert!(answer.started_at_us > 1_500_000_000_000_000 && answer.latency_ms > 0.0);
    assert_eq!(answer.served_model.as_deref(), Some("fake"));
    assert_eq!(answer.system_fingerprint.as_deref(), Some("fp_fake"));
    let expected = json!({
        "model": "fake", "messages": [{ "role": "user", "content": "say [[echo:hello there]]" }],
        "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "seed": 7,
    });
    assert_eq!(bodies(&server), [expected]);
}

#[test]
fn a_text_is_continued_by_completions_until_a_stop_or_the_limit() {
    let server = FakeServer::start();
    let model = client(&server);
    let request = |stop: &[&str], max_tokens| {
        let mut request = sampled(Prompt::Text("[[echo:one two three four]]".to_owned()));
        if let Task::Generate(sampling) = &mut request.task {
            sampling.stop = stop.iter().map(|stop| (*stop).to_owned()).collect();
            sampling.max_tokens = max_tokens;
            (sampling.top_k, sampling.min_p, sampling.top_p) = (40, 0.05, 0.9);
        }
        request
    };
    let stopped = ask(&model, request(&[" three"], 64)).unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish), ("one two", Finish::Stop));
    let cut = ask(&model, request(&[], 3)).unwrap();
    assert_eq!((cut.text.as_str(), cut.finish), ("one two three", Finish::Length));
    let body = bodies(&server).into_iter().find(|body| body["max_tokens"] == 3).unwrap();
    assert_eq!((&body["top_k"], &body["min_p"]), (&json!(40), &json!(0.05)));
    assert_eq!(body.get("stop"), None);
}

#[test]
fn all_estimators_that_see_log_probabilities_agree() {
    let server = FakeServer::start();
    let model = client(&server);
    for text in ["Which is better?", "Which one is kinder? é 漢"] {
        let prompt = || Prompt::Text(format!("{text}\n\nThe answer is:"));
        let p = |prompt, estimator| {
            let answer = ask(&model, scored(prompt, estimator)).unwrap();
            assert!(answer.text.is_empty() && answer.votes.is_none());
            let logprobs = answer.choice_logprobs.unwrap();
            let (a, b) = (logprobs[0].exp(), logprobs[1].exp());
            (a / (a + b), a + b)
        };
        let (echo, echo_mass) = p(prompt(), Estimator::Echo);
        let (read, read_mass) = p(prompt(), Estimator::PromptLogprobs);
        let (listed, listed_mass) = p(prompt(), Estimator::TopLogprobs);
        assert!((echo - read).abs() < 1e-9 && (echo_mass - read_mass).abs() < 1e-9);
        assert!((echo - listed).abs() < 1e-9, "{echo} {listed}");
        assert!((listed_mass - LABEL_MASS * 0.999).abs() < 1e-9, "{listed_mass}");
        let (read, _) = p(chat(text), Estimator::PromptLogprobs);
        let (listed, mass) = p(chat(text), Estimator::TopLogprobs);
        assert!((read - listed).abs() < 1e-9, "{read} {listed}");
        assert!((mass - 0.95 * LABEL_MASS * 0.999).abs() < 1e-9, "{mass}");
    }
    assert_eq!(server.stats().by_kind["echo"], 2, "one request scores all choices");
}

#[test]
fn votes_are_counted_with_one_added_to_each_choice() {
    let server = FakeServer::start();
    let mut options = options(&server);
    options.votes = 200;
    let model = OpenAi::new(options).unwrap();
    let voted = ask(&model, scored(chat("Which?"), Estimator::Votes)).unwrap();
    let read = ask(&model, scored(chat("Which?"), Estimator::PromptLogprobs)).unwrap();
    assert_eq!((voted.votes, voted.attempts), (Some(200), 200));
    let p = |answer: &Answer| {
        let logprobs = answer.choice_logprobs.as_ref().unwrap();
        logprobs.iter().map(|one| one.exp()).collect::<Vec<_>>()
    };
    let (voted, read) = (p(&voted), p(&read));
    let share = |p: &[f64]| p[0] / (p[0] + p[1]);
    assert!((share(&voted) - share(&read)).abs() < 0.12, "{voted:?} {read:?}");
    assert!(voted[0] + voted[1] < 1.0, "votes for neither are missing from the label mass");
    assert_eq!(server.stats().distinct, 202, "each vote has a seed of its own");
}

#[test]
fn a_conversation_is_not_scored_by_echo() {
    let server = FakeServer::start();
    let error = ask(&client(&server), scored(chat("Which?"), Estimator::Echo)).unwrap_err();
    let CallError::Outage { message } = error else { panic!("{error:?}") };
    assert!(message.contains("does not offer `scoring: echo`"), "{message}");
    assert_eq!(server.stats().calls, 0);
}

#[test]
fn the_best_estimator_that_a_server_offers_is_found() {
    let check = |refused: &[&str], chat, estimator| {
        let server = FakeServer::with(json!({ "refused_fields": refused }));
        assert_eq!(client(&server).resolve(chat), Ok(estimator));
    };
    check(&[], false, Estimator::Echo);
    check(&["echo"], false, Estimator::PromptLogprobs);
    check(&[], true, Estimator::PromptLogprobs);
    check(&["prompt_logprobs"], true, Estimator::TopLogprobs);
    check(&["prompt_logprobs", "logprobs"], true, Estimator::Votes);
}

#[test]
fn a_server_that_wants_max_completion_tokens_is_asked_once_too_often() {
    let server = FakeServer::with(json!({ "refused_fields": ["max_tokens"] }));
    let model = client(&server);
    for n in 0..3 {
        ask(&model, sampled(chat(&format!("row {n}")))).unwrap();
    }
    assert_eq!(server.stats().calls, 4);
}

#[test]
fn what_fails_now_and_then_is_asked_again() {
    let server = FakeServer::with(json!({ "fail_every": 3, "garbage_every": 5 }));
    let requests = (0..60).map(|n| sampled(chat(&format!("row {n}")))).collect();
    let mut options = options(&server);
    options.retries = 20;
    let answers = ask_all(&OpenAi::new(options).unwrap(), requests);
    assert!(answers.iter().all(Result::is_ok));
    let attempts: i32 = answers.iter().flatten().map(|answer| answer.attempts).sum();
    let stats = server.stats();
    assert_eq!((attempts as u64, stats.distinct), (stats.calls, 60));
    assert!(stats.by_status[&500] > 10 && attempts > 80);
}

#[test]
fn what_fails_always_is_given_up_and_can_be_asked_by_the_next_run() {
    for (config, said) in [
        (json!({ "fail_every": 1 }), "500: boom"),
        (json!({ "garbage_every": 1 }), "cannot be read"),
    ] {
        let server = FakeServer::with(config);
        let error = ask(&client(&server), sampled(chat("hi"))).unwrap_err();
        let CallError::Transient { message, attempts: 6 } = &error else { panic!("{error:?}") };
        assert!(message.contains(said), "{message}");
        assert_eq!(server.stats().calls, 6);
    }
}

#[test]
fn a_request_that_is_refused_for_what_it_is_is_asked_once() {
    let server = FakeServer::with(json!({ "permanent_every": 4 }));
    let requests = (0..40).map(|n| sampled(chat(&format!("row {n}")))).collect();
    let outcomes = ask_all(&client(&server), requests);
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let n_refused = refused
        .inspect(|error| {
            let CallError::Permanent { status: Some(400), message, too_long: false } = error else {
                panic!("{error:?}")
            };
            assert!(message.contains("content filter"), "{message}");
        })
        .count();
    assert!(n_refused > 2 && server.stats().calls == 40);

    server.config(json!({ "permanent_every": 0, "context": 300 }));
    let error = ask(&client(&server), sampled(chat(&"long ".repeat(100)))).unwrap_err();
    assert!(matches!(error, CallError::Permanent { too_long: true, .. }), "{error:?}");
}

#[test]
fn a_refused_key_and_a_missing_model_are_outages_that_say_what_to_do() {
    let server = FakeServer::with(json!({ "api_key": "right" }));
    let fault = |key: Option<&str>, model: &str| {
        let mut options = options(&server);
        options.api_key = key.map(Secret::new);
        model.clone_into(&mut options.model);
        match ask(&OpenAi::new(options).unwrap(), sampled(chat("hi"))) {
            Err(CallError::Outage { message }) => message.replace(server.address(), "HOST"),
            other => panic!("{other:?}"),
        }
    };
    insta::assert_snapshot!(fault(None, "fake"), @"http://HOST wants an API key (401): set `api_key` of the model");
    insta::assert_snapshot!(fault(Some("wrong"), "fake"), @"http://HOST refuses the API key (401): check `api_key` of the model");
    insta::assert_snapshot!(fault(Some("right"), "missing"), @r#"http://HOST does not know the model "missing" or the address: the server answered 404: the model `missing` does not exist; `GET /v1/models` there lists its models"#);
    assert_eq!(server.stats().calls, 3, "it is of no use to ask again");
}

#[test]
fn a_key_is_shown_nowhere() {
    let server = FakeServer::with(json!({ "permanent_every": 1 }));
    let mut options = options(&server);
    options.base_url = format!("http://user:pass-sesame@{}/v1?token=url-sesame", server.address());
    options.api_key = Some(Secret::new("sk-sesame"));
    let model = OpenAi::new(options).unwrap();
    let debug = format!("{model:?}");
    let error = ask(&model, sampled(chat("hi"))).unwrap_err();
    assert!(error.to_string().contains("key …"), "the server quotes the key, the error does not");
    server.config(json!({ "permanent_every": 0 }));
    let answer = ask(&model, sampled(chat("hi"))).unwrap();
    drop(server);
    let outage = ask(&model, sampled(chat("hi"))).unwrap_err();
    for shown in
        [debug, format!("{error:?}"), format!("{outage:?} {outage}"), format!("{answer:?}")]
    {
        assert!(!shown.contains("sesame"), "{shown}");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_outage() {
    let server = FakeServer::start();
    let mut options = options(&server);
    drop(server);
    options.retries = 2;
    let error = ask(&OpenAi::new(options).unwrap(), sampled(chat("hi"))).unwrap_err();
    let CallError::Outage { message } = error else { panic!("{error:?}") };
    assert!(message.contains("is the server running"), "{message}");
}

#[test]
fn silence_is_about_the_server_until_it_has_spoken_and_about_the_request_after() {
    let server = FakeServer::with(json!({ "hang_after": 1 }));
    let mut options = options(&server);
    (options.retries, options.timeout) = (1, Duration::from_millis(100));
    let model = OpenAi::new(options.clone()).unwrap();
    assert!(ask(&model, sampled(chat("hi"))).is_ok());
    let error = ask(&model, sampled(chat("hi"))).unwrap_err();
    assert!(matches!(error, CallError::Transient { attempts: 2, .. }), "{error:?}");
    let error = ask(&OpenAi::new(options).unwrap(), sampled(chat("hi"))).unwrap_err();
    assert!(matches!(error, CallError::Outage { .. }), "{error:?}");
}

#[test]
fn a_server_of_eight_slots_is_filled_and_hardly_pushed() {
    let server = FakeServer::with(json!({ "latency_ms": 20, "cap": 8, "retry_after": "0.2" }));
    let requests = (0..600).map(|n| sampled(chat(&format!("row {n}")))).collect();
    let begin = Instant::now();
    let answers = ask_all(&client(&server), requests);
    let took_ms = begin.elapsed().as_millis();
    assert!(answers.iter().all(Result::is_ok));
    let stats = server.stats();
    assert_eq!((stats.answered, stats.repeats), (600, 0));
    assert!(stats.calls <= 640, "{} wasted", stats.calls - 600);
    // The ideal is 1.5 s; a loaded machine gets some of it back.
    assert!(took_ms < 6_000, "{took_ms} ms");
}

#[test]
fn a_wait_that_is_too_long_is_an_outage() {
    let server = FakeServer::with(json!({ "latency_ms": 50, "cap": 1, "retry_after": "7200" }));
    let requests = (0..8).map(|n| sampled(chat(&format!("row {n}")))).collect();
    let outcomes = ask_all(&client(&server), requests);
    let outage = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap().to_string();
    assert!(outage.contains("asks to wait 7200 s"), "{outage}");
}

#[test]
fn no_more_than_max_in_flight_are_sent_and_a_willing_server_gets_all_of_them() {
    let server = FakeServer::with(json!({ "latency_ms": 50 }));
    let mut options = options(&server);
    options.max_in_flight = 32;
    let requests = (0..400).map(|n| sampled(chat(&format!("row {n}")))).collect();
    let answers = ask_all(&OpenAi::new(options).unwrap(), requests);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(server.stats().in_flight_max, 32);
}
