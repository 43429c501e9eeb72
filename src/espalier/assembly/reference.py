"""From a config to the reference of a run: the policy as it starts, another model, or a table computed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from espalier.assembly.data import cache_folder
from espalier.assembly.model import Model, build_model
from espalier.assembly.runs import RunConfig, reference_of
from espalier.config.sections import ModelConfig
from espalier.data.dataset import Opened
from espalier.data.files.content import content_hash
from espalier.engines.learner import TorchLearner
from espalier.engines.precomputed import PrecomputedReference
from espalier.engines.protocols import Reference
from espalier.engines.reference import ModelReference, StartReference
from espalier.errors import ConfigError, ModelError
from espalier.models.load import Loaded, check_causal


def build_reference(
    config: RunConfig,
    model: Model,
    opened: Opened,
    learner: TorchLearner,
    on_progress: Callable[[str, int], None] | None = None,
) -> Reference | None:
    """Whom the algorithm holds the policy against, None where it needs nobody. Built before a checkpoint is loaded.

    on_progress: called with "groups" and how many of them a table has so far.
    Raises ConfigError where the reference's tokens are not the policy's.
    """
    asked = reference_of(config)
    if asked is None or "ref_logprobs" not in config.algorithm.traits.needs:
        return None
    other = _other(config, asked.reference_model, model, learner) if asked.reference_model else None
    if asked.reference == "memory":
        return other[1] if other else StartReference(learner, moves=bool(config.algorithm.traits.sync_every))
    cache = cache_folder(config.data.cache)
    adapter = "" if other else config.model.adapter
    weights = weights_of(other[0].loaded if other else model.loaded, adapter, cache)
    weights |= {"add_tokens": " ".join(config.model.add_tokens), "quantised": str(config.model.qlora)}

    def said(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(f"{total:,} groups", done)

    forwards = other[1].forwards if other else learner.forwards
    stores = [s for s in opened.all if s.part == "main"]
    return PrecomputedReference(forwards, stores, cache=cache, weights=weights, progress=said)


def check_model(config: RunConfig) -> None:
    """Whether another model as the reference is one, by its config alone, so that it is known before data is read.

    Raises ConfigError where it is missing or no causal language model, such as a reward model.
    """
    asked = reference_of(config)
    if asked is None or not asked.reference_model:
        return
    try:
        check_causal(asked.reference_model, trust_remote_code=config.model.trust_remote_code)
    except ModelError as error:
        raise ConfigError(f"reference_model: {error}", key="reference_model") from error


def weights_of(loaded: Loaded, adapter: str, cache: Path) -> dict[str, str]:
    """Content hashes of what a model was read from: its weights and configs, and its adapter's."""
    folders = [loaded.folder, *([Path(adapter).expanduser()] if adapter else [])]
    paths = [
        path for folder in folders for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*config.json")))
    ]
    return {f"{path.parent.name}/{path.name}": content_hash(path, cache)[:16] for path in paths}


def _other(config: RunConfig, path: str, model: Model, learner: TorchLearner) -> tuple[Model, ModelReference]:
    """Another model as the reference."""
    how = config.model
    asked = ModelConfig(
        model=path, dtype=how.dtype, layout=how.layout, template=how.template, trust_remote_code=how.trust_remote_code
    )
    found = build_model(asked, learner.device)
    ours, theirs = (m.loaded.tokenizer.get_vocab() for m in (model, found))
    if theirs != ours:
        raise ConfigError(
            f"reference_model {path} has a vocabulary of {len(theirs):,} tokens that is not the policy's of "
            f"{len(ours):,}; expected a model with the same tokenizer",
            key="reference_model",
        )
    return found, ModelReference(found.policy, learner.options, world=learner.world)


def reference_bytes(config: RunConfig, model: Model) -> int:
    """Bytes that a reference in memory adds, roughly: a copy of the trained weights (and, where it moves, their float32
    masters), or a whole other model of the same size. A table adds none."""
    asked, traits = reference_of(config), config.algorithm.traits
    if asked is None or "ref_logprobs" not in traits.needs or asked.reference == "precomputed":
        return 0
    size = model.compute.itemsize
    if asked.reference_model:
        return model.frozen.total * size
    masters = 4 if traits.sync_every and size < 4 else 0
    return model.frozen.trainable * (size + masters)
