//! `pairwise-judge`: which of two responses is better, under one principle.
//!
//! `responses -> comparisons`, one a pair.
//!
//! For each question (a principle, an order, a thought) P(A better) is the softmax over the two
//! labels' log-probabilities. Thoughts are averaged, then orders, then principles; the clamp comes
//! last.

mod verdict;

use std::borrow::Cow;

use crate::model::{Answer, Estimator, Prompt, Request, Sampling, Task};
use crate::record::{Cell, Id, KeyHasher, Relation, Row};
use crate::spec::op::{self, Labels, Order};
use crate::spec::{Purpose, Stage};

use super::prompt::{self, Prefix, Style};
use super::question::{Form, Question, Words};
use super::shots::{self, JudgeShots, Shown};
use super::{Build, BuildError, Drawn, Input, Operator, Out, Principles, Reason, Reject, Step};
use verdict::Verdict;

const ROLE: &str = "pairwise-judge";

/// The running form of a `pairwise-judge` node.
pub struct PairwiseJudge {
    words: Words,
    estimator: Estimator,
    examples: Vec<Example>,
    shots: JudgeShots,
    stage: Stage,
    order: Order,
    labels: Labels,
    thoughts: Option<Thoughts>,
    draws: u64,
    label_temperature: f64,
    min_label_mass: f64,
    seed: u64,
    source: String,
}

/// How a chain of thought is asked for.
struct Thoughts {
    samples: u64,
    sampling: Sampling,
    clamp: Option<[f64; 2]>,
}

/// A worked example of the constitution.
enum Example {
    Pair { turns: Vec<(String, String)>, chosen: String, rejected: String },
    Thought(String),
}

impl PairwiseJudge {
    /// The operator of a node.
    pub fn new(op: &op::PairwiseJudge, build: &Build<'_>) -> Result<Self, BuildError> {
        let style = Style::new(build.model());
        let seed = op.seed.unwrap_or(build.seed);
        let form = if op.cot.is_some() { Form::Thought } else { Form::Label };
        let thoughts = op.cot.as_ref().map(|cot| Thoughts {
            samples: u64::from(cot.samples.value),
            sampling: style.sampling(
                &op::Sampling {
                    temperature: cot.temperature.value,
                    top_p: 1.0,
                    top_k: 0,
                    min_p: 0.0,
                    repetition_penalty: 1.0,
                    max_tokens: cot.max_tokens.value,
                    stop: Vec::new(),
                    seed: None,
                },
                &["\n\nHuman:"],
            ),
            clamp: cot.clamp.map(|clamp| clamp.value),
        });
        let mut judge = PairwiseJudge {
            words: Words::new(style, form, build.constitution)?,
            estimator: build.estimator(),
            examples: op.few_shot.as_ref().map_or(Vec::new(), |_| examples(form, build)),
            shots: JudgeShots::none(),
            stage: op.principles.stage.unwrap_or(Stage::Rl),
            order: op.order,
            labels: op.labels,
            thoughts,
            draws: u64::from(op.draws.value),
            label_temperature: op.label_temperature.value,
            min_label_mass: op.min_label_mass.value,
            seed,
            source: build.node.to_owned(),
        };
        if let (Some(few_shot), Some(constitution)) = (&op.few_shot, build.constitution) {
            let principles = op.principles.select(constitution, Purpose::Judge);
            let (examples, show) =
                (judge.examples.len(), &|at, text: &str, swapped| judge.show(at, text, swapped));
            judge.shots = JudgeShots::new(few_shot, seed, &principles, examples, show);
        }
        Ok(judge)
    }

    /// A worked example under an instruction.
    fn show(&self, at: usize, judge: &str, swapped: bool) -> Shown {
        match &self.examples[at] {
            Example::Pair { turns, chosen, rejected } => {
                let (a, b) = if swapped { (rejected, chosen) } else { (chosen, rejected) };
                let turns = turns.iter().map(|(role, content)| (role.as_str(), content.as_str()));
                self.words.pair_shown(turns, judge, [a, b], usize::from(swapped))
            }
            Example::Thought(text) => Words::thought_shown(text, judge),
        }
    }

