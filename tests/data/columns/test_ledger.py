"""What was read of each row and what was not, and which of it refuses a source; worked examples of the room."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.data import columns
from espalier.data.columns import ledger as ledgers
from espalier.data.columns.contents import contents, placeholders
from espalier.data.columns.ledger import Ledger
from espalier.data.formats.alpaca import alpaca_prompt
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError

LONG = "This is a rather long remark about fruit that somebody wrote beside the answer, and it is here."
OTHER = "Nobody who reads this line would believe that it says the same as the remark about the fruit does."


def account(folder: Path, rows: list[Any], **settings: Any) -> Ledger:
    """What is read of rows, and what is not."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ledger = Ledger()
    for example in read(Source(str(path), **settings), ledger):
        assert not isinstance(example, RowError), example
    return ledger


def turns(question: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question, **more}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", [info.name for info in pkgutil.iter_modules(columns.__path__)])
def test_worked_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"{columns.__name__}.{name}")).failed == 0


def test_what_was_read_and_as_what(tmp_path: Path) -> None:
    rows = [
        {"query": "Q1", "answer": "a", "system": "s", "topic": "fruit", "seed": 1},
        {"query": "Q2", "answer": "b", "topic": "", "seed": None},
        {"query": "Q3", "answer": "c", "topic": " ", "seed": 0},
    ]
    ledger = account(tmp_path, rows)
    assert (ledger.format, ledger.guessed, ledger.rows) == ("prompt", True, 3)
    assert ledger.read["query"] == ("prompt", 3) and ledger.read["answer"][1] == 3 and ledger.read["system"][1] == 1
    assert {name: unread.rows for name, unread in ledger.unread.items()} == {"topic": 1, "seed": 2}
    assert list(ledger.lines()) == [
        "read as prompt, guessed from the first rows: query as prompt, answer as completion, system",
        "not read: seed (2 of 3 rows), topic (1 of 3 rows, about 5 characters)",
    ]
    ledger.refuse("rows.jsonl")


def test_keys_of_messages_are_counted_once_a_row(tmp_path: Path) -> None:
    rows = [{"messages": turns("Q", "a", mood="glad")}, {"messages": [*turns("Q", "a"), *turns("R", "b", mood="sad")]}]
    ledger = account(tmp_path, rows)
    assert ledger.read["messages.content"] == ("content", 2)
    assert ledger.unread["messages.mood"].rows == 2 and "messages" not in ledger.unread


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"images": ["cat.png"]}, "images"),
        ({"video": {"bytes": None, "path": "a.mp4"}}, "video"),
        ({"extra": {"audio_path": "a.wav"}}, "extra"),
        ({"picture": {"bytes": "x", "path": "y"}}, "picture"),
        ({"earlier": turns("What is blue?", "The sky.")}, "earlier"),
        ({"said": [["What is blue?", "The sky."]]}, "said"),
        ({"dialogue": ["What is blue?", "The sky."]}, "dialogue"),
        ({"log": json.dumps(turns("What is blue?", "The sky."))}, "log"),
        ({"more": {"chat": turns("What is blue?", "The sky.")}}, "more"),
    ],
)
def test_media_and_turns_in_one_row_of_many_refuse_a_source(more: dict[str, Any], name: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": turns("Q", "a")} for _ in range(20)]
    rows[11] |= more
    ledger = account(tmp_path, rows)
    with pytest.raises(DataError, match=rf"leaves out {name} \(.*, first in row 12\).* --ignore-columns {name}$"):
        ledger.refuse("rows.jsonl")
    assert ledger.early
    ledger.ignored = (name,)
    ledger.refuse("rows.jsonl")
    assert not ledger.early


def test_media_inside_messages_and_its_marks_are_seen(tmp_path: Path) -> None:
    ledger = account(tmp_path, [{"messages": turns("<image> What is it?", "A cat.", images=["cat.png"])}])
    assert list(ledger.dropped) == ["messages.images", "<image>"]
    assert not account(tmp_path, [{"messages": turns("Is `<audio>` a tag?", "Yes: <video>x</video>")}]).dropped


def test_turns_that_stand_inside_what_was_read_are_no_loss(tmp_path: Path) -> None:
    rows = [{"messages": turns("Q", "a"), "history": [["Q", "a"]], "prompt": "Q"}]
    assert not account(tmp_path, rows).dropped


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        ([LONG, LONG, LONG, None, None], True),
        ([LONG, LONG, "short one", None, None], True),
        ([LONG, "short one", "short one", None, None], False),
        ([LONG, LONG, None, None], False),  # half of the rows is not over half
        ([LONG[:78] + "x"] * 3, False),
        ([LONG[:78] + "xy"] * 3, True),
        (["5b" * 50] * 3, False),  # a checksum
        (["https://example.org/" + 80 * "a"] * 3, False),
    ],
)
def test_long_texts_in_over_half_of_the_rows_refuse_a_source(texts: list[Any], refused: bool, tmp_path: Path) -> None:
    ledger = account(tmp_path, [{"prompt": f"Q{i}", "response": "a", "remark": text} for i, text in enumerate(texts)])
    assert bool(ledger.dropped) == refused
    ledger.ignored = ("remark",)
    assert not ledger.dropped


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": LONG, "response": "a", "original_prompt": f"  {LONG} "},
        {"prompt": LONG, "response": "a", "question": OTHER},  # another name of the field that was read
        {"messages": turns(LONG, f"{OTHER}\n\n{LONG}"), "prompt": LONG, "last": OTHER.replace(" ", "\n")},
    ],
)
def test_text_that_was_read_under_another_name_is_no_loss(row: dict[str, Any], tmp_path: Path) -> None:
    ledger = account(tmp_path, [row])
    assert ledger.unread and not ledger.dropped


