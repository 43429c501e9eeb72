"""Trackers: TensorBoard always, Weights & Biases and trackio as extras.

They show a run while it trains; its record is metrics.jsonl.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from espalier.errors import ConfigError, EspalierError
from espalier.files import write_atomic

FOLDER = "trackers"
"""Folder in the run directory for files of the extras."""
SECRET = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user:password in an address
    r"|\b(?:hf|sk|gh[pousr]|glpat|xox[abps])[-_][A-Za-z0-9_-]{16,}"  # tokens by their usual beginnings
    r"|(?<=[?&])(?:token|key|api_key|access_token|signature|X-Amz-Signature)=[^&\s]+",
    re.IGNORECASE,
)


class Adapter(Protocol):
    """One tracker."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """Sends metrics to every tracker of a run; only rank 0 does.

    `out` is the run directory, `names` the extras to use beside TensorBoard, `config` the flat config, of which
    trackers get a copy without secrets. `step` is the last step that is already done, 0 in a new run: on resume,
    TensorBoard hides what was logged for later steps, and the others continue under the id in `trackers/id.json`.
    `rank` is that of this process, unless given the environment's RANK.

    Raises ConfigError if an extra is not installed, EspalierError if a tracker cannot start.
    """

    def __init__(
        self, out: Path, names: Sequence[str], config: Mapping[str, Any], *, step: int = 0, rank: int | None = None
    ):
        self._adapters: list[Adapter] = []
        if rank is None:
            rank = int(os.environ.get("RANK", "0"))
        if rank:
            return
        modules = {name: _extra(name) for name in names}
        public = redact(dict(config))
        self._adapters.append(TensorBoard(out, step))
        for name, module in modules.items():
            try:
                self._adapters.append(EXTRAS[name](module, out, public))
            # The extras raise errors of many kinds: no network, no key, a bad project.
            except Exception as error:
                self.close()
                raise EspalierError(_did_not_start(name, error)) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        for adapter in self._adapters:
            adapter.log(step, metrics)

    def close(self) -> None:
        """Flush and end every tracker."""
        for adapter in self._adapters:
            adapter.close()
        self._adapters = []


class TensorBoard:
    """Writes `out/tensorboard`."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop events of this step and later ones from earlier files.
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Sends metrics, and no code, command line, console output or machine description."""

    def __init__(self, module: Any, out: Path, config: Mapping[str, Any]):
        folder = out / FOLDER
        folder.mkdir(exist_ok=True)
        settings = module.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
        )
        self._run = module.init(
            project="espalier",
            name=out.name,
            id=run_id(out),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=settings,
        )
        # wandb's own step counter cannot go back, and a run that resumes from an earlier checkpoint does.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Writes to trackio's store, which is local unless its own environment variables say otherwise."""

    def __init__(self, module: Any, out: Path, config: Mapping[str, Any]):
        self._run = module.init(
            project="espalier",
            name=f"{out.name}-{run_id(out)}",
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


EXTRAS: dict[str, Callable[[Any, Path, Mapping[str, Any]], Adapter]] = {"wandb": Wandb, "trackio": Trackio}
"""The adapter of each name that `--track` takes, called with the imported module, the run directory and the config."""


def run_id(out: Path) -> str:
    """The run's id at its trackers, made at the first call and kept in `out/trackers/id.json`."""
    path = out / FOLDER / "id.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])


def redact(value: Any) -> Any:
    """The same value with *** in place of everything that looks like a password or an access token, also inside lists
    and dicts.

    >>> redact("https://me:pass@host/data")
    'https://***@host/data'
    """
    if isinstance(value, str):
        return SECRET.sub("***", value)
    if isinstance(value, dict):
        return {key: redact(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    return value


def _extra(name: str) -> Any:
    """The module of an extra. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        way_out = f"pip install 'espalier[{name}]', or drop --track {name}"
        raise ConfigError(f"track: {name} is not installed; {way_out}") from None


def _did_not_start(name: str, error: Exception) -> str:
    """The message for a tracker that did not start: the first line of its error, without secrets, and the way out."""
    lines = str(error).splitlines()
    reason = redact(lines[0]) if lines else type(error).__name__
    way_out = "; WANDB_MODE=offline keeps it on this machine" if name == "wandb" else ""
    return f"{name} did not start: {reason}{way_out}, or drop --track {name}"
