"""A trainer of one's own for `train-sl`, with transformers: the contract is in docs/trainer.md.

    trainer: { command: [python, examples/trainer_sl.py, "{dataset}", "{init}", "{out}", "{settings}"] }

Run with torch 2.11.0, transformers 5.23.0 and pyarrow 26.0.1.
"""

import json
import pathlib
import sys

import pyarrow.parquet
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

dataset, init, out, settings = map(pathlib.Path, sys.argv[1:5])
settings = json.loads(settings.read_text())
torch.manual_seed(settings["seed"])
tokenizer = AutoTokenizer.from_pretrained(init)
model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)


def transcript(messages):
    """The format of a model that has no chat template."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)


rows = []
for row in pyarrow.parquet.read_table(dataset / "train.parquet").to_pylist():
    prompt = tokenizer(transcript(row["prompt"]) + "\n\nAssistant:")["input_ids"]
    answer = tokenizer(" " + row["completion"][0]["content"])["input_ids"] + [tokenizer.eos_token_id]
    rows.append((prompt, answer))

size = settings["batch_size"]
total = int(settings["epochs"] * -(-len(rows) // size))
optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
for step in range(total):
    batch = [rows[(step * size + i) % len(rows)] for i in range(size)]
    width = max(len(p) + len(a) for p, a in batch)
    ids = torch.tensor([p + a + [tokenizer.pad_token_id] * (width - len(p) - len(a)) for p, a in batch])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in batch])
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
    optimizer.step()
    optimizer.zero_grad()
    print(json.dumps(dict(step=step + 1, total=total, loss=loss.item(), grad_norm=norm.item())), flush=True)

model.save_pretrained(out)
tokenizer.save_pretrained(out)
