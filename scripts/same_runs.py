"""Whether a change left runs what they were, bit for bit.

    python scripts/same_runs.py record before.json      # with the interpreter of the checkout as it was
    python scripts/same_runs.py compare before.json     # with that of the changed one

Trains the embedded model for a few steps: sft, dpo, kto, reward and prm, full weights and LoRA, on one process and on
two, on rows made here. A recorded run is the sha256 of its exported model, its trained weights, its optimizer, its
state, its token cache and the numbers that it wrote (metrics without time and memory, findings of the watch and the
workbench). `compare` prints a table and exits with 1 if a run differs. Nothing of espalier is imported; its command is
run from the interpreter's environment, by the console script.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMANDS = ("sft", "dpo", "kto", "reward", "prm")
ALIKE = ("--steps 4 --samples-per-step 8 --tokens-per-microbatch 256 --eval-fraction 0.2 --eval-every 2 --save-every 2 "
         "--cache cache --lr 1e-3 --seed 3 --template plain")  # fmt: skip
OWN = {
    "reward": "--dimensions right short --pointwise-coef 0.5 --calibrate-on all --resamples 50 --judged 20",
    "prm": "--resamples 50 --judged 20",
}
UNTIMED = ("seconds", "tokens_per_second", "memory_bytes")


def rows(command: str) -> list[dict[str, Any]]:
    """Sums with right and wrong answers, in the form that the command learns from."""
    draw = random.Random(command)
    out: list[dict[str, Any]] = []
    for i in range(40):
        a, b = draw.randrange(100), draw.randrange(100)
        prompt, right, wrong = f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", f"It is {a + b + 1 + i % 3}."
        if command == "sft":
            out.append({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": right}]})
        elif command == "dpo":
            out.append({"prompt": prompt, "chosen": right, "rejected": wrong})
        elif command == "kto":
            out.append({"prompt": prompt, "completion": right if i % 2 else wrong, "label": bool(i % 2)})
        elif command == "reward":
            scores = [{"right": 5, "short": 2}, {"right": 1, "short": 4}, {"right": 2, "short": 3}]
            out.append({"prompt": prompt, "responses": [right, wrong, f"{a} and {b} make {a}."], "scores": scores})
        else:
            steps = [f"We add {a} and {b}.", f"{a} + {b} = {a + b + i % 2}.", f"The answer is {a + b + i % 2}."]
            mistake = 1 if i % 2 else None
            out.append({"question": prompt, "steps": steps, "mistake_index": mistake})
    return out


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def numbers(path: Path) -> str:
    """The numbers of a JSON Lines or JSON file; time, memory, and the texts that people read are left out."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: bare(v) for k, v in value.items() if k not in UNTIMED}
        if isinstance(value, list):
            return [bare(v) for v in value]
        return None if isinstance(value, str) else value

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return sha(json.dumps([bare(json.loads(line)) for line in lines]).encode())


def bare_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state without what depends on the digits of times, the best loss under its earlier name."""
    bare = {name: value for name, value in state.items() if name not in ("lengths", "digests", "best_score")}
    if state.get("best_score") is not None:
        bare["best"] = -state["best_score"]
    return {"best": None, **bare}


def recorded(run: Path, cache: Path) -> dict[str, str]:
    """What a run left behind, by name."""
    found = {}
    for path in sorted(run.rglob("*")):
        # Checkpoints of earlier versions have the policy's files beside state.json.
        name = str(path.relative_to(run)).replace("/policy/", "/")
        if path.suffix == ".safetensors" or path.match("model/*"):
            found[name] = sha(path.read_bytes())
        elif path.name in ("metrics.jsonl", "workbench.json", "findings.json"):
            found[name] = numbers(path)
        elif path.name == "state.json":
            found[name] = sha(json.dumps(bare_state(json.loads(path.read_text()))).encode())
    for path in sorted(cache.rglob("*.npy")) + sorted(cache.rglob("*.bin")):
        found[f"cache/{path.relative_to(cache)}"] = sha(path.read_bytes())
    return found


def record() -> dict[str, dict[str, str]]:
    """All runs by name."""
    spec = importlib.util.find_spec("espalier")
    assert spec is not None and spec.origin is not None, "espalier is not installed for this interpreter"
    model = Path(spec.origin).parent / "embedded" / "model"
    script = Path(sys.executable).parent / "espalier"
    out: dict[str, dict[str, str]] = {}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for command in COMMANDS:
            (here / f"{command}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(command)))
            for lora in (False, True):
                for ranks in (1, 2):
                    name = f"{command} {'LoRA' if lora else 'full'} x{ranks}"
                    launch = [sys.executable, str(script)]
                    if ranks > 1:
                        launch[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                    flags = f"{command} --model {model} --data {command}.jsonl --out {name.replace(' ', '-')} {ALIKE} "
                    flags += OWN.get(command, "") + (" --lora-rank 4" if lora else "")
                    done = subprocess.run([*launch, *flags.split()], cwd=here, env=env, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
                    out[name] = recorded(here / name.replace(" ", "-"), here / "cache")
                    print(f"{name}: {len(out[name])} files", file=sys.stderr, flush=True)
    return out


def main(how: str, path: Path) -> int:
    """Record the runs, or print how they compare with those in `path`. Returns the exit code."""
    now = record()
    if how == "record":
        path.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    before = json.loads(path.read_text())
    different = 0
    for name in {**before, **now}:
        one, two = before.get(name, {}), now.get(name, {})
        other = [key for key in {**one, **two} if one.get(key) != two.get(key)]
        different += bool(other)
        print(f"{name:16}  {len(one)} files  {'equal' if not other else 'DIFFERENT: ' + ', '.join(other)}")
    return int(different > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
