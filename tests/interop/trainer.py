"""A training by TRL inside a pipeline: the dataset read by `datasets`, the checkpoint taken back and used below.

    trainer.py AMEND PYTHON     # PYTHON: one with torch, transformers, datasets and TRL (`make bench` makes it)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THINGS = ("bread", "soup", "roses", "cake")


def main():
    amend, python = sys.argv[1:3]
    folder = Path(tempfile.mkdtemp(prefix="amend-trainer-"))
    rows = [{"prompt": f"make {THINGS[n % 4]} {n}", "completion": f"sure , i make {THINGS[n % 4]}"} for n in range(64)]
    (folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    scratch = {"scratch": {"architecture": shape, "tokenizer": {"vocab_size": 320}}}
    train = {"from": "demos", "batch_size": 16, "threads": 1, "learning_rate": 0.005}
    command = [python, str(ROOT / "examples/trainer_trl.py"), "{dataset}", "{init}", "{out}", "{settings}"]
    pipeline = {
        "name": "trainer",
        "nodes": {
            "demos": {"read": {"path": "demos.jsonl", "relation": "demonstrations"}},
            "prompts": {"read": {"path": "demos.jsonl"}},
            "base": {"train-sl": train | {"init": scratch}},
            "tuned": {"train-sl": train | {"init": "base", "epochs": 4, "trainer": {"command": command}}},
            "answers": {"sample": {"from": "prompts", "model": "tuned", "max_tokens": 12}},
        },
    }
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(pipeline), encoding="utf-8")

    def run(*words):
        done = subprocess.run([amend, *words, "-o", "json", "-q"], capture_output=True, text=True)
        # 3 is "done, with rejects": a model so small may have nothing to say.
        assert done.returncode in (0, 3), done.stderr
        return done.stdout

    report = json.loads(run("run", str(file)))
    nodes = {node["name"]: node for node in report["nodes"]}
    answered, lost = nodes["answers"]["rows"], nodes["answers"]["rejects"]
    assert nodes["tuned"]["rows"] == 1 and answered > 0 and answered + lost == 64, report
    losses = "select step, value from metrics where node = 'tuned' and name = 'loss' order by step"
    losses = [row["value"] for row in json.loads(run("query", losses, "--store", str(folder / ".amend")))]
    assert len(losses) == 16 and losses[-1] < 0.7 * losses[0], losses
    marks = json.loads((folder / ".amend/trainer/snapshots/000001/manifest.json").read_text())["nodes"]["tuned"]["node"]["marks"]
    assert marks == ["non_deterministic"], marks
    again = json.loads(run("run", str(file)))
    assert again["digest"] == report["digest"] and again["calls"]["made"] == 0, again
    print(f"ok   TRL trained from amend's Parquet, loss {losses[0]:.2f} -> {losses[-1]:.2f}, and its model answered {answered} of 64 prompts")


if __name__ == "__main__":
    main()
