//! `train-sl`, `train-pm`, `train-dpo`, `ppo-update`: rows as examples, settings as the trainer takes them, and
//! the part of the settings that is in the recipe.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::model::train::{
    AdaptiveKl, Algorithm, Compute, CriticTrunk, Device, DpoSettings, Dtype, LoraSettings, Optim,
    PmSettings, PpoSettings, Scratch as ScratchShape, SlSettings,
};
use crate::model::{Example, TrainSettings};
use crate::record::message::TEXT;
use crate::record::transcript::{ASSISTANT, HUMAN};
use crate::record::{Message, Relation, Row, Turns};
use crate::spec::model::{self, Format};
use crate::spec::op::{
    self as written, Balance, External, Init, Keep, Op, Optimiser, PpoUpdate, Schedule, Scratch,
    Source,
};
use crate::spec::{Model, Spanned};

use super::prompt::{Prefix, Style};
use super::{Reason, Reject, content};

/// Renders messages by a checkpoint's chat template, with or without the beginning of an answer.
pub type Chat = dyn Fn(&[Message], bool) -> Result<String, String> + Send + Sync;

/// How rows are rendered for a training.
pub struct Renderer<'a> {
    style: Option<Style>,
    chat: Option<&'a Chat>,
}

impl<'a> Renderer<'a> {
    /// The renderer of a model's format; without a model (a training from nothing) it writes
    /// transcripts, and so it does with one whose format is `transcript`.
    pub fn new(model: Option<&Model>, chat: Option<&'a Chat>) -> Renderer<'a> {
        let is_chat = model.is_some_and(|model| model.format == Format::Chat);
        Renderer { style: model.map(Style::new), chat: chat.filter(|_| is_chat) }
    }

    /// The example that a row is: of demonstrations, responses and revisions a text to complete,
    /// of comparisons a pair, of prompts a prompt.
    pub fn example(&self, row: Row<'_>) -> Result<Example, Reject> {
        let row_id = row.row_id();
        let weight = if row.has("weight") { row.float("weight") } else { None }.unwrap_or(1.0);
        Ok(match row.relation() {
            Relation::Prompts => Example::Prompt {
                row_id,
                prompt: self.prompt(row)?,
                messages: row.messages("prompt"),
            },
            Relation::Comparisons => Example::Comparison {
                row_id,
                prompt: self.prompt(row)?,
                a: self.completion(row, "response_a")?,
                b: self.completion(row, "response_b")?,
                p: row.float("p").expect("p is not null"),
                weight,
                source: row.str("source").to_owned(),
                category: row.text("category").map(str::to_owned),
            },
            _ => Example::Demonstration {
                row_id,
                prompt: self.prompt(row)?,
                completion: self.completion(row, "completion")?,
                weight,
            },
        })
    }

    fn messages(&self, turns: Turns<'_>) -> Vec<Message> {
        let mut messages = Vec::new();
        if let Some(style) = &self.style
            && let crate::model::Prompt::Messages(all) =
                style.begin(&Prefix::default(), turns).done()
        {
            messages = all;
        }
        messages
    }

    fn prompt(&self, row: Row<'_>) -> Result<String, Reject> {
        let turns = row.turns("prompt");
        if let Some(text) = verbatim(turns.clone()) {
            return Ok(text.to_owned());
        }
        if let Some(chat) = self.chat {
            return chat(&self.messages(turns), true).map_err(template_fails);
        }
        let mut text = match &self.style {
            Some(style) => style.transcript(turns),
            None => super::prompt::conversation(turns),
        };
        text.push_str(ASSISTANT);
        Ok(text)
    }

    /// What is learnt: for a chat what the template writes after the prompt, up to the answer's
    /// end; for a transcript the answer after a space.
    fn completion(&self, row: Row<'_>, column: &str) -> Result<String, Reject> {
        if let Some(text) = verbatim(row.turns(column)) {
            return Ok(text.to_owned());
        }
        let answer = content(row.turns(column));
        let Some(chat) = self.chat else { return Ok(format!(" {answer}")) };
        let mut messages = self.messages(row.turns("prompt"));
        let prompt = chat(&messages, true).map_err(template_fails)?;
        messages.extend(row.messages(column));
        let whole = chat(&messages, false).map_err(template_fails)?;
        let rest = whole.strip_prefix(&prompt);
        let end = rest.and_then(|rest| Some((rest, rest.find(&*answer)? + answer.len())));
        Ok(end.map_or_else(|| answer.to_string(), |(rest, end)| rest[..end].to_owned()))
    }
}

/// The text that stands as it is, where it is no conversation.
fn verbatim(mut turns: Turns<'_>) -> Option<&str> {
    turns.next().filter(|(role, _)| *role == TEXT).map(|(_, content)| content)
}

fn template_fails(error: String) -> Reject {
    let detail = format!("the chat template fails: {error}");
    Reject { reason: Reason::BadInput, detail, answer: None }
}

/// Scales the weights of comparisons so that every source weighs as a whole by its own weight,
/// however many rows it has (`balance: source`). The mean weight stays.
pub fn balance(examples: &mut [Example]) {
    let mut rows: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for example in &*examples {
        if let Example::Comparison { source, .. } = example {
            *rows.entry(source.clone()).or_default() += 1;
        }
    }
    let all: usize = rows.values().sum();
    for example in examples {
        if let Example::Comparison { source, weight, .. } = example {
            *weight *= all as f64 / (rows.len() * rows[source]) as f64;
        }
    }
}

/// Whether the sources of a training are balanced as wholes.
pub fn is_balanced(op: &Op) -> bool {
    matches!(op, Op::TrainPm(op) if op.balance == Balance::Source)
}

/// The settings that decide how a training computes, of any verb that trains.
macro_rules! compute {
    ($op:expr) => {
        Compute {
            dtype: dtype($op.dtype),
            device: device($op.device),
            threads: $op.threads.map(|threads: Spanned<u32>| threads.value as usize),
            gradient_accumulation_steps: $op.gradient_accumulation_steps.value as usize,
            gradient_checkpointing: $op.gradient_checkpointing,
            save_steps: u64::from($op.save_steps),
        }
    };
}

/// What a training node asks of a trainer; `seed` is the pipeline's, for nodes that state none.
///
/// # Panics
///
/// For a verb that trains nothing.
pub fn settings(op: &Op, seed: u64, model: Option<&Model>) -> TrainSettings {
    match op {
        Op::TrainSl(op) => TrainSettings::TrainSl(SlSettings {
            optim: optim(op.optimiser(), op.seed.unwrap_or(seed), op.logging_steps.value),
            compute: compute!(op),
            epochs: op.epochs.value,
            batch_size: op.batch_size.value as usize,
            max_length: op.max_length.value as usize,
            packing: op.packing,
            held_out: op.held_out.value,
            eval_steps: op.eval_steps.map(|steps| u64::from(steps.value)),
            patience: op.early_stopping_patience.map(|patience| u64::from(patience.value)),
        }),
        Op::TrainPm(op) => TrainSettings::TrainPm(PmSettings {
            optim: optim(op.optimiser(), op.seed.unwrap_or(seed), op.logging_steps.value),
            compute: compute!(op),
            epochs: op.epochs.value,
            batch_size: op.batch_size.value as usize,
            max_length: op.max_length.value as usize,
            held_out: op.held_out.value,
            center_rewards_coefficient: op.center_rewards_coefficient.value,
            scale_on: op.scale_on.iter().map(|name| name.value.clone()).collect(),
        }),
        Op::TrainDpo(op) => TrainSettings::TrainDpo(DpoSettings {
            optim: optim(op.optimiser(), op.seed.unwrap_or(seed), op.logging_steps.value),
            compute: compute!(op),
            epochs: op.epochs.value,
            batch_size: op.batch_size.value as usize,
            max_length: op.max_length.value as usize,
            held_out: op.held_out.value,
            beta: op.beta.value,
            reference: None,
        }),
        Op::PpoUpdate(op) => TrainSettings::PpoUpdate(ppo(op, seed, model)),
        other => panic!("{} trains nothing", other.verb()),
    }
}

fn ppo(op: &PpoUpdate, seed: u64, model: Option<&Model>) -> PpoSettings {
    PpoSettings {
        optim: optim(op.optimiser(), op.seed.unwrap_or(seed), op.logging_steps.value),
        compute: compute!(op),
        algorithm: match op.algorithm {
            written::Algorithm::Ppo => Algorithm::Ppo,
            written::Algorithm::Rloo => Algorithm::Rloo,
            written::Algorithm::Grpo => Algorithm::Grpo,
        },
        num_generations: op.generations() as usize,
        total_episodes: op.total_episodes.value as usize,
        batch_size: op.batch_size.value as usize,
        num_ppo_epochs: op.num_ppo_epochs.value as usize,
        num_mini_batches: op.num_mini_batches.value as usize,
        critic: match op.critic {
            written::CriticTrunk::Separate => CriticTrunk::Separate,
            written::CriticTrunk::Shared => CriticTrunk::Shared,
        },
        critic_warmup: u64::from(op.critic_warmup.value),
        response_length: op.response_length.value as usize,
        temperature: 1.0,
        kl_coef: op.kl_coef.value,
        adaptive_kl: op.adaptive_kl.as_ref().map(|adaptive| AdaptiveKl {
            target: adaptive.target.value,
            horizon: adaptive.horizon.value,
        }),
        kl_estimator: "k1".to_owned(),
        cliprange: op.cliprange.value,
        cliprange_value: op.cliprange_value.value,
        vf_coef: op.vf_coef.value,
        gamma: op.gamma.value,
        lam: op.lam.value,
        missing_eos_penalty: op.missing_eos_penalty.value,
        reward_clip: 0.0,
        whiten_advantages: true,
        whiten_rewards: op.whiten_rewards,
        normalize_reward: op.normalize_reward,
        target_kl: op.target_kl.map_or(0.0, |target| target.value),
        stop: stops(model),
        keep_tokens: op.keep_tokens,
        save_every: u64::from(op.save_every),
        keep_below_kl: match &op.keep {
            Keep::Last => None,
            Keep::BelowKl(kl) => Some(kl.value),
        },
        reward: PathBuf::new(),
        reference: None,
        test_reward: None,
    }
}

fn dtype(written: model::Dtype) -> Dtype {
    match written {
        model::Dtype::Auto => Dtype::Auto,
        model::Dtype::F32 => Dtype::F32,
        model::Dtype::Bf16 => Dtype::Bf16,
    }
}

fn device(written: model::Device) -> Device {
    match written {
        model::Device::Auto => Device::Auto,
        model::Device::Cpu => Device::Cpu,
        model::Device::Cuda(index) => Device::Cuda(index),
    }
}

/// The texts that end a rollout, as they end a sample of the same model.
fn stops(model: Option<&Model>) -> Vec<String> {
    let mut stop = model.map_or(Vec::new(), |model| model.stop.clone());
    let is_chat = model.is_some_and(|model| model.format == Format::Chat);
    if !is_chat && !stop.iter().any(|text| text == HUMAN) {
        stop.push(HUMAN.to_owned());
    }
    stop
}

fn optim(from: Optimiser, seed: u64, logging_steps: u32) -> Optim {
    let schedule = match from.lr_scheduler_type {
        Schedule::Constant => "constant",
        Schedule::Linear => "linear",
        Schedule::Cosine => "cosine",
    };
    Optim {
        learning_rate: from.learning_rate,
        lr_scheduler_type: schedule.to_owned(),
        warmup_ratio: from.warmup_ratio,
        warmup_steps: from.warmup_steps,
        weight_decay: from.weight_decay,
        adam_beta1: from.adam_beta1,
        adam_beta2: from.adam_beta2,
        adam_epsilon: from.adam_epsilon,
        max_grad_norm: from.max_grad_norm,
        lora: from.lora.map(|lora| LoraSettings {
            r: lora.r.value as usize,
            alpha: lora.alpha.value,
            target_modules: lora.target_modules,
        }),
        seed,
        logging_steps: u64::from(logging_steps),
    }
}

/// The keys that name a training's models, in the order in which the plan has them.
pub fn roles(op: &Op) -> Vec<&'static str> {
    match op {
        Op::TrainDpo(op) => op.models().into_iter().map(|(role, _)| role).collect(),
        Op::PpoUpdate(op) => op.models().into_iter().map(|(role, _)| role).collect(),
        _ if scratch(op).is_some() => Vec::new(),
        _ => vec!["init"],
    }
}

