"""Checkpoints of every family, written by amend and read by transformers: the same logits and scores.

    families.py [FOLDER…]      # of checkpoints; by default the project's fixtures, and ../shared/conformance if it is there

Each is written once as it is, and each language model once more with a new head of one score, as `train-pm` begins.
transformers must find every weight that it looks for and none that it does not, and its logits and scores must be
within 1e-4 of amend's in float32.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "tests/fixtures/conformance", ROOT.parent / "shared/conformance")
FAMILIES = {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "smollm3"}
TOLERANCE = 1e-4


def main():
    torch.set_num_threads(1)  # Two threads that wait for each other by spinning are slower on shared cores.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = [Path(folder) for folder in sys.argv[1:]]
    checkpoints = [config.parent for folder in given or FOLDERS for config in sorted(folder.glob("*/config.json"))]
    counts = {False: 0, True: 0}
    seen = set()
    for checkpoint in checkpoints:
        config = json.loads((checkpoint / "config.json").read_text())
        is_scorer = config["architectures"][0].endswith("ForSequenceClassification")
        for becomes_scorer in [False] if is_scorer else [False, True]:
            compare(checkpoint, config["vocab_size"], becomes_scorer, is_scorer or becomes_scorer)
            seen.add((config["model_type"], is_scorer or becomes_scorer))
            counts[is_scorer or becomes_scorer] += 1
    missing = sorted({(family, scores) for family in FAMILIES for scores in counts} - seen)
    if not given and missing:
        sys.exit(f"no checkpoint shows {missing}")
    print(f"{counts[False]} language models and {counts[True]} preference models of {len(checkpoints)} checkpoints are read alike")


def compare(checkpoint, vocab_size, becomes_scorer, scores):
    """Writes a checkpoint by amend, reads it by transformers, and compares what both say."""
    torch.manual_seed(7)
    rows = [torch.randint(3, vocab_size, (length,)).tolist() for length in (1, 9, 24, 40)]
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        listed, out, written = work / "rows.json", work / "out.safetensors", work / "written"
        listed.write_text(json.dumps(rows))
        written.mkdir()
        command = ["cargo", "run", "--quiet", "--locked", "--example", "logits", "--", checkpoint, listed, out, written]
        subprocess.run([*command, *(["scorer"] if becomes_scorer else [])], check=True)
        ours = load_file(out)
        reader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        theirs, info = reader.from_pretrained(written, dtype=torch.float32, output_loading_info=True)
    faults = {key: value for key, value in info.items() if value}
    assert not faults, f"{checkpoint}: {faults}"
    assert not scores or theirs.config.num_labels == 1
    theirs.eval()
    worst = 0.0
    for n, row in enumerate(rows):
        with torch.no_grad():
            said = theirs(torch.tensor([row])).logits[0]  # (T, V), or (1)
        found = ours[f"{n}.score" if scores else f"{n}.logits"].reshape(said.shape)
        worst = max(worst, (said - found).abs().max().item())
    what = "scores" if scores else "logits"
    assert worst < TOLERANCE, f"{checkpoint}: {what} differ by {worst:.1e}"
    print(f"{checkpoint.name}: {what}{' of a new head' if becomes_scorer else ''} within {worst:.1e}", flush=True)


if __name__ == "__main__":
    main()
