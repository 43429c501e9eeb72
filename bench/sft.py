"""Supervised fine-tuning against TRL and against a bare loop: tokens/s and peak memory, interleaved, as ratios.

usage: python bench/sft.py --model DIR --data FILE [--rows 128] [--runs 5] [--trl-python PYTHON] [--sweep]
       python bench/sft.py child KIND ...          (one measurement in this process, one JSON line; the parent calls it)

KIND is `bare` (HF sdpa forward and backward on dense 16 x 256 random tokens, full logits, no optimizer), `espalier`
(`espalier-compile` with compiled layers, `espalier-bf16` in bfloat16 over float32 masters), or `trl-MODE-BATCH` with
MODE plain, packed or sorted. TRL runs under --trl-python, a virtual environment of its own: pip install torch==2.13.0
trl==1.16.0. --sweep measures all nine TRL settings once first and takes the fastest two on; without it, trl-plain-16
and trl-packed-4. Rows are JSON lines with question and answer. Tokens are those of the rows, padding not counted,
prompts included. A run is one fresh process; its time starts after loading and tokenising, with one untimed step first.
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


def read_rows(path: str, n: int) -> list[dict[str, str]]:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file][:n]


def chat(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def bare(model_dir: str, rows: list[dict[str, str]]) -> tuple[int, float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").train()
    ids = torch.randint(5, model.config.vocab_size, (16, 256))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    step()
    count = max(2, len(rows) * 200 // ids.numel())
    start = time.perf_counter()
    for _ in range(count):
        step()
    return count * ids.numel(), time.perf_counter() - start


def espalier(model_dir: str, rows: list[dict[str, str]], compiled: bool, dtype: str, budget: int) -> tuple[int, float]:

    from espalier.assembly.learner import build_learner
    from espalier.assembly.runs import RUNS
    from espalier.assembly.session import open_session
    from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig
    from espalier.loop.schedule import learning_rate

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("\n".join(json.dumps({"messages": chat(r)}) for r in rows), encoding="utf8")
        config = RUNS["sft"](
            model=ModelConfig(model=model_dir, dtype=dtype),
            data=DataConfig(data=(str(data),), cache=folder),
            loop=LoopConfig(out=folder, samples_per_step=16, epochs=1, compile=compiled, tokens_per_microbatch=budget),
            optim=OptimConfig(lr=1e-3),
        )
        with open_session(config) as session:
            learner, dataset = build_learner(session), session.dataset

        def step(i: int) -> int:
            groups = dataset.groups(i)
            result = learner.forward_backward(groups, config.algorithm.loss, {}, i)
            learner.optim_step(learning_rate(i, dataset.steps, config.optim))
            return result.tokens

        step(0)
        start = time.perf_counter()
        tokens = sum(step(i) for i in range(dataset.steps))
        return tokens, time.perf_counter() - start


def trl(model_dir: str, rows: list[dict[str, str]], mode: str, batch: int) -> tuple[int, float]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        model_dir
    )  # AutoTokenizer would swap the pre-tokenizer of a Qwen2
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    messages = [chat(r) for r in rows]
    lengths = [len(tokenizer.apply_chat_template(m, return_dict=True)["input_ids"]) for m in messages]
    if mode == "sorted":  # neighbours in a batch are of like length; order kept by a sequential sampler
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        messages = [messages[i] for i in order]
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(), save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, logging_steps=10, per_device_train_batch_size=batch,
        num_train_epochs=1, learning_rate=1e-3, assistant_only_loss=True, packing=mode == "packed", max_length=1024,
        train_sampling_strategy="sequential" if mode == "sorted" else "random",
    )  # fmt: skip

    class Clock(TrainerCallback):
        start = 0.0
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):  # the first step is not timed
            Clock.steps += 1
            if Clock.steps == 1:
                Clock.start = time.perf_counter()

    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([{"messages": m} for m in messages]),
        processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - (Clock.start if Clock.steps > 1 else began)
    return round(sum(lengths) * (1 - 1 / Clock.steps if Clock.steps > 1 else 1)), seconds


def child(arguments: list[str]) -> None:
    kind, model_dir, data, n, budget = arguments
    rows = read_rows(data, int(n))
    if kind == "bare":
        tokens, seconds = bare(model_dir, rows)
    elif kind.startswith("espalier"):
        tokens, seconds = espalier(
            model_dir, rows, "compile" in kind, "bfloat16" if "bf16" in kind else "float32", int(budget)
        )
    else:
        _, mode, batch = kind.split("-")
        tokens, seconds = trl(model_dir, rows, mode, int(batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"kind": kind, "tokens_per_second": tokens / seconds, "peak_gib": peak, "seconds": seconds}))


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    python = options.trl_python if kind.startswith("trl") else sys.executable
    command = [python, __file__, "child", kind, options.model, options.data, str(options.rows), str(options.budget)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {kind:20s} {found['tokens_per_second']:8.0f} tokens/s  {found['peak_gib']:.2f} GiB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budget", type=int, default=0, help="tokens_per_microbatch; 0 is the default")
    parser.add_argument("--trl-python", default="")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--kinds", nargs="*", default=["bare", "espalier"])
    options = parser.parse_args()
    kinds = list(options.kinds)
    if options.trl_python and options.sweep:
        settings = [f"trl-{mode}-{batch}" for mode in ("plain", "packed", "sorted") for batch in (4, 8, 16)]
        print("sweep of TRL, one run each:")
        found = {kind: measure(kind, options)["tokens_per_second"] for kind in settings}
        kinds += sorted(found, key=found.__getitem__)[-2:]
    elif options.trl_python:
        kinds += ["trl-sorted-4", "trl-plain-16"]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for i in range(options.runs):
        print(f"round {i + 1} of {options.runs}:")
        for kind in kinds:
            runs[kind].append(measure(kind, options))
    print(f"\nmedians of {options.runs} interleaved runs; ratios are espalier over the other, round by round")
    ours = runs["espalier"]
    for kind in kinds:
        speed = statistics.median(r["tokens_per_second"] for r in runs[kind])
        peak = statistics.median(r["peak_gib"] for r in runs[kind])
        ratio = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, runs[kind], strict=True)]
        memory = statistics.median(a["peak_gib"] / b["peak_gib"] for a, b in zip(ours, runs[kind], strict=True))
        spread = f"{min(ratio):.2f} to {max(ratio):.2f}"
        print(
            f"{kind:20s} {speed:8.0f} tokens/s  {peak:5.2f} GiB   "
            f"speed x{statistics.median(ratio):.2f} ({spread})  memory x{memory:.2f}"
        )


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
