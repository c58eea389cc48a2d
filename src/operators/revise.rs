//! `revise`: the response written again, under the principle of its critique.
//!
//! `critiques -> revisions`, row for row; `responses | revisions -> revisions` when direct.
//!
//! A critique that matches `skip_if` makes no call: the response stays as it is.

use minijinja::context;
use regex::Regex;

use crate::model::{Prompt, Request, Sampling, Task};
use crate::record::{Cell, Id, KeyHasher, Message, Relation, Turns};
use crate::spec;

use super::prompt::{self, Prefix, Style};
use super::template::Template;
use super::{Build, BuildError, Input, Operator, Out, Principles, Step, shots};

const ROLE: &str = "revise";

/// The running form of a `revise` node, or of the second half of a round.
pub struct Revise {
    style: Style,
    sampling: Sampling,
    template: Option<Template>,
    shots: Prefix,
    stage: spec::Stage,
    skip_if: Option<Regex>,
    seed: u64,
    round: u32,
}

/// The settings that a `revise` node and a round of `repeat` share.
pub(super) struct Settings<'a> {
    pub(super) sampling: spec::op::Sampling,
    pub(super) few_shot: Option<&'a spec::op::FewShot>,
    pub(super) stage: spec::Stage,
    pub(super) skip_if: Option<&'a spec::Name>,
}

/// What is revised, and what was said about it.
struct Draft<'a> {
    column: &'static str,
    response: Turns<'a>,
    critique: Option<&'a str>,
}

impl<'a> Draft<'a> {
    fn of(input: Input<'a>) -> Draft<'a> {
        let column = match input.row.relation() {
            Relation::Critiques => "response",
            _ => "completion",
        };
        let critiqued = input.row.relation() == Relation::Critiques;
        let critique = critiqued.then(|| input.row.str("critique"));
        Draft { column, response: input.row.turns(column), critique }
    }
}

impl Revise {
    pub(super) fn new(settings: Settings<'_>, build: &Build<'_>) -> Result<Revise, BuildError> {
        let style = Style::new(build.model());
        let names = ["round", "response", "critique", "principle"];
        let skip_if = settings.skip_if.map(super::pattern).transpose()?;
        Ok(Revise {
            sampling: style.sampling(&settings.sampling, &["\n\nHuman:", "\n\nCritiqueRequest:"]),
            style,
            template: Template::of(build.constitution, ROLE, &names)?,
            shots: shots::critique_revise(settings.few_shot, build.constitution),
            stage: settings.stage,
            skip_if,
            seed: settings.sampling.seed.unwrap_or(build.seed),
            round: build.round,
        })
    }

    fn prompt(
        &self,
        input: Input<'_>,
        draft: &Draft<'_>,
        principles: &Principles<'_>,
    ) -> Result<Prompt, Step> {
        let turns = input.row.turns("prompt");
        let Some(template) = &self.template else {
            let mut writer = self.style.begin(&self.shots, turns);
            writer.turns(draft.response.clone());
            if let Some(critique) = draft.critique {
                writer.ask("CritiqueRequest", &principles.critique());
                writer.reply("Critique", critique);
            }
            writer.ask("RevisionRequest", &principles.revise());
            return Ok(writer.cue("Revision"));
        };
        let own = context! {
            round => self.round,
            response => super::content(draft.response.clone()),
            critique => draft.critique,
            principle => principles.value(),
        };
        let text = template.render(turns, &self.shots.text, own).map_err(Step::Reject)?;
        Ok(self.style.whole(text).done())
    }

    fn ask(&self, input: Input<'_>, draft: &Draft<'_>, seed: Option<u64>) -> Step {
        match self.prompt(input, draft, &Principles::of(input.drawn)) {
            Ok(prompt) => {
                let sampling = Sampling { seed, ..self.sampling.clone() };
                Step::Ask(vec![Request { prompt, task: Task::Generate(sampling) }])
            }
            Err(step) => step,
        }
    }
}

/// How a revision came to be: the columns that an answer and a skipped row fill differently.
struct Made<'a> {
    completion: Cell<'a>,
    unchanged: bool,
    skipped: bool,
    seed: Option<u64>,
    finish_reason: &'static str,
    completion_tokens: i32,
    reasoning: Option<&'a str>,
    warnings: Cell<'a>,
}

impl Revise {
    fn row(&self, input: Input<'_>, draft: &Draft<'_>, made: Made<'_>, out: &mut dyn Out) -> Step {
        let principles = Principles::of(input.drawn);
        let model = input.model.expect("a revision has a model");
        let initial = if input.head.has("completion") { "completion" } else { "response" };
        let few_shot = if made.skipped { Vec::new() } else { self.shots.ids.clone() };
        out.row(&[
            ("prompt", input.row.cell("prompt")),
            ("completion", made.completion),
            ("previous", Cell::Of(input.row, draft.column)),
            ("initial", Cell::Of(input.head, initial)),
            ("category", input.row.cell("category")),
            ("round", Cell::Int(i64::from(self.round))),
            ("principle_id", Cell::text(principles.id())),
            ("principle_hash", Cell::id(principles.hash())),
            ("stage", Cell::text(self.stage.as_str())),
            ("few_shot_ids", Cell::Texts(few_shot)),
            ("critique", Cell::or_null(draft.critique, Cell::text)),
            ("unchanged", Cell::Bool(made.unchanged)),
            ("skipped", Cell::Bool(made.skipped)),
            ("model", Cell::text(&*model.name)),
            ("model_fingerprint", Cell::id(model.fingerprint)),
            ("seed", Cell::or_null(made.seed, |seed| Cell::Int(seed as i64))),
            ("finish_reason", Cell::text(made.finish_reason)),
            ("completion_tokens", Cell::Int(i64::from(made.completion_tokens))),
            ("reasoning", Cell::or_null(made.reasoning, Cell::text)),
            ("warnings", made.warnings),
        ]);
        Step::Done
    }
}

