"""What cannot be used: each case is named with its place, field, what was got and what is expected."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import espalier.data.files.json_rows as json_rows
from espalier.data.formats import convert
from espalier.data.read import Source, read
from espalier.errors import DataError, RowError
from espalier.types import Chat, Origin

GOOD = '{"prompt": "q", "answer": "a"}'


def results(path: Path, data: bytes | str, format: str = "auto") -> list[Any]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read(Source(str(path), format)))


def shape(found: list[Any]) -> list[Any]:
    """Lines of examples, and errors' places without the folder."""
    return [x.where.split("/")[-1] + " " + x.reason if isinstance(x, RowError) else x.origin.line for x in found]


def error(row: Any, name: str) -> RowError:
    with pytest.raises(RowError) as caught:
        convert(name, row, Origin("f", 1))
    return caught.value


# --------------------------------------------------------------------------------------------------------- containers


def test_a_broken_line_does_not_end_a_jsonl(tmp_path: Path) -> None:
    found = results(tmp_path / "a.jsonl", f'{GOOD}\n{{"prompt": "q" "answer"}}\n\n{GOOD}{GOOD}\r\n{GOOD}\n{{"prompt')
    assert shape(found) == [1, "a.jsonl:2 broken JSON", "a.jsonl:4 broken JSON", 5, "a.jsonl:6 broken JSON"]
    assert found[1].got == "Expecting ',' delimiter at column 16, before '\"answer\"}'"
    assert found[2].got.startswith("Extra data at column 31")
    assert found[4].got.startswith("Unterminated string starting at column 2")
    assert str(found[1]).startswith(f"{tmp_path}/a.jsonl:2: broken JSON; got Expecting")


def test_broken_syntax_ends_an_array(tmp_path: Path) -> None:
    found = results(tmp_path / "a.json", f'[\n {GOOD},\n {{"prompt": q}},\n {GOOD}\n]')
    assert shape(found) == [2, "a.json:3 broken JSON"]
    assert "Expecting value, before 'q}," in found[1].got and "at column 13" in found[1].got
    assert "ends here" in found[1].fix


@pytest.mark.parametrize(
    ("text", "place", "got"),
    [
        (f"[{GOOD}", "a.json:1 broken JSON", "the end of the file at column 32"),
        (f"[{GOOD}\n,", "a.json:2 broken JSON", "the end of the file at column 2"),
        (f"[{GOOD},]", "a.json:1 broken JSON", "Expecting value, before ']', at column 33"),
        (f"[{GOOD}\n {GOOD}]", "a.json:2 broken JSON", "'{' at column 2"),
        (f"[{GOOD}] {GOOD}", "a.json:1 broken JSON", "text after the end of the array at column 34"),
    ],
)
def test_arrays_that_do_not_end_well(tmp_path: Path, text: str, place: str, got: str) -> None:
    found = results(tmp_path / "a.json", text)
    assert shape(found) == [1, place]
    assert found[1].got == got


