"""Two processes on gloo train what one process trains. One launch of `dist_worker.py` makes all comparisons."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desk import Left
from dist_commands import arguments, dpo_arguments
from dist_reference import HELD
from dist_worker import CHECKS
from espalier.commands import main as cli
from espalier.engines import fsdp
from espalier.files import file_to_tensors
from espalier.loop import checkpoint
from espalier.loop.metrics import read_lines
from runs import without_time
from tiny import ATTENTION, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.dist
HERE = Path(__file__).resolve().parents[1] / "helpers"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def launch(*command: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run Python; whatever is left after `seconds` is killed, with all that it started."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def rows(count: int) -> Iterator[str]:
    for i in range(count):
        messages = [("user", f"{i * 7 % 50} and {i}?"), ("assistant", f"{i * 11 % 90} " * (1 + i % 3) + "so")]
        yield json.dumps({"messages": [{"role": role, "content": text} for role, text in messages]})


def pairs(count: int) -> Iterator[str]:
    for i in range(count):
        yield json.dumps({"prompt": f"{i}+{i}, what is it?", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1} or so"})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ranks")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "data.jsonl").write_text("".join(f"{row}\n" for row in rows(30)))
    (folder / "pairs.jsonl").write_text("".join(f"{row}\n" for row in pairs(24)))
    done = launch(str(HERE / "dist_worker.py"), str(folder), seconds=240)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def figures(out: Path, name: str) -> dict[str, Any]:
    lost = json.loads((out / "lost.json").read_text()) if (out / "lost.json").exists() else None
    assert lost is None or lost["check"] != name, f"rank {lost['rank']} failed alone:\n{lost['error']}"
    results = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else {}
    assert name in results, f"not reached; {lost['check'] if lost else (out / 'said.txt').read_text()[-3000:]}"
    assert "error" not in results[name], results[name]["error"]
    found: dict[str, Any] = results[name]
    return found


COMPARED = [
    name
    for name in CHECKS
    if name not in ("save_and_load", "full_disk", "layout_check", "bytes_of_all_ranks", "sampling", "muon", *HELD)
]
# Relative, but for log-probabilities and entropies (nats), of numbers that rounding alone may part.
LIMITS = {"loss": 1e-6, "terms": 1e-6, "norm": 1e-6, "gradients": 3e-6, "weights": 1e-6, "export": 1e-6}
LIMITS |= {"logprobs": 1e-5, "entropy": 1e-5, "correct": 0.0, "exact": 0.0}


@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_train_what_one_does(out: Path, name: str) -> None:
    found = figures(out, name)
    for figure, limit in LIMITS.items():
        if figure != "exact" or figure in found:
            assert found[figure] <= limit, (figure, found)
    assert found["moved"] > 1e-3, "the weights hardly moved, so nothing was compared"
    assert found["packed"][0] == found["packed"][1]


def test_what_the_comparisons_were_about_took_place(out: Path) -> None:
    assert figures(out, "clipped")["grad_norm"] > 1, "the limit of 0.01 never clipped"
    assert figures(out, "bfloat16")["rounding"] > 1e-3, "computed in float32"
    assert figures(out, "neftune")["packed"][0] > figures(out, "untied")["packed"][0], "prefixes are shared under noise"


def test_muon_orthogonalises_whole_matrices(out: Path) -> None:
    """Newton-Schulz runs in bfloat16, so the updates of the sharded matrices differ by its rounding: a few per cent of
    an update, where a matrix orthogonalised shard by shard would differ by as much as the update itself."""
    found = figures(out, "muon")
    assert found["weights"] < 0.05 * found["moved"]
    assert found["loss"] < 1e-4 and found["norm"] < 1e-3


def test_two_save_and_one_goes_on_and_back(out: Path) -> None:
    found = figures(out, "save_and_load")
    assert [found[name] for name in ("two to one", "one to two", "optimizer", "same ranks")] == [0, 0, 0, 0]
    assert found["weights"] <= 1e-6


def test_a_full_disk_on_rank_0_is_everyone_s_error_at_once(out: Path) -> None:
    found = figures(out, "full_disk")
    assert len(found["said"]) == 2 and all("the disk is full" in line for line in found["said"])
    assert found["seconds"] < 20


def test_the_start_up_checks_run_before_sharding(out: Path) -> None:
    found = figures(out, "layout_check")
    assert found["verdict"] == "pass" and found["share"] > 0.9


def test_ranks_gather_bytes_and_hear_of_each_other_s_errors(out: Path) -> None:
    found = figures(out, "bytes_of_all_ranks")
    assert found["lengths"] == [0, 300] and found["rank"] == 0
    assert found["value"] == {"a": [1.5, "\u00e4"], "rank": 0}
    assert found["errors"] == [
        "CheckpointError: nothing was done: rank 1 failed and says why",
        "OSError: alone",
    ]


def test_ranks_draw_their_shares_from_gathered_weights(out: Path) -> None:
    """After an update in bfloat16 weights may differ by a rounding, so tokens are compared in float32."""
    found = figures(out, "sampling")
    assert found["tokens"] == 0 and found["logprobs"] < 1e-5 and found["weights"] < 1e-5
    assert found["responses"] == 5 * 6, "rank 0 has three of the five prompts, twice each"


@pytest.mark.parametrize("name", HELD)
def test_references_measures_and_reads_are_those_of_one_process(out: Path, name: str) -> None:
    """Log-probabilities, sums and scores in float32; the masters' bfloat16 rounding parts what computes in it."""
    found = {figure: x for figure, x in figures(out, name).items() if figure != "seconds_in_all"}
    for figure, apart in found.items():
        assert apart <= (0.1 if "bfloat16" in figure and "file" not in figure else 2e-5), found


