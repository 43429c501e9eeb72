"""A run that is killed at any moment and resumed ends as the run that was never killed, bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from espalier.loop import checkpoint
from espalier.loop.checkpoint import step_name, steps
from runs import Ended, Place, assert_same, content, lines

HERE = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("resume"))
    yield made
    made.close()


SAVE = "espalier.engines.learner:tensors_to_file"  # twice in a save: weights, then optimizer
POINTS: dict[str, list[Any]] = {
    "before the first forward": ["in_step", 0, 0],
    "epoch 1, between micro-batches": ["in_step", 2, 2],
    "epoch 2, between micro-batches": ["in_step", 5, 1],
    "after an update, before its line": ["after", "espalier.engines.optimizer:Optimizer.step", 5],
    "inside a line of the metrics": ["in_line", 6],
    "after a line of the metrics": ["after", "espalier.loop.metrics:MetricsFile.append", 8],
    "inside an evaluation": ["after", "espalier.engines.learner:TorchLearner.say", 3],
    "a save: nothing but state": ["before", SAVE, 3],
    "a save: weights without optimizer": ["after", SAVE, 3],
    "a save: optimizer without model": ["after", SAVE, 4],
    "a save: inside the model": ["before", "espalier.models.export:_write_generation", 2],
    "a save: no manifest": ["before", "espalier.loop.checkpoint:_write_manifest", 2],
    "a save: sealed, not renamed": ["before", "espalier.files:replace_dir", 2],
    "a save: renamed, nothing pruned": ["after", "espalier.files:replace_dir", 3],
    "a prune: renamed, not deleted": ["within", "espalier.files:remove_dir", "shutil:rmtree", 1],
    "the last copy: not renamed": ["after", "shutil:copytree", 1],
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_never_killed(place: Place, tmp_path: Path, point: str) -> None:
    whole, run = place.whole("whole"), tmp_path / "run"
    killed = place.run(run, hook=POINTS[point])
    assert killed.code == -signal.SIGKILL, killed
    assert not (run / "model").exists() and len(lines(run)) <= len(lines(whole))
    resumed = place.run(run, "--resume")
    assert resumed.code == 0, resumed
    assert_same(run, whole)


def test_what_was_killed_where(place: Place) -> None:
    """The points above are where their names say: seven steps over two epochs, several forwards a step."""
    records = lines(place.whole("whole"))
    training = [line for line in records if "lr" in line]
    assert [line["step"] for line in training] == list(range(1, 8))
    assert training[2]["epoch"] < 1 < training[5]["epoch"] and training[-1]["epoch"] == 2
    assert all(line["packed"] > 3 * 64 for line in training[:-1]), "a step has four forwards or more"
    assert [line["step"] for line in records if "eval_loss" in line] == [2, 4, 6, 7]
    assert len({line["rows"] for line in training}) == 7


def test_killed_over_and_over_at_random_accesses(place: Place, tmp_path: Path) -> None:
    """Every start is killed at some access to a file of the run, a little further each time."""
    whole, run, rng = place.whole("whole"), tmp_path / "run", random.Random(time.time_ns() % 1000)
    killed: list[int] = []
    ended = Ended(-9, "", "")
    while ended.code and len(killed) < 12:
        killed.append(rng.randrange(20, 260) + 15 * len(killed))
        ended = place.run(run, "--resume", hook=["at_access", str(run), killed[-1]])
        assert ended.code in (0, -signal.SIGKILL), (killed, ended)
    if ended.code:
        assert place.run(run, "--resume").code == 0
    print("killed at accesses", killed)
    assert_same(run, whole)


def test_generators_go_on_where_they_were(place: Place, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert place.run(whole, hook=["drawing", 0]).code == 0
    assert place.run(run, hook=["drawing", 5]).code == -signal.SIGKILL
    assert place.run(run, "--resume", hook=["drawing", 0]).code == 0
    assert_same(run, whole)
    name = "rng-00000.json"
    last = step_name(steps(whole / "checkpoints")[-1])
    plain = place.whole("whole") / "checkpoints" / last / name
    assert (whole / "checkpoints" / last / name).read_bytes() != plain.read_bytes(), "nothing was drawn"


VARIANTS = {
    "replay, LoRA, new tokens": (
        *("--replay", "{text}", "--replay-fraction", "0.25", "--lora-rank", "4", "--add-tokens", "<|new|>"),
        *("--weight-decay", "0.1", "--schedule", "wsd"),
    ),
    "tokens per step, NEFTune, adapter": (
        *("--tokens-per-step", "200", "--samples-per-step", "0", "--neftune-alpha", "5", "--lora-rank", "2"),
        *("--export", "adapter"),
    ),
    "Muon, frozen layers, bfloat16": (
        *("--optimizer", "muon", "--freeze-layers", "0.5", "--dtype", "bfloat16", "--grad-checkpointing"),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_resumes(place: Place, tmp_path: Path, name: str) -> None:
    more = [flag.format(text=place.text) for flag in VARIANTS[name]]
    whole, run = place.whole(name.replace(" ", "-"), *more), tmp_path / "run"
    assert place.run(run, *more, hook=["in_step", 5, 1], checks=True).code == -signal.SIGKILL
    resumed = place.run(run, *more, "--resume", checks=True)
    assert resumed.code == 0 and "resumed from step-00000" in resumed.out, resumed
    assert_same(run, whole)
    assert (run / "preflight.json").read_bytes() == (whole / "preflight.json").read_bytes()
    if "replay" in name:  # the last step is a short one
        assert all("nll_replay" in line for line in lines(run)[:-3] if "lr" in line)


# ------------------------------------------------------------------------------------------------- stopping and signals


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_saves_and_says_how_to_go_on(place: Place, tmp_path: Path, name: str, code: int) -> None:
    whole, run = place.whole("whole"), tmp_path / "a run"
    ended = place.run(run, hook=["signal_after_step", 5, name])
    assert ended.code == code
    assert f"stopped by {name}, saved as step-000005" in ended.out
    assert steps(run / "checkpoints")[-1] == 5 and not (run / "model").exists()
    said = ended.out if name == "SIGTERM" else ended.err
    command = re.search(r"continue with: espalier (sft --config '(.*)' --resume)$", said.strip(), re.MULTILINE)
    assert command is not None, said
    assert (ended.out + ended.err).count("continue with: ") == 1
    assert place.run(run, "--resume").code == 0
    assert_same(run, whole)


def test_a_signal_in_the_last_step_changes_nothing(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = place.run(run, hook=["signal_after_step", 7, "SIGTERM"])
    assert ended.code == 0 and "done after step 7" in ended.out
    assert_same(run, place.whole("whole"))


def test_a_finished_run_stays_as_it_is(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place.whole("whole"), run)
    before = content(run)
    assert place.run(place.whole("whole"), "--resume", checks=True).code == 0
    after = content(place.whole("whole"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"manifest.json", ".lock"} and before.keys() - after.keys() == set()
    assert {name for name in after.keys() - before.keys() if not name.startswith("tensorboard/")} == set()


def real(place: Place, run: Path, *more: str) -> subprocess.Popen[str]:
    """The command as a user starts it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "espalier", *place.flags(run, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "runs",
    [{signal.SIGKILL: -9, signal.SIGTERM: 0}, pytest.param({signal.SIGINT: 130}, marks=pytest.mark.slow)],
    ids=["KILL and TERM", "INT"],
)
def test_real_processes_end_on_real_signals(place: Place, tmp_path: Path, runs: dict[signal.Signals, int]) -> None:
    """One process for each signal, which comes at a random moment after the second step.

    A forked child is killed, for it has no say in that; what answers a signal is the command as a user starts it.
    """
    more = ("--epochs", "10")
    whole, rng = place.whole("long", *more), random.Random(time.time_ns())
    started = {name: real(place, tmp_path / name.name, *more) for name in runs if name != signal.SIGKILL}
    pool = ThreadPoolExecutor(1)
    child = pool.submit(place.run, tmp_path / "SIGKILL", *more) if signal.SIGKILL in runs else None
    waiting = dict.fromkeys(runs, 0.0)
    deadline = time.monotonic() + 60
    try:
        while waiting and time.monotonic() < deadline:
            for name, due in list(waiting.items()):
                metrics = tmp_path / name.name / "metrics.jsonl"
                if not due and metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
                    waiting[name] = time.monotonic() + rng.uniform(0, 0.15)
                elif due and time.monotonic() >= due:
                    os.kill(int((tmp_path / name.name / ".lock").read_text()), name)
                    del waiting[name]
            time.sleep(0.002)
        ends: dict[signal.Signals, Any] = {name: p.communicate(timeout=60) for name, p in started.items()}
        codes = {name: process.returncode for name, process in started.items()}
        if child:
            ended = child.result(timeout=60)
            ends[signal.SIGKILL], codes[signal.SIGKILL] = (ended.out, ended.err), ended.code
    finally:
        for process in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        pool.shutdown()
    for name, code in runs.items():
        run = tmp_path / name.name
        assert codes[name] == code, (name, ends[name])
        assert len(lines(run)) < len(lines(whole)), "the signal came too late"
        if code != -9:
            assert f"stopped by {name.name}, saved as" in ends[name][0]
        assert place.run(run, *more, "--resume").code == 0
        assert_same(run, whole)


