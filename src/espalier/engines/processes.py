"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Rank 0 writes and hashes checkpoints while they wait, so it is not short. It is
no watchdog either: torchrun ends the others when one fails, and gloo notices a closed connection at once."""


class OneProcess:
    """A world of one; every verb is the identity."""

    rank = 0
    size = 1

    def sum(self, values: list[float]) -> list[float]:
        return values

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class Distributed:
    """The processes of a torchrun launch, over NCCL on CUDA and gloo on CPU."""

    def __init__(self, device: torch.device):
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=device if device.type == "cuda" else None)
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        summed: list[float] = self.sum_tensor(tensor).tolist()
        return summed

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


def start(device: torch.device) -> OneProcess | Distributed:
    """The world of this process: what torchrun's environment says."""
    return Distributed(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else OneProcess()


def pick_device() -> torch.device:
    """The GPU of this process's local rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")
