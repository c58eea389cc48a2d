//! Checks of the nodes, verb by verb.

use super::Check;
use crate::record::read::is_pattern;
use crate::spec::op::SamplingWritten;
use crate::spec::op::{
    AdaptiveKl, Algorithm, Cot, CriticTrunk, Critiquing, Evaluate, External, FewShot, FileFormat,
    Filter, Init, Keep, Lora, Mix, OnChange, Op, PairwiseJudge, PpoUpdate, Read, Readable, Repeat,
    Reward, Rounds, Scratch, Share, Source, Split, TrainDpo, TrainPm, TrainSl,
};
use crate::spec::place::{FilePath, Place, Spanned};

/// Checks one node. `place` is that of its name.
pub(super) fn op(place: Place, op: &Op, check: &mut Check<'_>) {
    match op {
        Op::Read(op) => read(place, op, check),
        Op::Split(op) => split(place, op, check),
        Op::Sample(op) => {
            check.count("n", &op.n);
            sampling(&op.sampling_written(), check);
        }
        Op::Critique(op) => {
            check.count("draws", &op.draws);
            few_shot(op.few_shot.as_ref(), check);
            sampling(&op.sampling_written(), check);
        }
        Op::Revise(op) => {
            few_shot(op.few_shot.as_ref(), check);
            sampling(&op.sampling_written(), check);
        }
        Op::Repeat(op) => repeat(op, check),
        Op::PairwiseJudge(op) => judge(op, check),
        Op::Mix(Mix { from, .. }) => sources("from", place, from, check),
        Op::Filter(op) => filter(place, op, check),
        Op::Evaluate(op) => evaluate(place, op, check),
        Op::TrainSl(op) => train_sl(place, op, check),
        Op::TrainPm(op) => train_pm(place, op, check),
        Op::TrainDpo(op) => train_dpo(place, op, check),
        Op::PpoUpdate(op) => ppo(place, op, check),
    }
}

fn read(place: Place, op: &Read, check: &mut Check<'_>) {
    // What a folder holds, and what a pattern matches, is seen when files are looked at.
    let is_one = |path: &&Spanned<FilePath>| {
        !path.written.is_empty() && !is_pattern(&path.written) && !path.path.is_dir()
    };
    for path in op.path.iter().filter(is_one) {
        if op.format_of(&path.written).is_none() {
            let help = "add `format: jsonl`, `parquet`, `csv` or `hh-rlhf`";
            let text = format!("reads \"{}\", whose ending says no format", path.written);
            check.says(path.place, &text, help);
        }
    }
    if op.path.is_empty() {
        let help = "name a file, a folder or a pattern: `path: data/train-*.parquet`";
        check.says(place, "reads an empty list of files", help);
    }
    if op.verbatim
        && (op.relation != Readable::Demonstrations || op.format == Some(FileFormat::HhRlhf))
    {
        let place = op.path.first().map_or(place, |path| path.place);
        let help = "add `relation: demonstrations` and columns `prompt` and `completion`, or leave `verbatim` out";
        check.says(place, "is `verbatim` and reads no texts to complete", help);
    }
}

fn split(place: Place, op: &Split, check: &mut Check<'_>) {
    for (name, share) in &op.parts {
        check.word("parts", name);
        check.share(&format!("parts.{name}"), share);
    }
    let sum: f64 = op.parts.values().map(|share| share.value).sum();
    if (sum - 1.0).abs() > 1e-6
        && op.parts.values().all(|share| share.value > 0.0 && share.value <= 1.0)
    {
        let at = op.parts.keys().next().map_or(place, |name| name.place);
        let help = "shares of all parts sum to 1: `{ train: 0.9, test: 0.1 }`";
        check.says(at, &format!("has parts that sum to {}", (sum * 1e6).round() / 1e6), help);
    }
}

