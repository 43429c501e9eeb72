"""Which files of a model's folder an export wrote; what else stands there is a user's, and outlives the next export."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from espalier import files

LIST = ".espalier-files"
"""Beside the weights: the names of all files that the export wrote."""
_README = "README.md"
"""Kept by a rule of its own, `readme.edited`."""
# What exports wrote before they had a list.
_ENDS = (".safetensors", ".json", ".jinja", ".py")
_TOKENIZERS = frozenset({"tokenizer.model", "spiece.model", "merges.txt", "vocab.txt", "sentencepiece.bpe.model"})


def write_list(folder: Path) -> None:
    """Note that all files which stand in a folder are an export's. One that has a list keeps it."""
    if _listed(folder) is None:
        names = sorted({*_names(folder), LIST})
        (folder / LIST).write_text(files.sealed({"files": names}), encoding="ascii")


def foreign(folder: Path, new: Path | None = None) -> list[str]:
    """Names of files below `folder`, relative to it, that no export wrote. Without a list, one is known by the names
    that exports give, and by those in `new`, which is to replace the folder."""
    listed = _listed(folder)
    if listed is not None:
        return [name for name in _names(folder) if name not in listed and name != _README]
    known = set(_names(new)) if new is not None else set()
    return [name for name in _names(folder) if not (name in known or _usual(name))]


def carry_over(folder: Path, new: Path) -> None:
    """Put the foreign files of `folder` also into `new`, which is to replace it; nothing is moved, so that a kill loses
    none. One whose name the new export took is called `NAME.earlier`. Raises OSError."""
    for name in foreign(folder, new):
        target = new / name
        if target.is_file() and filecmp.cmp(folder / name, target, shallow=False):
            continue
        number = 0
        while os.path.lexists(target):
            number += 1
            target = new / f"{name}.earlier{number if number > 1 else ''}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(folder / name, target)


def carrying(folder: Path) -> Callable[[Path], None]:
    """What makes a copy of an export ready to replace `folder`: its list, and the foreign files."""

    def prepare(new: Path) -> None:
        write_list(new)
        carry_over(folder, new)

    return prepare


def kept_line(folder: Path) -> str:
    """What of a folder is a user's, as a line for the user; empty if nothing is."""
    names = foreign(folder)
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{folder}: kept {', '.join(names[:5])}{more}, which the export did not write"


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where a disk has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _listed(folder: Path) -> set[str] | None:
    """The names in a folder's list; None without an intact one."""
    try:
        body = files.unsealed((folder / LIST).read_bytes())
    except OSError:
        return None
    names = body.get("files") if body else None
    return set(names) if isinstance(names, list) else None


def _names(folder: Path) -> list[str]:
    """All files and links below a folder, relative to it."""
    paths = []
    for place, below, names in os.walk(folder):
        links = [name for name in below if Path(place, name).is_symlink()]
        paths += [Path(place, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(paths)


def _usual(name: str) -> bool:
    """Whether exports give such a name."""
    if name.startswith("additional_chat_templates/"):
        return True
    return "/" not in name and (name in _TOKENIZERS or name in (_README, LIST) or name.endswith(_ENDS))
