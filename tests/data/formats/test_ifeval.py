"""IFEval rows: instructions and their arguments are facts."""

import pytest

from espalier.data.formats import sniff
from espalier.data.formats.ifeval import read_ifeval
from espalier.errors import RowError
from espalier.types import Origin

ROW = {
    "key": 1,
    "prompt": "Write 300 words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None, "relation": None}, {"num_words": 300, "relation": "at least"}],
}


def test_a_row_by_eye() -> None:
    assert sniff(ROW, "task") == "ifeval"
    task = read_ifeval(ROW, Origin())
    assert (task.prompt[0].content, task.verifier, task.answer) == ("Write 300 words.", "ifeval", "")
    assert task.facts == {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"num_words": 300, "relation": "at least"}],
    }
    assert read_ifeval({**ROW, "kwargs": None}, Origin()).facts["kwargs"] == [{}, {}]
    assert read_ifeval({**ROW, "verifier": "own"}, Origin()).verifier == "own"


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RowError, match="got 1 for 2 instructions"):
        read_ifeval({**ROW, "kwargs": [{}]}, Origin())
    with pytest.raises(RowError, match="a list of names"):
        read_ifeval({**ROW, "instruction_id_list": []}, Origin())