def test_errors_inside_elements_do_not_end_an_array(tmp_path: Path) -> None:
    rows = [GOOD, '{"prompt": 1, "prompt": 2}', "7", '{"prompt": "\\u0000", "answer": "a"}', '{"prompt": NaN}', GOOD]
    found = results(tmp_path / "a.json", "[" + ",\n".join(rows) + "]")
    assert shape(found) == [
        1,
        "a.json:2 duplicate key",
        "a.json:3 wrong type",
        "a.json:4 NUL character",
        "a.json:5 broken JSON",
        6,
    ]
    assert (found[1].field, found[1].got) == ("prompt", "2 values")
    assert (found[2].got, found[2].expected) == ("number 7", "a JSON object")
    assert (found[3].field, found[3].got) == ("prompt", "U+0000 at character 1")
    assert found[4].got == "NaN"


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path: Path) -> None:
    bad = '{"prompt": "é", "answer": "a'.encode() + b'\xff"}'
    lines = GOOD.encode() + b"\n" + bad + b"\n" + GOOD.encode()
    found = results(tmp_path / "a.jsonl", lines)
    assert shape(found) == [1, "a.jsonl:2 not UTF-8", 3]
    assert lines[60] == 0xFF and found[1].got == "byte 0xff at offset 60"
    array = b"[" + GOOD.encode() + b",\n" + bad + b",\n" + GOOD.encode() + b"]"
    found = results(tmp_path / "a.json", array)
    assert shape(found) == [1, "a.json:2 not UTF-8", 3]
    assert array[62] == 0xFF and found[1].got == "byte 0xff at offset 62"
    assert shape(results(tmp_path / "b.json", b"[" + GOOD.encode() + b", \xff]")) == [1, "b.json:1 not UTF-8"]
    found = results(tmp_path / "a.txt", b"one\ntwo \xc3\nthree\n\x00\nfour \xe4")
    assert [x.where.split("/")[-1] + x.got for x in found if isinstance(x, RowError)] == [
        "a.txt:2byte 0xc3 at offset 8",
        "a.txt:4byte 0x00 after 0 characters of the line",
        "a.txt:5byte 0xe4 at offset 23",
    ]
    assert [x.text for x in found if not isinstance(x, RowError)] == ["one\nthree"]


def test_nul_surrogates_numbers_and_depth(tmp_path: Path) -> None:
    rows = [
        '{"prompt": "q\0"}',
        '{"prompt": "q", "answer": ["\\ud800"]}',
        '{"prompt": ' + "1" * 5000 + "}",
        '{"prompt": ' + "[" * 101 + "]" * 101 + "}",
        '{"prompt": ' + "[" * 100_000 + "}",
        '{"\\ud800": 1, "\\ud800": 2}',
        GOOD,
    ]
    found = results(tmp_path / "a.jsonl", "\n".join(rows))
    assert [getattr(x, "reason", None) for x in found] == [
        "NUL byte",
        "half a surrogate pair",
        "number too long",
        "nested too deep",
        "nested too deep",
        "duplicate key",
        None,
    ]
    assert found[0].got == "byte 0x00 at column 14"
    assert (found[1].field, found[1].got) == ("answer[0]", "U+D800 at character 1")
    assert all(str(x).isprintable() for x in found if isinstance(x, RowError))


def test_a_long_line_is_skipped_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "LIMIT", 100)
    monkeypatch.setattr(json_rows, "CHUNK", 32)
    exact = '{"prompt": "' + "x" * 70 + '", "answer": "a"}'
    assert len(exact) == 99
    found = results(tmp_path / "a.jsonl", f"{GOOD}\n{exact}\n{exact} \n{exact}  \n{GOOD}\n{exact * 2}")
    assert shape(found) == [1, 2, 3, "a.jsonl:4 line too long", 5, "a.jsonl:6 line too long"]
    assert (found[3].got, found[3].expected) == ("102 bytes", "at most 100")
    assert found[5].got == "198 bytes"
    found = results(tmp_path / "a.json", f"[{GOOD},\n" + '{"prompt": "' + "x" * 400 + '"}]')
    assert shape(found) == [1, "a.json:2 row too long"]


def test_a_bom_is_accepted_and_wide_encodings_are_named(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", GOOD), ("a.json", f"[{GOOD}]"), ("b.json", '{\n"prompt": "q",\n"answer": "a"}')):
        assert shape(results(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == [1]
    (text,) = results(tmp_path / "a.txt", b"\xef\xbb\xbfone")
    assert text.text == "one"
    for encoding, named in (("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")):
        with pytest.raises(DataError, match=f"{named}; expected UTF-8. Convert it: iconv -f {named}"):
            results(tmp_path / "c.jsonl", GOOD.encode(encoding))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "txt"])
def test_a_gzip_that_breaks_off_or_was_changed(tmp_path: Path, suffix: str) -> None:
    text = {"jsonl": f"{GOOD}\n" * 9, "json": f"[{','.join([GOOD] * 9)}]", "txt": "one\n" * 9}[suffix]
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(text.encode()) + packer.flush()
    assert results(tmp_path / f"a.{suffix}", packed)
    for bad in (packed[:-9], packed[:-8] + bytes(8), packed[:12] + b"\xff\xff" + packed[14:]):
        with pytest.raises(DataError, match="broken gzip"):
            results(tmp_path / f"b.{suffix}.gz", bad)


# --------------------------------------------------------------------------------------------------------------- rows


def talk(*turns: Any) -> dict[str, Any]:
    return {"messages": [dict(zip(("role", "content"), t, strict=True)) if isinstance(t, tuple) else t for t in turns]}


U, A = ("user", "q"), ("assistant", "a")
CALL = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x}"}]}


