"""GSM8K rows: the number behind `####`."""

import pytest

from espalier.data.formats import sniff
from espalier.data.formats.gsm8k import read_gsm8k
from espalier.errors import RowError
from espalier.types import Message, Origin, Task


def test_a_row_by_eye() -> None:
    row = {"question": "How many?", "answer": "Ada has 48/2 = <<48/2=24>>24 eggs.\n#### 1,024"}
    assert sniff(row, "task") == "gsm8k"
    assert read_gsm8k(row, Origin()) == Task((Message("user", "How many?"),), answer="1,024")


@pytest.mark.parametrize("answer", ["It is 5.", "####", "#### \n"])
def test_a_row_without_a_final_answer_is_refused(answer: str) -> None:
    with pytest.raises(RowError, match=r"no final answer.*#### and the final answer"):
        read_gsm8k({"question": "How many?", "answer": answer}, Origin())
