"""From a session to its reference: the policy as it starts, another model, or a table computed beforehand."""

from __future__ import annotations

from espalier.assembly.data import cache_folder
from espalier.assembly.model import Model, build_model, reference_parts, weights_of
from espalier.assembly.runs import RunConfig
from espalier.assembly.session import Session
from espalier.config.sections import ModelConfig
from espalier.engines.precomputed import PrecomputedReference
from espalier.engines.protocols import Reference
from espalier.engines.reference import ModelReference, StartReference
from espalier.errors import ConfigError


def build_reference(session: Session) -> Reference | None:
    """Build the session's reference after its learner and before a checkpoint is loaded; None if none is needed.

    Raises ConfigError if the reference's tokens are not the policy's.
    """
    config = session.config
    if "ref_logprobs" not in session.traits.needs:
        return None
    if config.reference.reference == "precomputed":
        session.reference = _table(session)
    elif config.reference.reference_model:
        _, session.reference = _other_model(session)
    else:
        session.reference = StartReference(session.learner, moves=session.traits.sync_every > 0)
    return session.reference


def _table(session: Session) -> PrecomputedReference:
    """The log-probabilities of all data, computed once and kept in the cache."""
    config = session.config
    cache = cache_folder(config.data.cache)
    if config.reference.reference_model:
        model, other = _other_model(session)
        forwards, weights = other.forwards, weights_of(model.loaded, reference_parts(config)[1], cache)
    else:
        forwards = session.learner.forwards
        weights = weights_of(session.model.loaded, config.model.adapter, cache)
    weights |= {"add_tokens": " ".join(config.model.add_tokens), "quantised": str(config.model.qlora)}
    tell = session.console.reading("groups scored by the reference")

    def progress(done: int, total: int) -> None:
        tell(f"{total:,} groups", done)

    stores = [store for store in session.opened.all if store.part == "main"]
    note = session.console.note
    return PrecomputedReference(forwards, stores, cache=cache, weights=weights, progress=progress, note=note)


def _other_model(session: Session) -> tuple[Model, ModelReference]:
    """Another model as the reference, or a base with an adapter merged into it."""
    own, path = session.config.model, session.config.reference.reference_model
    base, adapter = reference_parts(session.config)
    settings = ModelConfig(
        model=base,
        adapter=adapter,
        dtype=own.dtype,
        layout=own.layout,
        template=own.template,
        trust_remote_code=own.trust_remote_code,
    )
    learner = session.learner
    model = build_model(settings, learner.device, merged=bool(adapter))
    if adapter:
        for note in model.loaded.notes:
            session.console.note(f"reference: {note}")
    ours, theirs = session.model.loaded.tokenizer.get_vocab(), model.loaded.tokenizer.get_vocab()
    if theirs != ours:
        raise ConfigError(
            f"reference_model {path} has a vocabulary of {len(theirs):,} tokens that is not the policy's of "
            f"{len(ours):,}; expected a model with the same tokenizer",
            key="reference_model",
        )
    return model, ModelReference(model.policy, learner.options, world=learner.world)


def reference_bytes(config: RunConfig, model: Model) -> int:
    """Bytes that a reference in memory adds, roughly: a copy of the trained weights (and, if it moves, their float32
    masters), or a whole other model of the same size. A table adds none."""
    traits = config.algorithm.traits
    if "ref_logprobs" not in traits.needs or config.reference.reference == "precomputed":
        return 0
    size = model.compute.itemsize
    if config.reference.reference_model:
        return model.frozen.total * size
    masters = 4 if traits.sync_every and size < 4 else 0
    return model.frozen.trainable * (size + masters)