/// The program that trains in amend's place, with its arguments, where there is one.
pub fn external(op: &Op) -> Option<Vec<String>> {
    let trainer = match op {
        Op::TrainSl(op) => &op.trainer,
        Op::TrainPm(op) => &op.trainer,
        Op::TrainDpo(op) => &op.trainer,
        Op::PpoUpdate(op) => &op.trainer,
        other => panic!("{} trains nothing", other.verb()),
    };
    let command =
        |trainer: &External| trainer.command.iter().map(|part| part.value.clone()).collect();
    trainer.as_ref().map(command)
}

/// The shape of new weights, where a training starts from nothing.
pub fn scratch(op: &Op) -> Option<ScratchShape> {
    let init = match op {
        Op::TrainSl(op) => &op.init,
        Op::TrainPm(op) => &op.init,
        _ => return None,
    };
    let Init::Scratch(Scratch { architecture, tokenizer }) = init else { return None };
    Some(ScratchShape {
        vocab_size: tokenizer.vocab_size.value as usize,
        hidden_size: i64::from(architecture.hidden_size.value),
        intermediate_size: i64::from(architecture.intermediate()),
        num_hidden_layers: i64::from(architecture.num_hidden_layers.value),
        num_attention_heads: i64::from(architecture.num_attention_heads.value),
        num_key_value_heads: i64::from(architecture.key_value_heads()),
        max_position_embeddings: i64::from(architecture.max_position_embeddings.value),
        rope_theta: architecture.rope_theta.value,
        tie_word_embeddings: architecture.tie_word_embeddings,
        initializer_range: architecture.initializer_range.value,
    })
}

