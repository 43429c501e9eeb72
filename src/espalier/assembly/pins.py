"""What a run computes from: facts that must be the same for a resumed run to continue bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espalier.assembly.data import cache_folder
from espalier.assembly.learner import budget
from espalier.assembly.model import weights_of
from espalier.assembly.reward_choice import Choice
from espalier.assembly.session import Session
from espalier.config.critic_section import OWN
from espalier.data.files.content import content_hash, content_key
from espalier.models.load import locate

TOKENIZER = (
    *("tokenizer*.json", "tokenizer.model", "*.tiktoken", "tekken.json", "spiece.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "*.jinja", "chat_template.json", "*.py"),
)
"""Files of a model's folder from which its tokenizer and template are read, and the code that it may bring."""
WEIGHTS = ("*.safetensors", "*.json")
DIGITS = 16

Facts = dict[str, Any]


def pins(session: Session) -> dict[str, Facts]:
    """Facts by name, of files the beginnings of their sha256; what names files comes first."""
    config, opened, plan = session.config, session.opened, session.dataset.plan
    cache, loaded = cache_folder(config.data.cache), session.model.loaded
    held = [f"{store.key} {size}" for store, size in zip(opened.held_out, opened.sizes_held, strict=True)]
    facts: dict[str, Facts] = {"data files": _data(session, cache)}
    if Path(config.model.template).is_file():
        facts["template"] = {config.model.template: content_hash(Path(config.model.template), cache)[:DIGITS]}
    folders = [loaded.folder, *([Path(config.model.adapter).expanduser()] if config.model.adapter else [])]
    facts["model"] = weights_of(loaded, config.model.adapter, cache)
    facts["tokenizer"] = _files(folders, TOKENIZER, cache)
    others = {"reference": config.reference.reference_model, "outcome model": config.judge.outcome_model}
    if session.critic_model is not None and config.critic.critic != OWN:
        others["critic"] = str(session.critic_model.loaded.folder)
    for name, path in others.items():
        if path:
            facts[name] = _files(_with_base(locate(path)), (*WEIGHTS, *TOKENIZER), cache)
    facts["data"] = {"plan": plan.fingerprint, "steps": session.dataset.steps, "validation": held}
    facts["machine"] = _machine(session)
    if session.conversations is not None:
        facts["conversations"] = {"plan": session.conversations.rows.plan.fingerprint}
    rollouts = session.rollouts
    if rollouts is not None:
        facts["rewards"] = rollouts.plan.pins()
        if rollouts.scorers is not None:
            facts["reward models"] = _scored([member.choice for member in rollouts.scorers.members], cache)
        facts["sampler"] = {"rows": rollouts.sampling.rows, "tokens": rollouts.sampling.tokens}
    return facts


def _data(session: Session, cache: Path) -> Facts:
    """By what each source is known: the hash of a file or folder, the commit of a hub data set."""
    contents = {}
    given = session.conversations.opened.sources if session.conversations is not None else []
    for source in (*session.opened.sources, *session.opened.held_sources, *given):
        *_, content = content_key(source.path, cache).split(" ")
        contents[source.path] = content[:DIGITS]
    return contents


def _scored(choices: Sequence[Choice], cache: Path) -> Facts:
    """Of each reward model its weights in the score, and its files."""
    facts: Facts = {}
    for choice in choices:
        facts |= choice.pins()
        for name, digest in _files([choice.folder], (*WEIGHTS, *TOKENIZER), cache).items():
            facts[f"{choice.name}: {name}"] = digest
    return facts


def _files(folders: list[Path], patterns: tuple[str, ...], cache: Path) -> Facts:
    """The hash of each file that matches one of the patterns, by the names of folder and file; of a further folder of
    the same name with its number."""
    hashes: dict[str, str] = {}
    for number, folder in enumerate(folders, 1):
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
            name = f"{folder.name}/{path.name}"
            if name in hashes:
                name = f"{name} ({number})"
            hashes[name] = content_hash(path, cache)[:DIGITS]
    return hashes


def _with_base(folder: Path) -> list[Path]:
    """A model's folder, and after that of an adapter the folder of its base, if that is on this machine."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return [folder]
    path = Path(str(base)).expanduser()
    return [folder, path] if path.is_dir() else [folder]


def _machine(session: Session) -> Facts:
    """What a rerun needs to repeat the bits."""
    on_cuda = session.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "threads": 0 if on_cuda else torch.get_num_threads(),
        "ranks": session.processes.size,
        "tokens_per_microbatch": budget(session.config, session.device),
    }
