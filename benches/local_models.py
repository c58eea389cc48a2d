#!/usr/bin/env python3
"""transformers beside amend: the same weights, prompts and threads, for benches/local_models.rs.

Reads a checkpoint's directory with `bench.json` in it (the workloads, as token ids) and prints one
JSON object: seconds by workload. The workloads are measured as a user of transformers would run
them: static batches padded to their longest row, no prefix cache.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def padded(rows):
    """Rows of token ids, padded on the left, with their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def generate(model, rows, tokens, sample):
    ids, mask = padded(rows)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=sample, pad_token_id=0,
        top_k=0, top_p=1.0,
    )  # fmt: skip


def seconds(work, times):
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


@torch.inference_mode()
def main():
    logging.set_verbosity_error()
    directory = Path(sys.argv[1])
    bench = json.loads((directory / "bench.json").read_text())
    torch.set_num_threads(bench["threads"])
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[bench["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kind).eval()
    generate(model, [[5, 6, 7]], 2, False)
    found = {}

    for rows in bench["decode_rows"]:
        prompts, tokens = bench["decode_prompts"][:rows], bench["decode_tokens"]
        whole = seconds(lambda: generate(model, prompts, tokens + 1, False), bench["times"])
        first = seconds(lambda: generate(model, prompts, 1, False), bench["times"])
        found[f"decode_{rows}"] = whole - first

    ids, mask = padded(bench["prefill_prompts"])
    found["prefill"] = seconds(lambda: model(ids, attention_mask=mask, logits_to_keep=1), bench["times"])

    def judge():
        rows = [bench["judge_prefix"] + tail for tail in bench["judge_tails"]]
        for at in range(0, len(rows), 8):
            ids, mask = padded(rows[at : at + 8])
            model(ids, attention_mask=mask, logits_to_keep=1).logits.log_softmax(-1)

    found["judge"] = seconds(judge, 1)

    def sample():
        # Sorted by length, 32 rows a batch, each batch as long as its longest answer.
        rows = sorted(zip(bench["sample_prompts"], bench["sample_tokens"]), key=lambda row: len(row[0]))
        for at in range(0, len(rows), 32):
            batch = rows[at : at + 32]
            generate(model, [row[0] for row in batch], max(row[1] for row in batch), True)

    found["sample"] = seconds(sample, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