fn sampling(written: &SamplingWritten, check: &mut Check<'_>) {
    check.least("temperature", &written.temperature, 0.0);
    check.share("top_p", &written.top_p);
    check.within("min_p", &written.min_p, 0.0, 1.0);
    check.above("repetition_penalty", &written.repetition_penalty, 0.0);
    check.count("max_tokens", &written.max_tokens);
}

fn few_shot(few_shot: Option<&FewShot>, check: &mut Check<'_>) {
    if let Some(few_shot) = few_shot {
        check.count("few_shot.count", &few_shot.count);
    }
}

fn repeat(op: &Repeat, check: &mut Check<'_>) {
    check.count("times", &op.times);
    if let Critiquing::Asked(critic) = &op.critique {
        check.count("critique.draws", &critic.draws);
        few_shot(critic.few_shot.as_ref(), check);
        sampling(&critic.sampling_written(), check);
    }
    few_shot(op.revise.few_shot.as_ref(), check);
    sampling(&op.revise.sampling_written(), check);
    if let Some(pattern) = &op.skip_if {
        check.pattern("skip_if", pattern);
        if op.critique == Critiquing::None {
            check.says(
                pattern.place,
                "skips by a critique and has none",
                "leave `skip_if` out, or ask for a critique",
            );
        }
    }
}

fn judge(op: &PairwiseJudge, check: &mut Check<'_>) {
    check.count("draws", &op.draws);
    check.above("label_temperature", &op.label_temperature, 0.0);
    check.within("min_label_mass", &op.min_label_mass, 0.0, 1.0);
    few_shot(op.few_shot.as_ref(), check);
    let Some(Cot { samples, max_tokens, temperature, clamp }) = &op.cot else { return };
    check.count("cot.samples", samples);
    check.count("cot.max_tokens", max_tokens);
    check.least("cot.temperature", temperature, 0.0);
    if let Some(Spanned { value: [low, high], place }) = clamp
        && !(0.0 <= *low && low <= high && *high <= 1.0)
    {
        check.wrong(
            "cot.clamp",
            *place,
            &format!("two probabilities in order, not [{low}, {high}]"),
        );
    }
}

fn sources(key: &str, place: Place, sources: &[Source], check: &mut Check<'_>) {
    if sources.is_empty() {
        check.says(place, &format!("has an empty \"{key}\""), "name at least one node");
    }
    for source in sources {
        let at = source.rows.place;
        check.above("weight", &source.weight, 0.0);
        if let Some(share) = &source.share {
            check.share("share", share);
        }
        if source.count.is_some() && source.share.is_some() {
            check.says(
                at,
                &format!("takes both a count and a share of \"{}\"", source.rows),
                "leave one of them out",
            );
        }
        if source.rounds == Rounds::UpTo(0) {
            check.wrong("up_to", at, "from 1, not 0");
        }
    }
}

fn filter(place: Place, op: &Filter, check: &mut Check<'_>) {
    if op.condition.is_none() && op.drop.is_empty() && op.dedupe.is_none() {
        check.says(
            place,
            "filters nothing",
            "add `where: SQL`, `drop: […]` or `dedupe: { by: […] }`",
        );
    }
    check.count("max_tokens", &op.max_tokens);
}

fn evaluate(place: Place, op: &Evaluate, check: &mut Check<'_>) {
    for (label, pattern) in &op.labels {
        check.pattern(&format!("labels.{label}"), pattern);
    }
    if op.from.is_empty() {
        check.says(place, "has an empty \"from\"", "name at least one node");
    }
    match (op.labels.is_empty(), &op.choices, &op.model) {
        (true, None, _) => {
            let help = "add `labels: { refused: REGEX }`, or `model: …` and `choices: […]`";
            check.says(place, "has neither \"labels\" nor \"choices\"", help);
        }
        (false, Some(_), _) => {
            let help = "labels are for responses, choices for multiple-choice prompts: leave one of them out";
            check.says(place, "has both \"labels\" and \"choices\"", help);
        }
        (true, Some(_), None) => {
            check.says(place, "has \"choices\" and no \"model\"", "add `model: …`, which chooses");
        }
        (false, None, Some(model)) => {
            check.says(
                model.place,
                "has a \"model\" and no \"choices\"",
                "add `choices: [\" (A)\", \" (B)\"]`",
            );
        }
        _ => {}
    }
    if let Some([one]) = op.choices.as_deref() {
        check.wrong("choices", one.place, "a list of two or more");
    }
}

