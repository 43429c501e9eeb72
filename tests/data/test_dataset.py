"""How sources are read, what is held out, and by what name contents are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from espalier.config.sections import DataConfig
from espalier.data.dataset import Dataset, Opened, open_data, sources_of
from espalier.data.read import READ_VERSION, Source, read
from espalier.data.render.form import Form
from espalier.data.store.store import split
from espalier.errors import ConfigError, RowError
from espalier.types import Chat, Example, Ranking, Response, Steps, Text
from judged_stores import build as judged
from stores import FakeRenderer, build
from toys import assistant, user


def pair(prompt: str, better: str, worse: str) -> Ranking:
    return Ranking((user(prompt),), (Response(assistant(better), rank=0), Response(assistant(worse), rank=1)))


# ------------------------------------------------------------------------------------------------------------- sources

CONFIG = DataConfig(
    data=("in/a.jsonl:prompt=0.5", "in/b.jsonl"),
    format="alpaca",
    replay=("in/r.txt", "in/s.jsonl:completion"),
    eval_data=("in/e.jsonl",),
    alpaca_prompt=True,
)


def test_a_source_knows_its_part_and_how_it_is_read() -> None:
    sources = sources_of(CONFIG, "ranking")
    assert [(s.name, s.part, s.read_as, s.proportion) for s in sources.trained] == [
        ("a", "main", "prompt", 0.5),
        ("b", "main", "alpaca", None),
        ("r", "replay", "text", None),
        ("s", "replay", "completion", None),
    ]
    assert [(s.name, s.part, s.read_as) for s in sources.held_out] == [("e", "main", "alpaca")]
    assert all(s.alpaca_prompt and s.consumes == "ranking" for s in (*sources.trained, *sources.held_out))


def test_tokens_are_cached_under_the_options_that_they_always_were() -> None:
    """Another text here reads every source of every user again."""
    sources = sources_of(CONFIG, "ranking")
    assert [(s.format, s.options) for s in (*sources.trained, *sources.held_out)] == [
        ("prompt", f"{READ_VERSION} ranking alpaca True"),
        ("auto", f"{READ_VERSION} ranking alpaca True"),
        ("auto", f"{READ_VERSION} ranking text True"),
        ("completion", f"{READ_VERSION} ranking text True"),
        ("auto", f"{READ_VERSION} ranking alpaca True"),
    ]
    (plain,) = sources_of(DataConfig(data=("a.jsonl",)), "chat").main
    assert plain.options == f"{READ_VERSION} chat auto False"


def test_stores_are_opened_with_what_their_sources_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def opened(source: Source, rows: Any, renderer: Any, **options: Any) -> Any:
        calls.append((source.name, renderer.name, options["content_key"], options["options"], options["part"]))
        return SimpleNamespace(stats=SimpleNamespace(dimensions=()))

    monkeypatch.setattr("espalier.data.dataset.open_store", opened)
    monkeypatch.setattr("espalier.data.dataset.refuse_missing", lambda path: None)
    monkeypatch.setattr("espalier.data.dataset.content_key", lambda path, cache: f"key of {path}")
    own, held = (SimpleNamespace(name=name, form=Form("chat")) for name in ("own", "held"))
    open_data(CONFIG, own, cache=tmp_path, seed=0, held_renderer=held)  # type: ignore[arg-type]
    assert calls == [
        ("a", "own", "key of in/a.jsonl", f"{READ_VERSION} chat alpaca True", "main"),
        ("b", "own", "key of in/b.jsonl", f"{READ_VERSION} chat alpaca True", "main"),
        ("r", "own", "key of in/r.txt", f"{READ_VERSION} chat text True", "replay"),
        ("s", "own", "key of in/s.jsonl", f"{READ_VERSION} chat text True", "replay"),
        ("e", "held", "key of in/e.jsonl", f"{READ_VERSION} chat alpaca True", "main"),
    ]


def test_read_needs_nothing_beside_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "Add.", "output": "3", "score": 1, "text": "t"}\n')
    config = DataConfig(data=(str(path),), replay=(str(path),), alpaca_prompt=True)
    (main,), (replay,) = (sources_of(config, "chat").main, sources_of(config, "chat").replay)
    (chat,), (text,) = read(main), read(replay)
    assert isinstance(chat, Chat) and chat.messages[0].content.endswith("### Instruction:\nAdd.\n\n### Response:")
    assert isinstance(text, Text) and text.text == "t"
    (scored,) = read(sources_of(config, "ranking").main[0])
    assert isinstance(scored, Ranking) and scored.responses[0].scores == (1.0,)


# --------------------------------------------------------------------------------------------------------------- split


def test_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    texts: list[str | RowError] = [f"q{i % 40}|a" for i in range(120)]
    store = build(tmp_path, texts)
    train, held = split(store, 0.25, seed=3)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(120))
    assert {texts[i] for i in train}.isdisjoint(texts[i] for i in held)
    assert 12 <= len(held) <= 54
    assert held.tolist() != split(store, 0.25, seed=4)[1].tolist()
    # Rows that are added move no other row.
    more = build(tmp_path, [*texts, "new|1", "new|2"], content_key="v2")
    assert split(more, 0.25, seed=3)[1].tolist()[: len(held)] == held.tolist()


def test_share_of_a_large_split(tmp_path: Path) -> None:
    store = build(tmp_path, [f"{i}|a" for i in range(2000)])
    assert abs(len(split(store, 0.1, seed=0)[1]) - 200) < 3 * (2000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_get_something(tmp_path: Path, fraction: float) -> None:
    train, held = split(build(tmp_path, ["a|b", "c|d", "a|b"]), fraction, seed=0)
    assert len(train) and len(held) and len(train) + len(held) == 3


def test_what_cannot_be_split(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b", "a|b"])
    with pytest.raises(ConfigError, match="all hold the same tokens"):
        split(store, 0.5, seed=0)
    with pytest.raises(ConfigError, match="less than 1"):
        split(store, 1.0, seed=0)


def test_no_prompt_of_judged_data_is_on_both_sides(tmp_path: Path) -> None:
    """Three rows a prompt, with other answers each: the side follows from the prompt alone, in every store."""

    def rows(answers: str) -> list[Example]:
        return [pair(f"question {i}", f"{a}{i}", f"{a}{i} or so") for a in answers for i in range(60)]

    def solved(labels: tuple[float, ...]) -> list[Example]:
        return [Steps((user(f"question {i}"),), ("a", f"b{i}"), labels) for i in range(60)]

    ranking = Form("ranking", "pairs", True)
    stores = [
        judged(tmp_path, rows("abc"), ranking),
        judged(tmp_path, rows("de"), ranking, content_key="v2"),
        judged(tmp_path, solved((1.0, 0.0)), Form("steps", reads=True), content_key="v3"),
    ]
    sides: dict[tuple[int, ...], set[bool]] = {}
    for store in stores:
        for side, places in enumerate(split(store, 0.3, seed=1)):
            for i in places.tolist():
                s = store.group(i)[0]
                sides.setdefault(tuple(s.tokens[: s.mask.index(True)]), set()).add(bool(side))
    assert len(sides) == 60 and {len(side) for side in sides.values()} == {1}
    assert 8 <= sum(True in side for side in sides.values()) <= 30
    chats: list[Example] = [Chat((user("Q"), assistant(f"A{i}"))) for i in range(60)]  # not judged: by all its tokens
    train, held = split(judged(tmp_path, chats, Form(), content_key="v4"), 0.3, seed=1)
    assert len(train) > 20 and len(held) > 5
    alike = judged(tmp_path, [pair("Q", f"a{i}", "b") for i in range(9)], ranking, content_key="v5")
    with pytest.raises(ConfigError, match="9 usable row\\(s\\) and all hold the same prompt"):
        split(alike, 0.3, seed=1)


# ---------------------------------------------------------------------------------------------------------------- steps


def opened_of(tmp_path: Path, texts: list[list[str]], fraction: float) -> Opened:
    """The stores of several files, of each of which a share is held out."""
    paths = []
    for number, rows in enumerate(texts):
        path = tmp_path / f"rows{number}.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        paths.append(str(path))
    renderer: Any = FakeRenderer()
    renderer.form = Form("chat")
    return open_data(DataConfig(data=tuple(paths), eval_fraction=fraction), renderer, cache=tmp_path / "cache", seed=1)


def drawn_from(opened: Opened, samples_per_step: int = 4) -> Dataset:
    options: dict[str, Any] = {"tokens_per_step": 0, "replay_fraction": 0.0, "epochs": 1.0, "steps": 0}
    return Dataset(opened, seed=1, samples_per_step=samples_per_step, **options)


def tokens_of(groups: list[list[Any]]) -> list[tuple[int, ...]]:
    return [tuple(sample.tokens) for group in groups for sample in group]


def test_what_is_held_out_is_never_trained_and_all_the_rest_is(tmp_path: Path) -> None:
    rows = [f"question {i}|answer {i}" for i in range(60)]
    opened = opened_of(tmp_path, [rows], 0.3)
    dataset = drawn_from(opened)
    trained = [tokens for step in range(dataset.steps) for tokens in tokens_of(dataset.groups(step))]
    held_out = [tokens for groups in dataset.held_out() for tokens in tokens_of(groups)]
    assert opened.sizes_held == [len(held_out)] and 5 <= len(held_out) <= 30
    assert not set(trained) & set(held_out)
    (store,) = opened.main
    assert sorted(trained + held_out) == sorted(tokens_of([store.group(i) for i in range(60)]))


def test_equal_rows_of_two_sources_are_groups_of_their_own_in_a_step(tmp_path: Path) -> None:
    rows = [f"question {i}|answer {i}" for i in range(12)]
    dataset = drawn_from(opened_of(tmp_path, [rows, rows], 0.2), samples_per_step=24)
    groups = dataset.groups(0)
    assert len(groups) > len(set(tokens_of(groups))), "no row is drawn from both sources"
    assert [{sample.group for sample in group} for group in groups] == [{number} for number in range(len(groups))]


# ------------------------------------------------------------------------------------------------------------- content


def test_columns_have_the_documented_types(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b"])
    assert (store.lengths.dtype, store.samples_per_group.dtype) == (np.int32, np.int32)
    assert (store.folder / "tokens.bin").stat().st_size == 4 * 4
