"""Run by test_checkpoint.py in a process of its own, because forking is cheap and safe where torch is not loaded.

For k = 1, 2, ... a forked child does one operation on checkpoints and is killed at its k-th access to the folder
(Python's audit events: open, mkdir, rename, remove, ...), until a child gets through. After each kill, as a new process
would, it asks which checkpoint to resume from. Prints one JSON object: {"kills": [[step, content], ...]}.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from espalier.loop import checkpoint
from espalier.loop.state import TrainState


def state(step: int) -> TrainState:
    return TrainState(
        step=step, epoch=0, position=0, counters={}, state={}, best_score=None, best_step=None, stale=0, lengths={}
    )


def save(root: Path, step: int, content: str) -> None:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        for name in ("weights", "model/config"):
            with open(folder / name, "w") as file:
                for letter in content:
                    file.write(letter)
                    file.flush()
                    sys.audit("espalier.test.letter", str(folder))

    checkpoint.save(root, state(step), write)


def kill_at_access(root: Path, number: int) -> None:
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        # rmtree names what it deletes relative to an open folder
        if event in ("os.remove", "os.rmdir") or any(str(root) in str(arg) for arg in args):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(operation: str, root: Path) -> None:
    os.fsync = lambda fd: None  # a killed process loses nothing that it wrote, flushed or not; flushing takes most time

    def run() -> None:
        if operation == "save":
            save(root, 200, "new")
        elif operation == "replace":
            save(root, 100, "new")
        elif operation == "prune":
            checkpoint.prune(root, keep=1)
        elif operation == "set_aside":
            checkpoint.set_aside(root, 0)

    kills = []
    for kill_at in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        save(root, 100, "old")
        if operation == "prune":
            save(root, 200, "mid")
        child = os.fork()
        if child == 0:
            kill_at_access(root, kill_at)
            run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        found = checkpoint.choose(root)
        content = (
            "" if found is None else (found.path / "weights").read_text() + (found.path / "model/config").read_text()
        )
        kills.append([found.step if found else None, content])
        for step in checkpoint.steps(root):
            assert not checkpoint.problems(root / checkpoint.step_name(step)), "half a checkpoint under its own name"
        assert not any(path.name.startswith(".") for path in root.iterdir()), "leftovers after a resume"
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    if sys.argv[1] == "forever":
        for number in range(1, 100000):
            save(Path(sys.argv[2]), number, str(number))
            print(number, flush=True)
    main(sys.argv[1], Path(sys.argv[2]))
