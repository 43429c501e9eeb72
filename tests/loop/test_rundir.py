"""A folder holds one run, one process writes to it, and a resumed run is the same run or is refused."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig
from espalier.errors import ConfigError
from espalier.loop.rundir import MAY_CHANGE, RunDir, versions

CONFIG = "model: base\ndata: [a.jsonl]\nlr: 2.0e-05\nseed: 0\nsave_every: 10\n"


def begin(out: Path) -> None:
    """A run that made one step."""
    with RunDir.open(out, CONFIG) as run:
        run.create(run.metrics)
        run.metrics.write_text('{"step": 1}\n')


def test_a_run_that_made_no_step_gives_way(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunDir.open(out, CONFIG) as run:
        run.create(run.preflight)
        run.preflight.write_text("{}")  # a check failed, and that was all
    with RunDir.open(out, CONFIG + "epochs: 2.0\n") as run:
        assert not run.resumed and "epochs" in run.config.read_text() and not run.preflight.exists()


def test_a_new_run_has_its_config_and_what_made_it(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "runs" / "first", CONFIG) as run:
        assert not run.resumed and run.path == tmp_path / "runs" / "first"
        assert run.config.read_text() == CONFIG and run.checkpoints.is_dir()
        run.pin("machine", {"threads": 2, "ranks": 1, "device": "cpu"})
        manifest = json.loads(run.manifest.read_text())
        assert manifest["pinned"]["machine"] == {"threads": 2, "ranks": 1, "device": "cpu"}
        (start,) = manifest["starts"]
        assert start["argv"] == sys.argv and start["changed"] == {} and start["time"].endswith("+00:00")
        assert manifest["pinned"]["versions"] == versions()
        assert {"python", "espalier", "torch", "transformers", "peft"} <= {*versions()}
        assert os.uname().nodename not in run.manifest.read_text().replace(json.dumps(sys.argv), "")
    assert {path.name for path in run.path.iterdir()} == {"run.yaml", "manifest.json", "checkpoints", ".lock"}


def test_versions_are_read_without_importing(tmp_path: Path) -> None:
    code = (
        "import sys; from espalier.loop.rundir import versions; print(versions()['torch']);"
        "assert not {'torch', 'transformers', 'peft', 'numpy'} & {*sys.modules}"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    import torch

    assert output.stdout.strip().split("+")[0] == torch.__version__.split("+")[0]


def test_an_existing_run_is_entered_only_on_purpose(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    (out / "checkpoints" / "step-000010").mkdir()
    with pytest.raises(
        ConfigError, match=r"already holds a run; continue it with --resume, remove it with --overwrite"
    ):
        RunDir.open(out, CONFIG)
    with RunDir.open(out, CONFIG, resume=True) as run:
        assert run.resumed and (run.checkpoints / "step-000010").is_dir()
    assert len(json.loads(run.manifest.read_text())["starts"]) == 2


def test_a_resume_where_nothing_was_begun_begins(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", CONFIG, resume=True) as run:
        assert not run.resumed and run.config.read_text() == CONFIG


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    with RunDir.open(out, CONFIG, resume=True) as run:
        run.create(run.model, run.samples)
    (out / "checkpoints" / "step-000010").mkdir()
    (out / "model").mkdir()
    for name in ("metrics.jsonl", "samples.jsonl", "model/weights", "notes.txt"):
        (out / name).write_text("old")
    with RunDir.open(out, CONFIG + "seed_of_note: 1\n", overwrite=True) as run:
        assert not run.resumed and run.config.read_text().endswith("seed_of_note: 1\n")
    names = {path.name for path in out.iterdir()}
    assert names == {"run.yaml", "manifest.json", "checkpoints", "notes.txt", ".lock"}
    assert (out / "notes.txt").read_text() == "old" and list((out / "checkpoints").iterdir()) == []
    assert len(json.loads(run.manifest.read_text())["starts"]) == 1


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, options: dict[str, bool]) -> None:
    out = tmp_path / "thesis"
    (out / "model").mkdir(parents=True)
    (out / "metrics.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis holds files but no run \(metrics.jsonl, model\), and is left alone"):
        RunDir.open(out, CONFIG, **options)
    assert {path.name for path in out.iterdir()} == {"model", "metrics.jsonl"}
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        RunDir.open(out / "metrics.jsonl", CONFIG, **options)
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        RunDir.open(out / "metrics.jsonl" / "below", CONFIG, **options)


# --------------------------------------------------------------------------------------------------- the same run?


def test_a_changed_config_is_refused_with_old_and_new(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    sectioned = "model: {model: base}\noptim: {lr: 1.0e-04, seed: 1}\ndata: {data: [a.jsonl, b.jsonl]}\nsave_every: 5\n"
    with pytest.raises(ConfigError) as caught:
        RunDir.open(out, sectioned, resume=True)
    message = str(caught.value)
    assert 'data ["a.jsonl"] -> ["a.jsonl", "b.jsonl"]; lr 2e-05 -> 0.0001; seed 0 -> 1.' in message
    assert "save_every" not in message and "model" not in message and "--accept-changes" in message
    with pytest.raises(ConfigError, match="epochs") as caught:
        RunDir.open(out, CONFIG + "epochs: 2.0\n", resume=True)
    assert "epochs (absent) -> 2.0. An earlier version began it" in str(caught.value) and caught.value.key == "epochs"
    assert (out / "run.yaml").read_text() == CONFIG
    assert len(json.loads((out / "manifest.json").read_text())["starts"]) == 1
    with RunDir.open(out, sectioned, resume=True, accept_changes=True) as run:
        assert run.config.read_text() == sectioned
    changed = json.loads(run.manifest.read_text())["starts"][1]["changed"]
    assert changed["lr"] == [2e-5, 1e-4] and changed["save_every"] == [10, 5]


def test_what_does_not_enter_a_step_may_change(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    with RunDir.open(out, CONFIG.replace("save_every: 10", "save_every: 3") + "keep: 1\n", resume=True) as run:
        assert run.resumed and "save_every: 3" in run.config.read_text()
    changed = json.loads(run.manifest.read_text())["starts"][1]["changed"]
    assert changed == {"save_every": [10, 3], "keep": ["(absent)", 1]}


def test_fields_that_may_change_exist_and_none_of_them_trains() -> None:
    fields = {section: {*section.__pydantic_fields__} for section in (LoopConfig, ModelConfig, DataConfig)}  # type: ignore[attr-defined]
    assert set().union(*fields.values()) >= MAY_CHANGE
    assert MAY_CHANGE - fields[LoopConfig] == {"cache", "export"}
    assert not MAY_CHANGE & {*OptimConfig.__pydantic_fields__}  # type: ignore[attr-defined]
    trained = {"epochs", "steps", "samples_per_step", "tokens_per_step", "tokens_per_microbatch", "seed", "compile"}
    assert not MAY_CHANGE & (trained | {"grad_checkpointing", "deterministic", "data", "eval_fraction", "max_length"})


def test_another_machine_or_other_data_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunDir.open(out, CONFIG) as run:
        run.pin("machine", {"threads": 2, "device": "cpu"})
        run.pin("data", {"a.jsonl": "aa"})
        run.create(run.metrics)
        run.metrics.write_text('{"step": 1}\n')
    with RunDir.open(out, CONFIG, resume=True) as run:
        run.pin("machine", {"threads": 2, "device": "cpu"})
        with pytest.raises(ConfigError, match=r"bit for bit: machine changed: device cpu -> cuda; threads 2 -> 4\."):
            run.pin("machine", {"threads": 4, "device": "cuda"})
        with pytest.raises(ConfigError, match=r"data changed: a\.jsonl aa -> bb\."):
            run.pin("data", {"a.jsonl": "bb"})
    with RunDir.open(out, CONFIG, resume=True, accept_changes=True) as run:
        run.pin("data", {"a.jsonl": "bb"})
    manifest = json.loads(run.manifest.read_text())
    assert manifest["pinned"]["data"] == {"a.jsonl": "bb"}
    assert manifest["starts"][-1]["changed"] == {"a.jsonl": ["aa", "bb"]}


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    old = {**versions(), "torch": "2.0"}
    with monkeypatch.context() as patch:
        patch.setattr("espalier.loop.rundir.versions", lambda: old)
        begin(out)
    with pytest.raises(ConfigError, match=r"versions changed: torch 2\.0 -> 2\.\d+"):
        RunDir.open(out, CONFIG, resume=True)
    RunDir.open(out, CONFIG, resume=True, accept_changes=True).close()
    RunDir.open(out, CONFIG, resume=True).close()


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    for text in ("a: [", "- 1", ""):
        (out / "run.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"run\.yaml (is not YAML|holds no config fields).*--overwrite"):
            RunDir.open(out, CONFIG, resume=True)
    (out / "run.yaml").write_text(CONFIG)
    (out / "run.yaml").unlink()
    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read, so nothing says what the run was asked for"):
        RunDir.open(out, CONFIG, resume=True)


# ------------------------------------------------------------------------------------------------------------- lock

HOLD = """
import sys
from pathlib import Path
from espalier.loop.rundir import RunDir
run = RunDir.open(Path(sys.argv[1]), sys.argv[2])
run.create(run.metrics)
run.metrics.write_text("{}")
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, out, CONFIG]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid};"):
            RunDir.open(out, CONFIG, **options)
    assert (out / "run.yaml").read_text() == CONFIG
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunDir.open(out, CONFIG, resume=True) as run:
        assert run.resumed
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()};"):
            RunDir.open(out, CONFIG, resume=True)
    RunDir.open(out, CONFIG, resume=True).close()


def test_an_open_that_fails_keeps_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out)
    with pytest.raises(ConfigError):
        RunDir.open(out, CONFIG)
    with open(out / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
