"""The peers' task, measured: 2,000 prompts, sample, critique, revise, 6,000 calls to the fake endpoint of `shared/peers`.

    peers.py AMEND [FAKE_OPENAI.py]      # AMEND: the binary; the endpoint is by default ../shared/peers/fake_openai.py

Prints a table with a row a property: what was measured, and the ideal or the limit beside it. Counts are of the
server's; CPU is user + system of the process. Everything runs in a folder of its own, over loopback. The peers'
figures are in the README.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CALLS = 6_000
IN_FLIGHT = 64
BEFORE, AFTER = "- id: p03", "edited, "


def main():
    amend = Path(sys.argv[1]).resolve()
    server = Path(sys.argv[2] if len(sys.argv) > 2 else PROJECT.parent / "shared/peers/fake_openai.py")
    assert server.exists(), f"{server} is not there: name the fake endpoint"
    print(f"{'property':34} {'measured':>28} {'ideal or limit':>22}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(amend, server, Path(folder))
        with bench.serving():
            cold(bench)
            unchanged(bench)
            edited(bench)
            killed(bench)
            refused(bench)
        with bench.serving("latency_ms=100"):
            slow(bench)
        with bench.serving("latency_ms=50", "cap=8"):
            limited(bench)


def cold(bench):
    runs = []
    for _ in range(3):
        bench.empty()
        runs.append(bench.run())
    assert all(run.report["calls"]["made"] == CALLS for run in runs)
    best = min(runs, key=lambda run: run.cpu)
    show("cold: client CPU per call, best of 3", f"{1e3 * best.cpu / CALLS:.3f} ms", "at most 0.300 ms")
    show("cold: wall time", f"{min(run.wall for run in runs):.2f} s", f"server's CPU {bench.stats()['cpu']:.0f} s in all")


def unchanged(bench):
    runs = [bench.run() for _ in range(5)]
    assert all(run.report["calls"]["made"] == 0 for run in runs)
    show("nothing changed: wall, best of 5", f"{min(run.wall for run in runs):.3f} s", "under 0.300 s")


def edited(bench):
    """One word more in one of the 16 principles."""
    file = bench.folder / "constitutions/peers.yaml"
    text = file.read_text()
    at = text.index("critique:", text.index(BEFORE)) + len("critique:")
    quote = text[at:].lstrip()[0]
    assert quote in "'\"" or quote.isalpha(), text[at : at + 20]
    place = at + 1 + (quote in "'\"")
    file.write_text(text[:place] + AFTER + text[place:])
    plan = json.loads(bench.amend("plan", "-o", "json").stdout)
    foretold = {node["name"]: node["calls"] for node in plan["nodes"]}
    run = bench.run()
    made = {node["name"]: node["calls"]["made"] for node in run.report["nodes"]}
    assert foretold["critiques"]["exact"] and foretold["critiques"]["to_make"] == made["critiques"]
    assert foretold["revisions"]["to_make"] == made["revisions"], (foretold, made)
    said = f"{made['critiques']} exactly + up to {foretold['revisions']['to_make']}"
    show("1 of 16 principles edited: calls", f"{run.report['calls']['made']}", f"plan: {said}")
    file.write_text(text)
    again = bench.run()
    show("reverted: calls", f"{again.report['calls']['made']}", "0")


def killed(bench):
    undisturbed = bench.digest
    bench.empty()
    process = bench.begin()
    while bench.stats()["S"].get("calls", 0) < CALLS / 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    at = bench.stats()["S"]["calls"]
    run = bench.run()
    assert run.report["digest"] == undisturbed, "the tables are those of an undisturbed run"
    show(f"kill -9 after {at:,} calls: repeated", f"{bench.stats()['repeats']}", f"at most {IN_FLIGHT}")


def refused(bench):
    bench.empty()
    bench.config(err400_every=100)
    run = bench.run(code=3)
    bench.config(err400_every=0)
    rejects = sum(node["rejects"] for node in run.report["nodes"])
    rows = run.report["nodes"][-1]["rows"]
    assert rows + rejects == 2_000, (rows, rejects)
    show("1 % refused for good: good rows", f"{rows:,} of 2,000", f"{rejects} rejects, exit 3")


def slow(bench):
    bench.empty()
    bench.run()
    ideal = CALLS * 0.1 / IN_FLIGHT
    span = bench.stats()["span"]
    show("100 ms, 64 in flight: span", f"{span:.2f} s = {span / ideal:.3f} × ideal", f"at most {1.15 * ideal:.2f} s")


def limited(bench):
    bench.empty()
    bench.run()
    stats, ideal = bench.stats(), CALLS * 0.05 / 8
    wasted = stats["S"].get("s429", 0)
    show("8 slots, 429 above: calls wasted", f"{wasted} of {CALLS:,}", "0")
    show("8 slots, 50 ms: span", f"{stats['span']:.1f} s = {stats['span'] / ideal:.2f} × ideal", f"{ideal:.1f} s")


def show(what, measured, limit):
    print(f"{what:34} {measured:>28} {limit:>22}", flush=True)


class Run:
    """A run that ended: its report, its wall time and its CPU time in seconds."""

    def __init__(self, report, wall, cpu):
        self.report, self.wall, self.cpu = report, wall, cpu


class Bench:
    """The pipeline in a folder, and the server that it asks."""

    def __init__(self, amend, server, folder):
        self.binary, self.server, self.folder = amend, server, folder
        self.digest = None
        shutil.copytree(PROJECT / "pipelines/constitutions", folder / "constitutions")
        (folder / "data").mkdir()
        shutil.copy(PROJECT / "pipelines/data/peers.jsonl", folder / "data")
        shutil.copy(PROJECT / "pipelines/peers.yaml", folder)

    @contextlib.contextmanager
    def serving(self, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, self.server, str(self.port), os.devnull, "max_life_s=900", *options]
        server = subprocess.Popen(command)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    self.stats()
                    break
                time.sleep(0.05)
            yield
        finally:
            server.kill()
            server.wait()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stats(self):
        return self.ask("stats")

    def config(self, **options):
        self.ask("config", options)

    def empty(self):
        """Forgets everything: the store's calls and the server's counts."""
        shutil.rmtree(self.folder / ".amend", ignore_errors=True)
        self.ask("reset", {})

    def command(self, verb, *options):
        return [self.binary, verb, self.folder / "peers.yaml", "-q", *options]

    def environment(self):
        return os.environ | {"OPENAI_BASE_URL": f"http://127.0.0.1:{self.port}/v1"}

    def begin(self):
        return subprocess.Popen(self.command("run", "-o", "json"), env=self.environment(), stdout=subprocess.DEVNULL)

    def amend(self, verb, *options, code=0):
        done = subprocess.run(self.command(verb, *options), env=self.environment(), capture_output=True, text=True)
        assert done.returncode == code, (done.returncode, done.stderr)
        return done

    def run(self, code=0):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = self.amend("run", "-o", "json", code=code)
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads(done.stdout)
        if code == 0:
            self.digest = report["digest"]
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Run(report, wall, cpu)


if __name__ == "__main__":
    main()
