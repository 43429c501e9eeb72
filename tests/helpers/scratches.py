"""The flat scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

SCRATCH = Path(__file__).resolve().parents[2] / "scratch"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"scratch_{name}", SCRATCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