fn init(init: &Init, check: &mut Check<'_>) {
    let Init::Scratch(Scratch { architecture, tokenizer }) = init else { return };
    let heads = architecture.num_attention_heads;
    for (key, value) in [
        ("hidden_size", architecture.hidden_size),
        ("num_hidden_layers", architecture.num_hidden_layers),
        ("num_attention_heads", heads),
        ("max_position_embeddings", architecture.max_position_embeddings),
    ] {
        check.count(key, &value);
    }
    if heads.value > 0 && !architecture.hidden_size.value.is_multiple_of(2 * heads.value) {
        let text =
            format!("a multiple of twice the {heads} heads, not {}", architecture.hidden_size);
        check.wrong("hidden_size", architecture.hidden_size.place, &text);
    }
    if let Some(shared) = architecture.num_key_value_heads
        && (shared.value == 0 || !heads.value.is_multiple_of(shared.value))
    {
        let text = format!("a divisor of the {heads} heads, not {shared}");
        check.wrong("num_key_value_heads", shared.place, &text);
    }
    check.above("rope_theta", &architecture.rope_theta, 0.0);
    check.above("initializer_range", &architecture.initializer_range, 0.0);
    if tokenizer.vocab_size.value <= 260 {
        let text = format!("above 260, not {}", tokenizer.vocab_size);
        check.wrong("vocab_size", tokenizer.vocab_size.place, &text);
    }
}

fn train_sl(place: Place, op: &TrainSl, check: &mut Check<'_>) {
    sources("from", place, &op.from, check);
    init(&op.init, check);
    check.above("epochs", &op.epochs, 0.0);
    check.count("max_length", &op.max_length);
    check.part("held_out", &op.held_out);
    early_stop(op, check);
    check.divides(
        "gradient_accumulation_steps",
        &op.gradient_accumulation_steps,
        "batch_size",
        &op.batch_size,
    );
    check.above("learning_rate", &op.learning_rate, 0.0);
    check.within("warmup_ratio", &op.warmup_ratio, 0.0, 1.0);
    check.count("logging_steps", &op.logging_steps);
    op.threads.iter().for_each(|threads| check.count("threads", threads));
    let models: &[&str] = if matches!(op.init, Init::Model(_)) { &["init"] } else { &[] };
    lora(op.lora.as_ref(), check);
    change(op.on_change, op.min_changed.as_ref(), check);
    trainer(place, op.trainer.as_ref(), models, check);
}

fn early_stop(op: &TrainSl, check: &mut Check<'_>) {
    op.eval_steps.iter().for_each(|steps| check.count("eval_steps", steps));
    let Some(patience) = &op.early_stopping_patience else { return };
    check.count("early_stopping_patience", patience);
    if op.eval_steps.is_none() || op.held_out.value <= 0.0 {
        let help = "add `eval_steps: 50` and `held_out: 0.05`";
        check.says(patience.place, "has patience, and measures no loss on the way", help);
    }
}

fn train_pm(place: Place, op: &TrainPm, check: &mut Check<'_>) {
    sources("from", place, &op.from, check);
    init(&op.init, check);
    check.above("epochs", &op.epochs, 0.0);
    check.count("max_length", &op.max_length);
    check.part("held_out", &op.held_out);
    for name in &op.scale_on {
        if !op.from.iter().any(|source| source.rows.value == name.value) {
            check.says(
                name.place,
                &format!("takes its scale of \"{name}\", which is not a source of it"),
                "name rows of its `from`",
            );
        }
    }
    check.least("center_rewards_coefficient", &op.center_rewards_coefficient, 0.0);
    check.divides(
        "gradient_accumulation_steps",
        &op.gradient_accumulation_steps,
        "batch_size",
        &op.batch_size,
    );
    check.above("learning_rate", &op.learning_rate, 0.0);
    check.within("warmup_ratio", &op.warmup_ratio, 0.0, 1.0);
    check.count("logging_steps", &op.logging_steps);
    op.threads.iter().for_each(|threads| check.count("threads", threads));
    let models: &[&str] = if matches!(op.init, Init::Model(_)) { &["init"] } else { &[] };
    lora(op.lora.as_ref(), check);
    change(op.on_change, op.min_changed.as_ref(), check);
    trainer(place, op.trainer.as_ref(), models, check);
}

