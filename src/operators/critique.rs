//! `critique`: ask a model what is wrong with a response, under one principle.
//!
//! `responses | revisions -> critiques`, row for row.
//!
//! The principle is drawn by the engine, from ids alone; several drawn ones are asked together.

use minijinja::context;

use crate::model::{Prompt, Request, Sampling, Task};
use crate::record::{Cell, Id, KeyHasher, Relation};
use crate::spec;

use super::prompt::{self, Prefix, Style};
use super::template::Template;
use super::{Build, BuildError, Input, Operator, Out, Principles, Step, shots};

const ROLE: &str = "critique";

/// The running form of a `critique` node, or of the first half of a round.
pub struct Critique {
    style: Style,
    sampling: Sampling,
    template: Option<Template>,
    shots: Prefix,
    stage: spec::Stage,
    seed: u64,
    round: u32,
}

/// The settings that a `critique` node and a round of `repeat` share.
pub(super) struct Settings<'a> {
    pub(super) sampling: spec::op::Sampling,
    pub(super) few_shot: Option<&'a spec::op::FewShot>,
    pub(super) stage: spec::Stage,
}

impl Critique {
    pub(super) fn new(settings: Settings<'_>, build: &Build<'_>) -> Result<Critique, BuildError> {
        let style = Style::new(build.model());
        let names = ["round", "response", "principle"];
        Ok(Critique {
            sampling: style.sampling(&settings.sampling, &["\n\nHuman:", "\n\nRevisionRequest:"]),
            style,
            template: Template::of(build.constitution, ROLE, &names)?,
            shots: shots::critique_revise(settings.few_shot, build.constitution),
            stage: settings.stage,
            seed: settings.sampling.seed.unwrap_or(build.seed),
            round: build.round,
        })
    }

    fn prompt(&self, input: Input<'_>, principles: &Principles<'_>) -> Result<Prompt, Step> {
        let (turns, response) = (input.row.turns("prompt"), input.row.turns("completion"));
        let Some(template) = &self.template else {
            let mut writer = self.style.begin(&self.shots, turns);
            writer.turns(response);
            writer.ask("CritiqueRequest", &principles.critique());
            return Ok(writer.cue("Critique"));
        };
        let own = context! {
            round => self.round,
            response => super::content(response),
            principle => principles.value(),
        };
        let text = template.render(turns, &self.shots.text, own).map_err(Step::Reject)?;
        Ok(self.style.whole(text).done())
    }
}

impl Operator for Critique {
    fn relation(&self) -> Relation {
        Relation::Critiques
    }

    fn role(&self) -> Option<&'static str> {
        Some(ROLE)
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        let principles = Principles::of(input.drawn);
        let seed = prompt::seed(&self.sampling, self.seed, ROLE, input.made_id, 0);
        let Some(answers) = input.turns.first() else {
            let prompt = match self.prompt(input, &principles) {
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
        let model = input.model.expect("a critique has a model");
        out.row(&[
            ("prompt", input.row.cell("prompt")),
            ("response", Cell::Of(input.row, "completion")),
            ("category", input.row.cell("category")),
            ("round", Cell::Int(i64::from(self.round))),
            ("principle_id", Cell::text(principles.id())),
            ("principle_hash", Cell::id(principles.hash())),
            ("stage", Cell::text(self.stage.as_str())),
            ("few_shot_ids", Cell::Texts(self.shots.ids.clone())),
            ("critique", Cell::text(written.text)),
            ("model", Cell::text(&*model.name)),
            ("model_fingerprint", Cell::id(model.fingerprint)),
            ("seed", Cell::or_null(seed, |seed| Cell::Int(seed as i64))),
            ("finish_reason", Cell::text(answer.finish.name())),
            ("completion_tokens", Cell::Int(i64::from(answer.completion_tokens))),
            ("reasoning", Cell::or_null(written.reasoning, Cell::text)),
            ("warnings", prompt::warnings([answer])),
        ]);
        Step::Done
    }

    fn calls_max(&self) -> u64 {
        1
    }

    fn sibling(&self, _index: u64) -> u64 {
        u64::from(self.round)
    }

    fn round(&self) -> Option<i64> {
        Some(i64::from(self.round))
    }

    fn fingerprint(&self) -> Id {
        let mut hasher = KeyHasher::new("amend/operator/1").text(ROLE);
        hasher.add_u64(u64::from(spec::op::Critique::VERSION));
        self.style.hash_into(&mut hasher);
        super::hash_sampling(&self.sampling, &mut hasher);
        Template::hash_into(self.template.as_ref(), &mut hasher);
        hasher.add_text(&self.shots.text);
        hasher.add_text(self.stage.as_str());
        hasher.add_u64(self.seed);
        hasher.add_u64(u64::from(self.round));
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use crate::operators::testing::{Bench, chat, responses, transcript};

    const CRITIQUE: &str = "critique: { from: drafts, model: m, temperature: 0 }";

    #[test]
    fn every_row_is_critiqued_under_one_principle() {
        let bench = Bench::new(CRITIQUE, &transcript());
        let (table, asked) =
            bench.run(&responses(&[("hi", "go away")]), |request| format!(" {:?}", request.text()));
        insta::assert_snapshot!(table.show(&["response", "round", "principle_id", "critique"]), @r#"
        | response             | round | principle_id | critique                                                                           |
        | [assistant: go away] | 1     | kind         | "\n\nHuman: hi\n\nAssistant: go away\n\nCritiqueRequest: Is it rude?\n\nCritique:" |
        "#);
        assert_eq!(asked, 1);
    }

    #[test]
    fn a_chat_is_asked_in_a_turn_after_the_response() {
        let bench = Bench::new(CRITIQUE, &chat());
        let (table, _) =
            bench.run(&responses(&[("hi", "go away")]), |request| request.text().to_owned());
        insta::assert_snapshot!(table.show(&["critique", "seed"]), @r"
        | critique                                        | seed |
        | user: hi\nassistant: go away\nuser: Is it rude? |      |
        ");
    }

    #[test]
    fn examples_come_first_and_are_named() {
        let few_shot = CRITIQUE.replace("temperature", "few_shot: { count: 1 }, temperature");
        let rows = responses(&[("hi", "no")]);
        let columns = ["critique", "few_shot_ids"];
        let read = |model: &str| {
            Bench::new(&few_shot, model).run(&rows, |request| request.text().to_owned()).0
        };
        insta::assert_snapshot!(read(&transcript()).show(&columns), @r"
        | critique                                                                                                                                                                          | few_shot_ids        |
        | Human: q\n\nAssistant: a\n\nCritiqueRequest: c?\n\nCritique: c.\n\nRevisionRequest: r?\n\nRevision: r.\n\nHuman: hi\n\nAssistant: no\n\nCritiqueRequest: Is it rude?\n\nCritique: | [critique_revise/1] |
        ");
        insta::assert_snapshot!(read(&chat()).show(&columns), @r"
        | critique                                                                                                            | few_shot_ids        |
        | user: q\nassistant: a\nuser: c?\nassistant: c.\nuser: r?\nassistant: r.\nuser: hi\nassistant: no\nuser: Is it rude? | [critique_revise/1] |
        ");
    }
}