impl Operator for Revise {
    fn relation(&self) -> Relation {
        Relation::Revisions
    }

    fn role(&self) -> Option<&'static str> {
        Some(ROLE)
    }

    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step {
        let draft = Draft::of(input);
        let skip =
            |critique: &str| self.skip_if.as_ref().is_some_and(|skip| skip.is_match(critique));
        if draft.critique.is_some_and(skip) {
            let made = Made {
                completion: Cell::Of(input.row, draft.column),
                unchanged: true,
                skipped: true,
                seed: None,
                finish_reason: "skipped",
                completion_tokens: 0,
                reasoning: None,
                warnings: Cell::Null,
            };
            return self.row(input, &draft, made, out);
        }
        let seed = prompt::seed(&self.sampling, self.seed, ROLE, input.made_id, 0);
        let Some(answers) = input.turns.first() else { return self.ask(input, &draft, seed) };
        let answer = &answers[0];
        let written = match self.style.written(answer) {
            Ok(written) => written,
            Err(reject) => return Step::Reject(reject),
        };
        let made = Made {
            completion: Cell::messages(vec![Message::assistant(written.text)]),
            unchanged: super::content(draft.response.clone()) == written.text,
            skipped: false,
            seed,
            finish_reason: answer.finish.name(),
            completion_tokens: answer.completion_tokens,
            reasoning: written.reasoning,
            warnings: prompt::warnings([answer]),
        };
        self.row(input, &draft, made, out)
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
        hasher.add_u64(u64::from(spec::op::Revise::VERSION));
        self.style.hash_into(&mut hasher);
        super::hash_sampling(&self.sampling, &mut hasher);
        Template::hash_into(self.template.as_ref(), &mut hasher);
        hasher.add_text(&self.shots.text);
        hasher.add_text(self.stage.as_str());
        hasher.add_text(self.skip_if.as_ref().map_or("", Regex::as_str));
        hasher.add_u64(self.seed);
        hasher.add_u64(u64::from(self.round));
        hasher.id()
    }
}

#[cfg(test)]
mod tests {
    use crate::operators::testing::{Bench, chat, critiques, responses, transcript};

    const REVISE: &str = "revise: { from: critiques, model: m, temperature: 0 }";
    const ROUND: &str = "repeat: { from: drafts, times: 2, skip_if: '(?i)nothing wrong', \
                         critique: { model: m }, revise: { model: m, temperature: 0 } }";

    #[test]
    fn a_response_is_revised_after_its_critique() {
        let bench = Bench::new(REVISE, &transcript());
        let rows = critiques(&[("hi", "go away", "It is rude.")]);
        let (table, _) = bench.run(&rows, |request| format!(" {:?}", request.text()));
        insta::assert_snapshot!(table.show(&["completion", "previous", "critique", "unchanged"]), @r#"
        | completion                                                                                                                                                 | previous             | critique    | unchanged |
        | [assistant: "\n\nHuman: hi\n\nAssistant: go away\n\nCritiqueRequest: Is it rude?\n\nCritique: It is rude.\n\nRevisionRequest: Make it kind.\n\nRevision:"] | [assistant: go away] | It is rude. | false     |
        "#);
    }

    #[test]
    fn a_chat_hears_its_own_critique_first() {
        let bench = Bench::new(REVISE, &chat());
        let rows = critiques(&[("hi", "go away", "It is rude.")]);
        let (table, _) = bench.run(&rows, |request| request.text().to_owned());
        insta::assert_snapshot!(table.show(&["completion"]), @r"
        | completion                                                                                                |
        | [assistant: user: hi\nassistant: go away\nuser: Is it rude?\nassistant: It is rude.\nuser: Make it kind.] |
        ");
    }

    #[test]
    fn a_direct_revision_has_no_critique() {
        let bench = Bench::new(&REVISE.replace("critiques", "drafts"), &transcript());
        let (table, _) =
            bench.run(&responses(&[("hi", "no")]), |request| request.text().to_owned());
        insta::assert_snapshot!(table.show(&["completion", "initial", "critique"]), @r"
        | completion                                                                             | initial         | critique |
        | [assistant: Human: hi\n\nAssistant: no\n\nRevisionRequest: Make it kind.\n\nRevision:] | [assistant: no] |          |
        ");
    }

    #[test]
    fn a_critique_that_finds_nothing_makes_no_call() {
        let bench = Bench::new(ROUND, &chat()).round(2).revising();
        let rows = critiques(&[("hi", "hello", "Nothing wrong here."), ("bye", "no", "Rude.")]);
        let (table, asked) = bench.run(&rows, |_| "no".to_owned());
        insta::assert_snapshot!(table.show(&["completion", "round", "unchanged", "skipped", "finish_reason"]), @r"
        | completion         | round | unchanged | skipped | finish_reason |
        | [assistant: hello] | 2     | true      | true    | skipped       |
        | [assistant: no]    | 2     | true      | false   | stop          |
        ");
        assert_eq!(asked, 1);
    }
}
