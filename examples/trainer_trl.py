"""A trainer of one's own for `train-sl`, with TRL: the contract is in docs/trainer.md.

    trainer: { command: [python, examples/trainer_trl.py, "{dataset}", "{init}", "{out}", "{settings}"] }

Run with the environment that `make bench` makes: torch 2.11.0, transformers 5.23.0, datasets 5.2.0 and TRL 1.12.0.
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

dataset, init, out, settings = map(Path, sys.argv[1:5])
settings = json.loads(settings.read_text())
tokenizer = AutoTokenizer.from_pretrained(init)


def transcript(row):
    """A row in the format of a model that has no chat template; TRL ends the completion by itself."""
    names = {"user": "Human", "assistant": "Assistant"}
    prompt = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in row["prompt"])
    return {"prompt": prompt + "\n\nAssistant:", "completion": " " + row["completion"][0]["content"] + tokenizer.eos_token}


class Told(TrainerCallback):
    """Says every logged number as a line of JSON."""

    def on_log(self, args, state, control, logs=None, **_):
        numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        print(json.dumps({"step": state.global_step, "total": state.max_steps} | numbers), flush=True)


rows = load_dataset("parquet", data_files=str(dataset / "train.parquet"), split="train")
rows = rows.map(transcript, remove_columns=rows.column_names)
args = SFTConfig(
    output_dir=str(out / "work"),
    learning_rate=settings["learning_rate"],
    num_train_epochs=settings["epochs"],
    per_device_train_batch_size=settings["batch_size"],
    max_grad_norm=settings["max_grad_norm"],
    weight_decay=settings["weight_decay"],
    seed=settings["seed"],
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
model = AutoModelForCausalLM.from_pretrained(init, dtype="float32")
trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[Told()])
trainer.train()
trainer.model.save_pretrained(out)
tokenizer.save_pretrained(out)
