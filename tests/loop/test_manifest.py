"""What a run made is listed before it is written; nothing else is replaced or deleted, wherever a kill comes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.errors import ConfigError
from espalier.files import copy_dir, sealed
from espalier.loop.older_runs import known_by_content
from espalier.loop.rundir import RunDir
from runs import content as contents

CONFIG = "# espalier sft\nmodel: base\ndata: [a.jsonl]\nlr: 2.0e-05\n"


def begun(out: Path, *, model: bool = False) -> None:
    """A run of a step, with or without its model."""
    with RunDir.open(out, CONFIG) as run:
        run.pin("data", {"a.jsonl": "aa"})
        run.create(run.metrics, run.tensorboard)
        run.metrics.write_text('{"step": 1}\n')
        run.tensorboard.mkdir()
        (run.checkpoints / "step-000001").mkdir()
        if model:
            run.create(run.model)
            run.model.mkdir()
            (run.model / "config.json").write_text("{}")


def killed_at(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Run `work` in a child that is killed at its n-th access to something in `folder`; False if it ended before."""
    child = os.fork()
    if child == 0:
        count = 0

        def audit(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            if event.startswith(("open", "os.", "shutil.")) and any(str(folder) in str(arg) for arg in args):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# ----------------------------------------------------------------------------------------------------- listed, or left


def test_a_folder_with_a_config_and_a_model_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    (out / "model").mkdir(parents=True)
    (out / "model" / "model.safetensors").write_text("weights")
    for text in ("lr: 0.001\n", CONFIG):
        (out / "run.yaml").write_text(text)
        before = contents(out)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=r"run\.yaml") as error:
                RunDir.open(out, CONFIG, **options)
            assert "model" in str(error.value)
        assert contents(out) == before


def test_an_entry_is_listed_before_it_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunDir.open(out, CONFIG) as run:
        listed = json.loads(run.manifest.read_text())["entries"]
        assert listed == [".lock", "manifest.json", "run.yaml", "checkpoints"]
        assert {path.name for path in out.iterdir()} == set(listed)
        run.create(run.model)
        assert not run.model.exists() and "model" in json.loads(run.manifest.read_text())["entries"]
    # A name without its entry is dropped by the next start, and what stands there later is somebody's.
    RunDir.open(out, CONFIG).close()
    run.model.mkdir()
    (run.model / "precious").write_text("mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=r"holds model, which no run of Espalier is known to have made"):
            RunDir.open(out, CONFIG, **options)
    assert (run.model / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "findings.json", ".model.partial", ".model.old", ".tensorboard.trash"])
@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_what_is_in_the_way_is_named_and_stays(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    out = tmp_path / "run"
    begun(out)
    if name == ".tensorboard.trash":
        (out / "tensorboard").rmdir()
        RunDir.open(out, CONFIG, resume=True).close()
    (out / name).mkdir()
    (out / name / "precious").write_text("mine")
    before = contents(out)
    with pytest.raises(ConfigError, match=rf"holds {name},.*Move it away, or choose another folder"):
        RunDir.open(out, CONFIG, **options)
    assert contents(out) == before
    with pytest.raises(ConfigError, match="already holds a run"):
        RunDir.open(out, CONFIG)


def test_what_appears_during_the_run_is_not_replaced(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", CONFIG) as run:
        run.model.mkdir()
        with pytest.raises(ConfigError, match="holds model, which no run"):
            run.create(run.model)
        run.model.rmdir()
        run.create(run.model)


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun(out, model=True)
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("mine")
    (out / ".trash").mkdir()
    RunDir.open(out, CONFIG, overwrite=True).close()
    assert {path.name for path in out.iterdir()} == {
        *(".lock", "manifest.json", "run.yaml", "checkpoints", "notes", ".trash")
    }
    assert (out / "notes" / "a.txt").read_text() == "mine"


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    begun(out, model=True)
    os.rename(out / "model", elsewhere)
    os.symlink(elsewhere, out / "model")
    RunDir.open(out, CONFIG, overwrite=True).close()
    assert (elsewhere / "config.json").exists() and not os.path.lexists(out / "model")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("model: {out}/model", "model"),
        ("data: [b.jsonl, '{out}/metrics.jsonl:messages=0.5']", "data"),
        ("adapter: {out}/checkpoints/step-000001/model", "adapter"),
        ("reference_model: {out}/checkpoints/../model", "reference_model"),
    ],
)
def test_a_run_does_not_remove_what_it_reads(tmp_path: Path, line: str, name: str) -> None:
    out = tmp_path / "run"
    begun(out, model=True)
    before = contents(out)
    with pytest.raises(ConfigError, match=rf"^{name}: .* is part of the run in .*, which this one would remove"):
        RunDir.open(out, line.format(out=out) + "\n", overwrite=True)
    assert contents(out) == before
    RunDir.open(out, "model: base\ndata: [model/x.jsonl]\n", overwrite=True).close()


