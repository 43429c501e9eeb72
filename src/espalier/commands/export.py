"""`espalier export`: the weights of a run as a plain Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from espalier import files
from espalier.config.sections import ExportConfig
from espalier.errors import ConfigError
from espalier.loop import checkpoint


def run(config: ExportConfig) -> None:
    """Copy the model of a run, or of one of its checkpoints, out of it."""
    out = Path(config.run)
    source = model_of(out)
    target = Path(config.out) if config.out else out / "model"
    if target.resolve() != source.resolve():
        if target.exists() and any(target.iterdir()):
            raise ConfigError(f"out: {target} exists and is not empty; choose a new folder", key="out")
        files.copy_dir(source, target)
    print(f"{target} holds the model of {source}")


def model_of(run: Path) -> Path:
    """The folder of a run's model: `model/`, the folder itself, or the model of the newest intact checkpoint.

    Raises ConfigError if there is none.
    """
    for folder in (run / "model", run):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if (run / "checkpoints").is_dir():
        newest, _ = checkpoint.find(run / "checkpoints")
        if newest is not None:
            return newest.path / "model"
    raise ConfigError(f"run: {run} holds no model and no intact checkpoint; expected a run directory", key="run")
