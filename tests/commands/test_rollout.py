"""`espalier rollout` with scripted answers: figures, files, going on after a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from desk import Desk
from espalier.commands import main as cli
from espalier.commands.rollout import Survey, chosen
from espalier.config.rollout_sections import RolloutConfig, SurveyConfig
from espalier.engines.protocols import Request, SamplingParams
from espalier.loop import signals
from espalier.loop.answers import Answers
from espalier.loop.progress import Progress
from espalier.outcomes import Key, Outcome
from espalier.types import Sample, StopReason
from rollouts import FakeGraders, FakeRank, FakeSampler, OneRank, exact, on_ranks, prompt

PROMPTS = [prompt(row) for row in range(5)]


def respond(request: Request, k: int) -> tuple[list[int], StopReason]:
    return [request.row] * (k + 1), "stop" if k else "length"


def right(key: Key, sample: Sample) -> Outcome:
    """Of task n, the first n answers are right, of task 4 all."""
    return exact(float(key[2] < key[0]))


def survey(
    out: Path, sampler: FakeSampler, world: Any = None, interrupted: Callable[[], bool] = lambda: False, **flags: Any
) -> Survey:
    world = world or OneRank()
    config = SurveyConfig(out=str(out), **flags)
    answers = Answers(sampler, FakeGraders(right), world, None, interrupted)
    console = Progress(0, rank=world.rank, console=Console(width=200))
    params = SamplingParams(max_tokens=4, temperature=1.0)
    rollout = RolloutConfig(group_size=4, prompts_per_step=2)
    return Survey(config, rollout, answers, params, lambda ids: " ".join(map(str, ids)), world, console)


def test_figures_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = survey(tmp_path, FakeSampler(respond)).run(PROMPTS, {"settings": 1})
    # Right are 0, 1, 2, 3, 4 of 4 answers.
    assert figures["pass"]["1"]["value"] == pytest.approx(0.5)
    # Pairs without a right answer: 6, 3, 1, 0, 0 of 6.
    assert figures["pass"]["2"]["value"] == pytest.approx((0 + 3 / 6 + 5 / 6 + 1 + 1) / 5)
    assert figures["pass"]["4"]["value"] == pytest.approx(4 / 5)
    assert figures["dead"]["value"] == pytest.approx(2 / 5)
    assert figures["stops"] == {"stop": 15, "length": 5}
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["task"]["row"], line["k"], line["score"]) for line in lines[4:8]] == [
        (1, 0, 1.0),
        (1, 1, 0.0),
        (1, 2, 0.0),
        (1, 3, 0.0),
    ]
    assert json.loads((tmp_path / "rollout.json").read_text())["figures"]["pass"]["1"]["value"] == 0.5
    printed = capsys.readouterr().out
    assert "pass@4" in printed and "80.0%" in printed and "--- highest: t:2, score 1, 1 tokens" in printed


def test_a_stopped_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = survey(tmp_path / "whole", FakeSampler(respond))
    whole.run(PROMPTS, {})
    sampler = FakeSampler(respond)
    stopped = survey(tmp_path / "cut", sampler, interrupted=lambda: len(sampler.requests) == 4)
    with pytest.raises(KeyboardInterrupt, match=r"2 tasks are answered .* the same command goes on"):
        stopped.run(PROMPTS, {})
    rest = FakeSampler(respond)
    survey(tmp_path / "cut", rest).run(PROMPTS, {})
    assert [request.row for request in rest.requests] == [2, 3, 4]
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "cut")]
    assert samples[0] == samples[1]
    done = FakeSampler(respond)
    survey(tmp_path / "cut", done).run(PROMPTS, {})
    assert done.requests == []


def test_ranks_share_the_tasks_and_one_writes(tmp_path: Path) -> None:
    survey(tmp_path / "one", FakeSampler(respond)).run(PROMPTS, {})

    def part(world: FakeRank) -> list[int]:
        sampler = FakeSampler(respond)
        survey(tmp_path / "two", sampler, world).run(PROMPTS, {})
        return [request.row for request in sampler.requests]

    assert on_ranks(2, part) == [[0, 2, 4], [1, 3]]
    assert (tmp_path / "two" / "samples.jsonl").read_text() == (tmp_path / "one" / "samples.jsonl").read_text()


def test_tasks_are_chosen_by_seed_in_their_order() -> None:
    rows = [p.row for p in chosen(PROMPTS, 3, seed=1)]
    assert rows == sorted(set(rows)) and len(rows) == 3
    assert [p.row for p in chosen(PROMPTS, 3, seed=1)] == rows
    assert {tuple(p.row for p in chosen(PROMPTS, 3, seed=seed)) for seed in range(20)} != {tuple(rows)}
    assert chosen(PROMPTS, 0, seed=1) == chosen(PROMPTS, 9, seed=1) == PROMPTS


def test_a_model_answers_tasks_and_goes_on_where_it_stopped(desk: Desk) -> None:
    """The whole command on a tiny model, once whole and once for the first chunk of tasks only."""
    data = desk.rows("sums", [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)])
    flags = ["--model", desk.model, "--data", data, "--reward", "gsm8k", "--cache", str(desk.folder / "cache")]
    flags += ["--group-size", "3", "--max-tokens", "5", "--prompts-per-step", "2", "--reward-workers", "1"]
    whole, cut = desk.folder / "whole", desk.folder / "cut"
    assert cli.main(["rollout", *flags, "--out", str(whole)]) == 0
    lines = (whole / "samples.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    assert [(r["task"]["line"], r["k"]) for r in records] == [(row, k) for row in range(1, 7) for k in range(3)]
    assert all(r["length"] <= 5 and r["logprob"] < 0 and not r["error"] for r in records)
    assert len({tuple(r["ids"]) for r in records}) > 12
    assert "18 answers to 6 tasks" in desk.capsys.readouterr().out
    cut.mkdir()
    (cut / "rollout.json").write_text((whole / "rollout.json").read_text())
    (cut / "samples.jsonl").write_text("".join(lines[:8]))
    assert cli.main(["rollout", *flags, "--out", str(cut)]) == 0
    assert (cut / "samples.jsonl").read_text() == "".join(lines)
    assert "2 tasks are answered" in desk.capsys.readouterr().out
    assert cli.main(["rollout", *flags, "--out", str(cut), "--temperature", "0.5"]) == 2
    assert "holds rollouts of another settings" in desk.capsys.readouterr().err


def test_a_signal_says_that_the_same_command_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(self: Survey, prompts: Any, follows: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    written: list[bytes] = []
    monkeypatch.setattr(Survey, "run", signalled)
    monkeypatch.setattr(signals, "os", SimpleNamespace(write=lambda place, data: written.append(data)))
    data = desk.rows("sums", [{"question": "1 + 1?", "answer": "2"}])
    flags = ["--model", desk.model, "--data", data, "--reward", "exact", "--cache", str(desk.folder / "cache")]
    assert (
        cli.main(["rollout", *flags, "--max-tokens", "5", "--out", str(desk.folder / "out"), "--reward-workers", "1"])
        == 0
    )
    said = b"SIGTERM: answers in flight are given up, those in samples.jsonl stay, and the same command goes on"
    assert said in b"".join(written)


def test_a_model_is_needed_to_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollout", "--data", "d.jsonl", "--reward", "exact", "--out", str(tmp_path)]) == 2
    assert "model is missing" in capsys.readouterr().err
    assert cli.main(["rollout", "--data", "d", "--model", "m", "--out", str(tmp_path), "--lora-rank", "4"]) == 2
    assert "has no use for it" in capsys.readouterr().err
