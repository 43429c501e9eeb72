"""Algorithms that learn from their own answers, on the toy world: exact match on unseen problems, several seeds.

usage: python bench/rollouts.py --out DIR [--seeds 3] [--first-seed 0] [--steps 200] [--jobs 2] [--only NAME ...]
       [--start guess|works] [--tested 500] [--largest 99]

`guess` starts from the SFT model of `bench/variants.py`, which mostly guesses; `works` from the quickstart's model,
which works sums out (made by `espalier quickstart --out DIR/quickstart` if it is not there). Every run draws 8 answers
to each of 32 problems a step, in whose steps no number is above `--largest`, and grades them by the reward `numeric`; a
seed decides draws and order. Tested are `--tested` problems whose chains of operations occur in no training problem,
greedy every 25 steps (the learning curve, from metrics.jsonl) and greedy and drawn at temperature 1 at the end;
differences to the start are paired by problem. Runs that stopped are resumed, finished ones are not done again: delete
DIR/START-NAME-SEED to repeat one. One thread a run, `--jobs` at a time; seconds are wall time of the steps, evaluations
aside. `DIR/START.md` holds the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import variants

MAX_TOKENS, EVERY = 96, 25
# Numbers to 300 are the limit of what 1.3 M weights compute: of the answers that are wrong after training three of four
# have the right order and a wrong sum (docs/log.md). Whether training finds the order is what is measured here.
LARGEST = 99
LOADING = threading.Lock()
RULE = ["--reward", "numeric"]
COMMON = ["--max-tokens", str(MAX_TOKENS), "--eval-every", str(EVERY), "--keep", "1"]
SHOWN = ("kl_answer", "beta", "explained_variance", "grad_norm")
"""Numbers of a run's last tenth that stand in the table, too."""
JUDGED = 3000
"""Problems whose answers by the start the reward model learns from, 8 each."""
# The rate falls to 0: at a constant 2e-4 the curve jumps by 7 points between evaluations.
RATE = ["--lr", "3e-4", "--schedule", "linear"]
# Four updates a step, so half the rate. The critic is a copy of the policy.
PPO = ["--lr", "1.5e-4", "--schedule", "linear", "--critic-lr", "1e-3", "--group-size", "8"]
# The reward model's scores take the place of the rule; held-out answers are graded by the rule, at the end.
LEARNED = ["--reward-model", "{reward}", "--critic", "{reward}"]
# name: command and flags.
CELLS: dict[str, tuple[str, list[str]]] = {
    "grpo": ("grpo", RATE),
    "dr_grpo": ("dr-grpo", RATE),
    "rloo": ("rloo", RATE),
    "dapo": ("dapo", RATE),
    "gspo": ("gspo", RATE),
    "raft": ("raft", RATE),
    "grpo, KL 0.01 in the loss": ("grpo", [*RATE, "--beta", "0.01"]),
    "grpo, KL 0.1 in the loss": ("grpo", [*RATE, "--beta", "0.1"]),
    "grpo, KL 0.01 in the reward": ("grpo", [*RATE, "--beta", "0.01", "--kl-in", "reward"]),
    "grpo, 4 updates a step": ("grpo", ["--lr", "1.5e-4", "--schedule", "linear", "--minibatches", "4"]),
    "ppo": ("ppo", PPO),
    "ppo, learned reward": ("ppo", [*PPO, *LEARNED]),
    "ppo, adaptive KL": ("ppo", [*PPO, "--kl-control", "adaptive", "--kl-target", "1", "--kl-horizon", "2000"]),
    "ppo, KL of the answer": ("ppo", [*PPO, "--kl-per", "answer"]),
    "ppo, mean KL": ("ppo", [*PPO, "--kl-per", "mean"]),
    "ppo, score spread": ("ppo", [*PPO, "--score-at", "spread"]),
    "ppo, KL in the loss": ("ppo", [*PPO, "--kl-in", "loss"]),
    "ppo, rewards to go": ("ppo", [*PPO, "--returns", "monte_carlo", "--lam", "1"]),
    "ppo, whitened rewards": ("ppo", [*PPO, "--whiten-rewards"]),
    "ppo, shared backbone": ("ppo", [*PPO[:4], "--group-size", "8", "--critic", "shared"]),
    "ppo, ptx 10 %": ("ppo", [*PPO, "--ptx-data", "{demonstrations}"]),
    "reinforce, no baseline": ("reinforce", [*RATE, "--group-size", "8", "--baseline", "none"]),
    "reinforce, moving baseline": ("reinforce", [*RATE, "--group-size", "8", "--baseline", "moving"]),
    "reinforce, batch baseline": ("reinforce", [*RATE, "--group-size", "8"]),
    "reinforce-pp": ("reinforce-pp", [*RATE, "--group-size", "8"]),
}


