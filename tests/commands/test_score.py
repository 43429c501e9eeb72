"""`espalier score`: what transformers alone says of the same texts, a line for every row."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from espalier import files
from espalier.assembly.scorer import Scorer
from espalier.commands import main as cli
from espalier.commands import score
from espalier.errors import ConfigError, DataError
from reward_models import source, trained, write


def test_scores_are_those_of_plain_transformers(tmp_path: Path) -> None:
    model = write(trained(source(tmp_path / "base"), 1), tmp_path / "rm")
    rows = [
        {"prompt": "a?", "responses": ["one", "three"], "scores": [1, 3]},
        {"prompt": "no answers"},
        {"prompt": "b?", "responses": ["x", "y"], "ranks": [0, 1]},
    ]
    data, out = tmp_path / "d.jsonl", tmp_path / "s.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--debug", "score", "--model", str(model), "--data", str(data), "--out", str(out)]
    assert cli.main(argv) == 0
    first, second, third = (json.loads(line) for line in out.read_text().splitlines())
    assert [line["line"] for line in (first, second, third)] == [1, 2, 3] and "error" in second
    assert len(first["scores"]) == 2 and len(third["scores"]) == 2
    theirs = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    for answer, given in (("one", first["scores"][0]), ("three", first["scores"][1])):
        said = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False), add_special_tokens=False).input_ids
        with torch.no_grad():
            logit = theirs(torch.tensor([ids])).logits[0, 0].item()
        assert logit + theirs.config.espalier_reward_bias[0] == pytest.approx(given, abs=1e-4)
    with pytest.raises(ConfigError, match=r"exists; choose another file, or give --overwrite"):
        cli.main(argv)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(trained(source(tmp_path / "base"), 1), tmp_path / "rm")


def argv(model: Path, rows: list[dict[str, Any]], *more: str) -> list[str]:
    data = model.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*("--debug", "score", "--model", str(model), "--data", str(data)), "--out", str(model.parent / "s"), *more]


def lines(model: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model.parent / "s").read_text().splitlines()]


def test_each_answer_has_its_own_score_or_error(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "a?", "responses": ["one", "", "one", " "]},
        {"prompt": "a?", "response": "one"},
        {"prompt": "a?"},
    ]
    assert cli.main(argv(model, rows)) == 0
    first, second, third = lines(model)
    assert first["errors"] == [None, "empty response", None, "empty response"]
    assert [first["scores"][i] for i in (0, 2)] == pytest.approx(second["scores"] * 2, abs=1e-5)
    assert first["scores"][1] is None and "errors" not in second
    assert "no answer" in third["error"]
    out = capsys.readouterr().out
    assert "3 rows: 2 with scores, 1 rows without (see `error` there), 2 answers or steps without" in out


def test_columns_are_mapped_and_what_is_left_out_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ask": "a?", "say": "one", "seed": 7}]
    assert cli.main(argv(model, rows, "--columns", "prompt=ask", "response=say")) == 0
    assert len(lines(model)[0]["scores"]) == 1 and "not read: seed" in capsys.readouterr().out
    pictured = [{**row, "images": ["x.png"]} for row in rows]
    flags = ("--columns", "prompt=ask", "response=say", "--overwrite")
    with pytest.raises(DataError, match="--ignore-columns images"):
        cli.main(argv(model, pictured, *flags))
    assert cli.main(argv(model, pictured, *flags, "--ignore-columns", "images")) == 0


def test_answers_that_are_cut_are_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a?", "responses": ["one" * 40, "one"]}, {"prompt": "why " * 40, "response": "one"}]
    assert cli.main(argv(model, rows, "--max-length", "80")) == 0
    first, second = lines(model)
    assert first["cut"] == 1 and all(first["scores"])
    assert second["scores"] == [None] and second["errors"][0].startswith("emptied by truncation")
    assert "1 were cut to max_length and scored at the cut" in capsys.readouterr().out


def test_a_process_model_scores_every_step_and_the_solution(tmp_path: Path) -> None:
    model = write(trained(source(tmp_path / "base"), 1, kind="steps"), tmp_path / "prm")
    rows = [{"prompt": "a?", "steps": ["one", "two", "three"]}, {"prompt": "a?", "solution": "one\ntwo\nthree"}]
    rows.append({"prompt": "a?", "steps": ["one", "two " * 30]})
    for aggregation, number in (("product", math.prod), ("min", min), ("last", lambda p: p[-1])):
        assert cli.main(argv(model, rows, "--aggregate", aggregation, "--max-length", "90", "--overwrite")) == 0
        first, second, third = lines(model)
        chances = [1 / (1 + math.exp(-score)) for score in first["scores"]]
        assert len(chances) == 3 and first["aggregate"] == pytest.approx(number(chances))
        assert second["scores"] == pytest.approx(first["scores"], abs=1e-5)
        assert third["scores"][1] is None and third["errors"] == [None, "behind max_length"]
        assert third["aggregate"] is None
    theirs = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    said = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "one\ntwo\nthree"}]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [text.index(step) + len(step) - 1 for step in ("one", "two", "three")]
    at = [next(i for i, (start, end) in enumerate(ids["offset_mapping"]) if start <= e < end) for e in ends]
    with torch.no_grad():
        hidden = theirs.model(torch.tensor([ids["input_ids"]])).last_hidden_state[0, at]
        scores = theirs.score(hidden)[:, 0] + theirs.config.espalier_reward_bias[0]
    assert first["scores"] == pytest.approx(scores.tolist(), abs=1e-4)


def test_a_killed_command_goes_on_and_says_the_same(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(score, "CHUNK", 4)
    rows = [{"prompt": f"{i}?", "responses": ["one" * (1 + i % 3), "two"]} for i in range(18)]
    assert cli.main(argv(model, rows)) == 0
    whole = (model.parent / "s").read_bytes()
    (model.parent / "s").unlink()
    said, asked = Scorer.lines, []

    def killed(self: Scorer, chunk: Any) -> Any:
        asked.append(len(chunk))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return said(self, chunk)

    monkeypatch.setattr(Scorer, "lines", killed)
    with pytest.raises(KeyboardInterrupt):
        cli.main(argv(model, rows))
    with open(model.parent / "s.partial", "a") as file:
        file.write('{"file": "half a li')
    assert not (model.parent / "s").exists()
    capsys.readouterr()
    assert cli.main(argv(model, rows)) == 0
    assert "8 rows are scored" in capsys.readouterr().out and sum(asked[3:]) == 10
    assert (model.parent / "s").read_bytes() == whole
    assert sorted(path.name for path in model.parent.glob("s*")) == ["s"]


def test_lines_of_other_data_are_not_gone_on_with(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [{"prompt": "a?", "response": "one"}]
    assert cli.main(argv(model, rows)) == 0
    right = lines(model)
    (model.parent / "s").rename(model.parent / "s.partial")
    (model.parent / "s.partial.json").write_text(files.sealed({"espalier score": 1}))
    assert cli.main(argv(model, rows)) == 0
    assert lines(model) == right and "all rows are scored anew" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rows.jsonl", "link", "hard"])
def test_what_is_read_is_not_replaced(name: str, model: Path) -> None:
    given = argv(model, [{"prompt": "a?", "response": "one"}], "--overwrite")
    data = model.parent / "rows.jsonl"
    (model.parent / "link").symlink_to(data)
    (model.parent / "hard").hardlink_to(data)
    before = data.read_bytes()
    for out in (str(model.parent / name), str(model / "config.json")):
        with pytest.raises(ConfigError, match="would replace or change"):
            cli.main([*given, "--out", out])
    assert data.read_bytes() == before and json.loads((model / "config.json").read_text())


def test_data_beside_the_scores_under_the_name_of_a_part_is_not_replaced(model: Path) -> None:
    argv(model, [{"prompt": "a?", "response": "one"}])
    data = (model.parent / "rows.jsonl").rename(model.parent / "s.partial")
    before = data.read_bytes()
    given = ["--debug", "score", "--model", str(model), "--data", f"{data}:text", "--out", str(model.parent / "s")]
    with pytest.raises(ConfigError, match="would replace or change"):
        cli.main(given)
    assert data.read_bytes() == before


@pytest.mark.parametrize("name", ["s.partial", "s.partial.json"])
def test_a_users_file_in_the_place_of_a_part_is_kept(name: str, model: Path) -> None:
    given = argv(model, [{"prompt": "a?", "response": "one"}])
    (model.parent / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"{name} exists and was not written by"):
        cli.main(given)
    assert (model.parent / name).read_text() == '{"mine": 1}'