# ---------------------------------------------------------------------------------------------------- damage and disks


def test_a_corrupt_checkpoint_is_found_and_the_one_before_offered(place: Place, tmp_path: Path) -> None:
    whole, run = place.whole("whole"), tmp_path / "run"
    assert place.run(run, hook=["in_step", 6, 0]).code == -signal.SIGKILL
    newest, older = reversed(steps(run / "checkpoints")[-2:])
    file = run / "checkpoints" / step_name(newest) / "policy" / "optimizer.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    refused = place.run(run, "--resume")
    assert refused.code == 2
    assert f"checkpoint {step_name(newest)} is corrupt: policy/optimizer.safetensors has sha256" in refused.err
    offered = re.search(r"go back to it with (--resume --resume-from step-\d+)", refused.err)
    assert offered is not None and offered[1] == f"--resume --resume-from {step_name(older)}", refused.err
    resumed = place.run(run, *offered[1].split())
    assert resumed.code == 0 and f"resumed from {step_name(older)}" in resumed.out
    assert (run / "checkpoints" / "abandoned" / step_name(newest)).is_dir()
    assert_same(run, whole)


@pytest.mark.parametrize("target", [SAVE, "espalier.models.export:_write_model"])
def test_a_full_disk_leaves_the_previous_checkpoint(place: Place, tmp_path: Path, target: str) -> None:
    whole, run = place.whole("whole"), tmp_path / "run"
    full = place.run(run, hook=["full_disk", target, 4])
    assert full.code == 2 and "the disk is full" in full.err and "continue with --resume" in full.err
    found = checkpoint.choose(run / "checkpoints")
    assert found is not None and found.step == steps(run / "checkpoints")[-1] >= 2
    assert place.run(run, "--resume").code == 0
    assert_same(run, whole)


