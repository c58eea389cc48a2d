//! The language as a whole: what good files say, and what is said about bad ones.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::op::{Critiquing, Init, Keep, Op, Rounds};
use super::*;

/// An environment with two variables.
fn environment(name: &str) -> Option<String> {
    match name {
        "SEED" => Some("17".to_owned()),
        "OPENAI_API_KEY" => Some("sk-secret".to_owned()),
        _ => None,
    }
}

/// Loads a pipeline from text, with flags.
fn read(text: &str, sets: &[&str]) -> Result<Loaded, Mistakes> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(&path, &sets, &environment)
}

/// A small pipeline that is right.
const GOOD: &str = r#"
name: good
seed: "${SEED}"
models:
  assistant: { endpoint: "${URL:-http://localhost/v1}", name: m, api_key: "${OPENAI_API_KEY}" }
nodes:
  prompts: { read: { path: data/prompts.jsonl } }
  drafts: { sample: { from: prompts, model: assistant } }
  sl: { train-sl: { from: drafts, init: { scratch: { architecture:
    { hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4 } } } } }
"#;

/// `path:line:column`, message and help of every mistake, one a line.
fn brief(mistakes: &Mistakes) -> String {
    let mut out = String::new();
    for mistake in mistakes.iter() {
        let at = mistakes.at(mistake.place);
        let at = at.rsplit_once('/').map_or(at.as_str(), |(_, name)| name);
        writeln!(out, "{at}: {} | {}", mistake.message, mistake.help.as_deref().unwrap_or("-"))
            .unwrap();
    }
    out
}

/// Compares with a snapshot in `tests/bad/snapshots`.
fn shown(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn every_bad_file_is_shown_with_all_its_mistakes() {
    let mut files: Vec<PathBuf> =
        fs::read_dir("tests/bad").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    assert!(files.len() > 5);
    for path in files {
        let mistakes = load(&path, &[], &environment).unwrap_err();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        shown(&name, &mistakes.render(false));
    }
}

#[test]
fn ten_mistakes_are_ten_diagnostics_each_at_its_line_and_column() {
    let mistakes = load(Path::new("tests/bad/ten_mistakes.yaml"), &[], &environment).unwrap_err();
    shown("ten_mistakes_brief", &brief(&mistakes));
    assert_eq!(mistakes.len(), 10);
}

/// The pipeline of the design page, with an endpoint and our own constitution.
fn design() -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/constitutions/harmless.yaml");
    include_str!("../../tests/fixtures/design.yaml")
        .replace("${OPENAI_BASE_URL}", "http://localhost:8000/v1")
        .replace("constitutions/harmless.yaml", &own.to_string_lossy())
}

#[test]
fn the_pipeline_of_the_design_page_is_read_as_it_stands() {
    let loaded = read(&design(), &[]).unwrap();
    let nodes = &loaded.pipeline.nodes;
    assert_eq!(nodes.len(), 13);
    let Op::Repeat(revisions) = &nodes["revisions"] else { panic!("revisions is a repeat") };
    assert!(
        matches!(&revisions.critique, Critiquing::Asked(critic) if critic.model.value == "assistant")
    );
    assert_eq!(revisions.selector().stage, Some(Stage::Sl));
    let Op::PpoUpdate(rl) = &nodes["rl"] else { panic!("rl is a ppo-update") };
    assert_eq!((rl.keep.clone(), rl.total_episodes.value), (Keep::Last, 25_600));
    let Op::Mix(mix) = &nodes["sl_data"] else { panic!("sl_data is a mix") };
    assert_eq!(mix.from[0].rounds, Rounds::All);
    let Op::TrainSl(sl) = &nodes["sl"] else { panic!("sl is a train-sl") };
    assert_eq!(sl.init, Init::Model("base".into()));
}

#[test]
fn what_the_types_write_reads_back_equal() {
    let once = read(&design(), &[]).unwrap().pipeline;
    let again = read(&serde_yaml::to_string(&once).unwrap(), &[]).unwrap().pipeline;
    assert_eq!(serde_json::to_value(&once).unwrap(), serde_json::to_value(&again).unwrap());
}

#[test]
fn names_keep_their_place() {
    let loaded = read(GOOD, &[]).unwrap();
    let (key, op) = loaded.pipeline.nodes.get_key_value("drafts").unwrap();
    assert_eq!((key.place.line, key.place.column), (8, 3));
    let references = op.references();
    let model = references.iter().find(|reference| reference.key == "model").unwrap();
    let Place { start, len, line, column, .. } = model.name.place;
    assert_eq!((line, column), (8, 45));
    assert_eq!(&loaded.pipeline_file().text[start as usize..][..len as usize], "assistant");
}

#[test]
fn variables_are_typed_by_what_is_wanted_and_secrets_are_not_reported() {
    let loaded = read(GOOD, &[]).unwrap();
    assert_eq!(loaded.pipeline.seed, 17);
    let names: Vec<_> =
        loaded.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(names, ["SEED=17", "URL=http://localhost/v1"]);
    let model = &loaded.pipeline.models["assistant"];
    assert_eq!(model.api_key.as_ref().unwrap().reveal(), Some("sk-secret"));
    let shown = format!("{loaded:?}{}", serde_json::to_string(&loaded.pipeline).unwrap());
    assert!(!shown.contains("sk-secret"));
}

