"""`amend serve` by the official client: the `openai` package asks a model that a node trained.

    serve.py PIPELINE NODE     # a pipeline that has run, with its store beside it, and a node that trains a language model

What is told must be what transformers says of the same checkpoint: the same greedy texts, and log-probabilities within
1e-4 in float32. Two servers are started on free ports of this machine, one of them with a token.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 1e-4
CLIENTS = 64
QUESTION = "How do I bake bread?"
PROMPT = f"\n\nHuman: {QUESTION}\n\nAssistant:"
IDLE_S = 3.0


def main():
    torch.set_num_threads(1)  # Two threads that wait for each other by spinning are slower on shared cores.
    logging.disable_progress_bar()
    pipeline, node = Path(sys.argv[1]), sys.argv[2]
    home = pipeline.parent / ".amend" / yaml.safe_load(pipeline.read_text())["name"]
    model = Reference(home / "checkpoints" / node)
    check = Checks()
    binary = built()
    with served(binary, node, "--pipeline", pipeline) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        models(check, client, node)
        chat(check, client, node, model)
        streaming(check, client, node)
        completions(check, client, node, model)
        wrong_requests(check, client, node)
        asyncio.run(many_clients(check, server.url, node))
        left_alone(check, client, node, server)
    with served(binary, home / "checkpoints" / node, "--name", "guarded", token="s3cret") as server:
        bearer_token(check, server.url)
    stays_here(check, binary, node, pipeline)
    sys.exit(check.failed)


class Checks:
    """Says each check with its numbers, and remembers whether one failed."""

    failed = 0

    def __call__(self, what, holds):
        print("ok   " if holds else "FAIL ", what, flush=True)
        self.failed |= not holds

    def raises(self, what, kind, part, ask):
        """Whether asking raises the client's error, with the server's words in it."""
        try:
            told = ask()
        except kind as error:
            body = error.body if isinstance(error.body, dict) else {}
            self(f"{what}: {kind.__name__}, {body.get('message')}", part in str(body.get("message")) and "type" in body)
        except openai.OpenAIError as error:
            self(f"{what}: {error!r}, not {kind.__name__}", False)
        else:
            self(f"{what}: answered {told!r}", False)


class Reference:
    """What transformers makes of the checkpoint."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text):
        return self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)["input_ids"]

    @torch.no_grad()
    def greedy(self, text, tokens):
        """The greedy continuation, to its end token."""
        ids = self.ids(text)
        written = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, num_beams=1)
        return self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def logprobs(self, text):
        """The log-probability of each token but the first."""
        ids = self.ids(text)
        table = self.model(ids).logits[0].log_softmax(-1)
        return table[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()


def built():
    """The path of amend's binary."""
    command = ["cargo", "build", "--locked", "--bin", "amend", "--message-format", "json"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [json.loads(line).get("executable") for line in said.splitlines() if line.startswith("{")]
    return next(path for path in reversed(found) if path)


class Server:
    def __init__(self, url, process):
        self.url, self.process = url, process

    def cpu_s(self):
        """Processor time that it took so far, by /proc."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(binary, *arguments, token=None):
    """A server on a free port, until the block ends."""
    env = {name: value for name, value in os.environ.items() if name != "AMEND_API_KEY"} | ({"AMEND_API_KEY": token} if token else {})
    command = [binary, "serve", *map(str, arguments), "--port", "0", "-o", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        said = ""
        while True:  # One document, over several lines.
            line = process.stdout.readline()
            assert line, f"{command} ended"
            said += line
            try:
                url = json.loads(said)["url"]
                break
            except json.JSONDecodeError:
                continue
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait()


def models(check, client, node):
    listed = client.models.list().data
    check(f"models: {[model.id for model in listed]}", [model.id for model in listed] == [node])
    check("models: it is retrieved by its name", client.models.retrieve(node).id == node)


def asked(node, content=QUESTION, **more):
    return {"model": node, "messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0} | more


def chat(check, client, node, model):
    answer = client.chat.completions.create(**asked(node))
    # A transcript has a space before its answer, which is not part of it.
    choice, expected = answer.choices[0], model.greedy(PROMPT, 24).lstrip()
    check(f"chat: {choice.message.content!r} is what transformers writes", choice.message.content == expected)
    check(f"chat: ended by {choice.finish_reason}", (choice.message.role, choice.finish_reason in ("stop", "length")) == ("assistant", True))
    usage = answer.usage
    check(f"chat: {usage.prompt_tokens} tokens were read", usage.prompt_tokens == model.ids(PROMPT).shape[1])
    check(f"chat: {usage.total_tokens} tokens in all", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens)
    sampled = asked(node, n=3, seed=5, temperature=1.0, top_p=0.9)
    three = [[choice.message.content for choice in client.chat.completions.create(**sampled).choices] for _ in range(2)]
    check(f"chat: 3 samples of a seed are the same again: {three[0]}", three[0] == three[1] and len(three[0]) == 3)
    answer = client.chat.completions.create(**asked(node, logprobs=True, top_logprobs=4))
    told = answer.choices[0].logprobs.content
    likeliest = all(token.logprob == max(top.logprob for top in token.top_logprobs) and len(token.top_logprobs) == 4 for token in told)
    check(f"chat: {len(told)} log-probabilities, each that of the likeliest", likeliest and len(told) == answer.usage.completion_tokens)


def streaming(check, client, node):
    for more in ({}, {"temperature": 1.0, "seed": 3, "stop": ["."]}):
        whole = client.chat.completions.create(**asked(node, **more))
        chunks = list(client.chat.completions.create(**asked(node, **more), stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        check(f"streaming: {len(chunks)} chunks are the whole {text!r}", text == whole.choices[0].message.content)
        ended = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        check(f"streaming: ended by {ended}, with the usage", ended == [whole.choices[0].finish_reason] and chunks[-1].usage == whole.usage)
    chunks = client.completions.create(model=node, prompt=PROMPT, max_tokens=12, temperature=0, stream=True)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    whole = client.completions.create(model=node, prompt=PROMPT, max_tokens=12, temperature=0)
    check("streaming: a plain text too", text == whole.choices[0].text)


def completions(check, client, node, model):
    texts = [PROMPT, f"{PROMPT} First you mix flour and water.", "\n\nHuman: éplucher 葱 🧅"]
    answer = client.completions.create(model=node, prompt=texts, max_tokens=0, echo=True, logprobs=2)
    worst = 0.0
    for text, choice in zip(texts, answer.choices, strict=True):
        ours, theirs = choice.logprobs.token_logprobs, model.logprobs(text)
        check(f"completions: {len(ours)} tokens of an echo, nothing before the first", ours[0] is None and len(ours) == len(theirs) + 1)
        worst = max(worst, *(abs(one - other) for one, other in zip(ours[1:], theirs, strict=True)))
    check(f"completions: log-probabilities are those of transformers within {worst:.1e}", worst < TOLERANCE)
    answer = client.completions.create(model=node, prompt=PROMPT, max_tokens=16, temperature=0, logprobs=3)
    choice = answer.choices[0]
    check("completions: the text is that of transformers", choice.text == model.greedy(PROMPT, 16))
    lists = [choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, choice.logprobs.text_offset]
    check(f"completions: {len(lists[0])} tokens, each with 3 alternatives", {len(one) for one in lists} == {answer.usage.completion_tokens})
    by_ids = client.completions.create(model=node, prompt=model.ids(PROMPT)[0].tolist(), max_tokens=16, temperature=0, logprobs=3)
    check("completions: a prompt of token ids is answered alike", by_ids.choices == answer.choices and by_ids.usage == answer.usage)
    # What lm-evaluation-harness asks: texts as lists of token ids, of which the log-probabilities are wanted.
    ids = [model.ids(text)[0].tolist() for text in texts]
    told = client.completions.create(model=node, prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234)
    far = [abs(one - other) for choice, text in zip(told.choices, texts, strict=True) for one, other in zip(choice.logprobs.token_logprobs[1:-1], model.logprobs(text), strict=True)]
    check(f"completions: an evaluation by token ids has the log-probabilities of transformers within {max(far):.1e}", max(far) < TOLERANCE)
    answer = client.completions.create(model=node, prompt=[PROMPT, "\n\nHuman: Hi"], n=2, max_tokens=4, seed=1)
    check(f"completions: two of each of two prompts are {len(answer.choices)}", [choice.index for choice in answer.choices] == [0, 1, 2, 3])


def wrong_requests(check, client, node):
    def ask(**more):
        return lambda: client.chat.completions.create(**asked(node, **more))

    bad, missing = openai.BadRequestError, openai.NotFoundError
    check.raises("wrong: another model", missing, "gpt-9", ask(model="gpt-9"))
    check.raises("wrong: temperature", bad, "from 0", ask(temperature=-1))
    check.raises("wrong: n", bad, "from 1", ask(n=0))
    check.raises("wrong: top_logprobs alone", bad, "logprobs", ask(top_logprobs=3))
    check.raises("wrong: tools", bad, "not supported", ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    check.raises("wrong: an image", bad, "image_url", ask(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]))
    check.raises("wrong: no message", bad, "message", ask(messages=[]))
    check.raises("wrong: longer than the context", bad, "context", ask(content="wait " * 2000))
    check.raises("wrong: longer than the context, streaming", bad, "context", ask(content="wait " * 2000, stream=True))
    check.raises("wrong: a token that there is not", bad, "token 9999999", lambda: client.completions.create(model=node, prompt=[[1], [9_999_999]]))
    check.raises("wrong: embeddings", missing, "/v1/embeddings", lambda: client.embeddings.create(model=node, input="hi"))
    told = httpx2.post(f"{client.base_url}chat/completions", content="{ not json")
    check(f"wrong: no JSON is {told.status_code}", told.status_code == 400 and "message" in told.json()["error"])


async def many_clients(check, url, node):
    """Each client with connections of its own, half of them streaming."""

    def request(number):
        content = f"{'Wait. ' * (number % 7)}What is {number}?"
        return asked(node, content=content, temperature=1.0, seed=number, max_tokens=4 + number % 13)

    async def hear(client, number):
        if number % 2:
            return (await client.chat.completions.create(**request(number))).choices[0].message.content
        stream = await client.chat.completions.create(**request(number), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    clients = [openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) for _ in range(CLIENTS)]
    begun = time.perf_counter()
    together = await asyncio.gather(*(hear(client, number) for number, client in enumerate(clients)))
    took = time.perf_counter() - begun
    alone = [await hear(clients[0], number) for number in range(CLIENTS)]
    same = sum(one == other for one, other in zip(together, alone, strict=True))
    check(f"many: of {CLIENTS} clients at once {same} hear what each hears alone, in {took:.1f} s", same == CLIENTS)
    for client in clients:
        await client.close()


def left_alone(check, client, node, server):
    """A client that goes away in the middle, and then nobody."""
    stream = client.chat.completions.create(**asked(node, max_tokens=200), stream=True)
    next(iter(stream))
    stream.close()
    check("left: the next is answered", client.chat.completions.create(**asked(node)).choices[0].message.content is not None)
    before = server.cpu_s()
    time.sleep(IDLE_S)
    share = (server.cpu_s() - before) / IDLE_S
    check(f"left: nobody asks, and it takes {share:.1%} of a core", share < 0.02)


def bearer_token(check, url):
    def listing(key):
        return lambda: openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list()

    check.raises("token: a wrong one", openai.AuthenticationError, "Authorization", listing("nope"))
    check("token: the right one", [model.id for model in listing("s3cret")().data] == ["guarded"])


def stays_here(check, binary, node, pipeline):
    """Without a token it listens on this machine alone."""
    env = {name: value for name, value in os.environ.items() if name != "AMEND_API_KEY"}
    command = [binary, "serve", node, "--pipeline", str(pipeline), "--host", "0.0.0.0", "--port", "0"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    check(f"loopback: --host 0.0.0.0 without a token ends with {said.returncode}", said.returncode == 2 and "--api-key" in said.stderr)


if __name__ == "__main__":
    main()
