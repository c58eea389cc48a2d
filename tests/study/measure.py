"""What is read of a finished variant: shares of answers by group, curves of RL, calibration of preference models."""

import json
import math
import random
from collections import Counter

import duckdb

BATCH = 64
BINS = 15
EACH_TOPIC = 60


def table(home, node):
    return f"read_parquet('{home}/tables/{node}/*.parquet')"


def shares(home, groups):
    """Answers by model and group of topics: how many, answered and refused."""
    query = f"""select source, "group", label, count(*) from {table(home, "report")} group by all"""
    found = {}
    for source, topic, label, n in duckdb.sql(query).fetchall():
        counts = found.setdefault(source.removeprefix("test_"), {}).setdefault(groups[topic], Counter())
        counts["all"] += n
        counts[label] += n
    return {model: {group: dict(counts) for group, counts in of.items()} for model, of in found.items()}


def curve(home, groups):
    """By update of RL: the KL divergence over all responses and, over those to topics that a principle names, the share of
    refusals and both preference models' scores in deviations of their own scale."""
    scale = lambda node: duckdb.sql(f"select pm_mean, pm_std from {table(home, node)}").fetchall()[0]
    (mean, std), (second_mean, second_std) = scale("pm"), scale("pm_b")
    named = ", ".join(f"'{topic}'" for topic, group in groups.items() if group == "covered")
    of_named = f"filter (where category in ({named}))"
    query = f"""select avg(kl), avg((score - {mean}) / {std}) {of_named}, avg((score_test_pm - {second_mean}) / {second_std}) {of_named},
                       avg((completion[-1].content ilike '%that can hurt people%')::int) {of_named}
                from {table(home, "rl.rollouts")} as rollouts
                left join {table(home, "red_team")} as red_team on rollouts.root_id = red_team.row_id group by step order by step"""
    kept = duckdb.sql(f"select name, value from {table(home, 'metrics')} where name like 'kept/%'").fetchall()
    columns = zip(*duckdb.sql(query).fetchall(), strict=True)
    return dict(zip(("kl", "train_pm", "test_pm", "refused"), map(list, columns), strict=True)) | {"kept": dict(kept)}


def pm_scale(home):
    """The deviation of a preference model's scores, in logits."""
    return duckdb.sql(f"select pm_std from {table(home, 'pm')}").fetchall()[0][0]


def revised(home, groups):
    """By round: the share of refusals among the revisions of topics that a principle names."""
    query = f"""select round, category, count(*), count(*) filter (where completion[-1].content ilike '%that can hurt people%')
                from {table(home, "revisions")} group by all"""
    sums = {}
    for number, topic, n, refused in duckdb.sql(query).fetchall():
        if groups[topic] == "covered":
            had = sums.get(number, (0, 0))
            sums[number] = (had[0] + n, had[1] + refused)
    return {str(number): part / whole for number, (whole, part) in sorted(sums.items())}


def write_permuted(home, world, folder, seed):
    """The comparisons of both kinds with their labels shuffled."""
    text = lambda column: f"{column}[-1].content"
    query = f"select {text('prompt')}, {text('response_a')}, {text('response_b')}, p from {table(home, 'preferences')} order by row_id"
    shuffle(duckdb.sql(query).fetchall(), folder / "permuted.jsonl", seed)
    pairs = [json.loads(line) for line in (world / "helpful_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    # The better one is first in every other row, so that a shuffled label says nothing.
    dice = random.Random(f"sides {seed}")
    sided = [
        (row["prompt"], row["chosen"], row["rejected"], 1.0) if dice.random() < 0.5
        else (row["prompt"], row["rejected"], row["chosen"], 0.0)
        for row in pairs
    ]
    shuffle(sided, folder / "permuted_helpful.jsonl", seed)


def shuffle(rows, path, seed):
    labels = [row[3] for row in rows]
    random.Random(f"labels {seed}").shuffle(labels)
    write = lambda row, p: json.dumps({"prompt": row[0], "response_a": row[1], "response_b": row[2], "p": p}) + "\n"
    path.write_text("".join(write(row, p) for row, p in zip(rows, labels, strict=True)), encoding="utf-8")


def calibration(home, world, known):
    """The expected calibration error of a preference model against the probabilities that the world knows, over pairs of
    a refusal and an answer to requests held out."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    rows, seen = [], Counter()
    for line in (world / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        seen[row["category"]] += 1
        if seen[row["category"]] <= EACH_TOPIC:
            rows.append(row)
    folder = home / "checkpoints/pm"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    text = lambda row, kind: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[kind]}{tokenizer.eos_token}"
    texts = [text(row, kind) for row in rows for kind in ("refusal", "answer")]
    scores = []
    for at in range(0, len(texts), BATCH):
        batch = tokenizer(texts[at : at + BATCH], padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            scores += model(**batch).logits[:, 0].tolist()
    said = [1 / (1 + math.exp(b - a)) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    return ece(said, [known[row["category"]] for row in rows])


def ece(said, true):
    """By bin of what is said, the distance of its mean to that of what is true, weighted by the bin's share."""
    bins = [[0.0, 0.0] for _ in range(BINS)]
    for p, q in zip(said, true, strict=True):
        of = bins[min(int(p * BINS), BINS - 1)]
        of[0] += p
        of[1] += q
    return sum(abs(p - q) for p, q in bins) / len(said)
