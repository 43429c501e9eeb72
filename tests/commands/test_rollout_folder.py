"""The folder of rollouts: what is gone on with, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.commands.rollout_folder import RolloutFolder
from espalier.errors import ConfigError

PINS = {"settings": {"temperature": 1.0}}


def opened(out: Path, pins: object = PINS, sizes: tuple[int, ...] = (2, 2, 1), *, overwrite: bool = False) -> int:
    return RolloutFolder(out).open(pins, sizes, overwrite=overwrite)  # type: ignore[arg-type]


def test_whole_chunks_stay_and_the_rest_is_cut(tmp_path: Path) -> None:
    folder = RolloutFolder(tmp_path / "out")
    assert folder.open(PINS, (2, 2, 1), overwrite=False) == 0
    folder.add([{"n": 0}, {"n": 1}])
    folder.add([{"n": 2}])
    with open(folder.samples, "a") as file:
        file.write('{"n": 3')
    assert opened(folder.out) == 1
    assert [line["n"] for line in folder.lines()] == [0, 1]
    folder.add([{"n": 2}, {"n": 3}])
    folder.add([{"n": 4}])
    assert opened(folder.out) == 3


def test_rollouts_of_other_settings_are_refused_or_removed(tmp_path: Path) -> None:
    opened(tmp_path)
    RolloutFolder(tmp_path).add([{"n": 0}, {"n": 1}])
    other = {"settings": {"temperature": 0.5}}
    with pytest.raises(ConfigError, match="holds rollouts of another settings; choose another folder"):
        opened(tmp_path, other)
    assert opened(tmp_path) == 1
    assert opened(tmp_path, other, overwrite=True) == 0
    RolloutFolder(tmp_path).add([{"n": 0}, {"n": 1}])
    assert opened(tmp_path, other, overwrite=True) == 0


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds files that are no rollouts \(rollout.json\)"):
        opened(tmp_path, overwrite=True)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        opened(file)
    assert file.read_text() == ""


def test_figures_stand_beside_what_they_follow_from(tmp_path: Path) -> None:
    folder = RolloutFolder(tmp_path)
    folder.open(PINS, (1,), overwrite=False)
    folder.add([{"n": 0}])
    folder.finish({"reward": 0.5})
    assert '"reward": 0.5' in folder.summary.read_text()
    assert opened(tmp_path, sizes=(1,)) == 1