@pytest.mark.parametrize("text", ["", "12\n", "\n"])
def test_a_lock_of_a_run_is_taken_and_another_file_is_not(tmp_path: Path, text: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").write_text(text)
    RunDir.open(out, CONFIG).close()
    (out / ".lock").unlink()
    (out / ".lock").write_text("a package manager's lock")
    with pytest.raises(ConfigError, match="is not a run's lock"):
        RunDir.open(out, CONFIG)
    assert (out / ".lock").read_text() == "a package manager's lock"


# -------------------------------------------------------------------------------------------------- a manifest to trust


def test_no_bit_of_a_manifest_can_flip_unnoticed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun(out)
    good = (out / "manifest.json").read_bytes()
    for at in range(0, len(good), 5):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        (out / "manifest.json").write_bytes(data)
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=r"manifest.json cannot be read as a run's manifest"):
                RunDir.open(out, CONFIG, **options)
    (out / "manifest.json").write_bytes(good)
    RunDir.open(out, CONFIG, resume=True).close()


def test_a_resume_without_a_manifest_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun(out)
    (out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"manifest.json is missing, so nothing says what the run .* computed from"):
        RunDir.open(out, CONFIG, resume=True)


def test_names_outside_the_folder_are_never_entries(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun(out)
    body = json.loads((out / "manifest.json").read_text())
    body.pop("sha256")
    for name in ("../other", "notes", "/etc", ""):
        changed = {**body, "entries": [*body["entries"], name]}
        (out / "manifest.json").write_text(sealed(changed))
        with pytest.raises(ConfigError, match="cannot be read as a run's manifest"):
            RunDir.open(out, CONFIG, overwrite=True)


def test_a_folder_that_another_run_took_is_not_written(tmp_path: Path) -> None:
    first = RunDir.open(tmp_path / "run", CONFIG)
    os.rename(tmp_path / "run", tmp_path / "moved")
    first.create(first.metrics)  # a folder that is gone is made again
    second = (tmp_path / "run" / "manifest.json").read_text().replace("sft", "dpo")
    (tmp_path / "run" / "manifest.json").write_text(second + "\n")
    with pytest.raises(ConfigError, match="another run took the folder"):
        first.create(first.model)
    first.close()


# ------------------------------------------------------------------------------------------------------ kills, anywhere


def test_an_overwrite_that_is_killed_anywhere_is_finished(tmp_path: Path) -> None:
    number, killed = 0, True
    while killed:
        number += 1
        out = tmp_path / f"run{number}"
        begun(out, model=True)
        (out / "notes.txt").write_text("mine")
        killed = killed_at(number, out, lambda out=out: RunDir.open(out, CONFIG, overwrite=True).close())
        # Without a flag the old run is either still there, or its removal goes on.
        try:
            RunDir.open(out, CONFIG).close()
        except ConfigError as error:
            assert "already holds a run" in str(error)
            assert (out / "model" / "config.json").exists() and (out / "metrics.jsonl").exists()
            RunDir.open(out, CONFIG, overwrite=True).close()
        names = {path.name for path in out.iterdir()}
        assert names == {".lock", "manifest.json", "run.yaml", "checkpoints", "notes.txt"}, number
    assert number > 30


def test_what_a_user_adds_after_a_kill_survives(tmp_path: Path) -> None:
    """Killed before or after each access of a first start; then somebody puts a model there."""
    number, killed = 0, True
    while killed:
        number += 1
        out = tmp_path / f"run{number}"
        killed = killed_at(number, out, lambda out=out: begun(out))
        out.mkdir(exist_ok=True)
        (out / "model").mkdir()
        (out / "model" / "precious").write_text("mine")
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=r"model|already holds a run"):
                RunDir.open(out, CONFIG, **options)
        assert (out / "model" / "precious").read_text() == "mine", number
    assert number > 20


