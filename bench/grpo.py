"""Whole GRPO steps against TRL: seconds a step and peak memory, interleaved, as ratios.

usage: python bench/grpo.py --model DIR [--prompts 4] [--prompt-tokens 64] [--group-size 8] [--new-tokens 128]
                            [--steps 4] [--runs 5] [--trl-python PYTHON] [--sweep]
       python bench/grpo.py child KIND ...         (one measurement in this process, one JSON line; the parent calls it)

KIND is `espalier`, or `trl-CACHE-BATCH` with CACHE dynamic, static or continuous (transformers' continuous batching)
and BATCH the samples of one of its forwards. TRL runs under --trl-python, a virtual environment of its own:
pip install torch==2.13.0 trl==1.16.0. --sweep measures all TRL settings once first and takes the fastest on.

A step: `--prompts` prompts of `--prompt-tokens` tokens, template included, `--group-size` answers of exactly
`--new-tokens` tokens to each (no stop token ends one), graded by the number of distinct characters, one update with a
KL term (beta 0.04) to the start policy. A run is one fresh process; the first step is not timed. Seconds are the median
of the others; peak memory is of the process. Where the time of a step goes is printed from metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

BETA = 0.04
TRL_SETTINGS = [f"{cache}-{batch}" for cache in ("dynamic", "static", "continuous") for batch in (8, 16, 32)]
PHASES = ("seconds_sample", "seconds_grade", "seconds_draw", "seconds_annotate", "seconds_update", "seconds_report")


def questions(model_dir: str, count: int, length: int) -> list[str]:
    """Texts that make prompts of exactly `length` tokens under the model's chat template, from a seeded generator."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    rng = random.Random(0)
    words = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text.startswith(" ") and text[1:].isalpha() and tokenizer.encode(text, add_special_tokens=False) == [token]:
            words.append(text)

    def size(text: str) -> int:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        return len(ids)

    texts = []
    for _ in range(count):
        chosen = [rng.choice(words) for _ in range(length)]
        while size("".join(chosen)) > length:
            chosen.pop()
        text = "".join(chosen)
        if size(text) != length:
            raise SystemExit(f"no prompt of {length} tokens could be made")
        texts.append(text)
    return texts


# ------------------------------------------------------------------------------------------------------------ children


