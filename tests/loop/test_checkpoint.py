"""Checkpoints are whole or not there, say what is wrong with them, and are never lost to a kill or a full disk."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import killed_saves
from checkpoints import state_of, tensors_bytes, write
from espalier import files
from espalier.errors import CheckpointError
from espalier.loop import checkpoint
from espalier.loop.checkpoint import ABANDONED, MANIFEST, choose, find, problems, prune, save, set_aside, verify

KILLED_SAVES = Path(killed_saves.__file__)


def test_a_checkpoint_holds_the_state_the_generators_and_the_files_of_its_writer(tmp_path: Path) -> None:
    done = save(tmp_path / "checkpoints", state_of(100), write)
    assert done.path == tmp_path / "checkpoints" / "step-000100"
    names = {"manifest.json", "state.json", "rng-00000.json", "weights.safetensors", "model/config.json"}
    assert {*done.files, MANIFEST} == names
    assert {path.relative_to(done.path).as_posix() for path in done.path.rglob("*") if path.is_file()} == names
    assert done.files["model/config.json"] == 8
    manifest = json.loads((done.path / MANIFEST).read_text())
    assert manifest["files"]["model/config.json"] == {  # sha256 of the text {"a": 1}
        "size": 8,
        "sha256": "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310",
    }
    assert (manifest["step"], manifest["ranks"]) == (100, 1)
    assert verify(done.path) == done == choose(tmp_path / "checkpoints")
    assert done.state() == state_of(100)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000100"]


def test_steps_are_ordered_by_number_and_foreign_names_are_no_checkpoints(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 5):
        save(tmp_path, state_of(step), write)
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-000009").write_text("a file")
    (tmp_path / "notes").mkdir()
    assert checkpoint.steps(tmp_path) == [5, 999_999, 1_000_000]
    found, broken = find(tmp_path)
    assert found is not None and found.path.name == "step-1000000" and broken == []
    assert find(tmp_path / "absent") == (None, []) and choose(tmp_path / "absent") is None


# ------------------------------------------------------------------------------------------------------- corruption


def test_every_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(100), write).path
    draw = random.Random(0)
    for name in ("weights.safetensors", "model/config.json", "state.json", "rng-00000.json", MANIFEST):
        intact = (path / name).read_bytes()
        for at in {0, len(intact) // 2, len(intact) - 1, *(draw.randrange(len(intact)) for _ in range(20))}:
            changed = bytearray(intact)
            changed[at] ^= 1 << draw.randrange(8)
            (path / name).write_bytes(changed)
            (problem,) = problems(path)
            assert problem.startswith(f"{name} "), (at, problem)
        for cut in (intact[:-1], intact[: len(intact) // 2], b"", intact + b"\0"):
            (path / name).write_bytes(cut)
            (problem,) = problems(path)
            assert problem.startswith(f"{name} "), problem
        (path / name).unlink()
        assert problems(path) == [f"{name} is missing"]
        (path / name).write_bytes(intact)
        assert problems(path) == []


def test_all_problems_are_told_at_once_with_what_was_expected(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(100), write).path
    (path / "model" / "config.json").write_text('{"a": 2}')
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        verify(path)
    message = str(caught.value)
    assert "checkpoint step-000100 is corrupt" in message and "state.json is missing" in message
    assert "model/config.json has sha256 " in message
    assert "expected f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310" in message


def test_a_manifest_of_another_format_or_step_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(100), write).path
    shutil.copytree(path, tmp_path / "step-000200")
    assert problems(tmp_path / "step-000200") == ["manifest.json is that of step-000100"]
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    assert problems(path) == ["manifest.json has format 2, expected 1"]
    for text in ("[]", "{}", "", "null", "{"):
        (path / MANIFEST).write_text(text)
        assert problems(path) == ["manifest.json cannot be read"]


def test_a_corrupt_newest_checkpoint_is_named_and_the_intact_one_before_it_offered(tmp_path: Path) -> None:
    for step in (80, 100, 120, 140):
        save(tmp_path, state_of(step), write)
    (tmp_path / "step-000140" / MANIFEST).unlink()
    (tmp_path / "step-000120" / "weights.safetensors").write_bytes(b"")
    found, broken = find(tmp_path)
    assert found is not None and found.step == 100
    assert [one.path.name for one in broken] == ["step-000140", "step-000120"]
    with pytest.raises(CheckpointError) as caught:
        choose(tmp_path)
    message = str(caught.value)
    assert "step-000140 is corrupt: manifest.json is missing" in message
    size = len(tensors_bytes(b"weights!"))
    assert f"step-000120 is corrupt: weights.safetensors has 0 bytes, expected {size}" in message
    assert message.endswith("--resume --resume-from step-000100")
    for name in ("step-000100", "100"):
        chosen = choose(tmp_path, name)
        assert chosen is not None and chosen.step == 100
    with pytest.raises(CheckpointError, match="step-000120 is corrupt"):
        choose(tmp_path, "120")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*step-000090.* has step-000080, step-000100"):
        choose(tmp_path, "90")
    with pytest.raises(CheckpointError, match="expected a name like step-000100"):
        choose(tmp_path, "../other/step-000100")


def test_without_any_intact_checkpoint_the_way_out_is_to_start_anew(tmp_path: Path) -> None:
    save(tmp_path, state_of(100), write)
    (tmp_path / "step-000100" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no intact checkpoint; start anew with --overwrite"):
        choose(tmp_path)


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    for step in (80, 100, 120):
        save(tmp_path, state_of(step), write)
    assert set_aside(tmp_path, 80) == [tmp_path / ABANDONED / name for name in ("step-000100", "step-000120")]
    assert checkpoint.steps(tmp_path) == [80] and problems(tmp_path / ABANDONED / "step-000120") == []
    save(tmp_path, state_of(100, stale=5), write)
    set_aside(tmp_path, 80)
    assert verify(tmp_path / ABANDONED / "step-000100").state().stale == 5
    assert set_aside(tmp_path, 80) == []


# ------------------------------------------------------------------------------------------------------------ kills


@pytest.mark.parametrize(
    ("operation", "before", "after", "least"),
    [
        ("save", [100, "oldold"], [200, "newnew"], (20, 1)),
        ("replace", [100, "oldold"], [100, "newnew"], (20, 2)),
        ("prune", [200, "midmid"], [200, "midmid"], (0, 8)),
        ("set_aside", [100, "oldold"], [None, ""], (2, 1)),
    ],
)
def test_a_kill_at_any_access_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, operation: str, before: list[object], after: list[object], least: tuple[int, int]
) -> None:
    output = subprocess.run(
        [sys.executable, KILLED_SAVES, operation, tmp_path / "c"], check=True, capture_output=True, text=True
    )
    kills = json.loads(output.stdout)["kills"]
    turn = kills.index(after)
    assert kills == [before] * turn + [after] * (len(kills) - turn)
    assert turn >= least[0] and len(kills) - turn >= least[1]


def test_a_kill_at_any_time_leaves_the_last_checkpoint_that_was_finished(tmp_path: Path) -> None:
    draw = random.Random(1)
    for attempt in range(4):
        root = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, KILLED_SAVES, "forever", root], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        finished = [1, *map(int, process.stdout.read().split())][-1]
        process.wait()
        found = choose(root)
        assert found is not None and found.step in (finished, finished + 1)
        assert (found.path / "weights").read_text() == str(found.step)


def test_nothing_is_renamed_before_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note_fsync(fd: int) -> None:
        events.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def note_rename(source: Path, target: Path) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    def note_replace(source: Path, target: Path) -> None:
        events.append(("replace", str(target)))
        replace(source, target)

    root = tmp_path / "checkpoints"
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "replace", note_replace)
    save(root, state_of(100), write)
    partial = root / ".step-000100.partial"
    renamed = events.index(("rename", str(root / "step-000100")))
    sealed = events.index(("replace", str(partial / MANIFEST)))
    assert ("fsync", str(tmp_path)) in events[:sealed], "the new folder's own name"
    for name in ("weights.safetensors", "model/config.json", "model", "state.json", "rng-00000.json", ""):
        assert ("fsync", str(partial / name)) in events[:sealed], name
    assert ("fsync", str(partial / f".{MANIFEST}.partial")) in events[:sealed]
    assert ("fsync", str(partial)) in events[sealed:renamed]
    assert events[renamed + 1 :] == [("fsync", str(root))]


def test_leftovers_go_and_other_names_stay(tmp_path: Path) -> None:
    save(tmp_path, state_of(100), write)
    for name in (".step-000090.partial", ".step-000080.trash", ".step-000100.old", ".step-000100.keep", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    shutil.copytree(tmp_path / "step-000100", tmp_path / ".step-000070.old")
    checkpoint.clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000070", "step-000100", ".step-000100.keep", ".cache"}


# --------------------------------------------------------------------------------------------------------- full disk


def test_a_disk_without_room_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, state_of(100), write)
    with pytest.raises(
        CheckpointError, match=r"the disk is full; it needs about 1152921504606846976 bytes, \d+ are free"
    ):
        save(tmp_path, state_of(200), write, estimate=2**60)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]


def test_without_an_estimate_the_newest_checkpoint_is_the_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(save(tmp_path, state_of(100), write).files.values())
    monkeypatch.setattr(files, "free_bytes", lambda path: size - 1)
    with pytest.raises(CheckpointError, match=f"needs about {size} bytes, {size - 1} are free"):
        save(tmp_path, state_of(200), write)
    monkeypatch.setattr(files, "free_bytes", lambda path: size)
    assert save(tmp_path, state_of(200), write).step == 200


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, nth: int
) -> None:
    save(tmp_path, state_of(100), write)
    calls = 0
    fsync = os.fsync

    def failing(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match="the disk is full" if number != errno.EIO else "Input/output error"):
        save(tmp_path, state_of(200), write)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]
    assert problems(tmp_path / "step-000100") == []


FILL = """
import sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
sys.path.insert(0, sys.argv[2])
from killed_saves import save, state
from espalier.loop import checkpoint
from espalier.errors import CheckpointError
root = Path(sys.argv[1], "checkpoints")
save(root, 100, "old")
big = numpy.zeros(1 << 21, dtype=numpy.uint8)
for write in (
    lambda folder: save_file({"w": big}, folder / "weights.safetensors"),
    lambda folder: (folder / "weights").write_bytes(big.tobytes()),
):
    try:
        checkpoint.save(root, state(200), write)
    except CheckpointError as error:
        print(error)
    assert [path.name for path in root.iterdir()] == ["step-000100"], list(root.iterdir())
    assert checkpoint.problems(root / "step-000100") == []
