"""Direct preference optimisation against TRL: pairs/s and peak memory, interleaved, as ratios.

usage: python bench/dpo.py --model DIR --data FILE [--pairs 32] [--runs 5] [--trl-python PYTHON] [--sweep]
       python bench/dpo.py sharing --model DIR [--runs 5]
       python bench/dpo.py child KIND ...          (one measurement in this process, one JSON line; the parent calls it)

KIND is `espalier-memory` or `espalier-precomputed` (where the reference's log-probabilities come from), or
`trl-WHERE-MODE-BATCH` with WHERE memory or precomputed and MODE plain or sorted (neighbours of like length). TRL runs
under --trl-python, a virtual environment of its own: pip install torch==2.13.0 trl==1.16.0. --sweep measures all six
TRL settings once first, with the reference in memory, and takes the fastest on; without it, batches of 1 as they come.
Rows are ShareGPT pairs (conversations, chosen, rejected); both sides cut samples at 2,048 tokens. A step has 8 pairs
here and as many as the batch there (no accumulation, which would only cost it time). A run is one fresh process; its
time starts after loading, tokenising and precomputing, and after one untimed step, whose pairs come again: both sides
are timed over the same pairs. Peak memory is of the process.

`sharing` compares the forest with separate sequences in Espalier itself, on random tokens: K answers of 128 tokens to
prompts of 64, 256 and 1,024, forward and backward, fp32.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 2048
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def read_rows(path: str, n: int) -> list[dict[str, Any]]:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf8") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found[:n]


def espalier(model_dir: str, rows: list[dict[str, Any]], where: str, budget: int) -> tuple[int, float]:
    from espalier.algorithms.dpo import DPO
    from espalier.assembly.learner import build_learner
    from espalier.assembly.reference import build_reference
    from espalier.assembly.runs import RUNS
    from espalier.assembly.session import open_session
    from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, ReferenceConfig
    from espalier.loop.annotate import annotate

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.json"
        data.write_text(json.dumps(rows), encoding="utf8")
        config = RUNS["dpo"](
            model=ModelConfig(model=model_dir),
            data=DataConfig(data=(str(data),), cache=folder, max_length=MAX_LENGTH),
            loop=LoopConfig(out=folder, samples_per_step=16, epochs=1, tokens_per_microbatch=budget),
            reference=ReferenceConfig(reference=where),
            algorithm=DPO(),
        )
        with open_session(config) as session:
            learner = build_learner(session)
            build_reference(session)

            def step(i: int) -> int:
                groups = session.dataset.groups(i)
                state = annotate(groups, config.algorithm, session.roles, {})
                learner.forward_backward(groups, config.algorithm.loss, state, i)
                learner.optim_step(config.optim.lr)
                return len(groups)

            step(0)
            start = time.perf_counter()
            pairs = sum(step(i) for i in range(session.dataset.steps))
            return pairs, time.perf_counter() - start


def trl(model_dir: str, rows: list[dict[str, Any]], where: str, mode: str, batch: int) -> tuple[int, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def turn(message: dict[str, str]) -> dict[str, str]:
        return {"role": ROLES[message["from"]], "content": message["value"]}

    made = [
        {"prompt": [turn(m) for m in r["conversations"]], "chosen": [turn(r["chosen"])],
         "rejected": [turn(r["rejected"])]} for r in rows
    ]  # fmt: skip
    if mode == "sorted":
        made.sort(key=lambda r: max(len(json.dumps(r[side])) for side in ("chosen", "rejected")))
    made = made[:batch] + made  # the first step is not timed
    args = DPOConfig(
        output_dir=tempfile.mkdtemp(), save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=1000, per_device_train_batch_size=batch,
        num_train_epochs=1, learning_rate=1e-6, max_length=MAX_LENGTH,
        precompute_ref_log_probs=where == "precomputed",
    )  # fmt: skip

    class Clock(TrainerCallback):
        start = 0.0
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # the first is not timed
            Clock.steps += 1
            if Clock.steps == 1:
                Clock.start = time.perf_counter()

    class Trainer(DPOTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = Trainer(
        model=model, args=args, train_dataset=Dataset.from_list(made), processing_class=tokenizer, callbacks=[Clock()]
    )
    trainer.train()
    return len(rows), time.perf_counter() - Clock.start


def child(arguments: list[str]) -> None:
    kind, model_dir, data, n, budget = arguments
    rows = read_rows(data, int(n))
    name, where, *rest = kind.split("-")
    if name == "espalier":
        pairs, seconds = espalier(model_dir, rows, where, int(budget))
    else:
        pairs, seconds = trl(model_dir, rows, where, rest[0], int(rest[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"kind": kind, "pairs_per_second": pairs / seconds, "peak_gib": peak, "seconds": seconds}))


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    python = options.trl_python if kind.startswith("trl") else sys.executable
    command = [python, __file__, "child", kind, options.model, options.data, str(options.pairs), str(options.budget)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {kind:28s} {found['pairs_per_second']:7.3f} pairs/s  {found['peak_gib']:.2f} GiB", flush=True)
    return found


def sharing(options: argparse.Namespace) -> None:
    """Forward and backward of K answers of 128 tokens to one prompt, laid as a forest and as separate sequences."""
    import torch
    from transformers import AutoModelForCausalLM

    from espalier.forest.pack import pack, totals
    from espalier.models.policy import Policy
    from espalier.types import Sample

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    policy = Policy(model, "forest")
    vocabulary = model.config.get_text_config().vocab_size

    def group(prompt: int, answers: int) -> list[Sample]:
        shared = torch.randint(5, vocabulary, (prompt,)).tolist()
        made = []
        for _ in range(answers):
            s = Sample()
            s.append(shared, trained=False)
            s.append(torch.randint(5, vocabulary, (128,)).tolist(), trained=True)
            made.append(s)
        return made

    print("prompt   K   packed shared / separate   speed-up (median of the runs, lowest to highest)")
    for prompt in (64, 256, 1024):
        for answers in (2, 4, 8):
            ratios, sizes = [], []
            for _ in range(options.runs + 1):
                groups = [group(prompt, answers) for _ in range(max(1, 2048 // (prompt + 128 * answers)))]
                seconds = {}
                for share in (True, False):
                    batch = pack(groups, totals(groups), share=share)
                    start = time.perf_counter()
                    policy(batch)["logprobs"].sum().backward()
                    seconds[share] = time.perf_counter() - start
                    model.zero_grad()
                    sizes.append(batch.inputs_N.numel())
                ratios.append(seconds[False] / seconds[True])
            kept = ratios[1:]  # the first warms up
            print(
                f"{prompt:6d} {answers:3d}   {sizes[0]:6d} / {sizes[1]:6d}            "
                f"x{statistics.median(kept):.2f} ({min(kept):.2f} to {max(kept):.2f})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "sharing"), default="speed")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budget", type=int, default=0, help="tokens_per_microbatch; 0 is the default")
    parser.add_argument("--trl-python", default="")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    if options.what == "sharing":
        sharing(options)
        return
    if not options.data:
        parser.error("--data is missing: a JSON file of ShareGPT pairs")
    best = "plain-1"
    if options.trl_python and options.sweep:
        settings = [f"{mode}-{batch}" for mode in ("plain", "sorted") for batch in (1, 2, 4)]
        print("sweep of TRL, reference in memory, one run each:")
        found = {s: measure(f"trl-memory-{s}", options)["pairs_per_second"] for s in settings}
        best = max(found, key=found.__getitem__)
    kinds = ["espalier-memory", "espalier-precomputed"]
    if options.trl_python:
        kinds += [f"trl-memory-{best}", f"trl-precomputed-{best}"]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for i in range(options.runs):
        print(f"round {i + 1} of {options.runs}:")
        for kind in kinds:
            runs[kind].append(measure(kind, options))
    print(f"\nmedians of {options.runs} interleaved runs; ratios are espalier over TRL, round by round")
    for kind in kinds:
        speed = statistics.median(r["pairs_per_second"] for r in runs[kind])
        peak = statistics.median(r["peak_gib"] for r in runs[kind])
        line = f"{kind:28s} {speed:7.3f} pairs/s  {peak:5.2f} GiB"
        if kind.startswith("trl"):
            ours = runs[f"espalier-{kind.split('-')[1]}"]
            ratio = [a["pairs_per_second"] / b["pairs_per_second"] for a, b in zip(ours, runs[kind], strict=True)]
            memory = statistics.median(a["peak_gib"] / b["peak_gib"] for a, b in zip(ours, runs[kind], strict=True))
            line += f"   speed x{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
            line += f"  memory x{memory:.2f}"
        print(line)


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
