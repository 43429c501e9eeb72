"""A PPO step with four models: time and memory by phase, against bare forwards and backwards of as many tokens.

usage: python bench/ppo.py --model DIR [--prompts 4] [--prompt-tokens 64] [--group-size 8] [--new-tokens 128]
                           [--minibatches 4] [--steps 4] [--runs 5] [--trl-python PYTHON]
       python bench/ppo.py child KIND ...           (one measurement in this process, one JSON line)

KIND is `espalier`, `bare` or `trl`. espalier: policy, critic, reference and reward model, each of the size of DIR; a
step draws `--group-size` answers of exactly `--new-tokens` tokens to each of `--prompts` prompts, scores them, reads
reference, old log-probabilities, entropy and values, and makes `--minibatches` updates of policy and critic. Phases are
timed by wrapping each model's verbs; peaks are those of the resident memory of the process in the phase.

bare: plain transformers in one process, batches of rows of `--new-tokens` tokens without padding, so that each forward
has as many tokens as a packed one of espalier: forwards of reward model, reference, policy and critic over all answers,
forward and backward of policy and critic and a fused AdamW step for each minibatch. Nothing is drawn. Its log-
probabilities are log-softmax and gather. What espalier takes beyond it is printed as a ratio, drawing aside.

trl: PPOTrainer of TRL 0.x under --trl-python (trl==0.24.0, transformers<5), the same models and numbers of answers,
with padding 0; if it does not run, its last line is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from grpo import questions

PARTS = ("reward model", "reference", "policy says", "critic says", "policy updates", "critic updates")


def scoring_model(source: str, folder: Path) -> Path:
    """A reward model of the size of `source`, whose head is random."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(folder)
    return folder


class Clock:
    """Seconds and peak resident bytes of named phases, over all calls since the last `take`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def wrap(self, owner: Any, verb: str, name: str) -> None:
        run = getattr(owner, verb)

        def timed(*arguments: Any, **named: Any) -> Any:
            return self.run(name, lambda: run(*arguments, **named))

        setattr(owner, verb, timed)

    def run(self, name: str, part: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = time.perf_counter()
        result = part()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak_gib())
        return result

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


def peak_gib() -> float:
    """The peak of the resident memory since it was cleared."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise SystemExit("/proc/self/status has no VmHWM")


# ------------------------------------------------------------------------------------------------------------ children


