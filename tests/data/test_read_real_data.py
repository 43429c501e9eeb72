"""Files that others wrote read fully, and a few of their rows are what a person reads in them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.files.plain import PIECE
from espalier.data.read import parse_source, read
from espalier.errors import RowError
from espalier.types import Message

pytestmark = pytest.mark.real_data


def examples(path: Path) -> list[Any]:
    return list(read(parse_source(str(path))))


def listed(shared: Path) -> dict[str, int]:
    return {entry["path"]: entry["rows"] for entry in json.loads((shared / "data/MANIFEST.json").read_text())}


def test_every_real_file_reads_fully(shared: Path) -> None:
    count = 0
    for name, expected in listed(shared).items():
        if not (name.startswith(("sft/", "text/")) or name == "verifiable/gsm8k_train.jsonl.gz") or ".txt" in name:
            continue
        got = examples(shared / "data" / name)
        kept = {e.origin.line for e in got if not isinstance(e, RowError)}
        rejected = [e for e in got if isinstance(e, RowError)]
        assert (len(kept) + len(rejected), rejected) == (expected, []), name
        assert len(got) == expected, name
        count += 1
    assert count == 17


def test_real_text_files_keep_every_character(shared: Path) -> None:
    for name, documents in (("tiny_shakespeare.txt.gz", 596), ("wiki_demo.txt.gz", 551)):
        got = examples(shared / "data/text" / name)
        raw = gzip.decompress((shared / "data/text" / name).read_bytes()).decode()
        assert "".join("".join(e.text for e in got).split()) == "".join(raw.split())
        assert max(len(e.text) for e in got) <= PIECE and len(got) == documents


def test_real_rows_as_a_person_reads_them(shared: Path) -> None:
    sft = shared / "data/sft"
    glaive = examples(sft / "llamafactory_glaive_toolcall_en_demo.json.gz")
    first = glaive[0]
    assert "".join(m.role[0] for m in first.messages) == "uauataua"
    asked = {"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}
    assert first.messages[3] == Message("assistant", "", tool_calls=({"type": "function", "function": asked},))
    assert [t["function"]["name"] for t in first.tools] == ["search_recipes"]
    assert sum(len(m.tool_calls) for chat in glaive for m in chat.messages) == 211
    assert sum(m.role == "tool" for chat in glaive for m in chat.messages) == 211

    reasoned = examples(sft / "llamafactory_reason_tool_use_demo_50.jsonl.gz")
    film = reasoned[1].messages[2]
    assert film.content == "" and film.reasoning.startswith("Alright, the user wants information about the movie")
    assert film.tool_calls[0]["function"] == {"name": "get_movie_details", "arguments": {"title": "Inception"}}
    circles = reasoned[2].messages[2]
    assert [c["function"]["arguments"]["radius"] for c in circles.tool_calls] == [1.5, 3]
    assert sum(len(m.tool_calls) for chat in reasoned for m in chat.messages) == 68

    hi = examples(sft / "llamafactory_v1_sft_demo.jsonl.gz")[0]
    hello = "Hello! I am {{name}}, an AI assistant developed by {{author}}. How can I assist you today?"
    assert hi.messages == (Message("user", "hi", weight=0.0), Message("assistant", hello, weight=1.0))

    seed = examples(sft / "stanford_seed_tasks.jsonl.gz")[1]
    asked_for = "What is the relation between the given pairs?\nNight : Day :: Right : Left"
    assert seed.messages[0].content == asked_for

    gsm = examples(shared / "data/verifiable/gsm8k_train.jsonl.gz")[0]
    assert gsm.messages[0].content.startswith("Natalia sold clips to 48 of her friends in April")
    assert gsm.messages[1].content.endswith("\n#### 72") and str(gsm.origin) == "gsm8k_train:1"

    lunyu = examples(shared / "data/text/zh_lunyu.json.gz")[0]
    assert lunyu.text.startswith("子曰：“学而时习之")  # noqa: RUF001
    assert lunyu.origin.line == 2