fn train_dpo(place: Place, op: &TrainDpo, check: &mut Check<'_>) {
    sources("from", place, &op.from, check);
    check.above("beta", &op.beta, 0.0);
    check.above("epochs", &op.epochs, 0.0);
    check.count("max_length", &op.max_length);
    check.part("held_out", &op.held_out);
    check.divides(
        "gradient_accumulation_steps",
        &op.gradient_accumulation_steps,
        "batch_size",
        &op.batch_size,
    );
    check.above("learning_rate", &op.learning_rate, 0.0);
    check.within("warmup_ratio", &op.warmup_ratio, 0.0, 1.0);
    check.count("logging_steps", &op.logging_steps);
    op.threads.iter().for_each(|threads| check.count("threads", threads));
    lora(op.lora.as_ref(), check);
    change(op.on_change, op.min_changed.as_ref(), check);
    trainer(place, op.trainer.as_ref(), &["init", "reference"], check);
}

fn ppo(place: Place, op: &PpoUpdate, check: &mut Check<'_>) {
    sources("prompts", place, &op.prompts, check);
    check.least("kl_coef", &op.kl_coef, 0.0);
    if op.total_episodes.value < u64::from(op.batch_size.value) {
        let text = format!("at least one batch of {}, not {}", op.batch_size, op.total_episodes);
        check.wrong("total_episodes", op.total_episodes.place, &text);
    }
    generations(place, op, check);
    judge_of_rollouts(op, check);
    check.count("num_ppo_epochs", &op.num_ppo_epochs);
    check.divides("num_mini_batches", &op.num_mini_batches, "batch_size", &op.batch_size);
    check.count("gradient_accumulation_steps", &op.gradient_accumulation_steps);
    check.count("response_length", &op.response_length);
    check.above("cliprange", &op.cliprange, 0.0);
    check.above("cliprange_value", &op.cliprange_value, 0.0);
    check.least("vf_coef", &op.vf_coef, 0.0);
    check.within("gamma", &op.gamma, 0.0, 1.0);
    check.within("lam", &op.lam, 0.0, 1.0);
    check.least("missing_eos_penalty", &op.missing_eos_penalty, 0.0);
    if let Some(target_kl) = &op.target_kl {
        check.above("target_kl", target_kl, 0.0);
    }
    if let Some(AdaptiveKl { target, horizon }) = &op.adaptive_kl {
        check.above("adaptive_kl.target", target, 0.0);
        check.least("adaptive_kl.horizon", horizon, f64::from(op.batch_size.value));
    }
    if let Keep::BelowKl(kl) = &op.keep {
        check.above("below_kl", kl, 0.0);
    }
    check.above("learning_rate", &op.learning_rate, 0.0);
    check.within("warmup_ratio", &op.warmup_ratio, 0.0, 1.0);
    check.count("logging_steps", &op.logging_steps);
    op.threads.iter().for_each(|threads| check.count("threads", threads));
    lora(op.lora.as_ref(), check);
    change(op.on_change, op.min_changed.as_ref(), check);
    trainer(place, op.trainer.as_ref(), &["init", "reward", "reference", "test_reward"], check);
}

fn change(on_change: OnChange, min_changed: Option<&Spanned<Share>>, check: &mut Check<'_>) {
    let Some(min_changed) = min_changed else { return };
    check.share("min_changed", &min_changed.with(min_changed.value.0));
    if on_change == OnChange::Hold {
        let help = "leave `min_changed` out, or `on_change: hold`";
        check.says(min_changed.place, "is held whatever changes, and has a `min_changed`", help);
    }
}

