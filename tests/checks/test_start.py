"""The table of checks: what stops a run, what is left out, and that nothing names a check but the table."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.assembly.runs import RUNS
from espalier.checks import start
from espalier.checks.start import CHECKS, LATER, NAMES, refuse_unknown
from espalier.checks.table import Outcome, failed, passed, settle
from espalier.commands import main
from espalier.errors import CheckError, ConfigError
from espalier.loop import rules

ROOT = Path(__file__).resolve().parents[2]


def test_a_failed_check_stops_with_cause_and_way_out(tmp_path: Path) -> None:
    outcomes = {"rows": passed("1 read", "some"), "stop": failed("10 %", ">= 99 %", "Look at the template.")}
    with pytest.raises(CheckError, match=r"stop: 10 %, expected >= 99 %\. Look at the template\. .*--skip-checks stop"):
        settle(outcomes, tmp_path / "preflight.json")
    written = json.loads((tmp_path / "preflight.json").read_text())["checks"]
    assert [(c["name"], c["verdict"]) for c in written] == [("rows", "pass"), ("stop", "fail")]
    assert list(written[1]) == ["name", "value", "limit", "verdict", "way_out"]


def session(consumes: str, ranks: int, needs: tuple[str, ...] = ()) -> Any:
    traits = SimpleNamespace(consumes=consumes, needs=needs, calibration=None)
    config = SimpleNamespace(model=SimpleNamespace(adapter=""))
    return SimpleNamespace(
        traits=traits, config=config, processes=SimpleNamespace(size=ranks), rollouts=None, conversations=None
    )


def test_a_skipped_check_does_not_run_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(evidence: Any) -> Outcome:
        raise AssertionError

    only = start.Check("layout", "", never, start.after)
    monkeypatch.setattr(start, "CHECKS", (only,))
    outcomes: dict[str, Outcome] = {}
    evidence: Any = SimpleNamespace(session=session("chat", 1))
    start._run("before", evidence, ("layout",), outcomes)
    assert outcomes == {}
    start._run("after", evidence, ("layout",), outcomes)
    assert outcomes["layout"].verdict == "skipped"
    with pytest.raises(AssertionError):
        start._run("after", evidence, (), outcomes)
    with pytest.raises(ConfigError, match=r"got layuot, expected some of rows, trained"):
        refuse_unknown(("layuot",))


def test_which_checks_run_and_when() -> None:
    def at(moment: str, of: Any) -> list[str]:
        return [check.name for check in CHECKS if check.when(of) == moment]

    data = ["rows", "trained", "stop", "bos", "mask", "controls", "template", "judgements", "raw_rows", "held_out"]
    data.append("order")
    layout, update = ["layout", "gradients"], ["loss", "update", "optimizer"]
    last = ["first_loss", "evaluation", "accumulation"]
    assert at("before", session("chat", 1)) == data and at("after", session("chat", 1)) == [*layout, *update, *last]
    assert at("before", session("chat", 2)) == [*data, *layout]
    assert at("after", session("ranking", 1)) == [*layout, *update, "preferences", *last]
    referred = session("ranking", 1, ("ref_logprobs",))
    reference = ["reference", "reference_stays"]
    assert at("after", referred) == [*layout, *update, "preferences", *reference, *last]
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("command", [*RUNS, "check"])
def test_the_help_names_every_check(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"\b{name}\b", text) for name in NAMES)


def test_the_document_names_every_check_as_the_table_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / "checks.md").read_text(encoding="utf-8"), re.M)
    count = len(CHECKS)
    assert rows[:count] == [(check.name, check.about) for check in CHECKS]
    later = dict(rows[count:])
    assert later.keys() == LATER.keys() | set(rules.CHECKS)
    assert {name: later[name] for name in LATER} == LATER


def test_a_check_is_named_in_the_table_alone() -> None:
    """A second list of names would be forgotten when a check is added."""
    for path in (ROOT / "src" / "espalier").rglob("*.py"):
        if path == ROOT / "src" / "espalier" / "checks" / "start.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                texts = {e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
                assert len(texts & set(NAMES)) < 4, (path, node.lineno, texts)