    /// The questions about a pair: a principle and whether the second response is shown first.
    fn questions<'a>(&self, input: &Input<'a>) -> Vec<(&'a Drawn, bool)> {
        let orders: &[bool] = match self.order {
            Order::Both => &[false, true],
            Order::Fixed => &[false],
            Order::Random => {
                let hasher = KeyHasher::new("amend/order/1").u64(self.seed).with(input.row_id);
                if hasher.id().low() & 1 == 1 { &[true] } else { &[false] }
            }
        };
        let of = |drawn| orders.iter().map(move |swapped| (drawn, *swapped));
        input.drawn.iter().flat_map(of).collect()
    }

    fn prompts(&self, input: &Input<'_>, pair: &Pair<'_>) -> Result<Vec<Prompt>, Reject> {
        let show = |at, text: &str, swapped| self.show(at, text, swapped);
        let prefix = self.shots.before(input.row_id, &show);
        let questions = self.questions(input).into_iter();
        questions
            .map(|(drawn, swapped)| self.prompt(input, pair, &prefix, drawn, swapped))
            .collect()
    }

    fn prompt(
        &self,
        input: &Input<'_>,
        pair: &Pair<'_>,
        prefix: &Prefix,
        drawn: &Drawn,
        swapped: bool,
    ) -> Result<Prompt, Reject> {
        let [a, b] = if swapped { [&*pair.b, &*pair.a] } else { [&*pair.a, &*pair.b] };
        let judge = drawn.judge.as_deref().expect("a drawn principle has a judge's instruction");
        let question = Question { turns: input.row.turns("prompt"), judge, shown: [a, b] };
        self.words.prompt(prefix, question, || Principles::of(std::slice::from_ref(drawn)).value())
    }

    /// Asks for the labels, after each of the texts that are read.
    fn score(&self, prompts: impl IntoIterator<Item = Prompt>) -> Step {
        let score = |prompt| Request {
            prompt,
            task: Task::Score { choices: self.words.labels().to_vec(), estimator: self.estimator },
        };
        Step::Ask(prompts.into_iter().map(score).collect())
    }

    /// Asks for thoughts, several for a question.
    fn think(&self, input: &Input<'_>, thoughts: &Thoughts, prompts: Vec<Prompt>) -> Step {
        let mut requests = Vec::with_capacity(prompts.len() * thoughts.samples as usize);
        for prompt in prompts {
            for _ in 0..thoughts.samples {
                let index = requests.len() as u64;
                let seed = prompt::seed(&thoughts.sampling, self.seed, ROLE, input.made_id, index);
                let sampling = Sampling { seed, ..thoughts.sampling.clone() };
                requests.push(Request { prompt: prompt.clone(), task: Task::Generate(sampling) });
            }
        }
        Step::Ask(requests)
    }

    /// Asks for the labels after each thought.
    fn conclude(&self, thoughts: &Thoughts, prompts: Vec<Prompt>, answers: &[Answer]) -> Step {
        let mut read = Vec::with_capacity(answers.len());
        for (answers, prompt) in answers.chunks(thoughts.samples as usize).zip(prompts) {
            for answer in answers {
                match self.words.style.written(answer) {
                    Ok(written) => read.push(Words::after_thought(prompt.clone(), written.text)),
                    Err(reject) => return Step::Reject(reject),
                }
            }
        }
        self.score(read)
    }
}

/// The texts of a pair of responses.
struct Pair<'a> {
    a: Cow<'a, str>,
    b: Cow<'a, str>,
}

