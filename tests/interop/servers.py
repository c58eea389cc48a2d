#!/usr/bin/env python3
"""One checkpoint behind several real servers: does a pipeline get from each what the local model gives?

    servers.py AMEND CHECKPOINT     # by `make interop-servers`, in an environment of its own

A copy of the checkpoint gets a chat template. It is then asked locally, through `amend serve`, through litellm's
proxy in front of that, and through llama.cpp's server (converted to GGUF, f32), by chat and by completions, with each
estimator of label probabilities. Greedy answers must be equal, and probabilities within a tolerance where the
server offers the estimator. A server that is not installed is skipped with a message. The last lines are the table
of docs/endpoints.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ESTIMATORS = ["echo", "prompt_logprobs", "top_logprobs", "votes"]
TOLERANCE = 1e-4
PROMPTS = ["How are you?", "Say hi.", "Why?"]
WAIT_S = 120
KEY = "sk-interop-of-one-run"


def pipeline(model, scoring, fmt, choices):
    return f"""
name: servers
seed: 17
limits: {{ retries: 2 }}
models:
  m: {{ {model}, format: {fmt}{scoring} }}
nodes:
  prompts: {{ read: {{ path: prompts.jsonl, key: [id] }} }}
  drafts: {{ sample: {{ from: prompts, model: m, temperature: 0, max_tokens: 12 }} }}
  question: {{ read: {{ path: question.jsonl, key: [id] }} }}
  verdicts: {{ evaluate: {{ from: question, model: m, choices: {json.dumps(choices)} }} }}
