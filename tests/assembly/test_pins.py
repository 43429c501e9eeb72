"""A resumed run computes from what it computed from: whatever changed is named with its file, old and new."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from espalier.assembly import pins
from espalier.assembly.runs import RUNS
from espalier.config.options import PER_CALL, options
from espalier.loop.rundir import MAY_CHANGE
from runs import Place, assert_same
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("pins"))
    for name in ("pairs", "held"):
        with open(made.folder / f"{name}.jsonl", "w") as file:
            for i in range(24):
                row = {"prompt": f"{name} {i}+{i}?", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1} or so"}
                file.write(json.dumps(row) + "\n")
    tiny_model("llama", seed=5).save_pretrained(made.folder / "reference")
    tiny_tokenizer().save_pretrained(made.folder / "reference")
    template = tiny_tokenizer().chat_template
    assert isinstance(template, str)
    (made.folder / "own.jinja").write_text(template)
    yield made
    made.close()


def argv(place: Place, run: Path, *more: str) -> list[str]:
    folder = place.folder
    return [
        *("dpo", "--model", str(place.model), "--data", str(folder / "pairs.jsonl"), "--out", str(run)),
        *("--eval-data", str(folder / "held.jsonl"), "--cache", str(folder / "cache"), "--samples-per-step", "16"),
        *("--reference-model", str(folder / "reference"), "--template", str(folder / "own.jinja")),
        *("--epochs", "2", "--lr", "1e-2", "--save-every", "1", "--tokens-per-microbatch", "128", *more),
    ]


def other_weights(file: Path) -> None:
    """The last weight's last bit, which no reader can see."""
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


CHANGES = {
    "the reference's weights": ("reference/model.safetensors", "reference changed: reference/model.safetensors"),
    "the reference's config": ("reference/generation_config.json", "reference changed: reference/generation_config"),
    "the policy's tokenizer": ("model/tokenizer.json", "tokenizer changed: model/tokenizer.json"),
    "the policy's config": ("model/config.json", "model changed: model/config.json"),
    "the template": ("own.jinja", r"template changed: .*own.jinja"),
    "held-out data": ("held.jsonl", r"data files changed: .*held.jsonl"),
    "the data": ("pairs.jsonl", r"data files changed: .*pairs.jsonl"),
}


@pytest.mark.parametrize("reference", ["memory", "precomputed"])
def test_what_changed_is_named(place: Place, tmp_path: Path, reference: str) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = ("--reference", reference)
    assert place.command(argv(place, whole, *more)).code == 0
    assert place.command(argv(place, run, *more), ["in_step", 2, 0]).code == -signal.SIGKILL
    for what, (name, text) in CHANGES.items():
        file = place.folder / name
        good = file.read_bytes()
        if file.suffix == ".safetensors":
            other_weights(file)
        else:  # blanks that change no meaning where the format allows it
            file.write_bytes(good + (b"\n" if file.suffix == ".json" else b"\n\n"))
        refused = place.command(argv(place, run, *more, "--resume"))
        file.write_bytes(good)
        assert refused.code == 2, (what, refused)
        assert re.search(
            rf"would not continue bit for bit: .*{text}\S* [0-9a-f]{{16}} -> [0-9a-f]{{16}}", refused.err
        ), (
            what,
            refused.err,
        )
    assert place.command(argv(place, run, *more, "--resume")).code == 0
    assert_same(run, whole)


def test_an_adapter_that_changed_is_named(place: Place, tmp_path: Path) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    made = place.run(first, "--lora-rank", "2", "--export", "adapter", "--steps", "1")
    assert made.code == 0, made
    adapter = tmp_path / "adapter"
    shutil.copytree(first / "model", adapter)
    more = ("--adapter", str(adapter))
    killed = place.run(run, *more, hook=["in_step", 4, 0])
    assert killed.code == -signal.SIGKILL, killed
    other_weights(adapter / "adapter_model.safetensors")
    refused = place.run(run, *more, "--resume")
    assert refused.code == 2 and "model changed: adapter/adapter_model.safetensors " in refused.err, refused
    assert place.run(run, *more, "--resume", "--accept-changes").code == 0


def test_a_line_of_the_metrics_that_changed_is_noticed(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert place.command(argv(place, run), ["in_step", 2, 0]).code == -signal.SIGKILL
    good = (run / "metrics.jsonl").read_bytes()
    at = good.index(b'"loss": ') + 8
    (run / "metrics.jsonl").write_bytes(good[:at] + b"7" + good[at + 1 :])
    refused = place.command(argv(place, run, "--resume"))
    assert refused.code == 2 and "metrics.jsonl have sha256" in refused.err, refused
    assert "a line was changed since" in refused.err and "--accept-changes" in refused.err
    (run / "manifest.json").rename(tmp_path / "manifest.json")
    (run / "metrics.jsonl").write_bytes(good)
    refused = place.command(argv(place, run, "--resume"))
    assert refused.code == 2 and "manifest.json is missing" in refused.err, refused
    (tmp_path / "manifest.json").rename(run / "manifest.json")
    assert place.command(argv(place, run, "--resume")).code == 0


def test_every_option_is_pinned_unless_it_is_listed() -> None:
    """A new option is pinned: all fields go into run.yaml, and only those of MAY_CHANGE may differ."""
    known = {name for run in RUNS.values() for name in options(run)}
    assert known >= MAY_CHANGE
    free = known & MAY_CHANGE
    assert free == {
        *("out", "resume", "resume_from", "accept_changes", "overwrite", "save_every", "eval_every", "keep"),
        *("patience", "track", "cache", "export", "skip_checks"),
    }
    assert set(PER_CALL) <= MAY_CHANGE, "what run.yaml leaves out is compared with nothing"


def test_files_of_two_folders_of_one_name_are_pinned_each(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "model", tmp_path / "b" / "model"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text(str(folder))
    before = pins._files(folders, ("*.json",), tmp_path)
    assert list(before) == ["model/tokenizer.json", "model/tokenizer.json (2)"]
    (folders[0] / "tokenizer.json").write_text("other")
    after = pins._files(folders, ("*.json",), tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["model/tokenizer.json"]
