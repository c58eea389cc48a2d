//! Threads in an operation, or replicas of the model: what the same cores do either way.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use amend::model::torch::{Precision, TorchBackend, TorchOptions};
use amend::model::{Answer, Backend, Estimator, Prompt, Request, Sampling, Task};

/// A number of threads in an operation, and of replicas.
const WAYS: [(usize, usize); 4] = [(1, 1), (2, 1), (1, 2), (2, 2)];

/// Rows to be sampled and pairs to be judged, as tokens.
pub(crate) struct Work {
    pub(crate) prompts: Vec<Vec<i64>>,
    pub(crate) sampling: Vec<Sampling>,
    pub(crate) judged: Vec<Vec<i64>>,
}

/// Prints a table of a checkpoint at work as a backend; its tokenizer reads `w7` as token 7.
pub(crate) fn print_table(dir: &Path, dtype: Precision, work: &Work) {
    println!("| threads | replicas | sample, tokens/s | judge, pairs/s |\n|--:|--:|--:|--:|");
    for (threads, replicas) in WAYS {
        let options = TorchOptions {
            threads,
            replicas: Some(replicas),
            dtype: Some(dtype),
            ..TorchOptions::default()
        };
        let backend = TorchBackend::open(dir, options).unwrap();
        let request = |ids: &[i64], task: Task| {
            let words: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
            Request { prompt: Prompt::Text(words.join(" ")), task }
        };
        let greedy = Sampling { temperature: 0.0, max_tokens: 1, ..work.sampling[0].clone() };
        // The weights are read with the first request.
        seconds(&backend, vec![request(&[5, 6, 7], Task::Generate(greedy))]);
        let rows = work.prompts.iter().zip(&work.sampling);
        let rows = rows.map(|(ids, sampling)| request(ids, Task::Generate(sampling.clone())));
        let (sampled, tokens) = seconds(&backend, rows.collect());
        let choices = vec![" w5".to_owned(), " w6".to_owned()];
        let score = Task::Score { choices, estimator: Estimator::Echo };
        let pairs = work.judged.iter().map(|ids| request(ids, score.clone()));
        let (judged, _) = seconds(&backend, pairs.collect());
        println!(
            "| {threads} | {replicas} | {:.1} | {:.1} |",
            tokens as f64 / sampled,
            work.judged.len() as f64 / judged
        );
    }
}

/// The time until all are answered, asked as the engine asks, at most so many at once; and how many
/// tokens were written.
fn seconds(backend: &TorchBackend, requests: Vec<Request>) -> (f64, i64) {
    let begun = Instant::now();
    let (sender, answers) = mpsc::channel();
    let mut waiting = requests.into_iter();
    let (mut under_way, mut tokens) = (0, 0);
    loop {
        for request in waiting.by_ref().take(backend.max_in_flight() - under_way) {
            let sender = sender.clone();
            let done = move |answer: Result<Answer, _>| {
                sender.send(answer.map(|answer| answer.completion_tokens)).unwrap();
            };
            backend.submit(Arc::new(request), Box::new(done));
            under_way += 1;
        }
        if under_way == 0 {
            return (begun.elapsed().as_secs_f64(), tokens);
        }
        tokens += i64::from(answers.recv().unwrap().unwrap());
        under_way -= 1;
    }
}
