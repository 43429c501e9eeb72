"""Trackers: TensorBoard always, Weights & Biases and trackio as extras.

They show a run while it trains; its record is metrics.jsonl. So none of them ends a run: one that fails is named once,
with its error, and not called again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from espalier.errors import ConfigError
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
    `rank` is that of this process, unless given the environment's RANK. `note` takes a line for the user: a tracker
    that does not start, fails or cannot be closed is switched off, and the run goes on.

    Raises ConfigError if an extra is not installed.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        config: Mapping[str, Any],
        *,
        step: int = 0,
        rank: int | None = None,
        note: Callable[[str], None] = print,
    ):
        self._adapters: dict[str, Adapter] = {}
        self._note = note
        if rank is None:
            rank = int(os.environ.get("RANK", "0"))
        if rank:
            return
        modules = {name: _extra(name) for name in names}
        public = redact(dict(config))
        with self._switched_off_if_it_fails("tensorboard", "did not start"):
            self._adapters["tensorboard"] = TensorBoard(out, step)
        for name, module in modules.items():
            with self._switched_off_if_it_fails(name, "did not start"):
                self._adapters[name] = EXTRAS[name](module, out, public)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        for name, adapter in [*self._adapters.items()]:
            with self._switched_off_if_it_fails(name, f"failed at step {step}"):
                adapter.log(step, metrics)

    def close(self) -> None:
        """Flush and end every tracker."""
        for name, adapter in [*self._adapters.items()]:
            with self._switched_off_if_it_fails(name, "could not be closed"):
                adapter.close()
        self._adapters = {}

    @contextlib.contextmanager
    def _switched_off_if_it_fails(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        # Trackers raise errors of many kinds: a full disk, a folder that is gone, no network, no key. Some end the
        # process by SystemExit. An interrupt is the user's, and passes.
        except (Exception, SystemExit) as error:
            adapter = self._adapters.pop(name, None)
            if isinstance(adapter, TensorBoard):
                adapter.give_up()
            self._note(_switched_off(name, what, error))


class TensorBoard:
    """Writes `out/tensorboard`."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop events of this step and later ones from earlier files.
        purge = step + 1 if step else None
        self._own_thread_fails_quietly()
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        # Its thread writes; what that could not write is known after a flush, and to nobody without one.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def give_up(self) -> None:
        """End the thread that writes, whatever it still holds."""
        with contextlib.suppress(Exception):
            self._writer.close()

    def _own_thread_fails_quietly(self) -> None:
        """An error of the thread that writes reaches `log`, which reports it; the thread need not print it as well."""
        before = threading.excepthook

        def hook(args: Any) -> None:
            if args.thread is None or type(args.thread).__name__ != "_AsyncWriterThread":
                before(args)

        threading.excepthook = hook


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


def _switched_off(name: str, what: str, error: BaseException) -> str:
    """The line about a tracker that failed: the first line of its error, without secrets, and the way out."""
    lines = str(error).splitlines()
    reason = redact(lines[0]) if lines else type(error).__name__
    way_out = "; WANDB_MODE=offline keeps it on this machine" if name == "wandb" else ""
    return f"{name} {what} and is switched off ({reason}){way_out}; the run goes on, metrics.jsonl has its numbers"
