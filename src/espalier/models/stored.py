"""The weight files of a model directory, read without running code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from espalier.errors import ModelError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weight_files(path: str, folder: Path) -> list[Path]:
    """The weight files of a model directory. Raises ModelError if there are none, or pickled ones only."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")):
        raise ModelError(
            f"{path} holds pickled weights (.bin) only, which can run code when read; expected .safetensors. "
            'Convert: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path}').save_pretrained('OUT')\""
        )
    raise ModelError(f"{path} has no weights: expected model.safetensors or model-*.safetensors beside config.json")


def stored_dtype(files: list[Path]) -> torch.dtype:
    """The floating dtype of most stored numbers, from the files' headers."""
    # Headers only: the weights of a large model are not read twice.
    sizes: Counter[torch.dtype] = Counter()
    for file in files:
        with safe_open(str(file), "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                part = tensors.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is not None:
                    sizes[dtype] += max(1, torch.Size(part.get_shape()).numel())
    if not sizes:
        return torch.float32
    return sizes.most_common(1)[0][0]


def stored_tensor(path: str, files: list[Path], name: str) -> torch.Tensor:
    """One tensor by its stored name. Raises ModelError if no file has it."""
    for file in files:
        with safe_open(str(file), "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor: torch.Tensor = tensors.get_tensor(name)
                return tensor
    raise ModelError(f"{path} has no {name}; expected a sequence-classification model whose head is one matrix")