def espalier(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by phase of each timed step."""
    from dataclasses import replace

    from espalier.assembly import rollouts
    from espalier.assembly.runs import RUNS
    from espalier.commands import train as command
    from espalier.config.options import build
    from espalier.loop.train import Trainer

    # No token ends an answer: the id stands outside the vocabulary.
    params_of = rollouts.params_of
    rollouts.params_of = lambda *arguments: replace(params_of(*arguments), stop=(2**31,))
    clock, steps = Clock(), []
    run_step = Trainer._step

    def timed(trainer: Any) -> None:
        if not steps:
            roles = trainer.roles
            for learner, who in ((roles.policy, "policy"), (roles.critic, "critic")):
                clock.wrap(learner, "say", f"{who} says")
                clock.wrap(learner, "forward_backward", f"{who} updates")
                clock.wrap(learner, "optim_step", f"{who} updates")
            clock.wrap(roles.reference, "logprobs", "reference")
            clock.wrap(trainer.source.scorers, "add", "reward model")
            clock.wrap(trainer.source.answers, "answer", "draw")
        began = time.perf_counter()
        run_step(trainer)
        steps.append({**clock.take(), "step": time.perf_counter() - began})

    Trainer._step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tasks.jsonl"
        texts = questions(options.model, options.prompts * (options.steps + 1), options.prompt_tokens)
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf8")
        scores = scoring_model(options.model, Path(folder) / "scores")
        flags = {
            "model": options.model, "data": [str(data)], "cache": folder, "out": str(Path(folder) / "run"),
            "steps": options.steps + 1, "save_every": 10**6, "reward_model": [str(scores)], "critic": str(scores),
            "prompts_per_step": options.prompts, "group_size": options.group_size, "max_tokens": options.new_tokens,
            "minibatches": options.minibatches, "skip_checks": ["length", "stop"],
        }  # fmt: skip
        command.train(build(RUNS["ppo"], flags))
    peaks = {name: round(peak, 3) for name, peak in clock.peaks.items()}
    return {"steps": steps[1:], "peaks": peaks}


def bare(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by phase of each timed step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as folder:
        scores = scoring_model(options.model, Path(folder) / "scores")
        kinds = {
            "policy": (AutoModelForCausalLM, options.model), "reference": (AutoModelForCausalLM, options.model),
            "critic": (AutoModelForSequenceClassification, scores),
            "reward": (AutoModelForSequenceClassification, scores),
        }  # fmt: skip
        models: dict[str, Any] = {
            name: kind.from_pretrained(path, dtype=torch.float32) for name, (kind, path) in kinds.items()
        }
    optimizers = {name: torch.optim.AdamW(models[name].parameters(), fused=True) for name in ("policy", "critic")}
    packed = options.prompts * (options.prompt_tokens + options.group_size * options.new_tokens)
    rows = packed // options.new_tokens
    scored = options.prompts * options.group_size * options.new_tokens
    ids = torch.randint(8, models["policy"].config.vocab_size, (rows, options.new_tokens))
    parts = ids.split(-(-rows // options.minibatches))

    def logprobs(model: Any, part: Any) -> Any:
        hidden = model.model(input_ids=part, use_cache=False).last_hidden_state.flatten(0, 1)
        count = scored * len(part) // rows
        logits = model.lm_head(hidden[:count])
        return logits.log_softmax(-1).gather(1, part.flatten()[:count, None])

    def values(model: Any, part: Any) -> Any:
        return model.score(model.model(input_ids=part, use_cache=False).last_hidden_state)

    def update(name: str, outputs: Callable[[Any, Any], Any]) -> None:
        for part in parts:
            outputs(models[name], part).mean().backward()
            optimizers[name].step()
            optimizers[name].zero_grad()

    clock, steps = Clock(), []
    for _ in range(options.steps + 1):
        with torch.no_grad():
            clock.run("reward model", lambda: [values(models["reward"], part) for part in parts])
            clock.run("reference", lambda: [logprobs(models["reference"], part) for part in parts])
            clock.run("policy says", lambda: [logprobs(models["policy"], part) for part in parts])
            clock.run("critic says", lambda: [values(models["critic"], part) for part in parts])
        clock.run("policy updates", lambda: update("policy", logprobs))
        clock.run("critic updates", lambda: update("critic", values))
        steps.append(clock.take())
    return {"steps": steps[1:], "peaks": {name: round(peak, 3) for name, peak in clock.peaks.items()}}


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each timed step, drawing included."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import PPOConfig, PPOTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model)
    tokenizer.padding_side = "left"
    steps = options.steps + 1
    texts = questions(options.model, options.prompts * steps, options.prompt_tokens)
    rows = []
    for start in range(0, len(texts), options.prompts):
        for text in texts[start : start + options.prompts]:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            rows += [{"input_ids": ids}] * options.group_size
    with tempfile.TemporaryDirectory() as folder:
        scores = scoring_model(options.model, Path(folder) / "scores")
        policy, reference = (AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32) for _ in "pr")
        value, reward = (
            AutoModelForSequenceClassification.from_pretrained(scores, num_labels=1, dtype=torch.float32) for _ in "vr"
        )
    samples = options.prompts * options.group_size
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=True, bf16=False, save_strategy="no",
        per_device_train_batch_size=samples, gradient_accumulation_steps=1,
        num_mini_batches=options.minibatches, num_ppo_epochs=1, total_episodes=samples * steps,
        local_rollout_forward_batch_size=8, response_length=options.new_tokens, temperature=1.0, learning_rate=1e-6,
        num_sample_generations=0, gradient_checkpointing=False, logging_steps=1000,
    )  # fmt: skip
    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            ends.append(time.perf_counter())

    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:8]),
        callbacks=[Ends()],
    )  # fmt: skip
    trainer.train()
    return {"steps": [{"step": b - a} for a, b in pairwise(ends)], "peaks": {}}


def child(arguments: list[str]) -> None:
    kind, options = arguments[0], parser().parse_args(arguments[1:])
    measured = {"espalier": espalier, "bare": bare, "trl": trl}[kind](options)
    measured["peak_gib"] = max(
        [*measured["peaks"].values(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]
    )
    print(json.dumps({"kind": kind, **measured}))


# -------------------------------------------------------------------------------------------------------------- parent


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One child: the median of each phase over its steps; None if it failed."""
    python = options.trl_python if kind == "trl" else sys.executable
    command = [python, __file__, "child", kind, "--model", options.model]
    for name in ("prompts", "prompt_tokens", "group_size", "new_tokens", "minibatches", "steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800)
    if done.returncode:
        print(f"  {kind} failed: {done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else '?'}")
        return None
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    names = measured["steps"][0]
    measured["seconds"] = {name: statistics.median(step[name] for step in measured["steps"]) for name in names}
    print(f"  {kind:9s} " + "  ".join(f"{name} {x:.3f}" for name, x in measured["seconds"].items()), flush=True)
    return measured


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--prompts", type=int, default=4)
    made.add_argument("--prompt-tokens", type=int, default=64)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--new-tokens", type=int, default=128)
    made.add_argument("--minibatches", type=int, default=4)
    made.add_argument("--steps", type=int, default=4, help="timed steps of a run; one more comes first, untimed")
    made.add_argument("--runs", type=int, default=5)
    made.add_argument("--trl-python", default="")
    return made


def main() -> None:
    options = parser().parse_args()
    kinds = ["espalier", "bare", *(["trl"] if options.trl_python else [])]
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for i in range(options.runs):
        print(f"round {i + 1} of {options.runs}:")
        for kind in kinds:
            measured = measure(kind, options)
            if measured is not None:
                runs[kind].append(measured)
            elif kind != "trl":
                raise SystemExit(1)
    table(runs, options.runs)


def table(runs: dict[str, list[dict[str, Any]]], count: int) -> None:
    ours, bares = runs["espalier"], runs["bare"]
    print(f"\nmedians of {count} interleaved runs, seconds a step; ratios round by round")
    print("| phase | espalier | bare | ratio | peak GiB |\n|---|---|---|---|---|")
    for name in ("draw", *PARTS):
        mine = statistics.median(run["seconds"][name] for run in ours)
        cells = [name, f"{mine:.3f}", "", "", f"{statistics.median(run['peaks'][name] for run in ours):.2f}"]
        if name in PARTS:
            cells[2] = f"{statistics.median(run['seconds'][name] for run in bares):.3f}"
            cells[3] = f"{statistics.median(ratios(ours, bares, [name])):.2f}"
        print(f"| {' | '.join(cells)} |")
    every = ratios(ours, bares, list(PARTS))
    # What stands between the phases (credit, packing of minibatches, records) counts as espalier's.
    beside = [
        (mine["seconds"]["step"] - mine["seconds"]["draw"]) / sum(other["seconds"][name] for name in PARTS)
        for mine, other in zip(ours, bares, strict=True)
    ]
    print(f"all models: x{statistics.median(every):.2f}; the whole step but drawing: x{statistics.median(beside):.2f}")
    print(f"step {statistics.median(run['seconds']['step'] for run in ours):.3f} s")
    if runs.get("trl") and len(runs["trl"]) == len(ours):
        pairs = list(zip(ours, runs["trl"], strict=True))
        speed = [theirs["seconds"]["step"] / mine["seconds"]["step"] for mine, theirs in pairs]
        memory = [mine["peak_gib"] / theirs["peak_gib"] for mine, theirs in pairs]
        print(f"TRL over espalier: time x{statistics.median(speed):.2f}, memory x{statistics.median(memory):.2f}")


def ratios(ours: list[dict[str, Any]], bares: list[dict[str, Any]], names: list[str]) -> list[float]:
    return [
        sum(mine["seconds"][name] for name in names) / sum(other["seconds"][name] for name in names)
        for mine, other in zip(ours, bares, strict=True)
    ]


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
