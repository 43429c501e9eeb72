"""Part of dist_worker.py: starting the ranks, and whole commands on all of them."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espalier.commands import main as cli
from espalier.engines import processes as worlds
from espalier.loop.train import Trainer


def start_ranks(main: Callable[[Path], None], out: Path, ranks: int = 2) -> int:
    """Fork the ranks, which run `main`, and wait. The first that fails ends the others; returns its exit code."""
    gc.freeze()  # the ranks need not search what was imported for garbage
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running: set[int] = set()
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            main(out)
            sys.exit()
        running.add(pid)
    code = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            for other in running:
                os.kill(other, signal.SIGKILL)
    return code


def commands(world: Any, out: Path) -> dict[str, Any]:
    """`espalier dpo` on all ranks, and `espalier sft`, whole and stopped by a signal that one rank alone gets.

    OUT holds model and data.
    """
    rank = int(os.environ["RANK"])
    written: set[str] = set()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and args[0].startswith(f"{out}/run-") and "w" in str(args[1]):
            written.add(Path(args[0]).name)

    sys.addaudithook(hook)
    step = Trainer._step

    def and_signal(self: Trainer) -> None:
        step(self)
        if self.state.step == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    worlds.start = lambda device: world  # type: ignore[assignment] # a process joins a group once
    world.close = lambda: None
    file = out / "data.jsonl"
    rows = file.read_text()
    figures: dict[str, Any] = {}
    for name, body in (("dpo", step), ("run-whole", step), ("run-stopped", and_signal), ("changed", step)):
        Trainer._step = body  # type: ignore[method-assign]
        argv = dpo_arguments(out) if name == "dpo" else ["sft", *arguments(out)]
        more = ["--out", str(out / name)]
        if name == "changed":  # rank 0 alone compares with what the run began with
            more = ["--out", str(out / "run-whole"), "--resume"]
            if rank == 0:
                file.write_text(rows + rows.splitlines()[0] + "\n")
            world.barrier()
        said, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            code = cli.main([*argv, *more])
        figures[name] = [code, said.getvalue(), " ".join(complained.getvalue().split())]
    world.barrier()
    file.write_text(rows)
    return figures | {"written": sorted(written)}


def arguments(out: Path) -> list[str]:
    return [
        *("--model", str(out / "model"), "--data", str(out / "data.jsonl"), "--cache", str(out / "cache")),
        *("--epochs", "2", "--samples-per-step", "8", "--tokens-per-microbatch", "96", "--lr", "1e-3"),
        *("--eval-fraction", "0.2", "--eval-every", "2", "--save-every", "2"),
    ]


def dpo_arguments(out: Path) -> list[str]:
    """A run against a reference that moves."""
    return [
        *("dpo", "--model", str(out / "model"), "--data", str(out / "pairs.jsonl"), "--cache", str(out / "cache")),
        *("--epochs", "2", "--lr", "1e-2", "--save-every", "3", "--eval-fraction", "0.2", "--eval-every", "2"),
        *("--sync-every", "2", "--sync-alpha", "0.5", "--tokens-per-microbatch", "128", "--samples-per-step", "12"),
    ]
