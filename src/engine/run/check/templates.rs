//! Chat templates: a checkpoint whose model speaks in chats has one, of its own or given.

use std::collections::BTreeSet;

use crate::model::torch::{ChatTemplate, checkpoint::read_tokenizer_files};
use crate::plan::Plan;
use crate::spec::model::Format;
use crate::spec::op::{Edge, Op};
use crate::spec::{Mistakes, Model, Name};

/// Adds to the mistakes the models that nodes speak to in chats and that have no template, or one that
/// is none. Of a directory that something is wrong with already nothing more is said.
pub(super) fn check(
    plan: &Plan,
    is_run: impl Fn(&str) -> bool,
    mistakes: &mut Mistakes,
    absent: &Mistakes,
) {
    let pipeline = plan.pipeline();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut faults = Vec::new();
    for (node, op) in pipeline.nodes.iter().filter(|(node, _)| is_run(node)) {
        let named = op
            .references()
            .into_iter()
            .filter(|reference| reference.edge == Edge::Model && renders(op, reference.key));
        for reference in named {
            let entry = pipeline.models.get(reference.name.as_str());
            if let Some(entry) = entry.filter(|_| seen.insert(&reference.name.value))
                && let Some((place, message, help)) = fault(node, reference.name, entry)
            {
                let is_said = |said: &Mistakes| said.iter().any(|one| one.place == place);
                if !is_said(mistakes) && !is_said(absent) {
                    faults.push((place, message, help));
                }
            }
        }
    }
    for (place, message, help) in faults {
        mistakes.push(place, message, help);
    }
}

/// Whether a node renders conversations for the model under a key: a preference model reads what the
/// policy is rendered by, and a program that trains renders by itself.
fn renders(op: &Op, key: &str) -> bool {
    let is_external = match op {
        Op::TrainSl(train) => train.trainer.is_some(),
        Op::TrainPm(train) => train.trainer.is_some(),
        Op::TrainDpo(train) => train.trainer.is_some(),
        Op::PpoUpdate(train) => train.trainer.is_some(),
        _ => false,
    };
    !is_external && ["model", "init", "policy", "judge"].contains(&key)
}

type Fault = (crate::spec::Place, String, &'static str);

fn fault(node: &str, name: &Name, entry: &Model) -> Option<Fault> {
    let checkpoint = entry.checkpoint.as_ref().filter(|_| entry.format == Format::Chat)?;
    let given = entry.chat_template.as_ref();
    let arguments = entry.template_args.clone().into_iter().collect();
    let template = read_tokenizer_files(&checkpoint.path).and_then(|files| {
        ChatTemplate::of(&files, given.map(|template| template.value.as_str()), &arguments)
    });
    match template {
        Ok(Some(_)) => None,
        Ok(None) => Some((
            checkpoint.place,
            format!(
                "node \"{node}\" speaks to model \"{name}\" in chats (`format: chat`), and the checkpoint \"{}\" has no chat template",
                checkpoint.path.display()
            ),
            "set `format: transcript`, or give a `chat_template`",
        )),
        Err(error) => Some((
            given.map_or(checkpoint.place, |template| template.place),
            format!("the chat template of model \"{name}\" cannot be used: {error}"),
            "give a `chat_template` that is one, or set `format: transcript`",
        )),
    }
}
