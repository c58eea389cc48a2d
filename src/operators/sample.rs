//! `sample`: a model's answers to prompts.
//!
//! `prompts -> responses`, `n` for each row.
//!
//! Each sample has a seed of its own, so the second of two does not depend on whether the first
//! was asked.

use minijinja::context;

use crate::model::{Prompt, Request, Sampling, Task};
use crate::record::{Cell, Id, KeyHasher, Message, Relation};
use crate::spec;

use super::prompt::{self, Prefix, Style};
use super::template::Template;
use super::{Build, BuildError, Input, Operator, Out, Step};

const ROLE: &str = "sample";

/// The running form of a `sample` node.
pub struct Sample {
    style: Style,
    sampling: Sampling,
    template: Option<Template>,
    seed: u64,
    n: u64,
}

impl Sample {
    /// The operator of a node.
    pub fn new(op: &spec::op::Sample, build: &Build<'_>) -> Result<Sample, BuildError> {
        let style = Style::new(build.model());
        let sampling = op.sampling();
        Ok(Sample {
            sampling: style.sampling(&sampling, &["\n\nHuman:"]),
            style,
            template: Template::of(build.constitution, ROLE, &[])?,
            seed: sampling.seed.unwrap_or(build.seed),
            n: u64::from(op.n.value),
        })
    }

    fn prompt(&self, input: Input<'_>) -> Result<Prompt, Step> {
        let turns = input.row.turns("prompt");
        match &self.template {
            None => Ok(self.style.begin(&Prefix::default(), turns).cue("Assistant")),
            Some(template) => {
                let text = template.render(turns, "", context! {}).map_err(Step::Reject)?;
                Ok(self.style.whole(text).done())
            }
        }
    }
}

impl Operator for Sample {
    fn relation(&self) -> Relation {
        Relation::Responses
    }

    fn role(&self) -> Option<&'static str> {
        Some(ROLE)
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        let seed = prompt::seed(&self.sampling, self.seed, ROLE, input.made_id, input.index);
        let Some(answers) = input.turns.first() else {
            let prompt = match self.prompt(input) {
                Ok(prompt) => prompt,
                Err(step) => return step,
            };
            let sampling = Sampling { seed, ..self.sampling.clone() };
            return Step::Ask(vec![Request { prompt, task: Task::Generate(sampling) }]);
        };
        let answer = &answers[0];
        let written = match self.style.written(answer) {
            Ok(written) => written,
            Err(reject) => return Step::Reject(reject),
        };
        let model = input.model.expect("a sample has a model");
        let logprob = answer.token_logprobs.as_ref();
        let logprob = logprob.map(|all| all.iter().map(|x| f64::from(*x)).sum::<f64>());
        out.row(&[
            ("prompt", input.row.cell("prompt")),
            ("completion", Cell::messages(vec![Message::assistant(written.text)])),
            ("sample_index", Cell::Int(input.index as i64)),
            ("category", input.row.cell("category")),
            ("model", Cell::text(&*model.name)),
            ("model_fingerprint", Cell::id(model.fingerprint)),
            ("seed", Cell::or_null(seed, |seed| Cell::Int(seed as i64))),
            ("finish_reason", Cell::text(answer.finish.name())),
            ("prompt_tokens", Cell::Int(i64::from(answer.prompt_tokens))),
            ("completion_tokens", Cell::Int(i64::from(answer.completion_tokens))),
            ("logprob", Cell::or_null(logprob, Cell::Float)),
            ("reasoning", Cell::or_null(written.reasoning, Cell::text)),
            ("warnings", prompt::warnings([answer])),
        ]);
        Step::Done
    }

    fn calls_max(&self) -> u64 {
        1
    }

    fn fan_out(&self) -> u64 {
        self.n
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text(ROLE);
        hasher.add_u64(u64::from(spec::op::Sample::VERSION));
        self.style.hash_into(&mut hasher);
        super::hash_sampling(&self.sampling, &mut hasher);
        Template::hash_into(self.template.as_ref(), &mut hasher);
        hasher.add_u64(self.seed);
        hasher.add_u64(self.n);
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use crate::operators::testing::{Bench, chat, prompts, transcript};

    const TWO: &str = "sample: { from: prompts, model: m, n: 2, max_tokens: 16 }";

    #[test]
    fn every_prompt_is_answered_n_times_each_with_a_seed_of_its_own() {
        let bench = Bench::new(TWO, &transcript());
        let (table, asked) = bench.run(&prompts(&["hi", "bye"]), |request| {
            format!(" you said {:?}, seed {}\n", request.text(), request.seed().unwrap() % 100)
        });
        insta::assert_snapshot!(table.show(&["prompt", "completion", "sample_index"]), @r#"
        | prompt      | completion                                                    | sample_index |
        | [user: hi]  | [assistant: you said "\n\nHuman: hi\n\nAssistant:", seed 54]  | 0            |
        | [user: hi]  | [assistant: you said "\n\nHuman: hi\n\nAssistant:", seed 93]  | 1            |
        | [user: bye] | [assistant: you said "\n\nHuman: bye\n\nAssistant:", seed 16] | 0            |
        | [user: bye] | [assistant: you said "\n\nHuman: bye\n\nAssistant:", seed 27] | 1            |
        "#);
        assert_eq!(asked, 4);
    }

    #[test]
    fn greedy_requests_carry_no_seed_and_so_coalesce() {
        let bench = Bench::new(&TWO.replace("n: 2", "n: 2, temperature: 0"), &chat());
        let (table, _) = bench.run(&prompts(&["hi"]), |request| {
            assert_eq!(request.seed(), None);
            "same".to_owned()
        });
        insta::assert_snapshot!(table.show(&["completion", "seed", "finish_reason"]), @r"
        | completion        | seed | finish_reason |
        | [assistant: same] |      | stop          |
        | [assistant: same] |      | stop          |
        ");
    }

    #[test]
    fn an_empty_answer_is_a_reject_and_a_thought_is_stripped() {
        let bench = Bench::new(TWO, &chat().replace("format", "strip_thinking: true, format"));
        let (table, _) = bench.run(&prompts(&["hi"]), |request| match request.index {
            0 => "<think>hm</think>\n yes".to_owned(),
            _ => "<think>hm</think>\n".to_owned(),
        });
        insta::assert_snapshot!(table.show(&["completion", "sample_index"]), @r"
        | completion       | sample_index |
        | [assistant: yes] | 0            |
        reject empty: the answer is empty after its reasoning
        ");
    }

    #[test]
    fn a_template_renders_the_whole_request() {
        let bench = Bench::new(TWO, &transcript())
            .with("templates: { sample: 'Q: {{ prompt | upper }} A:' }");
        let (table, _) = bench.run(&prompts(&["hi"]), |request| request.text().to_owned());
        insta::assert_snapshot!(table.show(&["completion"]), @r"
        | completion            |
        | [assistant: Q: HI A:] |
        | [assistant: Q: HI A:] |
        ");
    }
}