@pytest.mark.parametrize("family", ATTENTION)
def test_every_family_names_its_layers(family: str) -> None:
    """A model whose layers are not found would be gathered whole."""
    model = tiny_model(family)
    found = list(fsdp.layers(model))
    assert len(found) == model.config.num_hidden_layers
    inside = {id(p) for layer in found for p in layer.parameters()}
    outside = [n for n, p in model.named_parameters() if id(p) not in inside]
    assert not any("attn" in n or "mlp" in n for n in outside), outside


# ---------------------------------------------------------------------------------------------------------- commands


def commands(out: Path, rank: int) -> dict[str, Any]:
    file = out / f"commands-{rank}.json"
    assert file.exists(), (out / "said.txt").read_text()[-3000:]
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_only_the_first_rank_prints_and_writes(out: Path) -> None:
    first, second = commands(out, 0), commands(out, 1)
    assert [first[name][0] for name in ("run-whole", "run-stopped")] == [0, 0]
    assert [second[name][:2] for name in ("run-whole", "run-stopped")] == [[0, ""], [0, ""]]
    assert "done after step 7" in first["run-whole"][1] and "on 2 processes" in first["run-whole"][1]
    assert set(second["written"]) == {".rng-00001.json.partial"}
    assert ".rng-00001.json.partial" not in first["written"] and ".state.json.partial" in first["written"]


def test_what_rank_0_refuses_ends_all_ranks(out: Path) -> None:
    first, second = commands(out, 0)["changed"], commands(out, 1)["changed"]
    assert first[0] == second[0] == 2
    assert "would not continue bit for bit: data files changed: " in first[2]
    assert second[2].startswith("rank 1: error:") and "rank 0 failed and says why" in second[2]


def test_two_processes_learn_from_pairs_what_one_does(out: Path) -> None:
    (code, said, complained), (other_code, other_said, _) = (commands(out, rank)["dpo"] for rank in range(2))
    assert code == other_code == 0, complained[-3000:]
    assert "on 2 processes" in said and (said + other_said).count("done after step") == 1
    assert cli.main([*dpo_arguments(out), "--out", str(out / "dpo-alone")]) == 0
    one, two = Left(out / "dpo-alone"), Left(out / "dpo")
    assert two.checks["reference"]["verdict"] == two.checks["first_loss"]["verdict"] == "pass"
    names = ("loss", "margin", "logprobs_chosen", "rewards_rejected", "eval_loss", "eval_margin", "grad_norm")
    for mine, theirs in zip(one.lines, two.lines, strict=True):
        assert mine["step"] == theirs["step"] and mine.get("rows") == theirs.get("rows")
        for key in mine.keys() & set(names):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), (mine["step"], key)
    for key, tensor in one.weights.items():
        assert (tensor - two.weights[key]).abs().max() < 1e-4, key


def test_a_signal_to_one_rank_stops_all_and_torchrun_resumes_bit_for_bit(out: Path) -> None:
    """The rest of a run that stopped after step 3 on SIGTERM to rank 1, through `torchrun -m espalier`."""
    said = commands(out, 0)["run-stopped"][1]
    stopped, whole = out / "run-stopped", out / "run-whole"
    assert (
        "stopped by stop signal, saved as step-000003" in said and f"--config {stopped / 'run.yaml'} --resume" in said
    )
    assert not (stopped / "model").exists()
    done = launch(*TORCHRUN, "-m", "espalier", "sft", "--config", str(stopped / "run.yaml"), "--resume", seconds=100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from step-000003" in done.stdout
    lines = [[without_time(line) for line in read_lines(run / "metrics.jsonl")] for run in (stopped, whole)]
    assert lines[0] == lines[1] and len(lines[0]) > 6
    last = checkpoint.steps(whole / "checkpoints")[-1]
    for name in ("policy/optimizer.safetensors", "policy/trained.safetensors", "model/model.safetensors"):
        a, b = (file_to_tensors(run / "checkpoints" / checkpoint.step_name(last) / name) for run in (stopped, whole))
        assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (stopped / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.slow
def test_a_folder_that_is_taken_ends_the_launch(out: Path) -> None:
    """Rank 0 leaves before it meets the others."""
    done = launch(*TORCHRUN, "-m", "espalier", "sft", *arguments(out), "--out", str(out / "run-whole"), seconds=60)
    assert done.returncode != 0
    assert "already holds a run; continue it with --resume" in " ".join(done.stderr.split())
