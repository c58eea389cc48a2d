//! The requests that a model is working on: from text to tokens, and back to answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tch::Device;

use super::chat::ChatTemplate;
use super::config::Head;
use super::generate::{Continuation, Generated, Generator};
use super::listen::{Event, Input, Listener, Piece, PromptDone, Token, Tokens, Told};
use super::score::{rewards_with, score_prompt, score_with};
use super::tokenizer::{Continued, TextTokenizer};
use super::transformer::Transformer;
use crate::model::{Answer, CallError, Done, Prompt, Request, Sampling, Task};
use crate::record::Message;

/// What is asked of a model, and when.
pub(super) struct Job {
    asked: Asked,
    started: Instant,
    started_at_us: i64,
}

/// What is asked, by one who waits for it.
pub(super) enum Asked {
    /// An answer, when it is whole.
    Answer(Arc<Request>, Done),
    /// An answer as it is written.
    Watched(Watched),
    /// The log-probability of each token of a text, with so many of the likeliest in its place.
    Tokens(Input, usize, PromptDone),
}

/// An answer that is watched being written, with so many of the likeliest tokens at each step.
pub(super) struct Watched {
    pub(super) input: Input,
    pub(super) sampling: Sampling,
    pub(super) alternatives_max: usize,
    pub(super) listener: Listener,
    pub(super) told: Told,
}

/// The requests that a model is working on.
pub(super) struct Worker<'m> {
    model: &'m Transformer,
    tokenizer: &'m TextTokenizer,
    chat: Option<&'m ChatTemplate>,
    generator: Generator<'m>,
    rows_max: usize,
    /// Those being continued, with their number of prompt tokens.
    continued: BTreeMap<u64, (Job, usize)>,
    /// Those to be scored.
    to_score: Vec<(Job, Continued)>,
    /// Those of which the prompt's tokens are wanted.
    prompts: Vec<Job>,
    tags: u64,
}

/// What a request becomes.
enum Accepted {
    /// A row to be continued, with so many of the likeliest tokens at each step.
    Continued(Continuation, usize),
    Scored(Continued),
}

impl Job {
    pub(super) fn new(asked: Asked) -> Job {
        #[expect(
            clippy::disallowed_methods,
            reason = "when a call was made is told by the clock; no table but `calls` has it"
        )]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at_us = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        Job { asked, started: Instant::now(), started_at_us }
    }

    pub(super) fn fail(self, error: CallError) {
        match self.asked {
            Asked::Answer(_, done) => done(Err(error)),
            Asked::Watched(mut watched) => drop((watched.listener)(Event::End(Err(error)))),
            Asked::Tokens(.., done) => done(Err(error)),
        }
    }

    /// Answers, with what every answer says of how it came.
    fn answer(self, device: Device, answer: Answer) {
        let answer = Answer {
            attempts: 1,
            started_at_us: self.started_at_us,
            latency_ms: self.started.elapsed().as_secs_f64() * 1e3,
            device: Some(device_name(device)),
            ..answer
        };
        match self.asked {
            Asked::Answer(_, done) => done(Ok(answer)),
            Asked::Watched(mut watched) => drop((watched.listener)(Event::End(Ok(answer)))),
            Asked::Tokens(..) => unreachable!("a prompt's tokens are no answer"),
        }
    }
}

impl<'m> Worker<'m> {
    pub(super) fn new(
        model: &'m Transformer,
        tokenizer: &'m TextTokenizer,
        chat: Option<&'m ChatTemplate>,
        rows_max: usize,
        cache_bytes: usize,
    ) -> Worker<'m> {
        Worker {
            model,
            tokenizer,
            chat,
            generator: Generator::new(model, tokenizer, rows_max, cache_bytes),
            rows_max,
            continued: BTreeMap::new(),
            to_score: Vec::new(),
            prompts: Vec::new(),
            tags: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.continued.is_empty() && self.to_score.is_empty() && self.prompts.is_empty()
    }

    /// Bytes of keys and values that it holds.
    pub(super) fn cache_bytes(&self) -> usize {
        self.generator.cache_bytes()
    }

    pub(super) fn is_full(&self) -> bool {
        self.continued.len() + self.to_score.len() >= self.rows_max
    }

