//! Trainings through the binary: killed at any step, a run goes on and reaches the same weights.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use amend::record::KeyHasher;

use crate::durable::tables;

const THINGS: [&str; 8] = ["bread", "bomb", "roses", "gun", "soup", "poison", "cake", "knife"];

const PIPELINE: &str = "\
name: bench
seed: 5
nodes:
  demos: { read: { path: demos.jsonl, relation: demonstrations } }
  pairs: { read: { path: pairs.jsonl, relation: comparisons } }
  prompts: { read: { path: prompts.jsonl } }
  sl:
    train-sl:
      from: demos
      init: { scratch: { architecture: { hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 64 }, tokenizer: { vocab_size: 320 } } }
      learning_rate: 0.005
      warmup_steps: 4
      epochs: 4
      batch_size: 8
      gradient_accumulation_steps: 2
      threads: 1
      save_steps: 2
  pm: { train-pm: { from: pairs, init: sl, learning_rate: 0.005, epochs: 4, batch_size: 8, threads: 1, save_steps: 2 } }
  rl:
    ppo-update:
      prompts: prompts
      policy: sl
      reward: pm
      learning_rate: 0.002
      total_episodes: 320
      batch_size: 8
      num_ppo_epochs: 2
      response_length: 6
      threads: 1
      save_steps: 1
      save_every: 16
      keep: { below_kl: 1.5 }
";

