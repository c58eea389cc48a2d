#!/usr/bin/env python3
"""A plain PyTorch loop and TRL beside amend: the same weights, rows and threads, for benches/training.rs.

    training.py CASE DIRECTORY     # CASE: plain, trl or ppo; DIRECTORY: a checkpoint with `bench.json` in it

Prints one JSON object: the seconds of each optimizer step (of `ppo`, of each update) and the most memory that the
process had, in MiB. Rows are token ids, so nothing is tokenized. TRL is at its defaults, but for what `bench.json` says
of all: learning rate, batch size, number format, threads.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)


class Stamps(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.at = []

    def on_step_end(self, *_, **__):
        self.at.append(time.perf_counter())

    def between(self):
        return [b - a for a, b in zip(self.at, self.at[1:])]


def language_model(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def tokenizer(directory):
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), pad_token="w0", eos_token="w2", padding_side="left")


def plain(directory, bench):
    """As one writes it by hand: batches padded to their longest row, the loss on completions, AdamW."""
    model = language_model(directory).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=bench["learning_rate"])
    size, parts = bench["batch_size"], bench["parts"]
    stamps = []
    for at in range(0, len(bench["rows"]), size):
        batch = bench["rows"][at : at + size]
        n_predicted = sum(len(row) - bench["prompts"][at + n] for n, row in enumerate(batch))
        for part in range(0, size, size // parts):
            rows = batch[part : part + size // parts]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            labels = torch.full_like(ids, -100)
            for n, row in enumerate(rows):
                first = bench["prompts"][at + part + n]
                labels[n, first : len(row)] = ids[n, first : len(row)]
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=bench["dtype"] == "bf16"):
                logits = model(ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")
            (loss / n_predicted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
    return [b - a for a, b in zip(stamps, stamps[1:])]


def common(bench):
    return {
        "output_dir": "/tmp/amend-bench-trl",
        "learning_rate": bench["learning_rate"],
        "bf16": bench["dtype"] == "bf16",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }


def trl(directory, bench):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": row, "labels": [-100] * prompt + row[prompt:]}
        for row, prompt in zip(bench["rows"], bench["prompts"], strict=True)
    ]
    args = SFTConfig(
        per_device_train_batch_size=bench["batch_size"] // bench["parts"],
        gradient_accumulation_steps=bench["parts"],
        num_train_epochs=1,
        dataset_kwargs={"skip_prepare_dataset": True},
        **common(bench),
    )
    stamps = Stamps()
    trainer = SFTTrainer(
        model=language_model(directory), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(directory), callbacks=[stamps],
    )  # fmt: skip
    trainer.train()
    return stamps.between()


def ppo(directory, bench):
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    scorer = lambda: AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32, pad_token_id=0)
    args = PPOConfig(
        per_device_train_batch_size=bench["batch_size"],
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=bench["num_ppo_epochs"],
        total_episodes=len(bench["rows"]),
        response_length=bench["response_length"],
        temperature=1.0,
        stop_token=None,
        num_sample_generations=0,
        **common(bench),
    )
    stamps = Stamps()
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer(directory), model=language_model(directory),
        ref_model=language_model(directory), reward_model=scorer(), value_model=scorer(),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in bench["rows"]]),
        # PPOTrainer evaluates nothing here, and asks for it all the same.
        eval_dataset=Dataset.from_list([{"input_ids": bench["rows"][0]}]), callbacks=[stamps],
    )  # fmt: skip
    trainer.train()
    return stamps.between()


def main():
    case, directory = sys.argv[1], Path(sys.argv[2])
    bench = json.loads((directory / "bench.json").read_text())
    torch.set_num_threads(bench["threads"])
    seconds = {"plain": plain, "trl": trl, "ppo": ppo}[case](directory, bench)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