"""


class Bench:
    def __init__(self, amend, folder):
        self.amend, self.folder, self.runs = amend, folder, 0
        lines = [{"id": n, "prompt": prompt} for n, prompt in enumerate(PROMPTS)]
        (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(self, model, fmt, scoring, asked):
        """Greedy drafts, and the probability of the first choice; or the error's last line."""
        self.runs += 1
        scoring = f", scoring: {scoring}" if scoring else ""
        question, choices = asked
        (self.folder / "question.jsonl").write_text(json.dumps({"id": 0, "prompt": question}))
        (self.folder / "p.yaml").write_text(pipeline(model, scoring, fmt, choices))
        store = self.folder / f"store-{self.runs}"
        ran = subprocess.run(
            [self.amend, "run", "p.yaml", "--store", str(store)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if ran.returncode not in (0, 3):
            return None, None, ran.stderr.strip().splitlines()[-1]
        drafts = self.query(store, "select completion from drafts order by row_id")
        scores = self.query(store, "select label, value from verdicts order by row_id")
        p = [row["value"] if row["label"] == choices[0].strip() else 1 - row["value"] for row in scores]
        rejects = self.query(store, "select distinct detail from rejects")
        return [row["completion"][0]["content"] for row in drafts], p, "; ".join(row["detail"] for row in rejects)

    def query(self, store, sql):
        told = subprocess.run(
            [self.amend, "query", sql, "--store", str(store), "-o", "json"],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        return json.loads(told.stdout) if told.returncode == 0 else []


def serve_amend(amend, checkpoint):
    command = [amend, "serve", str(checkpoint), "--port", "0", "--name", "tiny", "-o", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = ""
    while True:
        said += process.stdout.readline()
        try:
            return process, json.loads(said)["url"]
        except json.JSONDecodeError:
            assert process.poll() is None, f"amend serve ended: {said}"


def likely(url, fmt):
    """A question, and two labels that are a token each among the likeliest after it: a random model favours no letter."""
    for number in range(100):
        question = f"What is {number}?"
        if fmt == "chat":
            body = {"messages": [{"role": "user", "content": question}], "logprobs": True, "top_logprobs": 20}
        else:
            body = {"prompt": question, "logprobs": 20}
        body |= {"model": "tiny", "max_tokens": 1, "temperature": 0}
        route = "chat/completions" if fmt == "chat" else "completions"
        request = urllib.request.Request(f"{url}/{route}", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            logprobs = json.load(reply)["choices"][0]["logprobs"]
        listed = (
            [one["token"] for one in logprobs["content"][0]["top_logprobs"]]
            if fmt == "chat"
            else list(logprobs["top_logprobs"][0])
        )
        fit = [token for token in listed if token.isascii() and token.isalnum() and len(token) == 1]
        if len(fit) >= 2:
            return question, fit[:2]
    raise SystemExit(f"no question has two labels among its likeliest tokens ({fmt})")


def serve_litellm(url, folder):
    litellm = Path(sys.executable).with_name("litellm")
    if not litellm.exists():
        return None, "litellm is not installed"
    port = free_port()
    params = {"api_base": url, "api_key": "none"}
    models = [
        {"model_name": "tiny", "litellm_params": {"model": "openai/tiny", **params}},
        {"model_name": "tiny-text", "litellm_params": {"model": "text-completion-openai/tiny", **params}},
    ]
    (folder / "litellm.yaml").write_text(json.dumps({"model_list": models}))
    env = {**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(litellm), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    log = (folder / "litellm.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    return process, wait_for(f"http://127.0.0.1:{port}/v1", "/health/liveliness", process)


def serve_llama(checkpoint, folder):
    """llama.cpp's server lives in a process of this script's own, `--llama GGUF`."""
    try:
        import gguf  # noqa: F401
        import xllamacpp  # noqa: F401
    except ImportError as error:
        return None, f"llama.cpp is not installed: {error}"
    convert(checkpoint, folder / "tiny.gguf")
    command = [sys.executable, __file__, "--llama", str(folder / "tiny.gguf")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        if line.startswith("listening "):
            return process, line.split()[1].rstrip("/") + "/v1"
    return None, "llama.cpp's server ended"


def host_llama(path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = 4, 4 * 128
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.chat_template, params.use_jinja, params.verbosity = TEMPLATE, True, 0
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    sys.stdin.read()
    del server


def convert(directory, out):
    """A Llama with a byte-level BPE tokenizer as GGUF, in f32."""
    import gguf
    import numpy
    from safetensors.numpy import load_file

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))
    from llama_cpp import named, paired

    config = json.loads((directory / "config.json").read_text())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
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
    special = {token["id"] for token in tokenizer["added_tokens"]}
    words = {index: word for word, index in tokenizer["model"]["vocab"].items()}
    words |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    every = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(n, f"[unused{n}]") for n in every])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if n in special else kinds.NORMAL if n in words else kinds.UNUSED for n in every])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    for name, weight in load_file(directory / "model.safetensors").items():
        if ".q_proj." in name or ".k_proj." in name:
            weight = paired(weight, heads if ".q_proj." in name else key_heads)
        writer.add_tensor(named(name), weight.astype(numpy.float32), raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(url, path, process):
    begun = time.monotonic()
    while time.monotonic() - begun < WAIT_S:
        try:
            with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=2):
                return url
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    raise SystemExit(f"{url} is not there after {WAIT_S} s")


def whole(drafts):
    """Drafts without the bytes of a character that `max_tokens` cut: servers show as many marks for them as they like."""
    return [draft.rstrip("\ufffd") for draft in drafts]


def cell(bench, server, fmt, scoring, local, failed):
    model = f'endpoint: "{server["url"]}", name: {server["names"][fmt]}, votes: 64, api_key: "{KEY}"'
    drafts, p, said = bench.run(model, fmt, scoring, server["choices"][fmt])
    route = "chat" if fmt == "chat" else "completions"
    what = f"{server['name']}, {route}, {scoring}"
    if drafts is None:
        print(f"none  {what}: {said[:200]}")
        return "no"
    equal = whole(drafts) == whole(local[fmt][0])
    far = max((abs(a - b) for a, b in zip(p, local[fmt][1])), default=1.0) if len(p) == 1 else None
    near = scoring == "votes" or (far is not None and far <= TOLERANCE)
    print("ok   " if equal and near else "FAIL ", f"{what}: drafts equal: {equal}; p differs by {far}; {said[:200]}")
    if not equal:
        print("      ", drafts, local[fmt][0])
    failed.extend([] if equal and near else [what])
    return f"{far:.0e}" if far is not None else "–"


def main():
    if sys.argv[1] == "--llama":
        return host_llama(sys.argv[2])
    amend, source = os.path.abspath(sys.argv[1]), Path(sys.argv[2])
    os.environ["NO_PROXY"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        folder, failed, processes = Path(folder), [], []
        checkpoint = folder / "tiny"
        shutil.copytree(source, checkpoint)
        (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
        bench = Bench(amend, folder)
        try:
            process, url = serve_amend(amend, checkpoint)
            processes.append(process)
            same = {"chat": "tiny", "transcript": "tiny"}
            url = url.rstrip("/").removesuffix("/v1") + "/v1"
            choices = {fmt: likely(url, fmt) for fmt in ("chat", "transcript")}
            local = {fmt: bench.run("checkpoint: tiny", fmt, None, choices[fmt]) for fmt in choices}
            assert all(told[0] for told in local.values()), local
            servers = [{"name": "amend serve", "url": url, "names": same, "choices": choices}]
            split = {"chat": "tiny", "transcript": "tiny-text"}
            for name, names, start in [
                ("litellm proxy", split, lambda: serve_litellm(servers[0]["url"], folder)),
                ("llama.cpp", same, lambda: serve_llama(checkpoint, folder)),
            ]:
                process, told = start()
                if process is None:
                    print(f"skip  {name}: {told}")
                    continue
                processes.append(process)
                servers.append({"name": name, "url": told, "names": names, "choices": choices})
            rows = []
            for server in servers:
                for fmt, route in [("chat", "chat"), ("transcript", "completions")]:
                    offered = ESTIMATORS[1:] if fmt == "chat" else ESTIMATORS
                    cells = {one: cell(bench, server, fmt, one, local, failed) for one in offered}
                    auto = cell(bench, server, fmt, "auto", local, failed) if cells.get("votes") else "–"
                    line = [cells.get(one, "–") for one in ESTIMATORS] + [auto]
                    rows.append(f"| {server['name']} | {route} | " + " | ".join(line) + " |")
            print("\n| server | route | " + " | ".join(ESTIMATORS) + " | auto |\n|---|---|" + "--:|" * 5)
            print("\n".join(rows))
        finally:
            for process in processes:
                process.kill()
        sys.exit(bool(failed))


if __name__ == "__main__":
    main()