@pytest.mark.parametrize(
    ("name", "row", "reason", "field", "got"),
    [
        ("messages", talk(U), "no assistant turn", "messages", "the roles user"),
        ("messages", talk(U, ("tool", "3"), A), "tool result without a call", "messages[1]", "a tool result after a u"),
        ("messages", talk(("tool", "3"), A), "tool result without a call", "messages[0]", "a tool result at the start"),
        ("messages", talk(), "no turns", "messages", "an empty list"),
        ("messages", talk(("usr", "q"), A), "unknown role", "messages[0].role", "string 'usr'"),
        ("messages", talk((5, "q"), A), "wrong type", "messages[0].role", "number 5"),
        ("messages", talk(("user", 5), A), "wrong type", "messages[0].content", "number 5"),
        ("messages", talk(("user", None), A), "wrong type", "messages[0].content", "null"),
        ("messages", talk({"role": "user"}, A), "missing key", "messages[0].content", "the keys role"),
        ("messages", {"messages": "hi"}, "wrong type", "messages", "string 'hi'"),
        ("messages", {"messages": ["hi"]}, "wrong type", "messages[0]", "string 'hi'"),
        ("messages", {"id": 1, "a": 2}, "missing key", "messages", "the keys a, id"),
        ("messages", {**talk(U, A), "tools": "[{]"}, "broken JSON in a string", "tools", "Expecting property name"),
        ("messages", {**talk(U, A), "tools": [{"x": 1}]}, "missing key", "tools[0].name", "the keys x"),
        ("messages", talk(U, CALL), "broken JSON in a string", "messages[1].tool_calls[0].arguments", "Expecting prop"),
        (
            "messages",
            talk(U, {**CALL, "tool_calls": [{"name": "f", "arguments": "[]"}]}),
            "wrong type",
            None,
            "list []",
        ),
        ("messages", talk({**CALL, "role": "user"}, A), "broken JSON in a string", None, "Expecting"),
        (
            "messages",
            talk({"role": "user", "content": "q", "reasoning": "r"}, A),
            "reasoning outside",
            "messages[0]",
            "",
        ),
        (
            "messages",
            talk(("user", [{"type": "image_url"}]), A),
            "unknown block type",
            "messages[0].content[0].type",
            "",
        ),
        (
            "messages",
            talk(("user", [{"type": "text"}]), A),
            "missing key",
            "messages[0].content[0].text",
            "the keys ty",
        ),
        ("messages", talk(U, {"role": "assistant", "content": "a", "weight": "1"}), "wrong type", None, "string '1'"),
        ("messages", talk(U, {"role": "assistant", "content": "a", "weight": -1}), "impossible weight", None, "-1"),
        ("messages", talk(U, {"role": "assistant", "content": "a", "train": 2}), "wrong type", None, "number 2"),
        (
            "messages",
            talk(U, {"role": "assistant", "content": "a", "train": False, "weight": 1}),
            "contradicting weight",
            "messages[1]",
            "weight 1 with train false",
        ),
        (
            "messages",
            talk(U, ("assistant", [{"type": "text", "text": "a"}, {"type": "reasoning", "value": "r"}])),
            "blocks out of order",
            "messages[1].content[1]",
            "reasoning after text",
        ),
        ("sharegpt", {"conversations": [{"from": "humam", "value": "q"}]}, "unknown role", None, "string 'humam'"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "missing key", "conversations[0].value", "the keys from"),
        ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "wrong type", None, "number 3"),
        ("sharegpt", {"conversations": {"from": "human"}}, "wrong type", "conversations", "object {'from': 'human'}"),
        (
            "sharegpt",
            {"system": "t", "conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "a"}]},
            "two system turns",
            "system",
            "a system column and a system turn",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1, "a": 2}}'}]},
            "duplicate key",
            "conversations[0].value: a",
            "2 values",
        ),
        ("alpaca", {"instruction": "i", "output": ""}, "empty assistant turn", "output", "content ''"),
        ("alpaca", {"instruction": "i", "input": "x"}, "missing key", "output", "the keys input, instruction"),
        ("alpaca", {"instruction": " ", "output": "o"}, "empty prompt", "instruction", "an empty instruction"),
        ("alpaca", {"instruction": "i", "instances": []}, "wrong type", "instances", "list []"),
        (
            "alpaca",
            {"instruction": "i", "instances": [{"input": ""}]},
            "missing key",
            "instances[0].output",
            "the keys",
        ),
        ("alpaca", {"instruction": "i", "output": "o", "history": [["q"]]}, "wrong type", "history[0]", "list ['q']"),
        ("prompt", {"question": "q", "answer": 145.0}, "wrong type", "answer", "number 145.0"),
        ("prompt", {"question": "", "answer": "a"}, "empty prompt", "question", "content ''"),
        ("prompt", {"question": "q"}, "missing key", "completion", "the keys question"),
        ("completion", {"prompt": "q", "completion": "\n"}, "empty assistant turn", "completion", "content '\\n'"),
        ("text", {"text": "  "}, "empty text", "text", "content '  '"),
        ("text", {"paragraphs": "ab"}, "wrong type", "paragraphs", "string 'ab'"),
    ],
)
def test_every_bad_row_names_field_and_value(name: str, row: Any, reason: str, field: str | None, got: str) -> None:
    found = error(row, name)
    assert found.reason.startswith(reason)
    assert field is None or found.field == field
    assert found.got.startswith(got) and (found.expected or found.reason == "unknown block type")


