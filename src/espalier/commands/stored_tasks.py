"""Which tasks stored answers belong to: the data that the run read which drew them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espalier import files
from espalier.assembly.data import cache_folder
from espalier.assembly.rollout_run import RolloutRun, TaskFiles
from espalier.config import options
from espalier.data.dataset import sources_of
from espalier.data.files.content import content_key
from espalier.errors import ConfigError
from espalier.loop import manifest

KEYS = ("data", "format", "columns", "ignore_columns", "on_bad_row")
"""What decides which tasks are read."""
CONFIG, FIGURES = "run.yaml", "rollout.json"
DIGITS = 16
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a run says of its tasks: the file that says it, the keys of its data, and the content of each path."""

    file: Path
    keys: Mapping[str, Any]
    contents: Mapping[str, str]


def with_tasks_of_run(config: RolloutRun, folder: Path) -> tuple[RolloutRun, list[str]]:
    """The config, with the data of the run in `folder` if it has none of its own; and lines that say which is used.

    Raises ConfigError if nothing there names the tasks, and for data that have changed since; data that the config
    gives may have changed, which a line says.
    """
    stored = stored_in(folder)
    if config.data.data:
        changed = changes(config, stored) if stored else []
        return config, [f"{text}; its answers are graded as tasks of now" for text in changed]
    if stored is None:
        raise ConfigError(
            f"data is missing: {folder} has no {CONFIG} and no {FIGURES} that name the tasks; give --data",
            key="data",
        )
    given = {key: getattr(config.data, key) for key in KEYS}
    own = {key: value for key, value in given.items() if value != getattr(TaskFiles(), key)}
    config = replace(config, data=options.build(TaskFiles, {**stored.keys, **own}))
    paths = [source.path for source in sources_of(config.data, "task").main]
    for path in paths:
        if path not in stored.contents:
            raise ConfigError(f"data is missing: {folder} does not say what {path} contained; give --data", key="data")
    changed = changes(config, stored)
    if changed:
        raise ConfigError(
            f"{changed[0]}; put back what the answers were drawn for, or give --data to grade them as tasks of now",
            key="data",
        )
    return config, [f"tasks: {', '.join(paths)}, by {stored.file}, unchanged since"]


def stored_in(folder: Path) -> Stored | None:
    """What the run in `folder` says of its tasks: run.yaml with the manifest of a run that trained, or rollout.json of
    `espalier rollout`; None without either."""
    if (folder / CONFIG).is_file():
        of_run = {key: entry.value for key, entry in options.read(folder / CONFIG).items() if key in KEYS}
        run = manifest.read(folder)
        return Stored(folder / CONFIG, of_run, dict(run.pinned.get("data files", {})) if run else {})
    figures = folder / FIGURES
    pins = (files.unsealed(figures.read_bytes()) or {}).get("pins", {}) if figures.is_file() else {}
    settings = pins.get("settings", {})
    # A list: earlier versions stored the text of it after --regrade.
    if not isinstance(settings.get("data"), list):
        return None
    return Stored(figures, {key: settings[key] for key in KEYS if key in settings}, pins.get("data files", {}))


def contents(config: RolloutRun) -> Facts:
    """The beginning of the hash of each data source, by its path, as runs pin it."""
    cache = cache_folder(config.data.cache)
    hashes = {}
    for source in sources_of(config.data, "task").main:
        hashes[source.path] = content_key(source.path, cache).split(" ")[-1][:DIGITS]
    return hashes


def changes(config: RolloutRun, stored: Stored) -> list[str]:
    """A text about each source of the config that is not what the run read under the same path."""
    texts = []
    for path, now in contents(config).items():
        before = stored.contents.get(path, now)
        if before != now:
            texts.append(f"data: {path} has changed since {stored.file.parent} was drawn ({before} then, {now} now)")
    return texts
