"""The doctor compares versions with what is required."""

from __future__ import annotations

import pytest

from espalier.commands import doctor
from espalier.commands import main as cli


def test_doctor_compares_versions_with_what_is_required() -> None:
    found = doctor.packages(
        ["pydantic>=2", "pydantic>=999", "surely-not-there>=1", 'surely-not-there; extra == "wandb"']
    )
    assert [f.verdict for f in found] == ["ok", "fault", "fault", "note"]
    assert "expected >=999" in found[1].advice
    assert found[3].advice == "pip install 'espalier[wandb]'"


def test_doctor_prints_and_returns_whether_there_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code = cli.main(["doctor"])
    text = capsys.readouterr().out
    for name in ("python", "cores", "disk free here", "torch", "transformers", "torch threads", "CPU bfloat16"):
        assert f" {name} " in text
    assert code == int(any(line.startswith("fault") for line in text.splitlines()))
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["surely-not-there>=1"])
    assert cli.main(["doctor"]) == 1
