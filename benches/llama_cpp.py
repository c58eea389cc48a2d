#!/usr/bin/env python3
"""llama.cpp beside amend: the same weights, prompts and threads, for benches/local_models.rs.

Reads a checkpoint's directory with `bench.json` in it (the workloads, as token ids), writes the
weights as GGUF beside them, and prints one JSON object: seconds by workload, and the likeliest token
after each prompt of the decode workload with its log-probability. llama.cpp's own server is asked, in
this process and through no socket, by as many clients as it has slots: it batches what is under way,
and keeps prefixes. It is run as it comes: keys and values in f16, whatever the weights are in, and
the instructions that its wheel was built for (AVX2).
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy
import xllamacpp
from safetensors.numpy import load_file

SLOTS = 32
POSITIONS = 2048
PROBED = 8


def convert(directory, kind, out):
    """A Llama of one file as GGUF."""
    config = json.loads((directory / "config.json").read_text())
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = ["Ċ"] + [f"w{n}" for n in range(1, config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges([f"{words[1]} {words[2]}"])
    for name, weight in load_file(directory / "model.safetensors").items():
        if ".q_proj." in name or ".k_proj." in name:
            weight = paired(weight, heads if ".q_proj." in name else key_heads)
        weight = weight.astype(numpy.float32)
        stored = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
        writer.add_tensor(named(name), gguf.quants.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paired(weight, heads):
    """GGUF's Llama turns neighbouring numbers of a head by a position, and Hugging Face's its halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def named(name):
    """What GGUF calls a weight."""
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
        "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, *_, part, weight = name.split(".")
    return f"blk.{layer}.{parts[part]}.{weight}"


def open_server(model, threads, positions):
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * positions
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    params.warmup = True
    return xllamacpp.Server(params)


class Asker:
    """Asks for rows, all at once, each of so many tokens."""

    def __init__(self, server):
        self.server = server
        self.clients = ThreadPoolExecutor(SLOTS)

    def ask(self, prompts, tokens, **more):
        def one(prompt, tokens):
            asked = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "temperature": 0.0, **more}
            told = self.server.handle_completions(asked)
            assert "error" not in told, told
            return told

        return list(self.clients.map(one, prompts, tokens))


def seconds(work, times):
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


def main():
    directory = Path(sys.argv[1])
    bench = json.loads((directory / "bench.json").read_text())
    kind = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16}[bench["dtype"]]
    convert(directory, kind, directory / "model.gguf")
    asker = Asker(open_server(directory / "model.gguf", bench["threads"], POSITIONS))
    times, found = bench["times"], {}

    # What was read before is not kept where reading is what is measured.
    fresh = {"cache_prompt": False}
    for rows in bench["decode_rows"]:
        prompts, tokens = bench["decode_prompts"][:rows], bench["decode_tokens"]
        whole = seconds(lambda: asker.ask(prompts, [tokens + 1] * rows, **fresh), times)
        first = seconds(lambda: asker.ask(prompts, [1] * rows, **fresh), times)
        found[f"decode_{rows}"] = whole - first
    prompts = bench["prefill_prompts"]
    found["prefill"] = seconds(lambda: asker.ask(prompts, [1] * len(prompts), **fresh), times)

    pairs = [bench["judge_prefix"] + tail for tail in bench["judge_tails"]]
    found["judge"] = seconds(lambda: asker.ask(pairs, [1] * len(pairs), n_probs=2), 1)

    sampled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    found["sample"] = seconds(lambda: asker.ask(bench["sample_prompts"], bench["sample_tokens"], **sampled), 1)

    prompts = bench["decode_prompts"][:PROBED]
    told = asker.ask(prompts, [1] * len(prompts), n_probs=1)
    first = [one["choices"][0]["logprobs"]["content"][0] for one in told]
    print(json.dumps({"seconds": found, "first": [[token["id"], token["logprob"]] for token in first]}))


if __name__ == "__main__":
    main()
