"""Trackers beside metrics.jsonl, which stays the truth: TensorBoard always, Weights & Biases and trackio as extras."""

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
"""Folder in the run directory for what the extras keep there."""
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
    TensorBoard hides what it was told about later steps, and the others go on under the id in `trackers/id.json`.

    Raises ConfigError where an extra is not installed, EspalierError where a tracker cannot start.
    """

    def __init__(
        self, out: Path, names: Sequence[str], config: Mapping[str, Any], *, step: int = 0, rank: int | None = None
    ):
        self._adapters: list[Adapter] = []
        if (int(os.environ.get("RANK", "0")) if rank is None else rank) != 0:
            return
        modules = {name: _extra(name) for name in names}
        public = redact(dict(config))
        self._adapters.append(TensorBoard(out, step))
        for name, module in modules.items():
            start = EXTRAS[name]
            try:
                self._adapters.append(start(module, out, public))
            except Exception as error:
                self.close()
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                way_out = "; WANDB_MODE=offline keeps it on this machine" if name == "wandb" else ""
                raise EspalierError(
                    f"{name} did not start: {redact(reason)}{way_out}, or drop --track {name}"
                ) from error

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

        # A reader drops events of this step and later ones that earlier files hold.
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
        # Its own step counter cannot go back, as it has to when a run resumes from a checkpoint before the last step.
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
    """The same value, with what looks like a password or an access token replaced by ***, inside lists and dicts too.

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
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"track: {name} is not installed; pip install 'espalier[{name}]', or drop --track {name}"
        ) from None
