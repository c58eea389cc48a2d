"""The pipelines of the study: the demo's, each with one thing changed.

All variants of a seed share a store, so what they have in common (the base model above all) is made once.
"""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "pipelines/demo"

# Words that the model of the study's world knows and that apply to nothing in it.
NOTHING = ("noisy", "salty", "blurry", "dusty", "formal")
ROUNDS = (0, 1, 2, 3, 4)
# The KL divergence from the SL model, in nats a response, under which the policy of `rl` is kept.
KL_TARGET = 12.0
# The demo learns from four rounds of revisions and as many answers as one has, once.
EPOCHS_OF_ONE_ROUND = 5 / 2
# Batches of RL in which the critic learns alone.
WARMUP = 10
SAMPLED = {"temperature": 1.0, "max_tokens": 40}


def module(path):
    """A Python file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def load_world():
    """The demo's world, in which there also are words that apply to nothing."""
    world = module(DEMO / "make_world.py")
    world.CONCEPTS |= dict.fromkeys(NOTHING, ())
    return world


def write_world(world, folder, scale):
    """Writes the files of the world once; `scale` makes all of them smaller."""
    if (folder / "done").exists():
        return
    for name in dir(world):
        if name.endswith(("_ROWS", "_ROWS_PER_TOPIC")):
            setattr(world, name, max(4, int(getattr(world, name) * scale)))
    sys.argv = ["make_world.py", str(folder)]
    world.main()
    written = yaml.safe_load((DEMO / "constitution.yaml").read_text(encoding="utf-8"))
    (folder / "constitution.json").write_text(json.dumps(written), encoding="utf-8")
    named = list(world.CONCEPTS)[: len(written["principles"])]
    for principle, old, new in zip(written["principles"], named, NOTHING, strict=True):
        for key in ("critique", "revise", "judge"):
            assert old in principle[key], f"{principle['id']} is about {old}"
            principle[key] = principle[key].replace(old, new)
    (folder / "constitution_of_nothing.json").write_text(json.dumps(written), encoding="utf-8")
    (folder / "done").touch()


def covered(world):
    """The topics that the demo's constitution names, each with the number of principles that do."""
    written = yaml.safe_load((DEMO / "constitution.yaml").read_text(encoding="utf-8"))
    counts = {topic.name: 0 for topic in world.TOPICS}
    for principle in written["principles"]:
        words = {word.strip(".?") for word in principle["critique"].split()}
        for concept, topics in world.CONCEPTS.items():
            if concept in words:
                for topic in topics:
                    counts[topic] += 1
    return counts, len(written["principles"])


