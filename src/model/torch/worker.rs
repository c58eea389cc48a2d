//! The requests that a model is working on: from text to tokens, and back to answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tch::Device;

use super::config::Head;
use super::generate::{Continuation, Generated, Generator};
use super::llama::Llama;
use super::score::{rewards, score};
use super::tokenizer::{Continued, TextTokenizer};
use crate::model::{Answer, CallError, Done, Prompt, Request, Sampling, Task};

/// A request with the one who waits for it.
pub(super) struct Job {
    request: Arc<Request>,
    done: Done,
    started: Instant,
    started_at_us: i64,
}

/// The requests that a model is working on.
pub(super) struct Worker<'m> {
    llama: &'m Llama,
    tokenizer: &'m TextTokenizer,
    generator: Generator<'m>,
    rows_max: usize,
    /// Those being continued, with their number of prompt tokens.
    continued: BTreeMap<u64, (Job, usize)>,
    /// Those to be scored.
    to_score: Vec<(Job, Continued)>,
    tags: u64,
}

impl Job {
    pub(super) fn new(request: Arc<Request>, done: Done) -> Job {
        #[expect(
            clippy::disallowed_methods,
            reason = "when a call was made is told by the clock; no table but `calls` has it"
        )]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at_us = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        Job { request, done, started: Instant::now(), started_at_us }
    }

    pub(super) fn fail(self, error: CallError) {
        (self.done)(Err(error));
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
        (self.done)(Ok(answer));
    }
}

impl<'m> Worker<'m> {
    pub(super) fn new(
        llama: &'m Llama,
        tokenizer: &'m TextTokenizer,
        rows_max: usize,
    ) -> Worker<'m> {
        Worker {
            llama,
            tokenizer,
            generator: Generator::new(llama, tokenizer, rows_max),
            rows_max,
            continued: BTreeMap::new(),
            to_score: Vec::new(),
            tags: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.continued.is_empty() && self.to_score.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.continued.len() + self.to_score.len() >= self.rows_max
    }

    /// Takes a request, or refuses it for good.
    pub(super) fn accept(&mut self, job: Job) {
        let request = Arc::clone(&job.request);
        let accepted = match &request.task {
            Task::Generate(sampling) => self.continuation(&request.prompt, sampling).map(|row| {
                let prompt_tokens = row.prompt.len();
                self.tags += 1;
                self.generator.push(self.tags, row);
                (Some(prompt_tokens), None)
            }),
            Task::Score { choices, .. } => {
                self.choices(&request.prompt, choices).map(|row| (None, Some(row)))
            }
        };
        match accepted {
            Ok((Some(prompt_tokens), _)) => {
                self.continued.insert(self.tags, (job, prompt_tokens));
            }
            Ok((_, Some(row))) => self.to_score.push((job, row)),
            Ok((None, None)) => unreachable!("a request is continued or scored"),
            Err(error) => job.fail(error),
        }
    }

    /// Scores what is to be scored, and draws a token for each row that is being continued.
    pub(super) fn step(&mut self) {
        self.score();
        for (tag, generated) in self.generator.step() {
            let (job, prompt_tokens) = self.continued.remove(&tag).expect("a tag names a request");
            job.answer(self.llama.device, written(generated, prompt_tokens));
        }
    }

    /// Answers everything with an error.
    pub(super) fn fail_all(&mut self, error: &CallError) {
        let continued = std::mem::take(&mut self.continued).into_values().map(|(job, _)| job);
        let to_score = std::mem::take(&mut self.to_score).into_iter().map(|(job, _)| job);
        continued.chain(to_score).for_each(|job| job.fail(error.clone()));
    }

    fn score(&mut self) {
        // The rows stay where a failure finds them until their answers are there.
        let rows: Vec<Continued> = self.to_score.iter().map(|(_, row)| row.clone()).collect();
        let scores = match self.llama.config.head {
            Head::Lm => score(self.llama, &rows),
            Head::Score => self.rewards(&rows),
        };
        for ((job, row), scores) in self.to_score.drain(..).zip(scores) {
            let longest = row.tails.iter().map(Vec::len).max().unwrap_or(0);
            let answer = Answer {
                choice_logprobs: Some(scores),
                prompt_tokens: tokens(row.prefix.len() + longest),
                ..Answer::default()
            };
            job.answer(self.llama.device, answer);
        }
    }

    /// What a preference model thinks of the prompt with each choice, read to the end token that
    /// it was trained to judge at.
    fn rewards(&self, rows: &[Continued]) -> Vec<Vec<f64>> {
        let end = self.llama.config.eos_token_ids.first();
        let texts = rows.iter().flat_map(|row| {
            let text =
                |tail: &Vec<i64>| row.prefix.iter().chain(tail).chain(end).copied().collect();
            row.tails.iter().map(text).collect::<Vec<Vec<i64>>>()
        });
        let mut scores = rewards(self.llama, &texts.collect::<Vec<_>>()).into_iter().map(f64::from);
        rows.iter().map(|row| scores.by_ref().take(row.tails.len()).collect()).collect()
    }

    fn continuation(
        &self,
        prompt: &Prompt,
        sampling: &Sampling,
    ) -> Result<Continuation, CallError> {
        if self.llama.config.head == Head::Score {
            return Err(permanent("a preference model scores, it does not write".to_owned()));
        }
        let prompt = self.tokenizer.encode(text_of(prompt)?).map_err(permanent)?;
        self.check_length(&prompt, 1)?;
        Ok(Continuation { prompt, sampling: sampling.clone() })
    }

    fn choices(&self, prompt: &Prompt, choices: &[String]) -> Result<Continued, CallError> {
        let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
        let row = self.tokenizer.encode_continued(text_of(prompt)?, &choices).map_err(permanent)?;
        let longest = row.tails.iter().map(Vec::len).max().unwrap_or(0);
        // A preference model also reads the end token.
        self.check_length(
            &row.prefix,
            longest + usize::from(self.llama.config.head == Head::Score),
        )?;
        Ok(row)
    }

    /// Refuses a prompt that is empty, or that leaves no room.
    fn check_length(&self, prompt: &[i64], room: usize) -> Result<(), CallError> {
        let positions_max = self.llama.config.max_position_embeddings;
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

fn text_of(prompt: &Prompt) -> Result<&str, CallError> {
    match prompt {
        Prompt::Text(text) => Ok(text),
        Prompt::Messages(_) => Err(permanent(
            "this model reads text, and a conversation was asked: set `format: transcript`"
                .to_owned(),
        )),
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
