"""No text of others can make the terminal do anything."""

from __future__ import annotations

import io

import pytest
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from espalier.commands.main import _complain
from espalier.loop.progress import Progress
from espalier.loop.terminal import Terminal, visible

BAD = "a\x1b[31mb\x9b2Jc\x07\u202ed\r\x7f\ud800"
SPELT = "a\\x1b[31mb\\x9b2Jc\\x07\\u202ed\\r\\x7f\\ud800"


def test_control_characters_are_spelt_out_and_all_else_stays() -> None:
    assert visible(BAD) == SPELT == visible(SPELT)
    kept = "tab\tline\nümläut 漢字 שלום \u200d👩\u200d🚀"
    assert visible(kept) == kept


def test_lines_tables_and_bars_are_filtered() -> None:
    out = io.StringIO()
    terminal = Terminal(file=out, width=200, force_terminal=True, color_system="truecolor", highlight=False)
    table = Table(title=BAD)
    table.add_column(Text(BAD))
    table.add_row(BAD)
    terminal.print(table)
    terminal.print(BAD, markup=False)
    terminal.print(Text(BAD, style="bold"), soft_wrap=True)
    with Bar(console=terminal) as bar:
        bar.add_task(BAD, total=1)
    text = out.getvalue()
    assert text.count("\\x1b[31mb") >= 5
    assert not any(c in text for c in "\x9b\x07\u202e\x7f\ud800") and "\x1b[31m" not in text
    assert "\x1b[1m" in text, "its own styles are written"


def test_notes_tables_and_errors_go_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1)
    progress.note(BAD)
    progress.table(BAD, (BAD,), [(BAD,)])
    _complain("error", BAD)
    captured = capsys.readouterr()
    for text in captured:
        assert "\x1b" not in text and "\\x1b[31mb" in text
