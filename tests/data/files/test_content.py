"""By what name contents are known."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from espalier.data.files.content import content_hash, content_key
from flips import damages


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


def test_no_damage_of_a_memo_is_used(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.txt", tmp_path / "cache"
    file.write_bytes(b"abc")
    old = time.time_ns() - 10**10
    os.utime(file, ns=(old, old))
    good = content_hash(file, cache)
    (memo,) = (cache / "hashes").iterdir()
    tried = 0
    for damage in damages(cache / "hashes"):
        assert content_hash(file, cache) == good, damage
        tried += 1
    assert tried > 200
    other = tmp_path / "b.txt"
    other.write_bytes(b"abd")
    os.utime(other, ns=(old, old))
    content_hash(other, cache)
    for path in (cache / "hashes").iterdir():  # a memo under the name of another file's
        path.write_bytes(memo.read_bytes())
    assert content_hash(other, cache) != good


def test_a_cache_that_cannot_be_written_costs_a_reading(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    old = time.time_ns() - 10**10
    os.utime(file, ns=(old, old))
    (tmp_path / "cache").write_text("a file")
    assert content_hash(file, tmp_path / "cache").startswith("ba7816bf")
    assert content_key(str(file), tmp_path / "cache").startswith("file ba7816bf")


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
