"""What amend writes, read by others: every table by DuckDB, Polars, pyarrow and `amend query`, every model by transformers.

    check.py PIPELINE      # a pipeline that has run, with its store beside it

The tables must hold the same rows for every reader, and the models give the same tokens, and logits and scores within
1e-4 of amend's in float32.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import numpy
import polars
import pyarrow.compute
import pyarrow.dataset
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-4
TEXTS = 20


def main():
    torch.set_num_threads(1)  # Two threads that wait for each other by spinning are slower on shared cores.
    pipeline = Path(sys.argv[1])
    home = pipeline.parent / ".amend" / yaml.safe_load(pipeline.read_text())["name"]
    tables = sorted((home / "tables").resolve().iterdir())
    assert tables, f"{home} has no tables: run {pipeline} first"
    for folder in tables:
        table(folder, pipeline.parent / ".amend")
    models = sorted((home / "checkpoints").resolve().iterdir())
    for folder in models:
        model(folder)
    print(f"{len(tables)} tables and {len(models)} models are read alike by all")


def table(folder, store):
    """One table: the same rows for every reader, and the same texts in them."""
    files = f"{folder}/*.parquet"
    arrow = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    duck = duckdb.sql(f"select * from read_parquet('{files}') order by row_id")
    pole = polars.read_parquet(files).sort("row_id")
    assert arrow.column_names == pole.columns == duck.columns, folder
    arrow = arrow.take(pyarrow.compute.sort_indices(arrow, sort_keys=[("row_id", "ascending")]))
    rows = arrow.to_pylist()
    assert_same(folder, "Polars", rows, pole.to_dicts())
    assert_same(folder, "DuckDB", rows, [dict(zip(duck.columns, row)) for row in duck.fetchall()])
    said = amend("query", f'select row_id from "{folder.name}" order by row_id', "--store", store, "-o", "json")
    assert [row["row_id"] for row in json.loads(said)] == [row["row_id"] for row in rows], folder
    print(f"table {folder.name}: {len(rows):,} rows")


def assert_same(folder, reader, ours, theirs):
    """Equal values, where NaN equals itself."""
    for one, other in zip(ours, theirs, strict=True):
        if one != other and repr(one) != repr(other):
            sys.exit(f"{folder.name}: {reader} reads\n{other}\nwhere pyarrow reads\n{one}")


def amend(*arguments):
    """What amend says on its standard output."""
    command = ["cargo", "run", "--quiet", "--locked", "--bin", "amend", "--", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def model(folder):
    """One checkpoint: the same tokens, and the same logits or scores."""
    config = json.loads((folder / "config.json").read_text())
    scores = config["architectures"][0].endswith("ForSequenceClassification")
    reader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    theirs = reader.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not scores or theirs.config.num_labels == 1
    with tempfile.TemporaryDirectory() as work:
        listed, out = Path(work) / "texts.json", Path(work) / "out.safetensors"
        all_texts = list(texts(tokenizer.eos_token))
        listed.write_text(json.dumps(all_texts))
        command = ["cargo", "run", "--quiet", "--locked", "--example", "logits", "--"]
        subprocess.run([*command, folder, listed, out], check=True)
        ours = load_file(out)
    worst = 0.0
    for n, text in enumerate(all_texts):
        ids = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        assert ids["input_ids"][0].tolist() == ours[f"{n}.ids"].tolist(), f"{folder}: other tokens for {text!r}"
        with torch.no_grad():
            said = theirs(**ids).logits[0]  # (T, V), or (1)
        found = ours[f"{n}.score" if scores else f"{n}.logits"].reshape(said.shape)
        worst = max(worst, numpy.abs(said.numpy() - found.numpy()).max().item())
    assert worst < TOLERANCE, f"{folder}: differs by {worst:.1e}"
    print(f"model {folder.name}: {'scores' if scores else 'logits'} of {len(all_texts)} texts within {worst:.1e}")


def texts(eos):
    """Texts of several lengths and scripts, some of them ended."""
    for n in range(TEXTS):
        prompt = f"\n\nHuman: tell me how to {['bake bread', 'load rifles', 'éplucher 葱 🧅'][n % 3]} for {n} people"
        yield prompt + "." * n + ("\n\nAssistant: sure, here it is." + eos if n % 2 else "\n\nAssistant:")


if __name__ == "__main__":
    main()