impl PairwiseJudge {
    /// What the answers about a pair say together.
    fn verdict(&self, input: &Input<'_>, answers: &[Answer]) -> Result<Verdict, Reject> {
        let sides: Vec<bool> = self.questions(input).iter().map(|(_, swapped)| *swapped).collect();
        let orders = sides.len() / input.drawn.len();
        Verdict::of(&sides, orders, answers, self.label_temperature)
    }

    /// The target: the probability, or which is likelier; the clamp is for thoughts alone.
    fn target(&self, p: f64, tie: bool) -> (f64, Option<[f64; 2]>) {
        match self.labels {
            Labels::Hard if p > 0.5 || (p >= 0.5 && tie) => (1.0, None),
            Labels::Hard => (0.0, None),
            Labels::Soft => {
                let clamp = self.thoughts.as_ref().and_then(|thoughts| thoughts.clamp);
                (clamp.map_or(p, |[low, high]| p.clamp(low, high)), clamp)
            }
        }
    }

    fn row(&self, input: &Input<'_>, other: Row<'_>, verdict: &Verdict, out: &mut dyn Out) {
        let first = KeyHasher::new("amend/tie/1").with(input.row_id).id().low() & 1 == 0;
        let (p, clamp) = self.target(verdict.p, first);
        let a_wins = p > 0.5 || (p >= 0.5 && first);
        let (chosen, rejected) = if a_wins { (input.row, other) } else { (other, input.row) };
        let show = |at, text: &str, swapped| self.show(at, text, swapped);
        let few_shot = self.shots.before(input.row_id, &show).ids.clone();
        let thoughts = self.thoughts.is_some().then(|| input.turns[0].iter());
        let thoughts: Option<Vec<String>> =
            thoughts.map(|all| all.map(|answer| answer.text.trim().to_owned()).collect());
        let principles = Principles::of(input.drawn);
        let judge = input.model.expect("a judgement has a model");
        let number = |number: Option<f64>| Cell::or_null(number, Cell::Float);
        let logp =
            |order: usize, label: usize| number(verdict.logp_of[order].map(|all| all[label]));
        out.row(&[
            ("prompt", input.row.cell("prompt")),
            ("response_a", Cell::Of(input.row, "completion")),
            ("response_b", Cell::Of(other, "completion")),
            ("chosen", Cell::Of(chosen, "completion")),
            ("rejected", Cell::Of(rejected, "completion")),
            ("p", Cell::Float(p)),
            ("p_raw", Cell::Float(verdict.p)),
            ("p_ab", number(verdict.p_of[0])),
            ("p_ba", number(verdict.p_of[1])),
            ("logp_a_ab", logp(0, 0)),
            ("logp_b_ab", logp(0, 1)),
            ("logp_a_ba", logp(1, 0)),
            ("logp_b_ba", logp(1, 1)),
            ("label_logmass", Cell::Float(verdict.label_logmass)),
            ("votes", Cell::or_null(verdict.votes, Cell::Int)),
            ("estimator", Cell::text(self.estimator.name())),
            ("label_kind", Cell::text(if self.labels == Labels::Hard { "hard" } else { "soft" })),
            ("order", Cell::text(order_name(self.order))),
            ("clamp", Cell::or_null(clamp, |clamp| Cell::Floats(clamp.to_vec()))),
            ("cot", Cell::or_null(thoughts, Cell::Texts)),
            ("principle_id", Cell::text(principles.id())),
            ("principle_hash", Cell::id(principles.hash())),
            ("stage", Cell::text(self.stage.as_str())),
            ("few_shot_ids", Cell::Texts(few_shot)),
            ("judge", Cell::text(&*judge.name)),
            ("judge_fingerprint", Cell::id(judge.fingerprint)),
            ("category", input.row.cell("category")),
            ("source", Cell::text(&*self.source)),
            ("weight", Cell::Float(1.0)),
            ("warnings", prompt::warnings(input.turns.iter().flatten())),
        ]);
    }
}

impl Operator for PairwiseJudge {
    fn relation(&self) -> Relation {
        Relation::Comparisons
    }