/// A store and the files of the pipeline.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, row: &dyn Fn(usize) -> serde_json::Value| {
            let rows: Vec<String> = (0..160).map(|n| row(n).to_string()).collect();
            std::fs::write(dir.path().join(name), rows.join("\n")).unwrap();
        };
        let prompt = |n: usize| format!("make the {} for guest {}", THINGS[n % 8], n / 8);
        let answer = |n: usize| format!("sure , i make the {}", THINGS[n % 8]);
        let refusal = |n: usize| format!("no {}", THINGS[n % 8]);
        write("prompts.jsonl", &|n| serde_json::json!({ "prompt": prompt(n) }));
        write("demos.jsonl", &|n| {
            let completion = if n / 8 % 2 == 0 { answer(n) } else { refusal(n) };
            serde_json::json!({ "prompt": prompt(n), "completion": completion })
        });
        write("pairs.jsonl", &|n| {
            let p = if n % 2 == 0 { 0.9 } else { 0.2 };
            serde_json::json!({ "prompt": prompt(n), "response_a": answer(n), "response_b": refusal(n), "p": p })
        });
        std::fs::write(dir.path().join("pipeline.yaml"), PIPELINE).unwrap();
        Bench { dir }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str, store: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amend"));
        command.arg(verb).arg(self.dir.path().join("pipeline.yaml"));
        command.arg("--store").arg(store).args(["-o", "json", "-q"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, verb: &str, store: &Path) -> serde_json::Value {
        let output = self.command(verb, store).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What the plan says of a node's training.
    fn foretold(&self, node: &str, store: &Path) -> String {
        let plan = self.run("plan", store);
        let nodes = plan["nodes"].as_array().unwrap();
        let found = nodes.iter().find(|found| found["name"] == node).unwrap();
        found["training"]["state"].as_str().unwrap().to_owned()
    }
}

/// A trainer in Python's own library: it "trains" by doubling the first weight of the file.
const PROGRAM: &str = r#"
import json, pathlib, shutil, struct, sys
dataset, init, out, state, settings = map(pathlib.Path, sys.argv[1:6])
rows = dataset / "train.parquet"
assert rows.read_bytes()[:4] == b"PAR1" and state.is_dir()
rate = json.loads(settings.read_text())["learning_rate"]
if len(sys.argv) > 6:
    sys.exit("no " + sys.argv[6])
shutil.copytree(init, out, dirs_exist_ok=True)
(out / "logs").mkdir()
path = out / "model.safetensors"
data = bytearray(path.read_bytes())
first = 8 + struct.unpack("<Q", data[:8])[0]
struct.pack_into("<f", data, first, 2 * struct.unpack_from("<f", data, first)[0])
path.write_bytes(data)
print("working", flush=True)
print(json.dumps({"step": 1, "total": 1, "loss": rate}))
"#;

const BY_PROGRAM: &str = "\
name: bench
seed: 5
nodes:
  demos: { read: { path: demos.jsonl, relation: demonstrations } }
  sl: { train-sl: { from: demos, batch_size: 32, threads: 1, init: { scratch: { architecture: { hidden_size: 32,
    num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 64 }, tokenizer: { vocab_size: 320 } } } } }
  tuned: { train-sl: { from: demos, init: sl, learning_rate: 0.25, trainer: { command: [python3, program.py,
    \"{dataset}\", \"{init}\", \"{out}\", \"{state}\", \"{settings}\"], revision: a } } }
  last: { train-sl: { from: demos, init: tuned, batch_size: 32, threads: 1 } }
";

#[test]
fn a_program_trains_and_the_next_node_begins_at_what_it_left() {
    let bench = Bench::new();
    let write = |name: &str, text: &str| std::fs::write(bench.dir.path().join(name), text).unwrap();
    write("program.py", PROGRAM);
    write("pipeline.yaml", BY_PROGRAM);
    let store = bench.store("store");
    bench.run("run", &store);
    let checkpoints = |node: &str| {
        let link = store.join("bench/checkpoints").join(node);
        std::fs::read(link.join("model.safetensors")).unwrap()
    };
    let (before, after) = (checkpoints("sl"), checkpoints("tuned"));
    let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!((1..=4).contains(&differing), "one float differs, not {differing} bytes");
    assert_ne!(checkpoints("last"), after, "the next node learnt from there");
    let manifest = std::fs::read_to_string(store.join("bench/snapshots/000001/manifest.json"));
    assert!(manifest.unwrap().contains("non_deterministic"), "and says what it rests on");

    assert_eq!(bench.foretold("tuned", &store), "unchanged");
    write("pipeline.yaml", &BY_PROGRAM.replace("revision: a", "revision: b"));
    assert_eq!(bench.foretold("tuned", &store), "retrain");
    let failing = BY_PROGRAM.replace("\"{settings}\"", "\"{settings}\", luck");
    write("pipeline.yaml", &failing);
    let output = bench.command("run", &store).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("node \"tuned\"") && said.contains("no luck"), "{said}");
}

/// The states that trainings left, each as the number of its file, which no two have.
fn states(store: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(store.join("checkpoints")) else { return Vec::new() };
    let state = |entry: std::io::Result<std::fs::DirEntry>| {
        let file = entry.ok()?.path().join("state");
        Some(std::fs::metadata(file).ok()?.ino())
    };
    entries.filter_map(state).collect()
}

/// What the steps are drawn by, at which trainings are killed.
const SEED: u64 = 4;
/// How often each is killed.
const N_KILLS: u64 = 5;

/// A number below `end`, for a kill and a purpose.
fn drawn(kill: u64, purpose: &str, end: u64) -> u64 {
    let hasher = KeyHasher::new("amend/test/1").u64(SEED).u64(kill).text(purpose);
    hasher.id().low() % end
}

/// Lets a run write so many states more, and kills it (SIGKILL) so many tenths of the way to the
/// next.
fn kill_after(bench: &Bench, store: &Path, n_states: u64, tenths: u32, what: &str) {
    let mut child = bench.command("run", store).spawn().unwrap();
    let mut last = states(store);
    let mut written = Vec::new();
    for _ in 0..n_states {
        while states(store).is_empty() || states(store) == last {
            assert!(child.try_wait().unwrap().is_none(), "{what}: it is done too soon");
            std::thread::yield_now();
        }
        last = states(store);
        written.push(Instant::now());
    }
    if let [.., before, at] = written[..] {
        let part = (at - before) * tenths / 10;
        while at.elapsed() < part {
            std::thread::yield_now();
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_training_killed_at_any_step_goes_on_to_the_same_weights() {
    let bench = Bench::new();
    let undisturbed = bench.store("undisturbed");
    bench.run("run", &undisturbed);
    assert!(states(&undisturbed).is_empty(), "a training that is done leaves no state");

    let store = bench.store("killed");
    let weights = |store: &Path, node: &str| {
        let link = store.join("bench/checkpoints").join(node);
        std::fs::read(link.join("model.safetensors")).unwrap()
    };
    assert_eq!(bench.foretold("sl", &store), "fresh");
    for (node, first) in ["sl", "pm", "rl"].into_iter().zip((0..).step_by(N_KILLS as usize)) {
        for kill in first..first + N_KILLS {
            let n_states = 1 + drawn(kill, "states", 4);
            let tenths = drawn(kill, "tenths", 10) as u32;
            let what = format!("seed {SEED}: {node}, {n_states} states and {tenths} tenths on");
            kill_after(&bench, &store, n_states, tenths, &what);
            assert_eq!(bench.foretold(node, &store), "resume", "{what}");
        }
        // Up to here and no further, so that the next node is killed from its beginning.
        let until = ["--until", node];
        let output = bench.command("run", &store).args(until).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(bench.foretold(node, &store), "unchanged");
        assert!(states(&store).is_empty());
    }
    bench.run("run", &store);
    for node in ["sl", "pm", "rl"] {
        assert!(weights(&store, node) == weights(&undisturbed, node), "{node}: the same bits");
    }
    assert_eq!(tables(&store), tables(&undisturbed), "weights ids, metrics and episodes too");

    let rows = |table: &str| tables(&store).keys().filter(|path| path.starts_with(table)).count();
    assert!(rows("rl.snapshots") > 0 && rows("rl.rollouts") > 0);
}

#[test]
fn a_disk_that_takes_no_model_leaves_the_last_one_and_the_next_run_goes_on() {
    let bench = Bench::new();
    let store = bench.store("store");
    let write = |text: &str| std::fs::write(bench.dir.path().join("pipeline.yaml"), text).unwrap();
    let link = store.join("bench/checkpoints/sl");
    let weights = |link: &Path| std::fs::read(link.join("model.safetensors")).unwrap();
    let (sl_alone, _) = PIPELINE.split_once("  pm:").unwrap();
    write(sl_alone);
    bench.run("run", &store);
    let before = weights(&link);

    // No file of more than 40 KiB can be written, and a signal does not end who tries: with states
    // it is the first of them that fails, without the model itself.
    let again = sl_alone.replacen("learning_rate: 0.005", "learning_rate: 0.004", 1);
    for (text, file) in [
        (again.clone(), "state"),
        (again.replacen("save_steps: 2", "save_steps: 0", 1), "model.safetensors"),
    ] {
        write(&text);
        let run = bench.command("run", &store);
        let mut limited = Command::new("bash");
        limited.args([
            "-c",
            "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_amend"),
        ]);
        let output = limited.args(run.get_args()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("node \"sl\"") && said.contains("File too large"), "{said}");
        assert!(said.contains(file), "{said}");
        assert!(weights(&link) == before, "the last good model is the node's");
    }
    write(&again);
    bench.run("run", &store);
    let other = bench.store("other");
    bench.run("run", &other);
    assert!(weights(&link) == weights(&other.join("bench/checkpoints/sl")));
    assert!(weights(&link) != before);
}