def seeds_of(options: argparse.Namespace) -> range:
    """`--seeds` of them, from `--first-seed` on."""
    return range(options.first_seed, options.first_seed + options.seeds)


def start_model(out: Path, start: str) -> Path:
    """The model that all runs start from."""
    if start == "guess":
        return variants.fine_tune(out)
    model = out / "quickstart" / "model"
    if not model.is_dir():
        subprocess.run([sys.executable, "-m", "espalier", "quickstart", "--out", str(out / "quickstart")], check=True)
    return model


def same_options(out: Path, options: argparse.Namespace) -> None:
    """Runs in a folder are compared, so all of them have the same number of steps and the same problems."""
    chosen = {"steps": options.steps, "tested": options.tested, "largest": options.largest}
    kept = out / "options.json"
    if not kept.exists():
        kept.write_text(json.dumps(chosen), encoding="utf8")
    if json.loads(kept.read_text()) != chosen:
        raise SystemExit(f"{out} holds runs of {kept.read_text()}, got {json.dumps(chosen)}; give another --out")


def tasks(out: Path, steps: int, tested: int, largest: int) -> tuple[Path, Path]:
    """Problems to learn from, enough for all steps, and unseen ones."""
    from espalier.toy import write_tasks

    train, test = out / f"train-{steps}-{largest}.jsonl", out / f"test-{tested}-{largest}.jsonl"
    if not train.exists():
        write_tasks(train, 32 * steps, seed=77, largest=largest)
    if not test.exists():
        write_tasks(test, tested, seed=0, split="test", largest=largest)
    return train, test


def reward_model(out: Path, model: Path, largest: int) -> Path:
    """A reward model on the start's own answers to problems of their own, right ones before wrong ones, judged on every
    eighth problem (`workbench.json` of its run)."""
    folder = out / "reward"
    with LOADING:
        if not (folder / "model").is_dir():
            from espalier.toy import exact_match, problems

            answers = out / "judged.jsonl"
            unseen = problems(JUDGED, seed=78, largest=largest)
            lines = [
                json.dumps({"question": p.question, "answers": texts, "right": [exact_match(t, p) for t in texts]})
                for p, texts in zip(unseen, variants.answered(model, unseen, 8, 1.0), strict=True)
            ]
            answers.write_text("\n".join(lines) + "\n", encoding="utf8")
            data, held = (variants.write(answers, "lists", 0, side) for side in (False, True))
            argv = [sys.executable, "-m", "espalier", "reward", "--model", str(model), "--data", str(data)]
            argv += ["--eval-data", str(held), "--out", str(folder), "--lr", "3e-4", "--epochs", "4", "--resume"]
            argv += ["--cache", str(out / "cache"), "--samples-per-step", "32", "--on-bad-row", "skip"]
            subprocess.run(argv, check=True, capture_output=True)
    return folder


def run(out: Path, options: argparse.Namespace, name: str, seed: int, model: Path) -> str:
    """Train one algorithm, or go on where it stopped, and test it; what is to be said if it failed."""
    folder = out / f"{options.start}-{name}-{seed}".replace(" ", "_").replace(",", "")
    if (folder / "tested.json").exists():
        return ""
    train, test = tasks(out, options.steps, options.tested, options.largest)
    command, flags = CELLS[name]
    argv = [sys.executable, "-m", "espalier", command, "--model", str(model), "--data", str(train)]
    argv += ["--eval-data", str(test), "--out", str(folder), "--steps", str(options.steps), "--seed", str(seed)]
    rule = [] if "--reward-model" in flags else RULE
    if "{reward}" in flags:
        flags = [flag.replace("{reward}", str(reward_model(out, model, options.largest))) for flag in flags]
    flags = [flag.replace("{demonstrations}", str(out / "demonstrations.jsonl")) for flag in flags]
    argv += ["--cache", str(out / "cache"), "--resume", *COMMON, *rule, *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=7200)
    if done.returncode:
        return done.stderr[-1500:]
    # One at a time: transformers initialises models by module-wide switches, which two threads turn off for each other.
    with LOADING:
        results = right(folder / "model", options.tested, options.largest)
    (folder / "tested.json").write_text(json.dumps(results), encoding="utf8")
    return ""


