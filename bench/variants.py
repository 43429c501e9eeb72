"""Every preference algorithm on the toy world: exact match over SFT on unseen problems, several seeds, one table.

usage: python bench/variants.py --out DIR [--seeds 3] [--jobs 2] [--only NAME ...] [--problems 3000] [--tested 500]
       python bench/variants.py cell --out DIR --name NAME --seed SEED ...       (one training run; the parent calls it)

The embedded base model, which can work problems out in steps, is fine-tuned on 600 demonstrations, 70 % of which give
the answer alone, so that its likeliest answer is a guess. That model answers `--problems` training problems eight times
each at temperature 1; exact match says which answers are right. From these come K-way lists (for the reward model,
which also sees the answers to `--more-problems`), pairs of a right and a wrong answer, and unpaired labels. Every
algorithm starts from the same SFT model and sees the same problems; a seed decides which pairs are drawn, the order,
and nothing else. What is compared is exact match on
`--tested` problems of the test split, whose chains of operations occur in no training problem: of the likeliest answer,
and of one drawn at temperature 1.
What is done already is not done again: delete a file in DIR/cells to repeat it. `DIR/table.md` holds the table, which
says what failed; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

DEMONSTRATIONS, TERSE = 600, 0.7  # so the likeliest answer skips the steps, which costs it most of its accuracy
SAMPLES, TEMPERATURE, MAX_TOKENS, PAIRS_A_PROMPT = 8, 1.0, 160, 3
COMMON = [
    "--samples-per-step",
    "32",
    "--on-bad-row",
    "skip",
    "--warmup",
    "0.1",
    "--save-every",
    "100000",
    "--keep",
    "1",
]

# name: command, data file, flags. All train at one rate, 1e-4 (RATES): a few rates were tried on seeds 100 to 105 with
# DPO, SimPO and KTO, and the others take theirs untried. The reward model's rate is 3e-4.
CELLS: dict[str, tuple[str, str, list[str]]] = {
    "dpo": ("dpo", "pairs", []),
    "dpo, length-normalised": ("dpo", "pairs", ["--variant", "sigmoid_norm", "--beta", "5"]),
    "cDPO (smoothing 0.1)": ("dpo", "pairs", ["--label-smoothing", "0.1"]),
    "robust (smoothing 0.1)": ("dpo", "pairs", ["--variant", "robust", "--label-smoothing", "0.1"]),
    "ipo": ("dpo", "pairs", ["--variant", "ipo", "--no-ipo-average"]),
    "hinge": ("dpo", "pairs", ["--variant", "hinge"]),
    "apo_zero": ("dpo", "pairs", ["--variant", "apo_zero"]),
    "apo_down": ("dpo", "pairs", ["--variant", "apo_down"]),
    "RPO (dpo + sft 1.0)": ("dpo", "pairs", ["--sft-coef", "1.0"]),
    "LD-DPO (alpha 0.5)": ("dpo", "pairs", ["--ld-alpha", "0.5"]),
    "TR-DPO (0.6 every 16)": ("dpo", "pairs", ["--sync-every", "16", "--sync-alpha", "0.6"]),
    "f-DPO, JS": ("dpo", "pairs", ["--f-divergence", "js"]),
    "f-DPO, alpha 0.5": ("dpo", "pairs", ["--f-divergence", "alpha", "--divergence-alpha", "0.5"]),
    "Plackett-Luce, K-way": ("dpo", "lists", ["--variant", "plackett_luce"]),
    "dpo + hinge": ("dpo", "pairs", ["--variant", "sigmoid=0.5", "hinge=0.5"]),
    "simpo": ("simpo", "pairs", []),
    "orpo": ("orpo", "pairs", []),
    "cpo": ("cpo", "pairs", []),
    "kto": ("kto", "labels", []),
    "bco": ("bco", "labels", []),
}
SWEEPS = {f"dpo, beta {beta:g}": ("dpo", "pairs", ["--beta", f"{beta:g}"]) for beta in (0.01, 0.03, 0.3, 1.0)} | {
    f"simpo, gamma {gamma:g}": ("simpo", "pairs", ["--gamma", f"{gamma:g}"]) for gamma in (0.0, 0.4, 1.6, 3.2)
}
RATES = {"dpo": "1e-4", "simpo": "1e-4", "orpo": "1e-4", "cpo": "1e-4", "kto": "1e-4", "bco": "1e-4"}


# ------------------------------------------------------------------------------------------------------- preparation


def fine_tune(out: Path) -> Path:
    """The SFT model: two epochs over demonstrations most of which give the answer alone."""
    if not (out / "sft" / "model").is_dir():
        from espalier.commands import main as cli
        from espalier.toy import problems

        data, rng = out / "demonstrations.jsonl", Random(0)
        with data.open("w", encoding="utf8") as file:
            for p in problems(DEMONSTRATIONS, seed=0):
                answer = f"#### {p.answer}" if rng.random() < TERSE else p.solution
                said = [{"role": "user", "content": p.question}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": said}) + "\n")
        base = str(resources.files("espalier").joinpath("embedded", "model"))
        argv = ["sft", "--model", base, "--template", "plain", "--data", str(data), "--out", str(out / "sft")]
        argv += ["--epochs", "2", "--samples-per-step", "16", "--lr", "1e-3", "--weight-decay", "0.01"]
        if code := cli.main([*argv, "--cache", str(out / "cache"), "--overwrite"]):
            raise SystemExit(f"sft: exit code {code}")
    return out / "sft" / "model"


def answered(model: Path, questions: list[Any], n: int, temperature: float, seed: int = 0) -> list[list[str]]:
    """`n` answers to each problem, as text."""
    from espalier.assembly.answer import Chatter
    from espalier.assembly.sampling import draw_groups
    from espalier.config.sections import ModelConfig
    from espalier.engines.protocols import SamplingParams
    from espalier.types import Message

    chatter = Chatter.load(ModelConfig(model=str(model)))
    prompts = [chatter.renderer.prompt([Message("user", p.question)]) for p in questions]
    stop = tuple(chatter.renderer.stop_ids)
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=temperature, stop=stop, seed=seed)
    return [
        [str(chatter.tokenizer.decode(s.tokens[len(ids) :], skip_special_tokens=True)) for s in group]
        for ids, group in zip(prompts, draw_groups(chatter.sampler, prompts, n, params), strict=True)
    ]


def sample(model: Path, path: Path, first: int, last: int) -> None:
    """Graded answers of the SFT model to problems `first` to `last`: one line a problem."""
    if not path.exists():
        from espalier.toy import exact_match, problems

        found = problems(last, seed=77)[first:]
        began = time.monotonic()
        said = answered(model, found, SAMPLES, TEMPERATURE)
        lines = [
            json.dumps({"question": p.question, "answers": texts, "right": [exact_match(t, p) for t in texts]})
            for p, texts in zip(found, said, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf8")
        print(f"{len(found) * SAMPLES:,} answers in {time.monotonic() - began:.0f} s", flush=True)


def rows(answers: Path, kind: str, seed: int, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """Data rows of one kind; every eighth problem is held out."""
    for number, line in enumerate(answers.read_text(encoding="utf8").splitlines()):
        if (number % 8 == 7) != held_out:
            continue
        item = json.loads(line)
        graded = dict(zip(item["answers"], item["right"], strict=True))  # equal texts once
        good = [t for t, right in graded.items() if right and t.strip()]
        bad = [t for t, right in graded.items() if not right and t.strip()]
        if not good or not bad:
            continue
        rng = Random(f"{seed}/{number}")
        if kind == "lists":
            both = [*good, *bad]
            yield {"prompt": item["question"], "responses": both, "scores": [float(graded[t]) for t in both]}
            continue
        rng.shuffle(good)
        rng.shuffle(bad)
        for one, other in list(zip(good, bad, strict=False))[:PAIRS_A_PROMPT]:
            if kind == "pairs":
                yield {"prompt": item["question"], "chosen": one, "rejected": other}
            else:
                yield {"prompt": item["question"], "completion": one, "label": True}
                yield {"prompt": item["question"], "completion": other, "label": False}


def write(answers: Path, kind: str, seed: int, held_out: bool = False) -> Path:
    path = answers.parent / f"{answers.stem}-{kind}-{seed}{'-held-out' if held_out else ''}.jsonl"
    if not path.exists():
        lines = [json.dumps(row) for row in rows(answers, kind, seed, held_out)]
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text("\n".join(lines) + "\n", encoding="utf8")
        beside.rename(path)
    return path


# ------------------------------------------------------------------------------------------------------------- cells


def train(out: Path, name: str, seed: int, command: str, data: list[Path], flags: list[str]) -> Path:
    from espalier.commands import main as cli

    run = out / "runs" / f"{name}-{seed}".replace(" ", "_").replace(",", "")
    argv = [command, "--model", str(out / "sft" / "model"), "--data", *map(str, data), "--out", str(run)]
    argv += ["--seed", str(seed)]
    code = cli.main([*argv, "--cache", str(out / "cache"), "--overwrite", *COMMON, *flags])
    if code:
        raise SystemExit(f"{name}: exit code {code}")
    return run


def cell(out: Path, name: str, seed: int, tested: int, more: list[str]) -> dict[str, float]:
    """Train and test one algorithm; the result is kept in a file."""
    command, kind, flags = ({**CELLS, **SWEEPS})[name]
    began = time.monotonic()
    data = write(out / "answers.jsonl", kind, seed)
    run = train(out, name, seed, command, [data], ["--lr", RATES[command], *flags, *more])
    seconds = time.monotonic() - began
    return {**tested_on(run / "model", tested), "seconds": seconds, **last(run)}


def tested_on(model: Path, tested: int) -> dict[str, float]:
    """Exact match on unseen problems: of the likeliest answer, and of one drawn at temperature 1, which is what the
    losses raise."""
    from espalier.toy import exact_match, problems

    unseen = problems(tested, seed=0, split="test")
    found = {}
    for name, temperature in (("accuracy", 0.0), ("sampled", 1.0)):
        said = answered(model, unseen, 1, temperature)
        found[name] = sum(exact_match(texts[0], p) for p, texts in zip(unseen, said, strict=True)) / tested
    return found


def last(run: Path) -> dict[str, float]:
    """Margin and reward accuracy at the end: means over the last tenth of the steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    tail = steps[-max(1, len(steps) // 10) :]
    names = ("margin", "logprobs_chosen", "logprobs_rejected")
    return {n: statistics.fmean(float(line[n]) for line in tail) for n in names if all(n in line for line in tail)}


def reward(out: Path, seed: int, more: list[str]) -> dict[str, float]:
    """A reward model on K-way lists, judged on held-out problems."""
    answers = (out / "answers.jsonl", out / "more.jsonl")
    data, held = ([write(path, "lists", seed, side) for path in answers] for side in (False, True))
    flags = ["--eval-data", *map(str, held), "--lr", "3e-4", "--epochs", "4", *more]
    run = train(out, "reward", seed, "reward", data, flags)
    found = json.loads((run / "workbench.json").read_text())
    return {"accuracy": found["accuracy"]["all"]["value"], "ece": found["calibration"]["ece"]}


def do(out: Path, name: str, seed: int, tested: int, more: list[str]) -> None:
    path = out / "cells" / f"{name.replace(' ', '_')}-{seed}.json"
    if path.exists():
        return
    if name == "sft":
        found = tested_on(out / "sft" / "model", tested)
    else:
        found = reward(out, seed, more) if name == "reward" else cell(out, name, seed, tested, more)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf8")


# ------------------------------------------------------------------------------------------------------------- table


def result(out: Path, name: str, seed: int) -> dict[str, float] | None:
    path = out / "cells" / f"{name.replace(' ', '_')}-{seed}.json"
    return json.loads(path.read_text()) if path.exists() else None


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t: from tables to 10 degrees of freedom, beyond them the expansion in 1 / freedom
    (Abramowitz and Stegun 26.7.5), which is right to 0.0005 there."""
    known = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    if freedom <= len(known):
        return known[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean, by Student's t over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def short(found: list[dict[str, float]], seeds: int) -> str:
    """What a row says of seeds without a result."""
    return f" ({seeds - len(found)} of {seeds} failed)" if len(found) < seeds else ""


def table(out: Path, names: list[str], seeds: int, tested: int) -> str:
    base = result(out, "sft", 0)
    start, drawn = (base["accuracy"], base["sampled"]) if base else (math.nan, math.nan)
    lines = [
        f"Exact match (%) on {tested} unseen problems, {seeds} seeds, mean and 95 % interval over seeds (t). SFT "
        f"starts at {100 * start:.1f} greedy and {100 * drawn:.1f} drawn at temperature 1.", "",
        "| algorithm | greedy | over SFT | drawn | over SFT | margin | log p chosen | log p rejected | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in names:
        found = [r for s in range(seeds) if (r := result(out, name, s))]
        if name == "reward":
            continue
        if not found:
            lines.append(f"| {name} | failed |" + " |" * 7)
            continue
        values, sampled = [r["accuracy"] for r in found], [r["sampled"] for r in found]

        def mean(key: str, found: list[dict[str, float]] = found) -> str:
            return f"{statistics.fmean(r[key] for r in found):.2f}" if all(key in r for r in found) else ""

        lines.append(
            f"| {name}{short(found, seeds)} | {interval(values)} | {100 * (statistics.fmean(values) - start):+.1f} | "
            f"{interval(sampled)} | {100 * (statistics.fmean(sampled) - drawn):+.1f} | {mean('margin')} | "
            f"{mean('logprobs_chosen')} | {mean('logprobs_rejected')} | {mean('seconds')} |"
        )
    judged = [r for s in range(seeds) if (r := result(out, "reward", s))]
    if "reward" in names and not judged:
        lines += ["", "Reward model on held-out lists: failed."]
    elif judged:
        accuracies, errors = [r["accuracy"] for r in judged], ", ".join(f"{r['ece']:.3f}" for r in judged)
        which = f"Reward model on held-out lists{short(judged, seeds)}"
        lines += ["", f"{which}: pair accuracy {interval(accuracies)} %, ECE {errors}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "cell"))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--problems", type=int, default=3000)
    parser.add_argument("--more-problems", type=int, default=6000, help="which the reward model alone sees")
    parser.add_argument("--tested", type=int, default=500)
    parser.add_argument("--name")
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()  # what is left goes to every training command
    out: Path = options.out
    if options.what == "cell":
        do(out, options.name, options.seed, options.tested, more)
        return
    out.mkdir(parents=True, exist_ok=True)
    model = fine_tune(out)
    sample(model, out / "answers.jsonl", 0, options.problems)
    sample(model, out / "more.jsonl", options.problems, options.problems + options.more_problems)
    names = [n for n in ("reward", *CELLS, *SWEEPS) if not options.only or n in options.only]
    wanted = [("sft", 0), *((name, seed) for seed in range(options.seeds) for name in names)]

    def one(job: tuple[str, int]) -> None:
        name, seed = job
        if result(out, name, seed):
            return
        command = [sys.executable, __file__, "cell", "--out", str(out), "--name", name, "--seed", str(seed)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command += ["--tested", str(options.tested), *more]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3600)
            said = f"{done.stdout[-300:]}{done.stderr[-1500:]}"
        except subprocess.TimeoutExpired as error:  # its cell is then missing, and the others go on
            said = str(error)
        found = result(out, name, seed)
        print(f"{name}, seed {seed}: {found if found else f'FAILED {said}'}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, wanted))
    text = table(out, names, options.seeds, options.tested)
    (out / "table.md").write_text(text, encoding="utf8")
    print(text)
    if failed := [f"{name}, seed {seed}" for name, seed in wanted if not result(out, name, seed)]:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
