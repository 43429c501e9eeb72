"""Several ranks write one checkpoint: all of them succeed or none, and all read the same one."""

import errno
import threading
import time
from pathlib import Path

from checkpoints import state_of, write
from espalier.errors import CheckpointError
from espalier.loop.checkpoint import MANIFEST, choose, save, verify


class Threads:
    """A world of threads."""

    def __init__(self, rank: int, size: int, shared: dict[str, object]):
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, data: bytes) -> list[bytes]:
        slots, barrier = self.shared["slots"], self.shared["barrier"]
        assert isinstance(slots, list) and isinstance(barrier, threading.Barrier)
        slots[self.rank] = data
        barrier.wait(10)
        rows = list(slots)
        barrier.wait(10)
        return rows

    def barrier(self) -> None:
        self.gather(b"")


def on_ranks(size: int, work: object) -> list[object]:
    """What `work(world)` returns or raises on each rank."""
    shared = {"slots": [None] * size, "barrier": threading.Barrier(size)}
    results: list[object] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, size, shared))  # type: ignore[operator]
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_every_rank_writes_its_own_files_and_gets_the_same_checkpoint(tmp_path: Path) -> None:
    def work(world: Threads) -> object:
        def shard(folder: Path) -> None:
            time.sleep(0.02 * world.rank)  # rank 0 is done first, and has to wait
            (folder / f"shard-{world.rank}").write_text(f"rank {world.rank}")

        return save(tmp_path, state_of(100), shard, world=world), choose(tmp_path, world=world)

    results = on_ranks(3, work)
    assert results == [results[0]] * 3
    done = verify(tmp_path / "step-000100")
    assert results[0] == (done, done)
    names = {f"{kind}{rank}{end}" for rank in range(3) for kind, end in (("shard-", ""), ("rng-0000", ".json"))}
    assert done.ranks == 3 and {*done.files} == {"state.json", *names}


def test_a_failure_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    def work(world: Threads) -> object:
        def shard(folder: Path) -> None:
            if world.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

        return save(tmp_path, state_of(100), shard, world=world)

    first, second, third = on_ranks(3, work)
    assert isinstance(second, CheckpointError) and "the disk is full" in str(second)
    for other in (first, third):
        assert isinstance(other, CheckpointError) and "rank 1 failed" in str(other)
    assert list(tmp_path.iterdir()) == []


def test_all_ranks_refuse_a_corrupt_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, state_of(100), write)
    (tmp_path / "step-000100" / MANIFEST).unlink()
    results = on_ranks(2, lambda world: choose(tmp_path, world=world))
    assert all(isinstance(result, CheckpointError) for result in results), results
    assert on_ranks(2, lambda world: choose(tmp_path / "empty", world=world)) == [None, None]
