"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Rank 0 writes and hashes checkpoints while they wait, so it is not short. It is
no watchdog either: torchrun ends the others when one fails, and gloo notices a closed connection at once."""


class OneProcess:
    """A world of one; every verb is the identity."""

    rank = 0
    size = 1

    @overload
    def sum(self, values: list[float]) -> list[float]: ...
    @overload
    def sum(self, values: Tensor) -> Tensor: ...
    def sum(self, values: Any) -> Any:
        """The values."""
        return values

    def gather(self, data: bytes) -> list[bytes]:
        """The one entry."""
        return [data]

    def barrier(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Distributed:
    """The processes of a torchrun launch, over NCCL on CUDA and gloo on CPU."""

    def __init__(self, device: torch.device):
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if device.type == "cuda" else None)
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    @overload
    def sum(self, values: list[float]) -> list[float]: ...
    @overload
    def sum(self, values: Tensor) -> Tensor: ...
    def sum(self, values: Any) -> Any:
        """Elementwise sums over all ranks: numbers in float64, or a tensor of `device`, in place."""
        if isinstance(values, Tensor):
            dist.all_reduce(values)
            return values
        return self.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in the order of the ranks."""
        # Lengths first: a collective moves tensors of one size. Not all_gather_object, which
        # unpickles.
        lengths = [int(length) for length in self._all_gather(torch.tensor([len(data)]))]
        padded = bytearray(data.ljust(max(lengths), b"\0"))
        if not padded:
            return [b""] * self.size
        rows = self._all_gather(torch.frombuffer(padded, dtype=torch.uint8))
        return [row.cpu().numpy().tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        own = tensor.to(self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own)
        return rows

    def barrier(self) -> None:
        """Return when every rank is here."""
        dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def start(device: torch.device) -> OneProcess | Distributed:
    """The world of this process, as torchrun's environment describes it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Distributed(device)
    return OneProcess()


def pick_device() -> torch.device:
    """The GPU of this process's local rank if CUDA is available, else the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")
