//! Templates: a constitution's own words for a request, in Jinja, instead of the built-in ones.
//!
//! A template renders the whole request: the text that a `transcript` model continues, or the one
//! user message that a `chat` model answers. It knows these names:
//!
//! | name | is | in |
//! |---|---|---|
//! | `messages` | the prompt's turns, each with `role` and `content` | all |
//! | `conversation` | the same as a transcript, `\n\nHuman: …` | all |
//! | `prompt` | the last turn of the human | all |
//! | `shots` | the worked examples as text | all |
//! | `round` | the round, from 1 | critique, revise |
//! | `response` | the response in question | critique, revise |
//! | `critique` | the critique made; none when direct | revise |
//! | `principle` | `id`, `critique`, `revise`, `judge` | all but sample |
//! | `a`, `b` | the two responses, as shown | judge, `judge_cot` |
//! | `label_a`, `label_b` | what they are called | judge, `judge_cot` |

use std::collections::BTreeSet;

use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::model::bounded;
use crate::record::{KeyHasher, Turns};
use crate::spec::{Constitution, did_you_mean};

use super::{BuildError, Reason, Reject, prompt};

/// The name under which the one template of an environment stands.
const NAME: &str = "template";

/// Steps after which a template is taken not to end.
const FUEL: u64 = 1_000_000;

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    name: &'static str,
    source: String,
    environment: Environment<'static>,
}

/// The names that every template knows.
const COMMON: [&str; 4] = ["messages", "conversation", "prompt", "shots"];

impl Template {
    /// The constitution's template of this name, if it has one; `names` are those it may use
    /// besides the common ones.
    pub(super) fn of(
        constitution: Option<&Constitution>,
        name: &'static str,
        names: &[&'static str],
    ) -> Result<Option<Template>, BuildError> {
        let source = constitution.and_then(|constitution| constitution.templates.get(name));
        let Some(source) = source else { return Ok(None) };
        let fault = |message: String, help: Option<String>| BuildError {
            message,
            help,
            place: Some(source.place),
        };

        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(false);
        environment.set_fuel(Some(FUEL));
        bounded::bound(&mut environment, minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_template_owned(NAME, source.value.clone()).map_err(|error| {
            let line = error.line().map_or(String::new(), |line| format!(", line {line} of it"));
            let detail = error.detail().unwrap_or("it is no Jinja template");
            fault(format!("template \"{name}\"{line}: {detail}"), None)
        })?;

        let template = environment.get_template(NAME).expect("it was just added");
        let known: BTreeSet<&str> = COMMON.iter().chain(names).copied().collect();
        let stranger = template.undeclared_variables(false).into_iter().collect::<BTreeSet<_>>();
        if let Some(stranger) = stranger.iter().find(|used| !known.contains(used.as_str())) {
            let names = || known.iter().copied().collect::<Vec<_>>().join(", ");
            let help = did_you_mean(stranger, known.iter().copied())
                .unwrap_or_else(|| format!("it may use {}", names()));
            return Err(fault(
                format!("template \"{name}\" uses \"{stranger}\", which it is not given"),
                Some(help),
            ));
        }
        Ok(Some(Template { name, source: source.value.clone(), environment }))
    }

    /// Renders the request about a row.
    pub(super) fn render(
        &self,
        turns: Turns<'_>,
        shots: &str,
        own: Value,
    ) -> Result<String, Reject> {
        let messages: Vec<Value> =
            turns.clone().map(|(role, content)| context! { role, content }).collect();
        let last = turns.clone().filter(|(role, _)| *role == "user").last();
        let common = context! {
            messages,
            conversation => prompt::conversation(turns),
            prompt => last.map_or("", |(_, content)| content),
            shots,
        };
        let template = self.environment.get_template(NAME).expect("it was compiled");
        bounded::render(&template, context! { ..own, ..common }).map_err(|error| Reject {
            reason: Reason::BadInput,
            detail: format!("template \"{}\": {error}", self.name),
            answer: None,
        })
    }

    pub(super) fn hash_into(template: Option<&Template>, hasher: &mut KeyHasher) {
        hasher.add_text(template.map_or("built-in", |template| &template.source));
    }
}

#[cfg(test)]
mod tests {
    use crate::operators::testing::{Bench, critiques, transcript};
    use crate::record::Relation;

    const REVISE: &str = "revise: { from: critiques, model: m }";

    fn bench(template: &str) -> Bench {
        Bench::new(REVISE, &transcript()).with(&format!("templates: {{ revise: {template:?} }}"))
    }

    /// The mistake in a template, with its help and line.
    fn mistake(template: &str) -> String {
        let error = bench(template).build(Relation::Critiques).err().unwrap();
        let line = error.place.unwrap().line;
        format!("{} ({}; line {line})", error.message, error.help.unwrap_or_default())
    }

    #[test]
    fn a_template_sees_the_row_and_the_principle() {
        let template = "{{ round }} {{ messages[0].content }} {{ response }} {{ critique }} \
                        {{ principle.id }}: {{ principle.revise }}{{ shots }}";
        let rows = critiques(&[("hi", "go away", "It is rude.")]);
        let (table, _) = bench(template).run(&rows, |request| request.text().to_owned());
        insta::assert_snapshot!(table.show(&["completion"]), @r"
        | completion                                                |
        | [assistant: 1 hi go away It is rude. kind: Make it kind.] |
        ");
    }

    #[test]
    fn a_mistake_in_a_template_is_said_with_its_place() {
        insta::assert_snapshot!(mistake("{{ respons }}"), @r#"
        template "revise" uses "respons", which it is not given (did you mean `response`?; line 13)
        "#);
        insta::assert_snapshot!(mistake("{{ completely_else }}"), @r#"
        template "revise" uses "completely_else", which it is not given (it may use conversation, critique, messages, principle, prompt, response, round, shots; line 13)
        "#);
        insta::assert_snapshot!(mistake("\n{% if %}"), @r#"
        template "revise", line 2 of it: unexpected end of block (; line 13)
        "#);
    }

    #[test]
    fn a_template_that_fails_on_a_row_rejects_the_row() {
        let rows = critiques(&[("hi", "go away", "It is rude.")]);
        let (table, asked) =
            bench("{{ messages[7].content }}").run(&rows, |_| unreachable!("it is not asked"));
        insta::assert_snapshot!(table.show(&["completion"]), @r#"
        | completion |
        reject bad_input: template "revise": undefined value (in template:1)
        "#);
        assert_eq!(asked, 0);
    }
}