def test_a_model_that_is_replaced_is_whole_wherever_the_kill_comes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"new": 1}')

    def finish(out: Path) -> None:
        with RunDir.open(out, CONFIG, resume=True) as run:
            run.create(run.model)
            copy_dir(source, run.model)

    number, killed = 0, True
    while killed:
        number += 1
        out = tmp_path / f"run{number}"
        begun(out, model=number % 2 == 0)
        killed = killed_at(number, out, lambda out=out: finish(out))
        finish(out)
        assert contents(out / "model") == contents(source)
        assert not [*out.glob(".model*")], number
    assert number > 20


# ------------------------------------------------------------------------------------------------------- older versions


def older(out: Path) -> None:
    """What an older version left: no list, a checkpoint, and its model as the run's."""
    from espalier.loop import checkpoint
    from espalier.loop.train import FRESH

    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")

    checkpoint.save(out / "checkpoints", FRESH, write)
    copy_dir(out / "checkpoints" / "step-000000" / "model", out / "model")
    (out / "run.yaml").write_text(CONFIG)
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (out / "tensorboard").mkdir()
    (out / "tensorboard" / "events.out.tfevents.1.host").write_text("")
    (out / "manifest.json").write_text('{"pinned": {}, "starts": []}\n')
    (out / ".lock").write_text("")


def test_an_older_run_is_known_by_its_content(tmp_path: Path) -> None:
    out = tmp_path / "run"
    older(out)
    assert known_by_content(out) == ["run.yaml", "checkpoints", "metrics.jsonl", "model", "tensorboard"]
    with RunDir.open(out, CONFIG, resume=True) as run:
        assert "model" in json.loads(run.manifest.read_text())["entries"]
        run.pin("reference", {"a": "b"})
        assert "reference was not noted by the version that began this run" in " ".join(run.notes)
    older(tmp_path / "second")
    RunDir.open(tmp_path / "second", CONFIG, overwrite=True).close()
    assert not (tmp_path / "second" / "model").exists()


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("model/config.json", '{"mine": 1}', "model"),
        ("model/precious", "mine", "model"),
        ("checkpoints/step-000000/precious", "mine", "checkpoints"),
        ("checkpoints/notes/precious", "mine", "checkpoints"),
        ("tensorboard/thesis.tex", "mine", "tensorboard"),
        ("findings.json", '{"mine": 1}', "findings.json"),
        ("run.yaml", "lr: 1\n", "run.yaml"),
        ("metrics.jsonl", "mine", "metrics.jsonl"),
    ],
)
def test_what_is_not_an_older_runs_own_is_named_and_stays(tmp_path: Path, file: str, text: str, named: str) -> None:
    out = tmp_path / "run"
    older(out)
    (out / file).parent.mkdir(exist_ok=True)
    (out / file).write_text(text)
    before = {name: digest for name, digest in contents(out).items() if name != ".lock"}
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=rf"{named}.*kept no list|already holds a run"):
            RunDir.open(out, CONFIG, **options)
    with pytest.raises(ConfigError, match=rf"holds {named}.*kept no list"):
        RunDir.open(out, CONFIG, overwrite=True)
    assert {name: digest for name, digest in contents(out).items() if name != ".lock"} == before


def test_an_export_into_its_run_is_the_runs(tmp_path: Path) -> None:
    from espalier.commands.main import main

    out = tmp_path / "run"
    older(out)
    shutil.rmtree(out / "model")
    RunDir.open(out, CONFIG, resume=True).close()
    assert main(["export", "--run", str(out)]) == 0
    assert "model" in json.loads((out / "manifest.json").read_text())["entries"]
    RunDir.open(out, CONFIG, resume=True).close()
    run = RunDir.open(out, CONFIG, overwrite=True)
    assert not run.model.exists()
    run.close()