    fn role(&self) -> Option<&'static str> {
        Some(ROLE)
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        let other = input.other.expect("a judge is given pairs");
        let [a, b] = [input.row, other].map(|row| super::content(row.turns("completion")));
        if a == b {
            return Step::Reject(Reject {
                reason: Reason::IdenticalPair,
                detail: "the two responses are equal".to_owned(),
                answer: None,
            });
        }
        let turns_before_labels = usize::from(self.thoughts.is_some());
        if input.turns.len() > turns_before_labels {
            return match self.verdict(&input, &input.turns[turns_before_labels]) {
                Ok(verdict) if libm::exp(verdict.label_logmass) < self.min_label_mass => {
                    Step::Reject(self.too_little_mass(&verdict))
                }
                Ok(verdict) => {
                    self.row(&input, other, &verdict, out);
                    Step::Done
                }
                Err(reject) => Step::Reject(reject),
            };
        }
        let prompts = match self.prompts(&input, &Pair { a, b }) {
            Ok(prompts) => prompts,
            Err(reject) => return Step::Reject(reject),
        };
        match (&self.thoughts, input.turns) {
            (Some(thoughts), []) => self.think(&input, thoughts, prompts),
            (Some(thoughts), [answers, ..]) => self.conclude(thoughts, prompts, answers),
            (None, _) => self.score(prompts),
        }
    }

    fn calls_max(&self) -> u64 {
        let orders = if self.order == Order::Both { 2 } else { 1 };
        let calls = self.thoughts.as_ref().map_or(1, |thoughts| 2 * thoughts.samples);
        self.draws * orders * calls
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text(ROLE);
        hasher.add_u64(u64::from(op::PairwiseJudge::VERSION));
        self.words.hash_into(&mut hasher);
        hasher.add_text(self.estimator.name());
        self.shots.hash_into(&mut hasher);
        for at in 0..self.examples.len() {
            hasher.add_text(&self.show(at, "", false).text);
        }
        hasher.add_text(self.stage.as_str());
        hasher.add_text(order_name(self.order));
        hasher.add_u64(u64::from(self.labels == Labels::Hard));
        if let Some(thoughts) = &self.thoughts {
            hasher.add_u64(thoughts.samples);
            super::hash_sampling(&thoughts.sampling, &mut hasher);
            thoughts.clamp.iter().flatten().for_each(|bound| hasher.add_f64(*bound));
        }
        hasher.add_f64(self.label_temperature);
        hasher.add_f64(self.min_label_mass);
        hasher.add_u64(self.seed);
        hasher.add_text(&self.source);
        hasher.id()
    }
}

impl PairwiseJudge {
    fn too_little_mass(&self, verdict: &Verdict) -> Reject {
        let (mass, least) = (libm::exp(verdict.label_logmass), self.min_label_mass);
        Reject {
            reason: Reason::LabelMass,
            detail: format!("the two labels have probability {mass:.2e} together, below {least}"),
            answer: None,
        }
    }
}

fn order_name(order: Order) -> &'static str {
    match order {
        Order::Both => "both",
        Order::Random => "random",
        Order::Fixed => "fixed",
    }
}

fn examples(form: Form, build: &Build<'_>) -> Vec<Example> {
    let Some(constitution) = build.constitution else { return Vec::new() };
    let few_shot = &constitution.few_shot;
    match form {
        Form::Label => few_shot
            .judge
            .iter()
            .map(|example| Example::Pair {
                turns: shots::conversation(&example.prompt)
                    .into_iter()
                    .map(|turn| (turn.role, turn.content))
                    .collect(),
                chosen: example.chosen.trim().to_owned(),
                rejected: example.rejected.trim().to_owned(),
            })
            .collect(),
        Form::Thought => {
            few_shot.judge_cot.iter().map(|text| Example::Thought(text.value.clone())).collect()
        }
    }
}

#[cfg(test)]
mod tests;