def right(model: Path, tested: int, largest: int) -> dict[str, list[bool]]:
    """Whether the greedy answer to each problem is right, and one drawn at temperature 1."""
    from espalier.toy import exact_match, problems

    unseen = problems(tested, seed=0, split="test", largest=largest)
    results = {}
    for name, temperature in (("greedy", 0.0), ("drawn", 1.0)):
        texts = variants.answered(model, unseen, 1, temperature)
        results[name] = [bool(exact_match(answers[0], p)) for answers, p in zip(texts, unseen, strict=True)]
    return results


# --------------------------------------------------------------------------------------------------------------- table


def measured(out: Path, start: str, name: str, seed: int) -> dict[str, Any] | None:
    """What a finished run came to; None if it is not finished."""
    folder = out / f"{start}-{name}-{seed}".replace(" ", "_").replace(",", "")
    if not (folder / "tested.json").exists():
        return None
    results: dict[str, Any] = json.loads((folder / "tested.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results["curve"] = {line["step"]: line["eval_score"] for line in lines if "eval_score" in line}
    steps = [line for line in lines if "lr" in line]
    results["seconds"] = sum(line["seconds"] for line in steps)
    tail = steps[-max(1, len(steps) // 10) :]
    for key in ("length", "entropy", "kl", *SHOWN):
        if all(key in line for line in tail):
            results[key] = statistics.fmean(float(line[key]) for line in tail)
    return results


def paired(ours: list[list[bool]], start: list[bool]) -> str:
    """Mean difference to the start in points, with a 95 % interval over problems (normal; runs averaged by problem)."""
    gaps = [statistics.fmean(run[i] for run in ours) - start[i] for i in range(len(start))]
    half = 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{100 * statistics.fmean(gaps):+.1f} ± {100 * half:.1f}"


def table(out: Path, options: argparse.Namespace, names: list[str], base: dict[str, list[bool]]) -> str:
    greedy, drawn = (100 * statistics.fmean(base[key]) for key in ("greedy", "drawn"))
    steps = [step for step in range(EVERY, options.steps + 1, EVERY) if step % (2 * EVERY) == 0 or step == EVERY]
    at_steps = " | ".join(f"at {step}" for step in steps)
    lines = [
        f"Exact match (%) on {options.tested} unseen problems (numbers to {options.largest}) after {options.steps} "
        f"steps of 32 x 8, start: {options.start} ({greedy:.1f} greedy, {drawn:.1f} drawn). Mean and 95 % interval "
        "over seeds (t); beside it the difference to the start, paired by problem.",
        "",
        f"| algorithm | seeds | greedy | over start | drawn | {at_steps} | length | entropy | kl | {' | '.join(SHOWN)} "
        "| seconds |",
        "|---" * (9 + len(SHOWN) + len(steps)) + "|",
    ]
    for name in names:
        runs = [r for seed in seeds_of(options) if (r := measured(out, options.start, name, seed))]
        if not runs:
            continue
        cells = [name, str(len(runs)), variants.interval([statistics.fmean(r["greedy"]) for r in runs])]
        cells += [paired([r["greedy"] for r in runs], base["greedy"])]
        cells += [variants.interval([statistics.fmean(r["drawn"]) for r in runs])]
        for step in steps:
            at = [r["curve"][step] for r in runs if step in r["curve"]]
            cells.append(f"{100 * statistics.fmean(at):.1f}" if at else "")
        for key, digits in (("length", 1), ("entropy", 3), ("kl", 3), *((name, 3) for name in SHOWN), ("seconds", 0)):
            values = [r[key] for r in runs if key in r]
            cells.append(f"{statistics.fmean(values):.{digits}f}" if values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--start", choices=("guess", "works"), default="guess")
    parser.add_argument("--tested", type=int, default=500)
    parser.add_argument("--largest", type=int, default=LARGEST)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    same_options(out, options)
    model = start_model(out, options.start)
    tasks(out, options.steps, options.tested, options.largest)
    names = [name for name in CELLS if not options.only or name in options.only]
    kept = out / f"{options.start}-start.json"
    if not kept.exists():
        kept.write_text(json.dumps(right(model, options.tested, options.largest)), encoding="utf8")
    base = json.loads(kept.read_text())
    failed = []

    def one(job: tuple[int, str]) -> None:
        seed, name = job
        fault = run(out, options, name, seed, model)
        if fault:
            failed.append(f"{name}, seed {seed}")
        print(f"{name}, seed {seed}: {f'FAILED {fault}' if fault else 'done'}", flush=True)
        text = table(out, options, names, base)
        (out / f"{options.start}.md").write_text(text, encoding="utf8")

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, [(seed, name) for seed in seeds_of(options) for name in names]))
    print((out / f"{options.start}.md").read_text())
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