#[test]
fn a_secret_is_not_shown_by_a_mistake_about_it() {
    for slip in [
        "api_key: [\"${OPENAI_API_KEY}\"]",
        "api_key: \"${OPENAI_API_KEY}\", dtype: \"${OPENAI_API_KEY}\"",
    ] {
        let mistakes =
            read(&GOOD.replace("api_key: \"${OPENAI_API_KEY}\"", slip), &[]).unwrap_err();
        assert!(!mistakes.render(false).contains("sk-secret"), "{mistakes}");
        assert!(!format!("{mistakes:?}").contains("sk-secret"));
    }
}

#[test]
fn a_key_that_stands_in_a_file_or_a_flag_is_masked() {
    let text = GOOD.replace("${OPENAI_API_KEY}", "sk-in-the-file");
    let loaded = read(&text, &[]).unwrap();
    assert_eq!(
        loaded.pipeline.models["assistant"].api_key.as_ref().unwrap().reveal(),
        Some("sk-in-the-file")
    );
    assert!(!format!("{loaded:?}").contains("sk-in-the-file"));
    let loaded = read(GOOD, &["models.assistant.api_key=sk-in-a-flag"]).unwrap();
    assert_eq!(
        loaded.pipeline.models["assistant"].api_key.as_ref().unwrap().reveal(),
        Some("sk-in-a-flag")
    );
    assert!(!format!("{loaded:?}").contains("sk-in-a-flag"));
    let mistakes = read(&text.replace("name: m", "nam: m"), &[]).unwrap_err();
    assert!(!mistakes.render(false).contains("sk-in-the-file"), "{mistakes}");
}

#[test]
fn a_set_changes_what_the_file_says_and_adds_what_it_leaves_out() {
    let sets =
        ["nodes.sl.train-sl.epochs=2.5", "budget.calls=10", "nodes.drafts.sample.stop=['a', 'b']"];
    let loaded = read(GOOD, &sets).unwrap();
    let Op::TrainSl(sl) = &loaded.pipeline.nodes["sl"] else { panic!("sl is a train-sl") };
    assert_eq!(sl.epochs.value.to_bits(), 2.5_f64.to_bits());
    assert_eq!(loaded.pipeline.budget.calls, Some(10));
    let Op::Sample(drafts) = &loaded.pipeline.nodes["drafts"] else { panic!("drafts is a sample") };
    assert_eq!(drafts.stop, ["a", "b"]);
}

#[test]
fn a_mistake_in_a_set_names_the_flag() {
    let sets = [
        "nodes.sll.train-sl.epochs=2",
        "nodes.sl.train-sl.epochs=two",
        "seed",
        "name.x=1",
        "models=[1",
    ];
    shown("sets", &brief(&read(GOOD, &sets).unwrap_err()));
}

#[test]
fn paths_are_relative_to_the_file_that_names_them() {
    let loaded = load(Path::new("tests/fixtures/relative.yaml"), &[], &environment).unwrap();
    let Op::Read(prompts) = &loaded.pipeline.nodes["prompts"] else { panic!("prompts is a read") };
    assert_eq!(prompts.path.path, Path::new("tests/fixtures/data/prompts.jsonl"));
    assert_eq!(prompts.path.written, "data/prompts.jsonl");
    assert_eq!(loaded.constitution.unwrap().principles.len(), 1);
}

#[test]
fn what_could_be_read_is_given_beside_the_mistakes() {
    let text = GOOD.replace("init: {", "inti: {");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    fs::write(&path, text).unwrap();
    let (loaded, mistakes) = load_partly(&path, &[], &environment);
    let loaded = loaded.unwrap();
    assert_eq!(mistakes.len(), 1, "{mistakes}");
    assert_eq!(loaded.broken.iter().collect::<Vec<_>>(), ["sl"]);
    assert_eq!(
        loaded.pipeline.nodes.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["prompts", "drafts"]
    );
}

#[test]
fn every_pipeline_of_the_project_is_right() {
    let environment = |name: &str| match name {
        "OPENAI_BASE_URL" => Some("http://localhost:8000/v1".to_owned()),
        "AMEND_HH" => Some("harmless-base-test.jsonl.gz".to_owned()),
        _ => None,
    };
    for name in ["paper", "hh", "peers"] {
        let path = Path::new("pipelines").join(name).with_extension("yaml");
        let loaded = load(&path, &[], &environment).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(loaded.pipeline.name.value, name);
        assert_eq!(loaded.constitution.unwrap().principles.len(), 16);
    }
}