def test_a_template_filled_with_what_was_read_is_no_loss(tmp_path: Path) -> None:
    frame = (
        "Here is a task that somebody wrote down for you. Write down what completes it.\n\n# Task\n{}\n\n# Answer\n{}"
    )
    rows = []
    for i in range(8):
        task, answer = f"Name a red fruit, please ({i}).", f"Number {i} is a cherry."
        rows.append({"instruction": task, "output": answer, "text": frame.format(task, answer)})
    assert not account(tmp_path, rows).dropped
    # Other words around it in every row are words that were not read.
    for i, row in enumerate(rows):
        row["text"] += f" It took the writer {i} hours."
    assert list(account(tmp_path, rows).dropped) == ["text"]
    # The same words in every row that have nothing of what was read are a text like any other.
    assert list(account(tmp_path, [row | {"text": LONG} for row in rows]).dropped) == ["text"]


@pytest.mark.parametrize("context", ["", "Fruit on the table."])
def test_the_words_of_alpaca_are_a_template_from_the_first_row_on(context: str, tmp_path: Path) -> None:
    row = {"instruction": "Name a red fruit, please.", "input": context, "output": "A cherry."}
    prompt = alpaca_prompt(row["instruction"], context)
    assert not account(tmp_path, [row | {"text": f"{prompt}\n{row['output']}", "prompt": prompt}]).dropped