save(root, 200, "new")
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" || exit 77; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, tmp_path, sys.executable, "-c", FILL, tmp_path, KILLED_SAVES.parent]
    try:
        output = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if output.returncode in (1, 77) and ("unshare" in output.stderr or "mount" in output.stderr):
        pytest.skip("mounting a small disk is not allowed here")
    assert output.returncode == 0, output.stderr
    lines = output.stdout.splitlines()
    assert len(lines) == 2 and all("the disk is full" in line and "are free" in line for line in lines), lines


def test_a_short_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    def short(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(tensors_bytes(b"weights!")[:-3])

    size = len(tensors_bytes(b"weights!"))
    with pytest.raises(CheckpointError, match=f"weights.safetensors came out with {size - 3} bytes of {size}"):
        save(tmp_path, state_of(100), short)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_writer_is_raised_as_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    def wrong(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyError("a mistake in the code")

    with pytest.raises(KeyError, match="a mistake"):
        save(tmp_path, state_of(100), wrong)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- pruning


def kept_after(root: Path, keep: int, best: int | None) -> list[int]:
    gone = prune(root, keep, best)
    assert not any(path.name.startswith(".") for path in root.iterdir())
    left = checkpoint.steps(root)
    assert not {*gone} & {*left}
    return left


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, state_of(step), write)
    assert kept_after(tmp_path, 0, None) == [10, 20, 30, 40, 50]
    assert kept_after(tmp_path, 3, 10) == [10, 30, 40, 50]
    assert kept_after(tmp_path, 3, 40) == [30, 40, 50]
    assert kept_after(tmp_path, 1, None) == [50]
    assert kept_after(tmp_path, 1, None) == [50]


def test_the_newest_intact_one_is_kept_whatever_is_newer(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, state_of(step), write)
    (tmp_path / "step-000040" / "weights.safetensors").write_bytes(b"")
    (tmp_path / "step-000010" / MANIFEST).unlink()
    assert kept_after(tmp_path, 2, None) == [20, 30, 40]
    assert kept_after(tmp_path, 1, None) == [30, 40]