fn lora(lora: Option<&Lora>, check: &mut Check<'_>) {
    let Some(Lora { r, alpha, .. }) = lora else { return };
    check.count("r", r);
    check.above("alpha", alpha, 0.0);
}

/// A program that trains: `models` are those whose paths it can be given.
fn trainer(place: Place, trainer: Option<&External>, models: &[&str], check: &mut Check<'_>) {
    let Some(External { command, .. }) = trainer else { return };
    if models.is_empty() {
        check.says(
            place,
            "has a `trainer` and begins from nothing",
            "name a model for `init`: a program is given weights and a tokenizer",
        );
    }
    let place = command.first().map_or(place, |program| program.place);
    for needed in ["{dataset}", "{out}"] {
        if !command.iter().any(|argument| argument.contains(needed)) {
            let text = format!("gives its trainer no `{needed}`");
            check.says(place, &text, "add it to the arguments of `command`");
        }
    }
    let known = ["dataset", "out", "state", "settings"];
    for argument in command {
        for (_, rest) in argument.match_indices('{').map(|(at, _)| argument.split_at(at + 1)) {
            let name = rest.split('}').next().unwrap_or_default();
            if rest.contains('}') && !known.contains(&name) && !models.contains(&name) {
                let all: Vec<String> =
                    known.iter().chain(models).map(|name| format!("`{{{name}}}`")).collect();
                let help = format!("it can be given {}", all.join(", "));
                check.says(argument.place, &format!("gives its trainer `{{{name}}}`"), &help);
            }
        }
    }
}

/// A judge compares the rollouts of a prompt, and no model of a critic begins at it.
fn judge_of_rollouts(op: &PpoUpdate, check: &mut Check<'_>) {
    let Reward::Judge(judge) = &op.reward else { return };
    if op.algorithm == Algorithm::Ppo && op.critic == CriticTrunk::Separate {
        let help = "learn with `critic: shared`, by `algorithm: rloo` or `grpo`, or from a preference model";
        check.says(judge.model.place, "has a judge, from which no critic can begin", help);
    }
    if op.trainer.is_some() {
        let help = "give the program a preference model as `reward`, or let it ask by itself";
        check.says(judge.model.place, "has a judge and a `trainer`, which is given none", help);
    }
}

fn generations(place: Place, op: &PpoUpdate, check: &mut Check<'_>) {
    let (count, place) = (op.generations(), op.num_generations.map_or(place, |count| count.place));
    if op.critic_warmup.value > 0 && op.algorithm != Algorithm::Ppo {
        let help = "leave `critic_warmup` out, or learn by `algorithm: ppo`";
        check.says(op.critic_warmup.place, "warms up a critic and has none", help);
    }
    let are_compared = op.compares();
    if count == 0 || count == 1 && are_compared {
        let least = if are_compared { "2, to be compared," } else { "1" };
        check.wrong("num_generations", place, &format!("at least {least} not {count}"));
        return;
    }
    for (key, of) in [
        ("batch_size", u64::from(op.batch_size.value)),
        ("total_episodes", op.total_episodes.value),
    ] {
        if !of.is_multiple_of(u64::from(count)) {
            let text = format!("a divisor of \"{key}\", which is {of}, not {count}");
            check.wrong("num_generations", place, &text);
        }
    }
}

impl Check<'_> {
    /// A count that divides another.
    fn divides(&mut self, key: &str, count: &Spanned<u32>, of: &str, whole: &Spanned<u32>) {
        self.count(of, whole);
        if count.value == 0 || !whole.value.is_multiple_of(count.value) {
            let place = if count.place.is_somewhere() { count.place } else { whole.place };
            self.wrong(
                key,
                place,
                &format!("a divisor of \"{of}\", which is {whole}, not {count}"),
            );
        }
    }
}
