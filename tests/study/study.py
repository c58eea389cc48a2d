#!/usr/bin/env python3
"""The study: is learning seen, and only where it should be? Variants of the demo, by the binary, over several seeds.

    study.py AMEND [--seeds 1,2,3] [--more-seeds 4,5] [--variants main,hard] [--home DIR] [--scale 1.0] [--page]

Runs what is not yet done (each finished variant is kept under --home, default ~/.cache/amend/study) and writes
docs/study.md with its plots from all that is there. `--scale 0.05` tries the script on a world too small to learn from,
in a home of its own. `--page` runs nothing and only writes the page. The seeds of --more-seeds run `soft` and
`hard` alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import measure  # noqa: E402
import page  # noqa: E402
from variants import ROOT, Variants, covered, load_world, write_world  # noqa: E402


def main():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "amend/study"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("amend", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--more-seeds", default="4,5")
    parser.add_argument("--variants", help="all that there are, if not said")
    parser.add_argument("--home", type=Path, default=cache)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    world = load_world()
    counts, principles = covered(world)
    facts = Facts(world, counts, principles)
    if not args.page:
        write_world(world, args.home / "world", args.scale)
        for seed in numbers(args.seeds):
            run_seed(args, facts, seed, args.variants.split(",") if args.variants else None)
        for seed in numbers(args.more_seeds):
            wanted = {"soft", "hard"}
            run_seed(args, facts, seed, wanted & set(args.variants.split(",")) if args.variants else wanted)
    # A world too small to learn from is no result: its page stays beside it.
    docs = ROOT / "docs" if args.scale == 1.0 else args.home / "docs"
    page.write(args.home / "results", docs)
    print(f"{docs}/study.md")


def numbers(text):
    return [int(number) for number in text.split(",") if number]


class Facts:
    """What the world knows of its topics."""

    def __init__(self, world, counts, principles):
        self.groups = {
            topic.name: "benign" if "benign" in topic.tags else "covered" if counts[topic.name] else "uncovered"
            for topic in world.TOPICS
        }
        # A principle that applies prefers the refusal, another is indifferent; of benign requests one person in
        # five prefers it.
        self.known = {
            topic: 0.2 if self.groups[topic] == "benign" else 0.5 + 0.5 * counts[topic] / principles for topic in counts
        }


def run_seed(args, facts, seed, wanted):
    folder = args.home / f"seed-{seed}"
    results = args.home / "results" / f"seed-{seed}"
    for each in (folder, results):
        each.mkdir(parents=True, exist_ok=True)
    variants = Variants(seed, args.home / "world", folder, args.scale)
    for name in variants.names():
        if (wanted is not None and name not in wanted) or (results / f"{name}.json").exists():
            continue
        if name.startswith("permuted"):
            measure.write_permuted(folder / ".amend/main", args.home / "world", folder, seed)
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps(variants.pipeline(name), indent=1), encoding="utf-8")
        began = time.time()
        run(args.amend, file, folder / ".amend")
        result = measured(name, folder / ".amend" / name, args.home / "world", facts)
        result["seconds"] = round(time.time() - began)
        aside = results / f"{name}.json.new"
        aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
        aside.rename(results / f"{name}.json")
        print(f"seed {seed}: {name} in {result['seconds']} s", flush=True)


def run(amend, file, store):
    code = subprocess.run([amend, "run", file, "--store", store, "-q"]).returncode
    # 3 is "done, with rejects": of some prompts both answers are the same, which is no pair to judge.
    if code not in (0, 3):
        sys.exit(f"amend run {file} --store {store}: exit code {code}")


def measured(name, home, world, facts):
    if name in ("soft", "hard"):
        return {"ece": measure.calibration(home, world, facts.known)}
    result = {"shares": measure.shares(home, facts.groups)}
    if name in ("raw", "permuted", "permuted_raw"):
        result["pm_std"] = measure.pm_scale(home)
    if name in ("main", "one_round"):
        result |= {"curve": measure.curve(home, facts.groups), "revised": measure.revised(home, facts.groups)}
    return result


if __name__ == "__main__":
    main()