#[test]
fn every_principle_of_our_own_constitution_serves_both_stages() {
    let constitution =
        load_constitution(Path::new("pipelines/constitutions/harmless.yaml")).unwrap();
    for principle in &constitution.principles {
        assert!(principle.is_for(Stage::Sl) && principle.is_for(Stage::Rl), "{}", principle.id);
        assert!(
            principle.serves(Purpose::Critique) && principle.serves(Purpose::Judge),
            "{}",
            principle.id
        );
    }
    let examples = &constitution.few_shot;
    assert_eq!(
        (examples.critique_revise.len(), examples.judge.len(), examples.judge_cot.len()),
        (5, 5, 6)
    );
    let again = import::to_yaml(&constitution, Some("Written again."));
    let mut mistakes =
        Mistakes::new(vec![SourceFile { path: "again".into(), text: again.clone() }]);
    assert_eq!(load::constitution_of(&again, 0, &mut mistakes), Some(constitution));
}

#[test]
fn a_selector_goes_by_stage_tags_ids_and_limit() {
    let constitution =
        load_constitution(Path::new("pipelines/constitutions/harmless.yaml")).unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/constitutions/harmless.yaml");
    let good = format!("constitution: {}\n{}", own.display(), GOOD.trim_start());
    let select = |yaml: &str| -> Vec<String> {
        let text = format!(
            "{good}  p: {{ pairwise-judge: {{ from: drafts, model: assistant, principles: {yaml} }} }}\n"
        );
        let loaded = read(&text, &[]).unwrap();
        let Op::PairwiseJudge(judge) = &loaded.pipeline.nodes["p"] else {
            panic!("p is a pairwise-judge")
        };
        let selected = judge.principles.select(&constitution, Purpose::Judge);
        selected.iter().map(|principle| principle.id.value.clone()).collect()
    };
    assert_eq!(select("{}").len(), 16);
    assert_eq!(select("{ tags: { any: [crisis] } }"), ["care", "self_harm"]);
    assert_eq!(select("{ tags: { all: [crisis, harm] } }"), ["self_harm"]);
    assert_eq!(
        select("{ tags: { any: [tone, crisis], none: [harm] } }"),
        ["care", "engagement", "plainness", "wisdom"]
    );
    assert_eq!(select("{ ids: [wisdom, law] }"), ["law", "wisdom"]);
    assert_eq!(select("{ stage: rl, limit: 2 }"), ["safety", "law"]);
}

/// The arguments of the template of the one model of a pipeline.
fn arguments(written: &str, variables: &[(&str, &str)]) -> serde_json::Value {
    let text = format!(
        "name: p\nmodels: {{ m: {{ checkpoint: m, template_args: {{ {written} }} }} }}\nnodes: {{}}\n"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    fs::write(&path, text).unwrap();
    let environment = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let loaded = load(&path, &[], &environment).unwrap();
    serde_json::to_value(&loaded.pipeline.models["m"].template_args).unwrap()
}

#[test]
fn a_variable_has_the_type_that_yaml_would_give_its_text() {
    let variables = [
        ("FALSE", "false"),
        ("TRUE", " True "),
        ("NULL", "null"),
        ("INT", "-17"),
        ("FLOAT", "0.5"),
        ("TEXT", "no"),
        ("QUOTED", "\"false\""),
        ("LIST", "[1, 2]"),
        ("MAP", "a: b"),
        ("HASH", "# nothing"),
        ("EMPTY", ""),
        ("LONG", &"9".repeat(100)),
    ];
    for (name, value) in [
        ("FALSE", serde_json::json!(false)),
        ("TRUE", serde_json::json!(true)),
        ("NULL", serde_json::json!(null)),
        ("INT", serde_json::json!(-17)),
        ("FLOAT", serde_json::json!(0.5)),
        ("TEXT", serde_json::json!("no")),
        ("QUOTED", serde_json::json!("\"false\"")),
        ("LIST", serde_json::json!("[1, 2]")),
        ("MAP", serde_json::json!("a: b")),
        ("HASH", serde_json::json!("# nothing")),
        ("EMPTY", serde_json::json!("")),
        ("LONG", serde_json::json!("9".repeat(100))),
    ] {
        let given =
            arguments(&format!("x: \"${{{name}}}\", y: [{{ z: \"${{{name}}}\" }}]"), &variables);
        assert_eq!(given, serde_json::json!({ "x": value, "y": [{ "z": value }] }), "{name}");
    }
    let literal = serde_json::json!({ "x": "false", "y": false, "z": "v1" });
    assert_eq!(arguments("x: \"false\", y: false, z: \"v${ONE}\"", &[("ONE", "1")]), literal);
}

#[test]
fn a_variable_stands_for_a_flag_or_number_of_any_setting() {
    let text = GOOD.replace("name: m,", "name: \"${SEED}\", strip_thinking: \"${YES:-TRUE}\", retries: \"${NONE:-null}\", timeout_s: \"${SEED}\",");
    let model = &read(&text, &[]).unwrap().pipeline.models["assistant"];
    assert_eq!(model.name.as_ref().unwrap().value, "17", "a text stays one");
    assert!(model.strip_thinking);
    assert_eq!(model.retries, None);
    assert!((model.timeout_s.unwrap().value - 17.0).abs() < 1e-9);
    let text = GOOD.replace("name: m,", "name: m, strip_thinking: \"${WORD:-yes}\",");
    let told = brief(&read(&text, &[]).unwrap_err());
    assert!(told.contains("must be true or false, not the text \"yes\""), "{told}");
}
