"""Chat templates of real models, rendered by amend and by transformers: the same text, or both refuse.

    templates.py

The templates are those that lie in TRL's wheel; nothing of TRL is run.
"""

import datetime
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import logging

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SYSTEM = {"role": "system", "content": " Be kind.\n"}
USER = {"role": "user", "content": "Wie geht's? <b>1 & 2</b> {{ 'x' }} 👋🏽"}
ANSWER = {"role": "assistant", "content": '<think>\nhm\n</think>\n\nGut, "danke". '}
MORE = {"role": "user", "content": "  又来了\t"}
CHATS = [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, MORE], [USER, ANSWER], [USER, ANSWER, MORE, ANSWER], [USER, MORE]]


def main():
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "llama_tiny")
    config = json.loads((FIXTURES / "llama_tiny/tokenizer_config.json").read_text())
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    templates = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    arguments = {"today": datetime.date.today().isoformat()}  # What transformers tells templates that ask for the day.
    cases = [
        dict(name=name, template=template, messages=messages, arguments=arguments, prompt=prompt)
        for name, template in templates.items()
        for messages in CHATS
        for prompt in (True, False)
    ]
    with tempfile.TemporaryDirectory() as work:
        listed, out = Path(work) / "cases.json", Path(work) / "out.json"
        listed.write_text(json.dumps(dict(tokenizer_config=config, cases=cases)))
        command = ["cargo", "run", "--quiet", "--locked", "--example", "render", "--", listed, out]
        subprocess.run(command, check=True)
        ours = json.loads(out.read_text())
    theirs = [rendered(tokenizer, case) for case in cases]
    differing = [case for case, one, other in zip(cases, ours, theirs, strict=True) if one != other]
    for case in differing:
        print(f"{case['name']} renders otherwise: {json.dumps(case['messages'])}, prompt {case['prompt']}")
    alike = sum(one is not None and one == other for one, other in zip(ours, theirs))
    both = sum(one is None and other is None for one, other in zip(ours, theirs))
    print(f"{len(cases)} renderings of {len(templates)} templates: {alike} alike, {both} refused by both, {len(differing)} differ")
    sys.exit(bool(differing) or not alike)


def rendered(tokenizer, case):
    options = dict(chat_template=case["template"], tokenize=False, add_generation_prompt=case["prompt"], **case["arguments"])
    try:
        return tokenizer.apply_chat_template(case["messages"], **options)
    except Exception:
        return None


if __name__ == "__main__":
    main()
