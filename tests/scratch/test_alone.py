"""The flat scripts run on their own, with torch and transformers alone, and learn."""

import json
import re
import subprocess
import sys

import pytest

from scratches import SCRATCH

COMMANDS = {
    "sft": ["--steps", "12", "--lr", "0.01"],
    "dpo": ["--steps", "12", "--lr", "0.015", "--beta", "0.5", "--batch", "6"],
    "grpo": ["--steps", "14", "--lr", "0.005", "--max-tokens", "4"],
    "reinforce": ["--steps", "14", "--lr", "0.005", "--max-tokens", "4", "--prompts", "48", "--baseline", "whiten"],
    "ppo": ["--steps", "7", "--lr", "0.004", "--max-tokens", "4", "--prompts", "48", "--epochs", "2"],
}
# One interpreter, which imports what a script may import, forks a child for each script.
TURNS = """
import gc, json, os, runpy, sys
gc.disable()  # imports leave no garbage
import torch, transformers.models.llama.modeling_llama
gc.freeze()
gc.enable()
torch.set_num_threads(1)
for path, *argv in json.loads(sys.argv[1]):
    if os.fork() == 0:
        sys.argv = [path, *argv]
        runpy.run_path(path, run_name="__main__")
        sys.exit(0)
    _, status = os.wait()
    print("end", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each script prints."""
    turns = [[str(SCRATCH / f"{name}.py"), *argv] for name, argv in COMMANDS.items()]
    run = subprocess.run([sys.executable, "-c", TURNS, json.dumps(turns)], capture_output=True, text=True, check=True)
    *texts, rest = re.split(r"^end 0\n", run.stdout, flags=re.MULTILINE)
    assert rest == "", run.stderr
    return dict(zip(COMMANDS, texts, strict=True))


def test_sft_runs_on_its_own_and_learns(said: dict[str, str]) -> None:
    losses = [float(x) for x in re.findall(r"main (\S+)", said["sft"])]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(4.16, abs=0.1)  # ln 64: a random model guesses
    assert losses[-1] < losses[0] - 0.5


def test_dpo_runs_on_its_own_and_learns(said: dict[str, str]) -> None:
    losses = [float(x) for x in re.findall(r"loss (\S+)", said["dpo"])]
    margins = [float(x) for x in re.findall(r"margin (\S+)", said["dpo"])]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)  # ln 2: policy and reference are the same
    assert margins[0] == 0
    assert losses[-1] < 0.5
    assert margins[-1] > 0.5


def test_grpo_runs_on_its_own_and_learns(said: dict[str, str]) -> None:
    rewards = [float(x) for x in re.findall(r"reward (\S+)", said["grpo"])]
    ratios = [float(x) for x in re.findall(r"ratio (\S+)", said["grpo"])]
    assert len(rewards) == 14
    assert rewards[0] == pytest.approx(0.5, abs=0.15)  # half of all tokens are even
    assert rewards[-1] > 0.8
    assert ratios == [pytest.approx(1, abs=1e-5)] * 14  # one update a step


def test_reinforce_runs_on_its_own_and_learns(said: dict[str, str]) -> None:
    rewards = [float(x) for x in re.findall(r"reward (\S+)", said["reinforce"])]
    assert len(rewards) == 14
    assert rewards[0] == pytest.approx(0.5, abs=0.15)  # half of all tokens are even
    assert rewards[-1] > 0.8


def test_ppo_runs_on_its_own_and_learns(said: dict[str, str]) -> None:
    rewards = [float(x) for x in re.findall(r"reward (\S+)", said["ppo"])]
    ratios = [float(x) for x in re.findall(r"ratio (\S+)", said["ppo"])]
    assert len(rewards) == 14
    assert rewards[0] == pytest.approx(0.5, abs=0.15)  # half of all tokens are even
    assert rewards[-1] > 0.7
    assert ratios[::2] == [pytest.approx(1, abs=1e-5)] * 7  # the first update of each step
