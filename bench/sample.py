"""The embedded sampler against transformers' `generate` with its dynamic and its static cache: tokens/s, as ratios.

usage: python bench/sample.py --model DIR [--runs 5] [--cpu-time] [--shapes 8x8x64x128 8x8xragged 4x16x512x32]
       python bench/sample.py child KIND SHAPE MODEL CLOCK     (one measurement in this process, one JSON line)

A shape is prompts x samples x prompt tokens x new tokens; `ragged` in place of the lengths is prompts of 16 to 112
tokens and answers that end at one of 128 stop ids (about 64 tokens of a random model), 128 tokens at most. Prompts are
random ids. Stop ids are off in the other shapes. A run is one fresh process; its time starts after loading and a short
untimed call. `draw` is the share of the time that `local` spends on the head, and on drawing from its logits.
--cpu-time counts processor seconds, which a busy machine disturbs less.
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
import time
from typing import Any

SHAPES = ("8x8x64x128", "8x8xragged", "4x16x512x32", "4x16x512x128")
KINDS = ("local", "generate", "static")
STOPS = range(100, 228)
MOST = 128


def prompts_of(shape: str) -> tuple[list[list[int]], int, int, tuple[int, ...]]:
    """Prompts, samples of each, new tokens, stop ids."""
    rng = random.Random(0)
    count, samples, *lengths = shape.split("x")
    if lengths == ["ragged"]:
        sizes, most, stop = [rng.randint(16, 112) for _ in range(int(count))], MOST, tuple(STOPS)
    else:
        sizes, most, stop = [int(lengths[0])] * int(count), int(lengths[1]), ()
    return [[rng.randint(300, 8000) for _ in range(size)] for size in sizes], int(samples), most, stop


def local(model: Any, prompts: list[list[int]], samples: int, most: int, stop: tuple[int, ...]) -> int:
    from espalier.engines.protocols import Request, SamplingParams
    from espalier.engines.sampler.local import LocalSampler

    params = SamplingParams(max_tokens=most, temperature=1.0, stop=stop, seed=1)
    sampler = LocalSampler(model, limit=2048)
    ks = tuple(range(samples))
    sampler.submit([Request(p, i, i, params, ks=ks) for i, p in enumerate(prompts)])
    tokens = 0
    with sampler.drawing():
        while sampler.busy:
            tokens += sum(len(one.sample.tokens) - len(one.request.prompt) for one in sampler.finished())
    return tokens


def generate(model: Any, prompts: list[list[int]], samples: int, most: int, stop: tuple[int, ...], static: bool) -> int:
    import torch
    from transformers import GenerationConfig

    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts]).repeat_interleave(samples, 0)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).repeat_interleave(samples, 0)
    extra = {"cache_implementation": "static", "disable_compile": True} if static else {}
    config = GenerationConfig(
        max_new_tokens=most, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, use_cache=True, pad_token_id=0,
        eos_token_id=list(stop) or None, **extra,
    )  # fmt: skip
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:]
    ends = torch.isin(out, torch.tensor(stop or (-1,)))
    return sum(int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in ends)


def child(arguments: list[str]) -> None:
    kind, shape, model_dir, clock = arguments
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    prompts, samples, most, stop = prompts_of(shape)
    now = time.process_time if clock == "cpu" else time.perf_counter

    def run(most: int, stop: tuple[int, ...]) -> int:
        if kind == "local":
            return local(model, prompts, samples, most, stop)
        return generate(model, prompts, samples, most, stop, kind == "static")

    run(4, ())
    shares = {}
    if kind == "local":
        shares = timed_parts(now)
    start = now()
    tokens = run(most, stop)
    seconds = now() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"tokens_per_second": tokens / seconds, "peak_gib": peak, "tokens": tokens}
    result |= {name: spent / seconds for name, spent in shares.items()}
    print(json.dumps(result))


def timed_parts(now: Any) -> dict[str, float]:
    """Seconds in the head and in drawing, counted from now on."""
    from espalier.engines.sampler import local as module

    spent = {"head": 0.0, "draw": 0.0}
    for name, function in (("head", "logits"), ("draw", "draw")):
        inner = getattr(module, function)

        def timed(*args: Any, _inner: Any = inner, _name: str = name) -> Any:
            start = now()
            out = _inner(*args)
            spent[_name] += now() - start
            return out

        setattr(module, function, timed)
    return spent


def measure(kind: str, shape: str, options: argparse.Namespace) -> dict[str, float]:
    clock = "cpu" if options.cpu_time else "wall"
    command = [sys.executable, __file__, "child", kind, shape, options.model, clock]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    for shape in options.shapes:
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
        for _ in range(options.runs):
            for kind in options.kinds:
                runs[kind].append(measure(kind, shape, options))
        print(f"{shape}: medians of {options.runs} interleaved runs; ratios are local over the other, round by round")
        for kind in options.kinds:
            speed = statistics.median(r["tokens_per_second"] for r in runs[kind])
            peak = statistics.median(r["peak_gib"] for r in runs[kind])
            ratios = [
                a["tokens_per_second"] / b["tokens_per_second"]
                for a, b in zip(runs[options.kinds[0]], runs[kind], strict=True)
            ]
            line = f"  {kind:10s} {speed:8.0f} tokens/s  {peak:5.2f} GiB"
            if kind == "local":
                head, draw = (statistics.median(r[name] for r in runs[kind]) for name in ("head", "draw"))
                line += f"   head {head:.0%}, draw {draw:.0%} of the time"
            else:
                line += f"   x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(line, flush=True)


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