def test_text_in_objects_counts_with_their_column(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": "a", "meta": {"id": 3, "notes": [{"remark": LONG}]}}]
    assert list(account(tmp_path, rows).dropped) == ["meta"]
    answers = [{"text": "a", "score": 1, "critique": LONG}, {"text": "b", "score": 2, "critique": OTHER}]
    ledger = account(tmp_path, [{"prompt": "Q", "responses": answers}], consumes="ranking")
    assert list(ledger.dropped) == ["responses.critique"] and ledger.read["responses.score"] == ("score", 1)


def test_texts_refuse_a_long_source_before_its_end() -> None:
    ledger = Ledger("prompt")
    for _ in range(ledgers.EARLY - 1):
        ledger.rows += 1
        unread = ledger.leave("remark")
        unread.rows, unread.texts, unread.long = unread.rows + 1, unread.texts + 1, unread.long + 1
        assert not ledger.early
    ledger.rows += 1
    assert ledger.early


def test_names_are_bounded(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": "a", f"column {i}": i} for i in range(ledgers.NAMES + 50)]
    ledger = account(tmp_path, rows)
    assert len(ledger.unread) == ledgers.NAMES + 1
    # Columns that are 0 or 1 count as well; the last 50 have one name.
    assert ledger.unread[ledgers.OTHERS].rows == 50


def test_a_ledger_comes_back_from_json(tmp_path: Path) -> None:
    ledger = account(tmp_path, [{"messages": turns("<image>", "a"), "images": ["x"], "topic": "t"}])
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger and list(again.lines()) == list(ledger.lines())


def test_rows_of_files_and_folders_are_counted_too(tmp_path: Path) -> None:
    nodes = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Q", "lang": "en"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "lang": "en"},
    ]
    ledger = account(tmp_path, nodes)
    assert ledger.format == "nodes" and ledger.rows == 2 and ledger.unread["lang"].rows == 2
    folder = tmp_path / "folder"
    for name, rows in {
        "questions": [{"question_id": 1, "text": "Q", "category": "c"}],
        "answers": [{"question_id": 1, "answer_id": name, "text": name} for name in "ab"],
        "reviews": [{"answer1_id": "a", "answer2_id": "b", "score": [9, 3], "text": LONG}],
    }.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ledger = Ledger()
    assert len(list(read(Source(str(folder), consumes="ranking"), ledger))) == 1
    assert (ledger.format, ledger.rows, ledger.read["score"][1]) == ("reviews", 4, 1)
    assert set(ledger.unread) == {"category", "text"} and ledger.unread["category"].rows == 1
    assert not ledger.dropped


def test_a_long_tree_of_answers_has_short_names(tmp_path: Path) -> None:
    reply = {"text": "b", "role": "assistant", "lang": "en", "replies": []}
    root = {"text": "Q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "replies": [reply]}]}
    reply["role"], root["replies"][0]["replies"] = "prompter", [reply]  # type: ignore[index]
    ledger = account(tmp_path, [{"prompt": root}])
    assert set(ledger.unread) == {"prompt.replies.lang"}


@pytest.mark.parametrize(
    "beside",
    [
        {"picture": "a"},
        {"file": "clips/b.mp4"},
        {"url": "https://example.org/a.jpg"},
        {"extra": {"parts": ["c.wav"]}},
    ],
)
def test_media_are_known_by_their_files(beside: dict[str, Any], tmp_path: Path) -> None:
    path, ledger = tmp_path / "rows.jsonl", Ledger()
    path.write_text(json.dumps({"prompt": "Hi", "response": "Hello!", **beside}), encoding="utf-8")
    list(read(Source(str(path)), ledger))
    with pytest.raises(DataError, match="media, first in row 1"):
        ledger.refuse("rows.jsonl")


def test_a_picture_of_the_author_is_no_media() -> None:
    assert not contents("avatarUrl", "https://example.org/a.png").media
    assert not contents("extra", {"site_icon": "a.png"}).media


def test_the_name_of_a_browser_is_no_text() -> None:
    agent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/117.0.0.0"
    assert contents("header", {"user-agent": agent}).length == 0


@pytest.mark.parametrize("mark", ["<ImageHere>", "(<image>./</image>)", "data:image/png;base64,iVBORw0KGgo"])
def test_further_places_of_media(mark: str) -> None:
    assert placeholders(f"What is in {mark}?")


def test_a_file_written_into_a_link_is_text() -> None:
    assert not placeholders("Here it is: [QR Code](data:image/png;base64,iVBORw0KGgo)")
    assert not placeholders('{"qr_code": "data:image/png;base64,iVBORw0KGgo"}')
    assert placeholders("(data:image/png;base64,iVBORw0KGgo) and <image>") == ["data:image/png;base64", "<image>"]


def test_columns_beyond_the_counted_ones_count_once_a_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "response": "a", **{f"c{i}_{k}": LONG for k in range(100)}} for i in range(5)]
    ledger = account(tmp_path, [*rows, *({"prompt": f"R{i}", "response": "a"} for i in range(3))])
    others = ledger.unread[ledgers.OTHERS]
    assert (len(ledger.unread), others.rows, others.long) == (ledgers.NAMES + 1, 2, 2)
    assert not ledger.dropped


def test_large_rows_take_time_in_proportion_to_their_size(tmp_path: Path) -> None:
    def seconds(row: dict[str, Any]) -> float:
        start = time.process_time()
        account(tmp_path, [row])
        return time.process_time() - start

    # In quadratic time each of these takes minutes.
    assert seconds({"prompt": "q", "response": "<video> x " * 200_000 + "</video>"}) < 10
    assert seconds({"prompt": "q", "response": "".join(f"<image_{i}>" for i in range(50_000))}) < 10
    assert seconds({"prompt": "q", "response": "a", **{f"key{i}": f"text of {i}" for i in range(50_000)}}) < 10
