"""Two transcripts: what they share is the prompt."""

from __future__ import annotations

from espalier.data.formats import sniff
from rankings import PAIR, one, prompt, said


def test_transcripts_share_their_longest_common_run_of_turns() -> None:
    start = "\n\nHuman: A\n\nAssistant: B\nHuman: still B\n\nHuman: C\n\nAssistant:"
    row = {"chosen": f"{start} yes \n", "rejected": f"{start} no"}
    assert sniff(row) == sniff(row, "ranking") == "hh"
    turns = [("user", "A"), ("assistant", "B\nHuman: still B"), ("user", "C")]
    assert prompt(one("hh", row)) == turns and said(one("hh", row)) == PAIR
    assert one("pairs", row) == one("hh", row)
    assert sniff(row | {"prompt": "Q"}) == "pairs"


def test_what_stands_beside_transcripts_is_read() -> None:
    row = {"system": "Be kind.", "history": [["a", "b"]], "context": "It rains."}
    row |= {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}
    assert prompt(one("hh", row)) == [
        ("system", "Be kind."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Hi\nIt rains."),
    ]