def espalier(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each timed step, and their phases."""
    from dataclasses import replace

    from espalier.algorithms.grpo import GRPO
    from espalier.assembly import rollouts
    from espalier.assembly.runs import RUNS
    from espalier.commands.train import train
    from espalier.config.rollout_sections import RewardsConfig, RolloutConfig
    from espalier.config.sections import DataConfig, LoopConfig, ModelConfig

    # No token ends an answer: the id stands outside the vocabulary.
    params_of = rollouts.params_of
    rollouts.params_of = lambda *arguments: replace(params_of(*arguments), stop=(2**31,))
    with tempfile.TemporaryDirectory() as folder:
        data, reward = Path(folder) / "tasks.jsonl", Path(folder) / "distinct.py"
        steps = options.steps + 1
        texts = questions(options.model, options.prompts * steps, options.prompt_tokens)
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf8")
        reward.write_text("def distinct(prompt, response, **task):\n    return float(len(set(response)))\n")
        config = RUNS["grpo"](
            model=ModelConfig(model=options.model),
            data=DataConfig(data=(str(data),), cache=folder),
            loop=LoopConfig(
                out=str(Path(folder) / "run"),
                steps=steps,
                save_every=10**6,
                tokens_per_microbatch=options.budget,
                skip_checks=("length", "stop"),
            ),
            rollout=RolloutConfig(
                prompts_per_step=options.prompts, group_size=options.group_size, max_tokens=options.new_tokens
            ),
            rewards=RewardsConfig(reward=(f"{reward}:distinct",)),
            algorithm=GRPO(beta=BETA, minibatches=options.minibatches, old=options.old),
        )
        train(config)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open()]
        timed = [line for line in lines if "lr" in line][1:]
        phases = {name: [line[name] for line in timed if name in line] for name in PHASES}
        return {
            "seconds": [line["seconds"] for line in timed],
            "phases": {name: statistics.median(x) for name, x in phases.items() if x},
        }


def trl(options: argparse.Namespace, cache: str, batch: int) -> dict[str, Any]:
    """Seconds of each timed step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    steps = options.steps + 1
    texts = questions(options.model, options.prompts * steps, options.prompt_tokens)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    samples = options.prompts * options.group_size
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=1000, max_steps=steps, learning_rate=1e-6,
        per_device_train_batch_size=batch, gradient_accumulation_steps=samples // batch,
        num_generations=options.group_size, max_completion_length=options.new_tokens, beta=BETA, temperature=1.0,
        loss_type="grpo", shuffle_dataset=False, generation_kwargs={"eos_token_id": -1},
        cache_implementation="static" if cache == "static" else None,
        use_transformers_continuous_batching=cache == "continuous",
    )  # fmt: skip

    def distinct(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [float(len(set(turns[0]["content"]))) for turns in completions]

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    trainer = GRPOTrainer(
        model=model, reward_funcs=distinct, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return {"seconds": [b - a for a, b in pairwise(ends)], "phases": {}}


def child(arguments: list[str]) -> None:
    kind, options = arguments[0], parser().parse_args(arguments[1:])
    if kind == "espalier":
        measured = espalier(options)
    else:
        _, cache, batch = kind.split("-")
        measured = trl(options, cache, int(batch))
    measured["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"kind": kind, **measured}))


# -------------------------------------------------------------------------------------------------------------- parent


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One child; None if it failed."""
    python = options.trl_python if kind.startswith("trl") else sys.executable
    command = [python, __file__, "child", kind, "--model", options.model]
    for name in ("prompts", "prompt_tokens", "group_size", "new_tokens", "steps", "budget", "minibatches", "old"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800)
    if done.returncode:
        print(f"  {kind:22s} failed: {done.stderr.strip().splitlines()[-1][:160] if done.stderr.strip() else '?'}")
        return None
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    measured["step"] = statistics.median(measured["seconds"])
    print(f"  {kind:22s} {measured['step']:7.3f} s a step  {measured['peak_gib']:.2f} GiB", flush=True)
    return measured


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--prompts", type=int, default=4)
    made.add_argument("--prompt-tokens", type=int, default=64)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--new-tokens", type=int, default=128)
    made.add_argument("--steps", type=int, default=4, help="timed steps of a run; one more comes first, untimed")
    made.add_argument("--budget", type=int, default=0, help="tokens_per_microbatch; 0 is the default")
    made.add_argument("--minibatches", type=int, default=1, help="updates a step, of espalier alone")
    made.add_argument("--old", choices=("learner", "sampler"), default="learner", help="of espalier's ratios")
    made.add_argument("--runs", type=int, default=5)
    made.add_argument("--trl-python", default="")
    made.add_argument("--trl", default="dynamic-32", help="the TRL setting without --sweep")
    made.add_argument("--sweep", action="store_true")
    return made


def main() -> None:
    options = parser().parse_args()
    kinds = ["espalier"]
    if options.trl_python:
        best = options.trl
        if options.sweep:
            print("sweep of TRL, one run each:")
            swept = {setting: measure(f"trl-{setting}", options) for setting in TRL_SETTINGS}
            speeds = {setting: found["step"] for setting, found in swept.items() if found is not None}
            best = min(speeds, key=speeds.__getitem__)
        kinds.append(f"trl-{best}")
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for i in range(options.runs):
        print(f"round {i + 1} of {options.runs}:")
        for kind in kinds:
            measured = measure(kind, options)
            if measured is None:
                raise SystemExit(1)
            runs[kind].append(measured)
    print(f"\nmedians of {options.runs} interleaved runs; ratios are TRL over espalier, round by round")
    for kind in kinds:
        step = statistics.median(run["step"] for run in runs[kind])
        peak = statistics.median(run["peak_gib"] for run in runs[kind])
        line = f"{kind:22s} {step:7.3f} s a step  {peak:5.2f} GiB"
        if kind != "espalier":
            pairs = list(zip(runs["espalier"], runs[kind], strict=True))
            ratios = [theirs["step"] / ours["step"] for ours, theirs in pairs]
            memory = statistics.median(ours["peak_gib"] / theirs["peak_gib"] for ours, theirs in pairs)
            line += f"   speed x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            line += f"  memory x{memory:.2f}"
        print(line)
    phases = runs["espalier"][-1]["phases"]
    print("espalier, seconds by phase: " + ", ".join(f"{name[8:]} {x:.3f}" for name, x in phases.items()))


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
