//! Trainings: what becomes of rows, and which settings change a recipe.

use super::*;
use crate::operators::testing::{chat, comparisons, model, op, prompts, responses, transcript};
use crate::record::Cell;

#[test]
fn a_transcript_row_is_learnt_after_its_prompt() {
    let model = model(&transcript());
    let renderer = Renderer::new(Some(&model), None);
    let rows = responses(&[("hi", "hello")]);
    insta::assert_debug_snapshot!(renderer.example(rows.row(0)).unwrap(), @r#"
    Demonstration {
        row_id: 347721f9a00cefdeb1059040cd442463,
        prompt: "\n\nHuman: hi\n\nAssistant:",
        completion: " hello",
        weight: 1.0,
    }
    "#);
    let rows = comparisons(&[("hi", "hello", "go away", 0.75)]);
    insta::assert_debug_snapshot!(renderer.example(rows.row(0)).unwrap(), @r#"
    Comparison {
        row_id: 347721f9a00cefdeb1059040cd442463,
        prompt: "\n\nHuman: hi\n\nAssistant:",
        a: " hello",
        b: " go away",
        p: 0.75,
        weight: 1.0,
        source: "test",
        category: None,
    }
    "#);
    let rows = prompts(&["hi"]);
    insta::assert_debug_snapshot!(renderer.example(rows.row(0)).unwrap(), @r#"
    Prompt {
        row_id: 347721f9a00cefdeb1059040cd442463,
        prompt: "\n\nHuman: hi\n\nAssistant:",
        messages: [
            Message {
                role: "user",
                content: "hi",
            },
        ],
    }
    "#);
}

#[test]
fn a_chat_row_is_learnt_by_what_its_template_writes_after_the_prompt() {
    let template = |messages: &[Message], answers: bool| -> Result<String, String> {
        let turn = |turn: &Message| format!("<{}>{}</>", turn.role, turn.content);
        let end = if answers { "<assistant>" } else { "" };
        Ok(messages.iter().map(turn).collect::<String>() + end)
    };
    let model = model(&chat().replace("format", "system: Be kind., format"));
    let renderer = Renderer::new(Some(&model), Some(&template));
    let rows = responses(&[("hi", "hello")]);
    insta::assert_debug_snapshot!(renderer.example(rows.row(0)).unwrap(), @r#"
    Demonstration {
        row_id: 347721f9a00cefdeb1059040cd442463,
        prompt: "<system>Be kind.</><user>hi</><assistant>",
        completion: "hello",
        weight: 1.0,
    }
    "#);
}

#[test]
fn a_text_is_learnt_as_it_stands_whatever_the_format() {
    let template = |_: &[Message], _: bool| -> Result<String, String> {
        Err("a text is no conversation".to_owned())
    };
    let id = crate::record::KeyHasher::new("amend/test/1").id();
    let origin = crate::record::Origin {
        row_id: id,
        root_id: id,
        parents: Vec::new(),
        call_keys: Vec::new(),
    };
    let (prompt, completion) = (Message::text("Critique:"), Message::text("  none. "));
    let mut rows = crate::record::BatchBuilder::new(Relation::Demonstrations);
    let cells = [
        ("prompt", Cell::messages(vec![prompt.clone()])),
        ("completion", Cell::messages(vec![completion.clone()])),
        ("messages", Cell::messages(vec![prompt, completion])),
        ("source", Cell::text("corpus")),
        ("weight", Cell::Float(1.0)),
    ];
    rows.push(&origin, &cells);
    let (rows, _) = rows.finish();
    for (model, chat) in [(None, None), (Some(model(&chat())), Some(&template as &Chat))] {
        let example = Renderer::new(model.as_ref(), chat).example(rows.row(0)).unwrap();
        let Example::Demonstration { prompt, completion, .. } = example else { panic!() };
        assert_eq!((prompt.as_str(), completion.as_str()), ("Critique:", "  none. "));
    }
}

#[test]
fn a_balanced_source_weighs_the_same_however_many_rows_it_has() {
    let rows = comparisons(&[("a", "x", "y", 1.0), ("b", "x", "y", 1.0), ("c", "x", "y", 1.0)]);
    let renderer = Renderer::new(None, None);
    let mut examples: Vec<Example> =
        rows.iter().map(|row| renderer.example(row).unwrap()).collect();
    if let Example::Comparison { source, .. } = &mut examples[0] {
        "other".clone_into(source);
    }
    balance(&mut examples);
    let weights: Vec<f64> = examples
        .iter()
        .map(|example| match example {
            Example::Comparison { weight, .. } => *weight,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(weights, [1.5, 0.75, 0.75]);
}

const SL: &str = "train-sl: { from: rows, init: base, learning_rate: 1.0e-4 }";

#[test]
fn the_recipe_names_what_decides_the_weights() {
    let recipe = recipe(&op(SL), 17, Some(&model(&transcript())));
    insta::assert_snapshot!(recipe.replace(",\"", ",\n\""), @r#"
    {"adam_beta1":0.9,
    "adam_beta2":0.999,
    "adam_epsilon":1e-8,
    "batch_size":32,
    "dtype":"auto",
    "epochs":1.0,
    "gradient_accumulation_steps":1,
    "held_out":0.0,
    "learning_rate":0.0001,
    "lr_scheduler_type":"constant",
    "max_grad_norm":1.0,
    "max_length":1024,
    "packing":false,
    "rendering":{"format":"transcript",
    "system":null,
    "chat_template":null,
    "template_args":{}},
    "seed":17,
    "warmup_ratio":0.0,
    "weight_decay":0.0}
    "#);
}

#[test]
fn what_decides_nothing_is_not_in_the_recipe() {
    let of = |node: &str| recipe(&op(node), 17, None);
    for same in ["logging_steps: 3", "save_steps: 5", "on_change: warm_start", "min_changed: 2%"] {
        assert_eq!(of(SL), of(&SL.replace("init", &format!("{same}, init"))), "{same}");
    }
    for other in ["epochs: 2", "seed: 18", "dtype: bf16", "threads: 2", "warmup_steps: 9"] {
        assert_ne!(of(SL), of(&SL.replace("init", &format!("{other}, init"))), "{other}");
    }
    assert_eq!(of(SL), of(&SL.replace("rows", "renamed")));
}

#[test]
fn a_reference_that_is_the_policys_start_is_the_same_recipe_as_none() {
    let node = |more: &str| {
        op(&format!(
            "ppo-update: {{ prompts: rows, policy: sl, reward: pm, total_episodes: 8, batch_size: 8{more} }}"
        ))
    };
    let of = |more: &str| recipe(&node(more), 17, None);
    assert_eq!(of(", reference: sl"), of(""));
    // A second judge and a reference stand at one place among the models.
    assert_ne!(of(", reference: base"), of(", test_reward: base"));
    let roles = roles(&node(", test_reward: pm2, reference: base"));
    assert_eq!(roles, ["policy", "reward", "reference", "test_reward"]);
}

#[test]
fn a_source_of_the_scale_may_be_renamed() {
    let of = |node: &str| recipe(&op(node), 17, None);
    let node = "train-pm: { from: [machine, human], init: base, scale_on: [machine] }";
    assert!(of(node).contains("\"scale_on\":[0]"), "{}", of(node));
    assert_eq!(of(node), of(&node.replace("machine", "feedback")));
    assert_ne!(of(node), of(&node.replace("scale_on: [machine]", "scale_on: [human]")));
    assert_ne!(of(node), of(&node.replace(", scale_on: [machine]", "")));
}

#[test]
fn every_setting_of_the_language_reaches_the_trainer() {
    let written = "warmup_steps: 10, threads: 3, dtype: bf16, device: cpu, save_steps: 7, \
                   gradient_accumulation_steps: 4, gradient_checkpointing: true, packing: true, init";
    let TrainSettings::TrainSl(sl) = settings(&op(&SL.replace("init", written)), 0, None) else {
        panic!("it is a train-sl")
    };
    let compute = Compute {
        dtype: Dtype::Bf16,
        device: Device::Cpu,
        threads: Some(3),
        gradient_accumulation_steps: 4,
        gradient_checkpointing: true,
        save_steps: 7,
    };
    assert_eq!((sl.compute, sl.optim.warmup_steps, sl.packing), (compute, Some(10), true));
    let node = SL.replace("init", "lora: { r: 4, target_modules: [q_proj] }, init");
    let lora = LoraSettings { r: 4, alpha: 32.0, target_modules: vec!["q_proj".to_owned()] };
    assert_eq!(settings(&op(&node), 0, None).optim().lora, Some(lora));
    assert_ne!(recipe(&op(&node), 0, None), recipe(&op(SL), 0, None));
    let node = "ppo-update: { prompts: rows, policy: sl, reward: pm, total_episodes: 256, \
                whiten_rewards: true, save_every: 5, keep: { below_kl: 6 } }";
    let TrainSettings::PpoUpdate(ppo) = settings(&op(node), 0, None) else {
        panic!("it is a ppo-update")
    };
    assert!(ppo.whiten_rewards);
    assert_eq!((ppo.save_every, ppo.keep_below_kl), (5, Some(6.0)));
}