    /// Takes a request, or refuses it for good.
    pub(super) fn accept(&mut self, job: Job) {
        let accepted = match &job.asked {
            Asked::Tokens(..) => return self.prompts.push(job),
            Asked::Watched(Watched { input, sampling, alternatives_max, .. }) => self
                .tokens(input)
                .and_then(|ids| self.continuation(ids, sampling))
                .map(|row| Accepted::Continued(row, *alternatives_max)),
            Asked::Answer(request, _) => match &request.task {
                Task::Generate(sampling) => self
                    .encode(&request.prompt)
                    .and_then(|ids| self.continuation(ids, sampling))
                    .map(|row| Accepted::Continued(row, 0)),
                Task::Score { choices, .. } => {
                    self.choices(&request.prompt, choices).map(Accepted::Scored)
                }
            },
        };
        match accepted {
            Ok(Accepted::Continued(row, alternatives_max)) => {
                let prompt_tokens = row.prompt.len();
                self.tags += 1;
                self.generator.push_with(self.tags, row, alternatives_max);
                self.continued.insert(self.tags, (job, prompt_tokens));
            }
            Ok(Accepted::Scored(row)) => self.to_score.push((job, row)),
            Err(error) => job.fail(error),
        }
    }

    /// Scores what is to be scored, and draws a token for each row that is being continued.
    pub(super) fn step(&mut self) {
        self.score();
        self.read_prompts();
        for (tag, generated) in self.generator.step() {
            let (mut job, prompt) = self.continued.remove(&tag).expect("a tag names a request");
            if let Asked::Watched(Watched { listener, told, .. }) = &mut job.asked {
                let tokens = Tokens {
                    before: &[],
                    ids: &generated.tokens,
                    logprobs: &generated.logprobs,
                    alternatives: &generated.alternatives,
                };
                let piece = told.rest(&generated.text, tokens, self.tokenizer);
                listener(Event::Piece(piece));
            }
            job.answer(self.model.device, written(generated, prompt));
        }
        self.tell();
    }

    /// Tells those who watch what was written.
    fn tell(&mut self) {
        let mut left = Vec::new();
        for (tag, (job, _)) in &mut self.continued {
            let Asked::Watched(Watched { listener, told, .. }) = &mut job.asked else { continue };
            let Some(row) = self.generator.written(*tag) else { continue };
            let Some(piece) = told.more(row, self.tokenizer) else { continue };
            if !listener(Event::Piece(piece)) {
                left.push(*tag);
            }
        }
        for tag in left {
            self.continued.remove(&tag);
            self.generator.cancel(tag);
        }
    }

    /// Tells the tokens of prompts with their log-probabilities.
    fn read_prompts(&mut self) {
        while let Some(job) = self.prompts.pop() {
            let Asked::Tokens(input, alternatives_max, done) = job.asked else { continue };
            done(self.read_prompt(&input, alternatives_max));
        }
    }

    fn read_prompt(&self, input: &Input, most: usize) -> Result<Piece, CallError> {
        if self.model.config.head == Head::Score {
            return Err(permanent("a preference model predicts no tokens".to_owned()));
        }
        let ids = self.tokens(input)?;
        self.check_length(&ids, 0)?;
        let predicted = score_prompt(self.model, &ids, most);
        let token = |(at, (logprob, alternatives)): (usize, (Option<f32>, Vec<(i64, f32)>))| {
            let text = |id: i64| self.tokenizer.decode_after(&ids[..at], &[id]);
            let alternatives = alternatives.into_iter().map(|(id, p)| (text(id), p)).collect();
            Token { text: text(ids[at]), logprob, alternatives }
        };
        let text = match input {
            Input::Prompt(Prompt::Text(text)) => text.clone(),
            Input::Prompt(Prompt::Messages(_)) | Input::Tokens(_) => self.tokenizer.decode(&ids),
        };
        Ok(Piece { text, tokens: predicted.into_iter().enumerate().map(token).collect() })
    }

    /// Answers everything with an error.
    pub(super) fn fail_all(&mut self, error: &CallError) {
        let continued = std::mem::take(&mut self.continued).into_values().map(|(job, _)| job);
        let to_score = std::mem::take(&mut self.to_score).into_iter().map(|(job, _)| job);
        let prompts = std::mem::take(&mut self.prompts).into_iter();
        continued.chain(to_score).chain(prompts).for_each(|job| job.fail(error.clone()));
    }

    fn score(&mut self) {
        // The rows stay where a failure finds them until their answers are there.
        let rows: Vec<Continued> = self.to_score.iter().map(|(_, row)| row.clone()).collect();
        let scores = match self.model.config.head {
            Head::Lm => score_with(self.generator.reader(), &rows),
            Head::Score => self.rewards(&rows),
        };
        for ((job, row), scores) in self.to_score.drain(..).zip(scores) {
            let longest = row.tails.iter().map(Vec::len).max().unwrap_or(0);
            let answer = Answer {
                choice_logprobs: Some(scores),
                prompt_tokens: tokens(row.prefix.len() + longest),
                ..Answer::default()
            };
            job.answer(self.model.device, answer);
        }
    }