@pytest.mark.parametrize(("role", "near"), [("usr", "user"), ("asistant", "assistant"), ("sytem", "system")])
def test_unknown_roles_suggest_the_nearest(role: str, near: str) -> None:
    assert error(talk((role, "q"), A), "messages").fix == f"Did you mean {near}?"


def test_a_row_of_no_known_format_lists_its_keys(tmp_path: Path) -> None:
    found = results(tmp_path / "a.jsonl", '{"Asked": "q", "Answer": 1}\n' * 20 + GOOD)
    assert shape(found)[:2] == ["a.jsonl:1 no known format", "a.jsonl:2 no known format"]
    assert (len(found), shape(found)[-1]) == (21, 21)
    assert found[0].got == "the keys Answer, Asked" and "PATH:FORMAT" in found[0].fix


ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "yes", "weight": 1}]},
    {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2 \\ \n"}], "tools": "[]"},
    {"instruction": "Add.", "input": "1", "output": "2", "history": [["a", "b"]]},
    {"prompt": "q", "answer": "a", "extra": [1.5e3, None, True]},
    {"text": "日本"},
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["a.jsonl", "a.json", "a.txt"]), ascii_only=st.booleans())
def test_one_changed_byte_gives_rows_or_row_errors(tmp_path: Path, data: Any, name: str, ascii_only: bool) -> None:
    rows = data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=3))
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()
    index = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0, 255))
    found = results(tmp_path / name, text[:index] + bytes([byte]) + text[index + 1 :])
    assert found
    for item in found:
        if isinstance(item, RowError):
            assert item.where and item.reason and item.got and str(item).isprintable()
        else:
            assert not isinstance(item, Chat) or item.messages[-1].role == "assistant"