/// Settings that decide no weights, or that the recipe has in another form: inputs by the
/// dataset's digest, models by their weights.
const NOT_IN_RECIPE: [&str; 13] = [
    "from",
    "prompts",
    "policy",
    "reward",
    "reference",
    "test_reward",
    "logging_steps",
    "save_steps",
    "save_every",
    "keep_tokens",
    "on_change",
    "min_changed",
    "device",
];

/// The settings of the recipe as canonical JSON: what decides the weights besides rows and models.
///
/// A setting that is added to the language later is in it until it is listed as deciding nothing.
pub fn recipe(op: &Op, seed: u64, model: Option<&Model>) -> String {
    let written = match op {
        Op::TrainSl(op) => serde_json::to_value(op),
        Op::TrainPm(op) => serde_json::to_value(op),
        Op::TrainDpo(op) => serde_json::to_value(op),
        Op::PpoUpdate(op) => serde_json::to_value(op),
        other => panic!("{} trains nothing", other.verb()),
    };
    let mut settings = written.expect("settings have text keys");
    let map = settings.as_object_mut().expect("settings are a map");
    for name in NOT_IN_RECIPE {
        map.remove(name);
    }
    // A model is named by its weights; a shape of new ones stays.
    if map.get("init").is_some_and(Value::is_string) {
        map.remove("init");
    }
    map.entry("seed").or_insert(Value::from(seed));
    if let Op::TrainPm(op) = op
        && !op.scale_on.is_empty()
    {
        // By their places: a node that is renamed is the same source.
        let named = |source: &Source| op.scale_on.contains(&source.rows);
        let places: Vec<usize> = (0..)
            .zip(op.from.iter())
            .filter(|(_, source)| named(source))
            .map(|(at, _)| at)
            .collect();
        map.insert("scale_on".to_owned(), Value::from(places));
    }
    map.insert("rendering".to_owned(), rendering(model));
    if matches!(op, Op::PpoUpdate(_)) {
        map.insert("stop".to_owned(), Value::from(stops(model)));
    }
    if matches!(op, Op::TrainDpo(_) | Op::PpoUpdate(_)) {
        // The recipe has the models' weights in this order.
        map.insert("models".to_owned(), Value::from(roles(op)));
    }
    let mut sorted: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(sorted.into_iter().collect()).to_string()
}

/// The same settings with what decides the verdicts of a judge that is the reward.
pub fn with_judge(settings: &str, mut judge: Value, model: &Model) -> String {
    let map: Map<String, Value> = serde_json::from_str(settings).expect("settings are a map");
    judge["rendering"] = rendering(Some(model));
    let mut sorted: Vec<(String, Value)> =
        map.into_iter().chain([("judge".to_owned(), judge)]).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(sorted.into_iter().collect()).to_string()
}

/// What rows are rendered by, which no row says.
fn rendering(model: Option<&Model>) -> Value {
    let mut map = Map::new();
    let Some(model) = model else { return Value::from("transcript") };
    let json = |value| serde_json::to_value(value).expect("a format is a word");
    map.insert("format".to_owned(), json(&model.format));
    map.insert("system".to_owned(), Value::from(model.system.clone()));
    let template = model.chat_template.as_ref().map(|template| template.value.clone());
    map.insert("chat_template".to_owned(), Value::from(template));
    map.insert(
        "template_args".to_owned(),
        Value::Object(model.template_args.clone().into_iter().collect()),
    );
    Value::Object(map)
}

#[cfg(test)]
mod tests;