def test_resume_is_refused_by_name(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert place.run(run, hook=["signal_after_step", 4, "SIGTERM"]).code == 0
    before = content(run / "checkpoints") | content(run)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(place.data.read_text().splitlines(keepends=True)[:-1]))
    for more, name in (
        (("--seed", "1"), "its config changed: seed 0 -> 1"),
        (("--tokens-per-microbatch", "96"), "its config changed: tokens_per_microbatch 64 -> 96"),
        (("--lr", "2e-3"), "its config changed: lr 0.001 -> 0.002"),
        (("--epochs", "3"), "its config changed: epochs 2.0 -> 3.0"),
        (("--lora-rank", "2"), "its config changed: lora_rank 0 -> 2"),
    ):
        refused = place.run(run, *more, "--resume")
        assert refused.code == 2 and f"would not continue bit for bit: {name}" in refused.err, refused
        assert "--accept-changes" in refused.err
    for file, change, name in (
        (place.data, changed.read_bytes(), f"data files changed: {place.data} "),
        (place.model / "model.safetensors", None, f"model changed: {place.model.name}/model.safetensors "),
    ):
        original = file.read_bytes()
        try:
            file.write_bytes(change or original[:-1] + bytes([original[-1] ^ 1]))
            refused = place.run(run, "--resume")
            assert refused.code == 2 and f"would not continue bit for bit: {name}" in refused.err, refused
        finally:
            file.write_bytes(original)
    after = content(run / "checkpoints") | content(run)
    assert {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)} <= {"manifest.json", ".lock"}
    assert place.run(run, "--resume").code == 0
    assert_same(run, place.whole("whole"))


# ------------------------------------------------------------------------------------------------------------- the best

EARLY = (
    "--lr",
    "0.05",
    "--schedule",
    "constant",
    "--patience",
    "2",
    "--keep",
    "1",
    "--save-every",
    "1",
    "--epochs",
    "6",
)


def test_patience_stops_early_and_keeps_the_best(place: Place, tmp_path: Path) -> None:
    whole = place.whole("early", *EARLY)
    records = lines(whole)
    evaluations = {line["step"]: line["eval_loss"] for line in records if "eval_loss" in line}
    best, last = min(evaluations, key=evaluations.__getitem__), max(evaluations)
    assert last == best + 4 == records[-1]["step"] < 19, evaluations
    assert steps(whole / "checkpoints") == [best, last], "keep 1 and the best"
    kept = whole / "checkpoints" / step_name(best) / "model"
    # What trained it is said in the README of the run's model alone.
    model = {name: file for name, file in content(whole / "model").items() if name != "README.md"}
    assert model.items() < content(kept).items()
    assert not model.items() <= content(whole / "checkpoints" / step_name(last) / "model").items()
    run = tmp_path / "run"
    assert place.run(run, *EARLY, hook=["in_step", last - 1, 1]).code == -signal.SIGKILL
    resumed = place.run(run, *EARLY, "--resume")
    assert resumed.code == 0 and "no better for 2 evaluations" in resumed.out
    assert_same(run, whole)
    assert place.run(run, *EARLY, "--resume").code == 0, "a run that ended early is resumed"
    assert_same(run, whole)


def test_a_best_checkpoint_that_rotted_is_not_exported(place: Place, tmp_path: Path) -> None:
    whole, run = place.whole("early", *EARLY), tmp_path / "run"
    assert place.run(run, *EARLY, hook=["after", "shutil:copytree", 1]).code == -signal.SIGKILL
    best = steps(whole / "checkpoints")[0]
    file = run / "checkpoints" / step_name(best) / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    ended = place.run(run, *EARLY, "--resume")
    assert ended.code == 2 and f"checkpoint {step_name(best)} is corrupt: model/model.safetensors has" in ended.err
    assert not (run / "model").exists()