    /// What a preference model thinks of the prompt with each choice, read to the end token that
    /// it was trained to judge at.
    fn rewards(&mut self, rows: &[Continued]) -> Vec<Vec<f64>> {
        let end = self.model.config.eos_token_ids.first();
        let texts = rows.iter().flat_map(|row| {
            let text =
                |tail: &Vec<i64>| row.prefix.iter().chain(tail).chain(end).copied().collect();
            row.tails.iter().map(text).collect::<Vec<Vec<i64>>>()
        });
        let texts: Vec<Vec<i64>> = texts.collect();
        let scores = rewards_with(self.generator.reader(), &texts);
        let mut scores = scores.into_iter().map(f64::from);
        rows.iter().map(|row| scores.by_ref().take(row.tails.len()).collect()).collect()
    }

    fn continuation(
        &self,
        prompt: Vec<i64>,
        sampling: &Sampling,
    ) -> Result<Continuation, CallError> {
        if self.model.config.head == Head::Score {
            return Err(permanent("a preference model scores, it does not write".to_owned()));
        }
        self.check_length(&prompt, 1)?;
        Ok(Continuation { prompt, sampling: sampling.clone() })
    }

    fn choices(&self, prompt: &Prompt, choices: &[String]) -> Result<Continued, CallError> {
        let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
        let row = match prompt {
            Prompt::Text(text) => self.tokenizer.encode_continued(text, &choices),
            Prompt::Messages(messages) => {
                self.tokenizer.encode_rendered_continued(&self.rendered(messages)?, &choices)
            }
        };
        let row = row.map_err(permanent)?;
        let longest = row.tails.iter().map(Vec::len).max().unwrap_or(0);
        // A preference model also reads the end token.
        self.check_length(
            &row.prefix,
            longest + usize::from(self.model.config.head == Head::Score),
        )?;
        Ok(row)
    }

    /// The tokens of what is read, all of which the model has.
    fn tokens(&self, input: &Input) -> Result<Vec<i64>, CallError> {
        let ids = match input {
            Input::Prompt(prompt) => return self.encode(prompt),
            Input::Tokens(ids) => ids,
        };
        let vocab = self.model.config.vocab_size;
        match ids.iter().find(|id| !(0..vocab).contains(id)) {
            Some(id) => {
                Err(permanent(format!("token {id} is not one of the model's, 0 to {}", vocab - 1)))
            }
            None => Ok(ids.clone()),
        }
    }

    /// The tokens of a prompt.
    fn encode(&self, prompt: &Prompt) -> Result<Vec<i64>, CallError> {
        let ids = match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text),
            Prompt::Messages(messages) => self.tokenizer.encode_rendered(&self.rendered(messages)?),
        };
        ids.map_err(permanent)
    }

    /// A conversation as the checkpoint's template writes it.
    fn rendered(&self, messages: &[Message]) -> Result<String, CallError> {
        let chat = self.chat.ok_or_else(|| {
            permanent(
                "the checkpoint has no chat template, and a conversation was asked: set \
                 `format: transcript`, or give a `chat_template`"
                    .to_owned(),
            )
        })?;
        let failed = |error| permanent(format!("the chat template fails: {error}"));
        chat.prompt(messages).map_err(failed)
    }

    /// Refuses a prompt that is empty, or that leaves no room.
    fn check_length(&self, prompt: &[i64], room: usize) -> Result<(), CallError> {
        let positions_max = self.model.config.max_position_embeddings;
        if prompt.is_empty() {
            return Err(permanent("the prompt has no token".to_owned()));
        }
        if prompt.len() + room > positions_max {
            return Err(CallError::Permanent {
                status: None,
                message: format!(
                    "the prompt has {} tokens and needs room for {room} more, but the model's \
                     context is {positions_max}",
                    prompt.len()
                ),
                too_long: true,
            });
        }
        Ok(())
    }
}

fn written(generated: Generated, prompt_tokens: usize) -> Answer {
    Answer {
        text: generated.text,
        finish: generated.finish,
        completion_tokens: tokens(generated.tokens.len()),
        token_logprobs: Some(generated.logprobs),
        prompt_tokens: tokens(prompt_tokens),
        ..Answer::default()
    }
}

fn permanent(message: String) -> CallError {
    CallError::Permanent { status: None, message, too_long: false }
}

fn tokens(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}
