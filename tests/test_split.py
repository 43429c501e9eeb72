"""What is held out, and by what name contents are known."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from espalier.data.content import content_hash, content_key
from espalier.data.store import split
from espalier.errors import ConfigError, RowError
from test_store import build

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


# ------------------------------------------------------------------------------------------------------------- content


def test_content_hash_is_sha256_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "a.txt", tmp_path / "cache"
    file.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(file) == abc
    old = time.time_ns() - 10**10
    os.utime(file, ns=(old, old))
    assert content_hash(file, cache) == abc
    with monkeypatch.context() as m:
        m.setattr("hashlib.file_digest", None)  # hashing again would fail
        assert content_hash(file, cache) == abc
    file.write_bytes(b"abd")
    assert content_hash(file, cache) != abc
    os.utime(file, ns=(old + 1, old + 1))
    assert content_hash(file, cache) != abc


def test_a_fresh_file_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    content_hash(file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_content_key_of_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"abc")
    assert content_key(str(folder / "a.jsonl")).startswith("file ba7816bf")
    before = content_key(str(folder))
    assert before != content_key(f"{folder}#test")
    (folder / "b.jsonl").write_bytes(b"")
    assert content_key(str(folder)) != before


def test_columns_have_the_documented_types(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b"])
    assert (store.lengths.dtype, store.samples_per_group.dtype) == (np.int32, np.int32)
    assert (store.folder / "tokens.bin").stat().st_size == 4 * 4
