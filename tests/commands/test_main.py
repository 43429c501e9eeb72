"""Commands: what they answer, with which exit code, and what they never import."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.assembly.runs import RunConfig
from espalier.commands import main as cli
from espalier.config.sections import ExportConfig, InspectConfig, QuickstartConfig, SampleConfig
from espalier.errors import EspalierError, RowError

HEAVY = ("torch", "transformers", "datasets", "peft", "pyarrow", "numpy", "tensorboard")
NEEDED = ["--model", "m", "--data", "d.jsonl", "--out", "o"]


NAMES = ("train", "check", "inspect", "export", "sample", "quickstart")


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each command was called with, in place of what it does."""
    called: dict[str, Any] = {}
    for name in NAMES:
        fake = SimpleNamespace(run=lambda *configs, name=name: called.update({name: configs}))
        monkeypatch.setitem(sys.modules, f"espalier.commands.{name}", fake)
    return called


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train(config: RunConfig) -> None:
        raise error

    monkeypatch.setattr("espalier.commands.train.train", train)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        ([], 0),
        (["--help"], 0),
        (["--version"], 0),
        (["sft", "--help"], 0),
        (["check", "-h"], 0),
        (["inspect", "--help"], 0),
        (["sample", "--help"], 0),
        (["sfft"], 2),
        (["sft", "--model", "m"], 2),
        (["sft", *NEEDED, "--lr", "-1"], 2),
        (["sft", "--config", "absent.yaml"], 2),
    ],
)
def test_help_and_config_errors_import_nothing_heavy(argv: list[str], code: int) -> None:
    script = (
        "import sys; from espalier.commands.main import main; code = main(sys.argv[1:]); "
        f"print('heavy:', *[m for m in {HEAVY} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_commands_hand_their_config_over(bodies: dict[str, Any]) -> None:
    assert cli.main(["sft", *NEEDED, "--lr", "1e-4"]) == 0
    config: RunConfig = bodies["train"][0]
    assert (config.model.model, config.data.data, config.loop.out, config.optim.lr) == ("m", ("d.jsonl",), "o", 1e-4)

    assert cli.main(["check", "--model", "m", "--data", "d"]) == 0
    assert bodies["check"][0].data.data == ("d",)

    assert cli.main(["inspect", "--model", "m", "--data", "d", "--rows", "2", "--html", "p.html", "--lr", "1"]) == 0
    assert bodies["inspect"][1:] == (InspectConfig(rows=2, html="p.html"),)

    assert cli.main(["export", "--run", "runs/x", "--out", "y"]) == 0
    assert bodies["export"] == (ExportConfig(run="runs/x", out="y"),)

    assert cli.main(["sample", "--model", "m", "--prompt", "a", "b", "--no-chat"]) == 0
    assert bodies["sample"] == (SampleConfig(model="m", prompt=("a", "b"), chat=False),)

    assert cli.main(["quickstart"]) == 0
    assert bodies["quickstart"] == (QuickstartConfig(),)


@pytest.mark.parametrize("command", cli.COMMANDS.values(), ids=lambda command: command.name)
def test_the_real_bodies_take_what_commands_hand_over(command: cli.Command) -> None:
    module, _, function = command.run.partition(":")
    run = getattr(importlib.import_module(module), function)
    count = bool(command.config) + bool(command.out)
    inspect.signature(run).bind(*range(count))


def test_an_error_is_one_line_and_debug_shows_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RowError(
        "unknown role", where="d.jsonl:3", field="role", got="'bot\nx'", expected="user", fix="Fix it. " * 30
    )
    fails_with(monkeypatch, error)
    assert cli.main(["sft", *NEEDED]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: d.jsonl:3: unknown role; field role; got 'bot x'; expected user. Fix it.")
    assert captured.err.count("\n") == 1
    for argv in (["--debug", "sft", *NEEDED], ["sft", "--debug", *NEEDED], ["sft", *NEEDED, "--debug"]):
        with pytest.raises(EspalierError):
            cli.main(argv)


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["sft", *NEEDED])


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "my run"
    argv = ["sft", "--model", "m", "--data", "d", "--out", str(out)]
    fails_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(argv) == 130
    assert capsys.readouterr().err == f"interrupted: {out} holds no run yet; the same command starts it\n"
    out.mkdir()
    (out / "run.yaml").touch()
    assert cli.main(argv) == 130
    said = f"interrupted: continue with: espalier sft --config '{out / 'run.yaml'}' --resume\n"
    assert capsys.readouterr().err == said


def test_other_processes_than_the_first_say_which_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["sftt"]) == 2
    assert capsys.readouterr().err == "rank 3: error: sftt: no such command. Did you mean sft?\n"


def test_colour_needs_a_terminal_and_gives_way_to_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.main(["nonsense"])
    assert "\x1b[1;31merror" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    cli.main(["nonsense"])
    assert "31m" not in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`espalier sft --help | true`: the pipe is closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "espalier", "sft", "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full in the middle of a copy leaves nothing, and no traceback."""
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    assert cli.main(["export", "--run", str(model), "--out", str(tmp_path / "file" / "below")]) == 2
    assert re.search(r"^error: .*(Not a directory|--debug shows where)", capsys.readouterr().err)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "a file")

    monkeypatch.setattr("espalier.files.fsync_tree", full)
    assert cli.main(["export", "--run", str(model), "--out", str(tmp_path / "copy")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a file: No space left on device; free some space") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"m", "file"}


def test_values_without_end_and_names_without_sense_are_one_short_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = "lr: [&a [x, x, x, x, x, x, x, x, x, x]" + "".join(
        f", &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9)
    )
    (tmp_path / "bomb.yaml").write_text(bomb + "]\n")
    (tmp_path / "odd.yaml").write_text("zzzzqqqq: 1\n")
    (tmp_path / "null.yaml").write_text('out: "a\\0b"\nmodel: m\ndata: [d]\n')
    for name, text in (("bomb", "lr"), ("odd", "`--help` lists them"), ("null", "without a null character")):
        began = time.monotonic()
        more = [] if name == "null" else ["--out", str(tmp_path / "run")]
        flags = ["--config", str(tmp_path / f"{name}.yaml"), "--model", "m", "--data", "d", *more]
        assert cli.main(["sft", *flags]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and len(error) < 600 and time.monotonic() - began < 5


def test_checks_that_do_not_exist_are_refused_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grpo", *NEEDED, "--reward", "numeric", "--skip-checks", "lenght"]) == 2
    error = capsys.readouterr().err
    assert "skip_checks: got lenght, expected some of rows" in error and error.endswith("Did you mean length?\n")