class Variants:
    """Makes the pipeline of each variant of a seed."""

    def __init__(self, seed, world, folder, scale):
        self.seed, self.world, self.folder = seed, world, folder
        self.demo = yaml.safe_load((DEMO.parent / "demo.yaml").read_text(encoding="utf-8"))["nodes"]
        self.batch = max(16, int(128 * min(1.0, scale * 4)))
        self.episodes = max(4, int(40 * scale)) * self.batch

    def names(self):
        """All variants, in the order in which they can be run: some read what an earlier one made."""
        rounds = [f"rounds_{n}" for n in ROUNDS]
        rl = ["one_round", "nothing", "red_team_alone", "raw", "permuted", "permuted_raw", "judged"]
        return ["main", *rounds, *rl, "soft", "hard"]

    def pipeline(self, name):
        """A variant as a pipeline file."""
        kind, _, number = name.partition("_")
        nodes = self.rounds(int(number)) if kind == "rounds" else getattr(self, name)()
        constitution = "constitution_of_nothing" if name == "nothing" else "constitution"
        return {
            "name": name,
            "seed": self.seed,
            "constitution": str(self.world / f"{constitution}.json"),
            "nodes": nodes,
        }

    def node(self, name):
        """A node of the demo, with the file it reads."""
        node = copy.deepcopy(self.demo[name])
        if "read" in node:
            node["read"]["path"] = str(self.world / Path(node["read"]["path"]).name)
        return node

    def nodes(self, *names):
        return {name: self.node(name) for name in names}

    def base(self):
        return self.nodes("skills", "judgements", "red_team", "helpful", "test", "base")

    def sl_stage(self):
        return self.base() | self.nodes("drafts", "revisions", "answers", "sl_data", "sl")

    def compared(self, sl_stage=None):
        """Comparisons, each prompt's in one half or the other."""
        halves = {"a": 0.5, "b": 0.5}
        return (sl_stage or self.sl_stage()) | self.nodes("helpful_pairs", "pairs", "preferences") | {
            "half": {"split": {"from": "preferences", "parts": halves}},
            "helpful_half": {"split": {"from": "helpful_pairs", "parts": halves}},
        }

    def pm(self, *sources):
        node = self.node("pm")
        node["train-pm"]["from"] = [{"rows": rows} for rows in sources]
        # The scale is that of answers of the SL model, as the policy gives them.
        node["train-pm"]["scale_on"] = [sources[0]]
        return node

    def rl(self, **changed):
        node = self.node("rl")
        node["ppo-update"] |= {
            "batch_size": self.batch,
            "total_episodes": self.episodes,
            "logging_steps": 1,
            "critic_warmup": WARMUP,
            "keep": {"below_kl": KL_TARGET},
        } | changed
        return node

    def report(self, *models):
        """What models answer to the requests held out."""
        tests = {f"test_{model}": {"sample": {"from": "test", "model": model} | SAMPLED} for model in models}
        report = self.node("report")
        report["evaluate"]["from"] = list(tests)
        return tests | {"report": report}

    def looked_on(self):
        """RL against a preference model on half of the comparisons, with one on the other half that only looks on."""
        return {
            "pm": self.pm("half.a", "helpful_half.a"),
            "pm_b": self.pm("half.b", "helpful_half.b"),
            "rl": self.rl(test_reward="pm_b"),
        }

    def main(self):
        """Both stages."""
        return self.compared() | self.looked_on() | self.report("base", "sl", "rl")

    def one_round(self):
        """Both stages with one round of revisions: SL leaves RL more to do."""
        return self.compared(self.stage_of(1)) | self.looked_on() | self.report("sl", "rl")

    def rounds(self, n):
        """SL on the last of `n` rounds of revision; of 0, on the drafts."""
        return self.stage_of(n) | self.report("sl")

    def stage_of(self, n):
        """The SL stage on the rows of one round, for as many steps as the demo's takes on those of all four."""
        nodes = self.base() | self.nodes("drafts", "answers", "sl")
        nodes["sl"]["train-sl"]["epochs"] = EPOCHS_OF_ONE_ROUND
        rows = {"rows": "drafts"}
        if n > 0:
            nodes["revisions"] = self.node("revisions")
            nodes["revisions"]["repeat"]["times"] = n
            rows = {"rows": "revisions", "rounds": "last"}
        nodes["sl_data"] = {"mix": {"from": [rows, {"rows": "answers"}]}}
        return nodes

    def nothing(self):
        """Both stages under a constitution that names no topic of the world."""
        return self.compared() | {
            "pm": self.pm("half.a", "helpful_half.a"),
            "rl": self.rl(),
        } | self.report("sl", "rl")

    def red_team_alone(self):
        """RL on red-team prompts alone."""
        return self.compared() | {
            "pm": self.pm("half.a", "helpful_half.a"),
            "rl": self.rl(prompts=[{"rows": "red_team"}]),
        } | self.report("rl")

    def raw(self):
        """RL against the preference model's scores as they are, in logits."""
        return self.compared() | {
            "pm": self.pm("half.a", "helpful_half.a"),
            "rl": self.rl(normalize_reward=False),
        } | self.report("rl")

    def permuted(self, **changed):
        """RL against a preference model whose labels were shuffled among the comparisons."""
        read = lambda name: {"read": {"path": str(self.folder / f"{name}.jsonl"), "relation": "comparisons"}}
        return self.sl_stage() | {
            "preferences": read("permuted"),
            "helpful_pairs": read("permuted_helpful"),
            "pm": self.pm("preferences", "helpful_pairs"),
            "rl": self.rl(**changed),
        } | self.report("rl")

    def permuted_raw(self):
        """The same with its scores as they are."""
        return self.permuted(normalize_reward=False)

    def judged(self):
        """RL by the judge itself, without a preference model."""
        nodes = self.sl_stage() | {"rl": self.rl(reward={"judge": {"model": "base"}}, algorithm="rloo", num_generations=4)}
        del nodes["rl"]["ppo-update"]["critic_warmup"]
        return nodes | self.report("rl")

    def soft(self):
        """A preference model on all comparisons, with the judge's probabilities."""
        nodes = self.sl_stage() | self.nodes("helpful_pairs", "pairs", "preferences")
        return nodes | {"pm": self.pm("preferences", "helpful_pairs")}

    def hard(self):
        """The same with the likelier label alone."""
        nodes = self.soft()
        nodes["preferences"]["pairwise-judge"]["labels"] = "hard"
        return nodes
