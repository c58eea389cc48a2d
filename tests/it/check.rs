//! What `check`, `plan` and `run` say before anything starts: what the files name that is not there or
//! is something else, all at once, and warnings.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::server::FakeServer;

/// A folder of files.
struct Files(TempDir);

/// How `amend` ended: exit code, stdout and stderr.
type Ended = (i32, String, String);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write(
            "constitution.yaml",
            "principles: [{ id: kind, critique: Find harm., revise: Mend it., judge: Which? }]",
        );
        for name in ["red", "helpful", "other"] {
            files.write(&format!("{name}.jsonl"), "{\"prompt\": \"how?\", \"id\": 1}\n");
        }
        files
    }

    /// The same with a pipeline `p.yaml` of these nodes.
    fn with(nodes: &str) -> Files {
        let files = Files::new();
        files.pipeline(nodes);
        files
    }

    fn pipeline(&self, nodes: &str) {
        let head = "name: p\nconstitution: constitution.yaml\nmodels:\n  \
             m: { endpoint: \"${FAKE_URL:-http://localhost:9/v1}\", name: fake-model }\nnodes:\n";
        self.write("p.yaml", &format!("{head}{nodes}"));
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn amend(&self, args: &[&str]) -> Ended {
        self.asking(None, args)
    }

    fn asking(&self, server: Option<&FakeServer>, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.env_remove("AMEND_STORE").env_remove("FAKE_URL").current_dir(self.0.path());
        command.envs(server.map(|server| ("FAKE_URL", server.base_url())));
        let output = command.args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// The mistakes, or the warnings, of `check` as lines of line, column, message and help.
    fn check(&self, what: &str) -> String {
        let (code, stdout, stderr) = self.amend(&["check", "p.yaml", "-o", "json"]);
        let document: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
        assert_eq!(code, if document["mistakes"] == json!([]) { 0 } else { 2 }, "{stdout}");
        brief(&document[what])
    }
}

fn brief(list: &Value) -> String {
    let mut text = String::new();
    for one in list.as_array().unwrap_or_else(|| panic!("{list}")) {
        let part = |name: &str| one[name].as_str().unwrap_or("-").to_owned();
        let (line, column) = (&one["line"], &one["column"]);
        writeln!(text, "{line}:{column} {} | {}", part("message"), part("help")).unwrap();
    }
    text
}

#[test]
fn what_a_pipeline_names_is_looked_at_and_all_that_is_wrong_is_said_at_once() {
    let files = Files::with(
        "  gone: { read: { path: gone.jsonl } }
  keyed: { read: { path: red.jsonl, key: [idd] } }
  named: { read: { path: red.jsonl, columns: { category: topic } } }
  shaped: { read: { path: shapes.csv, key: [id] } }
  broken: { read: { path: notes.txt, format: jsonl } }
  kept: { filter: { from: keyed, where: \"lenght(prompt) > 3\" } }
  drafts: { sample: { from: keyed, model: nobody } }
  wrong: { critique: { from: keyed, model: m } }
  sl: { train-sl: { from: drafts, init: a } }
  pm: { train-sl: { from: drafts, init: b } }
  rl: { train-sl: { from: drafts, init: c } }
",
    );
    let models = "models:\n  a: { checkpoint: no/such }\n  b: { checkpoint: empty }\n  c: { checkpoint: pickled }\n  unused: { checkpoint: nowhere }\n";
    let text = fs::read_to_string(files.0.path().join("p.yaml")).unwrap();
    files.write("p.yaml", &text.replace("models:\n", models));
    files.write("shapes.csv", "id,question\n1,how?\n");
    files.write("notes.txt", "not JSON\nnor this\n");
    files.write("empty/notes.txt", "");
    files.write("pickled/config.json", "{}");
    files.write("pickled/pytorch_model.bin", "");
    insta::assert_snapshot!(files.check("mistakes"), @r#"
    5:20 the checkpoint "empty" has no "config.json" | a checkpoint is a directory in Hugging Face layout: `config.json`, weights in safetensors, the tokenizer's files
    6:20 the checkpoint "pickled" has neither "model.safetensors" nor "model.safetensors.index.json" | pickles run code when they are read, and are not read here: convert it once with transformers (`model.save_pretrained(dir)` writes safetensors)
    11:43 "red.jsonl" has no column "idd", which is a key | did you mean `id`?
    12:58 "red.jsonl" has no column "topic" | its columns are prompt, id
    13:27 no row of "shapes.csv" can be read: it has no column "prompt" (say what the file calls it: `columns: { prompt: … }`) | its columns are id, question
    14:27 no row of "notes.txt" can be read: line 1: column 2: it is not JSON: expected ident | say what the file holds: `format: jsonl`, `parquet`, `csv` or `hh-rlhf`
    15:41 `lenght(prompt) > 3` does not fit prompts: Invalid function 'lenght'. Did you mean 'length'?; a conversation's text is `text(completion)` | the columns of prompts are row_id, content, root_id, parents, call_keys, prompt, conversation_id, turn, split, category, tags, source, source_line, extra
    16:43 node "drafts" names "nobody", which is not a model | add it to `models`
    17:30 "keyed" gives prompts, which critique does not take | it takes responses or revisions
    "#);

    insta::assert_snapshot!(files.check("warnings"), @r#"
    4:20 the checkpoint "no/such" cannot be read: No such file or directory (os error 2) | relative paths are relative to the file that names them
    10:25 the file "gone.jsonl" cannot be read: No such file or directory (os error 2) | relative paths are relative to the file that names them
    "#);

    let (code, _, said) = files.amend(&["plan", "p.yaml"]);
    assert_eq!(code, 2);
    for what in ["no/such", "gone.jsonl", "idd", "lenght"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert_eq!(files.amend(&["run", "p.yaml"]).2, said);
    assert!(!files.0.path().join(".amend").exists(), "nothing was started");
}

#[test]
fn what_cannot_be_built_of_a_node_is_told_by_check_as_by_a_run() {
    let files = Files::with(
        "  red: { read: { path: red.jsonl } }
  drafts: { sample: { from: red, model: m } }
  few: { filter: { from: drafts, dedupe: { by: [model, colour] } } }
  critiques: { critique: { from: few, model: m } }
",
    );
    let principle = "principles: [{ id: kind, critique: Find harm. }]";
    files.write(
        "constitution.yaml",
        &format!("{principle}\ntemplates: {{ critique: \"{{{{ turn\" }}\n"),
    );
    insta::assert_snapshot!(files.check("mistakes"), @r#"
    8:56 responses have no column "colour" | their columns are row_id, content, root_id, parents, call_keys, prompt, completion, sample_index, category, model, model_fingerprint, seed, finish_reason, prompt_tokens, completion_tokens, logprob
    2:24 template "critique", line 1 of it: unexpected end of input, expected end of variable block | -
    "#);
    assert_eq!(files.amend(&["check", "p.yaml"]), files.amend(&["run", "p.yaml"]));
}

#[test]
fn a_file_is_not_judged_by_its_first_row_and_a_trained_model_not_by_its_absence() {
    let files = Files::with(
        "  late: { read: { path: late.jsonl, key: [id], columns: { category: topic } } }
  head: { read: { path: head.csv, key: [id], columns: { category: topic } } }
  none: { read: { path: none.jsonl, key: [id], columns: { category: topic } } }
  drafts: { sample: { from: late, model: m } }
  few: { filter: { from: drafts, where: \"length(text(completion)) > 3 and category = 'x'\" } }
  sl: { train-sl: { from: few, init: { scratch: { architecture:
    { hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4 } } } } }
  again: { train-sl: { from: few, init: sl } }
  pairs: { sample: { from: late, model: again } }
",
    );
    let rows =
        "not JSON\n{\"question\": 1}\n{\"prompt\": \"how?\", \"id\": 1}\n{\"topic\": null}\n";
    files.write("late.jsonl", rows);
    files.write("head.csv", "id,prompt,topic\n1,how?,\n");
    files.write("none.jsonl", "");
    let (code, stdout, stderr) = files.amend(&["check", "p.yaml"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "p.yaml: 8 nodes, no mistakes\n");
}

#[test]
fn a_run_of_a_part_needs_what_the_part_names() {
    let files = Files::with(
        "  red: { read: { path: red.jsonl } }
  gone: { read: { path: gone.jsonl } }
",
    );
    assert_eq!(files.amend(&["plan", "p.yaml", "--until", "red"]).0, 0);
    assert_eq!(files.amend(&["plan", "p.yaml", "--until", "gone"]).0, 2);
    assert_eq!(files.amend(&["graph", "p.yaml"]).0, 0, "a graph needs no rows");
}

#[test]
fn one_is_singular() {
    let files = Files::with("  red: { read: { path: red.jsonl } }\n");
    assert_eq!(files.amend(&["check", "p.yaml"]).1, "p.yaml: 1 node, no mistakes\n");
    files.pipeline("  red: { read: { path: gone.jsonl } }\n");
    let (_, stdout, stderr) = files.amend(&["run", "p.yaml", "-o", "json"]);
    assert!(stdout.contains("\"message\": \"1 mistake\""), "{stdout}");
    assert!(stderr.ends_with("\n1 mistake\n"), "{stderr}");
}

#[test]
fn a_mistake_of_a_node_hides_no_other_of_it() {
    let files = Files::with(
        "  red: { read: { path: red.jsonl } }
  three: { sample: { from: red, model: m, n: 3 } }
  pm: { train-pm: { from: [three, red], init: m } }
  rl: { ppo-update: { prompts: three, policy: m, reward: m, total_episodes: 128 } }
  scores: { evaluate: { from: [red, red], labels: { a: b } } }
  judged: { pairwise-judge: { from: three, model: nobody } }
",
    );
    insta::assert_snapshot!(files.check("mistakes"), @r#"
    8:28 "three" gives responses, which train-pm does not take | it takes comparisons
    8:35 "red" gives prompts, which train-pm does not take | it takes comparisons
    8:47 model "m" is an endpoint, and training needs weights | name a model with a `checkpoint`, or a node that trains one
    9:32 "three" gives responses, which ppo-update does not take | it takes prompts, such as "red"
    9:47 model "m" is an endpoint, and training needs weights | name a model with a `checkpoint`, or a node that trains one
    9:58 model "m" is an endpoint, and training needs weights | name a model with a `checkpoint`, or a node that trains one
    10:32 "red" gives prompts, which evaluate does not take | it takes responses or revisions, such as "three"
    10:37 "red" gives prompts, which evaluate does not take | it takes responses or revisions, such as "three"
    11:37 "three" gives 3 answers to a prompt, which make no pairs | give the sample an even `n`, such as 2
    11:51 node "judged" names "nobody", which is not a model | add it to `models`
    "#);
}

/// The nodes of a policy whose prompts are those of a list.
fn policy(prompts: &str) -> String {
    format!(
        "  red: {{ read: {{ path: red.jsonl }} }}
  parts: {{ split: {{ from: red, parts: {{ train: 0.9, test: 0.1 }} }} }}
  helpful: {{ read: {{ path: helpful.jsonl }} }}
  safe: {{ filter: {{ from: red, where: \"category = 'safe'\", on_drop: drop }} }}
  drafts: {{ sample: {{ from: parts.train, model: m }} }}
  revisions: {{ repeat: {{ from: drafts, times: 2, critique: {{ model: m }}, revise: {{ model: m }} }} }}
  sl: {{ train-sl: {{ from: revisions, init: {{ scratch: {{ architecture:
    {{ hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4 }} }} }} }} }}
  pairs: {{ sample: {{ from: parts.train, model: sl, n: 2 }} }}
  judged: {{ pairwise-judge: {{ from: pairs, model: m }} }}
  pm: {{ train-pm: {{ from: judged, init: sl }} }}
  rl: {{ ppo-update: {{ prompts: [{prompts}], policy: sl, reward: pm, total_episodes: 128 }} }}
"
    )
}

#[test]
fn a_policy_that_sees_red_team_prompts_alone_is_warned_of() {
    let files = Files::new();
    for red in ["parts.train", "parts.test", "red, parts.train", "safe"] {
        files.pipeline(&policy(red));
        let said = files.check("warnings");
        assert!(
            said.starts_with("17:33 node \"rl\" has no prompts but those of "),
            "{red}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    files.pipeline(&policy("parts.train"));
    insta::assert_snapshot!(files.amend(&["check", "p.yaml"]).2, @r#"
      ⚠ node "rl" has no prompts but those of "parts.train", whose answers are critiqued
        ╭─[p.yaml:17:33]
     16 │   pm: { train-pm: { from: judged, init: sl } }
     17 │   rl: { ppo-update: { prompts: [parts.train], policy: sl, reward: pm, total_episodes: 128 } }
        ·                                 ───────────
        ╰────
      help: red-team prompts alone teach a model to refuse everything: add a source of helpful ones
    1 warning
    "#);
    for verb in ["plan", "run"] {
        let (code, _, stderr) = files.amend(&[verb, "p.yaml", "--until", "red"]);
        assert_eq!((code, stderr.matches("has no prompts but").count()), (0, 1), "{stderr}");
        assert_eq!(files.amend(&[verb, "p.yaml", "--until", "red", "-q"]).2, "");
    }
    for mixed in ["helpful", "parts.train, { rows: helpful }"] {
        files.pipeline(&policy(mixed));
        assert_eq!(files.check("warnings"), "", "{mixed}");
    }
    // Only some of the file's prompts are criticised: the others may be helpful.
    let some = policy("red").replace("from: parts.train, model: m }", "from: safe, model: m }");
    files.pipeline(&some);
    assert_eq!(files.check("warnings"), "");
}

/// An evaluation of what a model answers to some prompts, with settings.
fn measured(model: &str, prompts: &str, settings: &str) -> String {
    let nodes = policy("helpful");
    format!(
        "{nodes}  same: {{ read: {{ path: red.jsonl, limit: 5 }} }}
  other: {{ read: {{ path: other.jsonl }} }}
  unsafe: {{ filter: {{ from: red, where: \"category = 'unsafe'\" }} }}
  answers: {{ sample: {{ from: {prompts}, model: {model} }} }}
  rates: {{ evaluate: {{ from: answers, labels: {{ no: sorry }}{settings} }} }}
"
    )
}

#[test]
fn an_evaluation_by_rows_of_the_training_is_warned_of() {
    let files = Files::new();
    for (model, prompts, told) in [
        (
            "sl",
            "parts.train",
            "node \"rates\" measures \"sl\" by rows of \"parts.train\", on which \"sl\" is trained",
        ),
        ("sl", "red", "by rows of \"red\", on which \"sl\" is trained"),
        ("sl", "same", "by rows of \"same\", on which \"sl\" is trained"),
        ("sl", "unsafe", "by rows of \"unsafe\", on which \"sl\" is trained"),
        ("rl", "helpful", "by rows of \"helpful\", on which \"rl\" is trained"),
        ("rl", "parts.train", "on which \"sl\", which \"rl\" comes from, is trained"),
    ] {
        files.pipeline(&measured(model, prompts, ""));
        let said = files.check("warnings");
        assert!(said.contains(told), "{model}, {prompts}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        files.pipeline(&measured(model, prompts, ", allow_overlap: true"));
        assert_eq!(files.check("warnings"), "", "{model}, {prompts}");
    }
    for (model, prompts) in [
        ("sl", "parts.test"),
        ("rl", "parts.test"),
        ("sl", "helpful"),
        ("rl", "other"),
        ("m", "parts.train"),
    ] {
        files.pipeline(&measured(model, prompts, ""));
        assert_eq!(files.check("warnings"), "", "{model}, {prompts}");
    }
    // Whether two conditions keep the same rows is not known.
    let apart =
        measured("sl", "unsafe", "").replace("from: parts.train, model: m", "from: safe, model: m");
    files.pipeline(&apart);
    assert_eq!(files.check("warnings"), "");
    files.pipeline(
        &apart
            .replace("answers: { sample", "asked: { evaluate")
            .replace("from: unsafe, model: sl }", "from: parts.train, model: rl, choices: [a, b] }")
            .replace("from: answers, labels", "from: drafts, labels"),
    );
    let said = files.check("warnings");
    assert!(said.contains("node \"asked\" measures \"rl\" by rows of \"parts.train\""), "{said}");
}

/// The warnings of `plan -o json`.
fn foretold(files: &Files, server: &FakeServer) -> String {
    let (code, stdout, stderr) = files.asking(Some(server), &["plan", "p.yaml", "-o", "json"]);
    let plan: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!((code, plan["pipeline"].as_str()), (0, Some("p")));
    assert_eq!(stderr.matches("help: ").count(), plan["warnings"].as_array().unwrap().len());
    brief(&plan["warnings"])
}

#[test]
fn a_renamed_principle_and_a_changed_server_are_warned_of_and_nothing_ends() {
    let server = FakeServer::start();
    let files = Files::with(
        "  red: { read: { path: red.jsonl } }
  drafts: { sample: { from: red, model: m } }
  critiques: { critique: { from: drafts, model: m } }
",
    );
    let principle = |id: &str, harm: &str| {
        let text = format!("principles: [{{ id: {id}, critique: Find all that is {harm}. }}]");
        files.write("constitution.yaml", &text);
    };
    let run = |args: &[&str]| files.asking(Some(&server), args);
    principle("kind", "harmful");
    assert_eq!(foretold(&files, &server), "");
    let (code, _, stderr) = run(&["run", "p.yaml"]);
    assert!(code == 0 && !stderr.contains("warning"), "{stderr}");

    principle("gentle", "harmful here");
    insta::assert_snapshot!(foretold(&files, &server), @r#"
    1:20 principle "gentle" says nearly what "kind" said, which is gone since snapshot 1 | if it is the same rule, add `was: kind`: rows keep what they drew
    "#);
    assert_eq!(run(&["plan", "p.yaml", "-q"]).2, "");
    server.config(json!({ "system_fingerprint": "fp_new" }));
    let (code, _, stderr) = run(&["run", "p.yaml"]);
    assert_eq!((code, stderr.matches("was: kind").count()), (0, 1), "{stderr}");

    insta::assert_snapshot!(foretold(&files, &server), @r#"
    4:62 model "m" was served by the system "fp_new" last, and by "fp_fake" at first | what is remembered stays; if it answers otherwise now, give the model another `revision`, and all is asked again
    "#);
    assert_eq!(run(&["run", "p.yaml"]).2, "", "a run says nothing of what it asks nothing of");
    let text = fs::read_to_string(files.0.path().join("p.yaml")).unwrap();
    files.write("p.yaml", &text.replace("name: fake-model", "name: fake-model, revision: two"));
    assert_eq!(foretold(&files, &server), "", "another revision is another model");
}

#[cfg(feature = "torch")]
#[test]
fn a_run_with_nothing_to_do_warns_once_as_well() {
    let server = FakeServer::start();
    let files = Files::with(
        "  red: { read: { path: red.jsonl } }
  drafts: { sample: { from: red, model: m, max_tokens: 4 } }
  sl: { train-sl: { from: drafts, batch_size: 1, init: { scratch: { tokenizer: { vocab_size: 300 }, architecture:
    { hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, max_position_embeddings: 64 } } } } }
  answers: { sample: { from: red, model: sl, max_tokens: 2 } }
  rates: { evaluate: { from: answers, labels: { no: sorry } } }
",
    );
    for nth in 1..=2 {
        let (code, stdout, stderr) = files.asking(Some(&server), &["run", "p.yaml"]);
        assert_eq!((code, stdout.contains("snapshot 1 ")), (0, true), "{nth}: {stderr}");
        assert_eq!(stderr.matches("measures \"sl\"").count(), 1, "{nth}: {stderr}");
    }
}

#[test]
fn a_node_that_can_draw_no_principle_is_a_mistake_of_check_plan_and_run() {
    let drafts =
        "  red: { read: { path: red.jsonl } }\n  drafts: { sample: { from: red, model: m } }\n";
    for (node, constitution) in [
        ("revise: { from: drafts, model: m }", "{ id: p, judge: Which? }"),
        ("critique: { from: drafts, model: m }", "{ id: p, judge: Which? }"),
        (
            "revise: { from: drafts, model: m, principles: { tags: { any: [b] } } }",
            "{ id: p, revise: Mend it., tags: [a] }, { id: q, judge: Which?, tags: [b] }",
        ),
        (
            "repeat: { from: drafts, times: 2, critique: none, revise: { model: m } }",
            "{ id: p, critique: Find harm., judge: Which? }",
        ),
        (
            "repeat: { from: drafts, times: 2, replacement: false, critique: { model: m }, revise: { model: m } }",
            "{ id: p, critique: Find harm., revise: Mend it. }",
        ),
    ] {
        let files = Files::with(&format!("{drafts}  last: {{ {node} }}\n"));
        files.write("constitution.yaml", &format!("principles: [{constitution}]"));
        for command in ["check", "plan", "run"] {
            let (code, _, stderr) = files.amend(&[command, "p.yaml"]);
            assert_eq!(code, 2, "{command} {node}: {stderr}");
            let is_told = stderr.contains("\"last\"") && stderr.contains("help:");
            assert!(is_told && stderr.contains("p.yaml:8"), "{command} {node}: {stderr}");
        }
    }
    let files = Files::with(&format!(
        "{drafts}  last: {{ revise: {{ from: drafts, model: m, principles: {{ tags: {{ any: [b] }} }} }} }}\n"
    ));
    files.write(
        "constitution.yaml",
        "principles: [{ id: p, revise: Mend it., tags: [a] }, { id: q, judge: Which?, tags: [b] }]",
    );
    insta::assert_snapshot!(files.check("mistakes"), @r#"8:73 node "last" selects no principle that has a revision request and a weight above 0 | its selector `{ tags: { any: [b] } }` keeps 1 of 2 principles, none of which will do; "p" would: select it, or leave the selector out"#);
}

#[test]
fn entries_that_are_hardly_meant_as_they_stand_are_warned_of() {
    let files = Files::new();
    let models = |b: &str| {
        format!(
            "name: p\nmodels:\n  a: {{ endpoint: \"http://one/v1\", name: x }}\n  b: {{ endpoint: \"http://two\", name: x{b} }}\nnodes:\n  red: {{ read: {{ path: red.jsonl }} }}\n  left: {{ sample: {{ from: red, model: a }} }}\n  right: {{ sample: {{ from: red, model: b }} }}\n"
        )
    };
    files.write("p.yaml", &models(""));
    insta::assert_snapshot!(files.check("warnings"), @r#"4:38 models "a" and "b" have one name, "x", at different endpoints: they count as one model, and each is given the answers of the other | if they are different models, give each a `revision`; if they are the same, write `same_as: a`"#);
    for settled in [", revision: two", ", same_as: a"] {
        files.write("p.yaml", &models(settled));
        assert_eq!(files.check("warnings"), "", "{settled}");
    }
    files.write("p.yaml", &models("").replace("http://two", "http://ONE/v1/"));
    assert_eq!(files.check("warnings"), "", "one server");
    files.write(
        "p.yaml",
        &models(", revision: two, template_args: { enable_thinking: \"false\", more: { deep: No, fine: false } }"),
    );
    insta::assert_snapshot!(files.check("warnings"), @r#"
    4:3 "template_args.enable_thinking" of model "b" is the text "false", which a template takes for true | for a flag write `enable_thinking: false`, without quotes
    4:3 "template_args.more.deep" of model "b" is the text "No", which a template takes for true | for a flag write `deep: false`, without quotes
    "#);
}

#[cfg(feature = "torch")]
#[test]
fn a_model_that_speaks_in_chats_has_a_chat_template() {
    use crate::torch_tiny::fixture;

    let tiny = fixture("llama_tiny");
    let files = Files::new();
    files
        .write("prefs.jsonl", "{\"prompt\": \"how?\", \"chosen\": \"so\", \"rejected\": \"no\"}\n");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::create_dir_all(files.0.path().join("bare")).unwrap();
        fs::copy(tiny.join(name), files.0.path().join("bare").join(name)).unwrap();
    }
    let pipeline = |settings: &str, node: &str| {
        let text = format!(
            "name: p\nmodels:\n  m: {{ checkpoint: bare{settings} }}\nnodes:\n  red: {{ read: {{ path: red.jsonl }} }}\n  prefs: {{ read: {{ path: prefs.jsonl, relation: comparisons }} }}\n  last: {{ {node} }}\n"
        );
        files.write("p.yaml", &text);
    };
    let asked = "sample: { from: red, model: m }";
    pipeline("", asked);
    insta::assert_snapshot!(files.check("mistakes"), @r#"3:20 node "last" speaks to model "m" in chats (`format: chat`), and the checkpoint "bare" has no chat template | set `format: transcript`, or give a `chat_template`"#);
    for command in ["plan", "run"] {
        let (code, _, stderr) = files.amend(&[command, "p.yaml"]);
        assert!(code == 2 && stderr.contains("`format: chat`"), "{command}: {stderr}");
    }
    pipeline("", "train-pm: { from: prefs, init: m }");
    assert!(files.check("mistakes").contains("no chat template"));
    pipeline(", chat_template: \"{% if %}\"", asked);
    assert!(files.check("mistakes").contains("cannot be used"), "{}", files.check("mistakes"));
    for fine in [", format: transcript", ", chat_template: \"{{ messages[0].content }}\""] {
        pipeline(fine, asked);
        assert_eq!(files.check("mistakes"), "", "{fine}");
    }
}
