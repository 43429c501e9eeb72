"""`espalier export`: the weights of a run, or of a base and an adapter, as a plain Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from espalier import files
from espalier.config.sections import ExportConfig, ModelConfig
from espalier.errors import ConfigError
from espalier.loop import checkpoint
from espalier.loop.rundir import RunDir

if TYPE_CHECKING:
    from espalier.models.load import Loaded


def run(config: ExportConfig) -> None:
    """Copy the model of a run, or of one of its checkpoints, out of it; or merge an adapter into its base."""
    if config.adapter:
        _merge(config.model, config.adapter, Path(config.out), config.trust_remote_code)
        return
    out = Path(config.run)
    source = model_of(out)
    if (source / "adapter_config.json").is_file() and config.merge:
        base = config.model or _base_of_run(out)
        target = Path(config.out) if config.out else out / "merged"
        _merge(base, str(source), target, config.trust_remote_code)
        return
    if config.merge:
        print(f"{source} holds merged weights already, not an adapter")
    target = Path(config.out) if config.out else out / "model"
    if target.resolve() != source.resolve():
        _refuse_occupied(target)
        with RunDir.adopt(out) as run:
            if target.absolute() == run.model.absolute():
                run.create(run.model)
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


def _refuse_occupied(target: Path) -> None:
    """Raise ConfigError for a place where something stands already: nothing is ever replaced."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"out: {target} exists and is not empty; choose a new folder", key="out")


# ------------------------------------------------------------------------------------------------------------- merging


def _base_of_run(run: Path) -> str:
    """The base of a run's adapter, by the run.yaml beside or above its model; empty if there is none."""
    for folder in (run, *run.absolute().parents[:3]):
        file = folder / "run.yaml"
        if not file.is_file():
            continue
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return ""
        model = settings.get("model") if isinstance(settings, dict) else None
        if isinstance(model, dict):
            model = model.get("model")
        return model if isinstance(model, str) else ""
    return ""


def _merge(base: str, adapter: str, target: Path, trust_remote_code: bool) -> None:
    """Write the model that base and adapter make together, and compare what was written with it. Without `base`, the
    one that the adapter names."""
    _refuse_occupied(target)
    from espalier.models.export import export
    from espalier.models.merge import base_of, load_merged

    base = base or base_of(adapter)
    loaded = load_merged(ModelConfig(model=base, adapter=adapter, trust_remote_code=trust_remote_code))
    for note in loaded.notes:
        print(note)
    export(loaded.model, loaded.tokenizer, target, source_dtype=loaded.source_dtype, source=loaded.folder)
    print(_compared(loaded, target, trust_remote_code))
    print(f"{target} holds {base} with {adapter} merged into it")


def _compared(loaded: Loaded, folder: Path, trust_remote_code: bool) -> str:
    """What transformers alone makes of the written model, against the merged one in float32. Raises ModelError if it is
    another one, or cannot be loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    from espalier.errors import ModelError
    from espalier.models.load import quiet
    from espalier.models.merge import TOLERANCE, difference

    try:
        with quiet():
            written = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    # What a folder raises that does not load is transformers' or the model's own code's affair.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"{folder} was written, but transformers does not load it: {reason}. Do not use it before that is mended"
        ) from error
    apart = difference(loaded.model, written)
    if loaded.source_dtype == torch.float32 and not apart <= TOLERANCE:
        raise ModelError(
            f"{folder} was written, but transformers reads a model whose log-probabilities are up to {apart:.3g} nats "
            f"away from base and adapter; expected {TOLERANCE:g} at most. Do not use it, and report this"
        )
    kind = str(loaded.source_dtype).removeprefix("torch.")
    return f"read back by transformers: log-probabilities within {apart:.1e} nats of base and adapter ({kind} weights)"
