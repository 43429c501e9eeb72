"""Tables of text: cells are texts, judgements are numbers."""

from pathlib import Path

import pytest

from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Chat, Ranking


def test_cells_are_texts_and_judgements_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,response,label\n"1, or\n2?",2,1\n3?,"a ""4""",0\n', encoding="utf-8")
    made = list(read(Source(str(path), consumes="ranking")))
    assert [r.responses[0].good for r in made if isinstance(r, Ranking)] == [True, False]
    texts = [(r.prompt[0].content, r.responses[0].message.content) for r in made if isinstance(r, Ranking)]
    assert texts == [("1, or\n2?", "2"), ("3?", 'a "4"')]
    path = tmp_path / "a.tsv"
    path.write_text("question\tanswer\nWhy?\tSo.\n")
    (chat,) = read(Source(str(path)))
    assert isinstance(chat, Chat) and chat.messages[1].content == "So."


def test_rows_of_another_width_and_headers_that_name_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\na,b,c\na,b\n")
    first, second = read(Source(str(path)))
    assert isinstance(first, RowError) and first.reason == "another number of cells" and isinstance(second, Chat)
    path.write_text("prompt,prompt\na,b\n")
    with pytest.raises(DataError, match="'prompt' twice"):
        list(read(Source(str(path))))
    path.write_text('prompt,response\na,"b\n')
    with pytest.raises(DataError, match="broken CSV"):
        list(read(Source(str(path))))
