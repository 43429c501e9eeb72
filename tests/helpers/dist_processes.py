"""A check of dist_worker.py: bytes and errors of several processes."""

from __future__ import annotations

from typing import Any

from espalier.engines.protocols import from_first, together
from espalier.errors import CheckpointError, EspalierError


def bytes_of_all_ranks(world: Any) -> dict[str, Any]:
    """Bytes of different lengths, none at all, values of rank 0, and an error that one rank has alone."""
    lengths = [len(data) for data in world.gather(b"\0" * (300 * world.rank))]
    assert world.gather(bytes(range(256)) if world.rank else b"") == [b"", bytes(range(256))]
    assert world.gather(b"") == [b"", b""]
    value = from_first({"a": [1.5, "\u00e4"], "rank": world.rank}, world)

    def fail_on_1() -> str:
        if world.rank == 1:
            raise OSError("alone")
        return "done"

    error = ""
    try:
        together(fail_on_1, "nothing was done", world, CheckpointError)
    except (CheckpointError, OSError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    errors = [text.decode() for text in world.gather(error.encode())]
    rank = together(lambda: world.rank, "never", world, EspalierError)
    return {"lengths": lengths, "value": value, "errors": errors, "rank": rank}
