"""What in the folder of an older run, whose manifest.json lists no entries, is known by its content to be a run's.

A folder counts only if manifests with digests speak for it: `checkpoints/` if each checkpoint has exactly the files of
its own, `model/` if it is the model of one of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from espalier import files
from espalier.errors import CheckpointError
from espalier.loop import checkpoint

HEADING = "# espalier "
"""The beginning of run.yaml; the command that it configures follows."""


def known_by_content(folder: Path) -> list[str]:
    """Names of the entries of `folder` that an older run made. Symbolic links are not followed, and not known."""
    names = []
    for name, is_known in KNOWN.items():
        path = folder / name
        if not path.is_symlink() and path.exists() and is_known(path):
            names.append(name)
    return names


def is_preflight(path: Path) -> bool:
    """Whether a file is what `espalier check` or a run writes as preflight.json."""
    checks = _json(path, "checks")
    return isinstance(checks, list) and all(isinstance(one, dict) and "verdict" in one for one in checks)


def _json(path: Path, key: str) -> Any:
    """The value under `key` of a JSON object; None if the file has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get(key) if isinstance(content, dict) else None


def _is_config(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(HEADING.encode())


def _is_findings(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, list) and all(isinstance(one, dict) and "kind" in one for one in content)


def _is_report(path: Path) -> bool:
    """workbench.json, whose page lies beside it."""
    counts = _json(path, "counts")
    return isinstance(counts, dict) and ("responses" in counts or "solutions" in counts)


def _is_page(path: Path) -> bool:
    return path.is_file() and b"eward model" in path.read_bytes()[:4096] and _is_report(path.with_suffix(".json"))


def _lines_with(*keys: str) -> Callable[[Path], bool]:
    """Whether a file is empty or its first line is a JSON object with these keys."""

    def known(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                line = file.readline(1 << 20)
            return not line or set(keys) <= json.loads(line).keys()
        except (OSError, ValueError, AttributeError, RecursionError):
            return False

    return known


def _is_tensorboard(path: Path) -> bool:
    return path.is_dir() and all(name.startswith("events.out.tfevents.") for name in os.listdir(path))


def _is_trackers(path: Path) -> bool:
    return isinstance(_json(path / "id.json", "id"), str)


def _is_checkpoints(root: Path) -> bool:
    """Whether every child is a checkpoint with exactly the files of its manifest, or what a cut save left of one."""
    if not root.is_dir():
        return False
    folders = [*root.iterdir()]
    abandoned = root / checkpoint.ABANDONED
    if abandoned.is_dir():
        folders += [*abandoned.iterdir()]
        folders.remove(abandoned)
    return all(_is_checkpoint(folder) or _is_leftover(folder) for folder in folders)


def _is_leftover(folder: Path) -> bool:
    return folder.is_dir() and folder.name.startswith(".step-") and folder.suffix in files.SUFFIXES


def _is_checkpoint(folder: Path) -> bool:
    listed = _listed(folder)
    return listed.keys() | {checkpoint.MANIFEST} == _names(folder) and not checkpoint.problems(folder, deep=False)


def _is_model(path: Path) -> bool:
    """Whether every file of `model/` is, byte for byte, the one that a checkpoint's manifest lists."""
    names = _names(path)
    for folder in path.with_name("checkpoints").glob("step-*"):
        listed = {name.removeprefix("model/"): digest for name, digest in _listed(folder).items() if "model/" in name}
        if names == listed.keys() and all(files.sha256(path / name) == digest for name, digest in listed.items()):
            return True
    return False


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _listed(folder: Path) -> Mapping[str, str]:
    """The files of a checkpoint's manifest with their digests; none if it cannot be trusted."""
    try:
        return checkpoint.digests(folder)
    except CheckpointError:
        return {}


KNOWN: dict[str, Callable[[Path], bool]] = {
    "run.yaml": _is_config,
    "checkpoints": _is_checkpoints,
    "metrics.jsonl": _lines_with("step"),
    "preflight.json": is_preflight,
    "rejected.jsonl": _lines_with("row", "reason", "message"),
    "findings.json": _is_findings,
    "workbench.json": _is_report,
    "workbench.html": _is_page,
    "model": _is_model,
    "tensorboard": _is_tensorboard,
    "trackers": _is_trackers,
}
