"""What the README of an exported model says of its training: the command, the rewards, the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espalier import __version__, files
from espalier.assembly.reward_choice import Choice
from espalier.assembly.session import Session
from espalier.data.dataset import Selection
from espalier.data.places import is_hub
from espalier.data.sources import Source
from espalier.data.store.store import Store
from espalier.models.readme import README, edited, marked
from espalier.rewards.build import Plan

NOUNS = {"task": "tasks", "chat": "conversations", "ranking": "prompts with judged answers", "steps": "solutions"}


def note_training(folder: Path, training: str) -> None:
    """Put a section about the training at the end of the README of an export, unless a user wrote or edited it."""
    if edited(folder) is not None:
        return
    file = folder / README
    _, _, body = file.read_text(encoding="utf-8").partition("\n")
    files.write_atomic(file, marked(f"{body}\n## Training\n\n{training}\n"))


def provenance(session: Session) -> str:
    """The command, its rewards with weights and gates, and its data with the number of rows, as Markdown.

    A file has its name alone: its path is one machine's. A user's reward has its file and the beginning of its sha256.
    """
    config, opened, conversations = session.config, session.opened, session.conversations
    lines = [
        f"Trained by `espalier {config.command}` (Espalier {__version__}) in a run of {session.dataset.steps:,} steps."
    ]
    if session.rollouts is not None:
        scorers = session.rollouts.scorers
        choices = [member.choice for member in scorers.members] if scorers is not None else []
        lines.append("Rewards of its own answers, summed by weight:\n" + _rewards(session.rollouts.plan, choices))
    noun = NOUNS[session.traits.consumes]
    data = _data(opened.sources[: len(opened.main)], opened.main, opened.chosen, noun)
    data += _data(opened.sources[len(opened.main) :], opened.replay, [None] * len(opened.replay), "texts, replayed")
    if conversations is not None:
        given = conversations.opened
        data += _data(given.sources, given.main, given.chosen, "conversations beside the answers")
    held = sum(opened.sizes_held)
    if held:
        names = ", ".join(f"`{_name(source)}`" for source in opened.held_sources) or "the same files"
        data.append(f"- held out: {held:,} of {names}")
    lines.append("Data:\n\n" + "\n".join(data))
    return "\n\n".join(lines)


def _rewards(plan: Plan, choices: Sequence[Choice]) -> str:
    lines = []
    for entry, spec in zip(plan.entries, plan.specs, strict=True):
        component = entry.component
        line = f"- `{entry.name}`, weight {component.weight:g}"
        if component.gate:
            line += "; a gate: without full marks there, those below count 0"
        if spec.path:
            line += f"; the function `{spec.function}` of `{Path(spec.path).name}` (sha256 {spec.sha256[:16]})"
        elif entry.reward is not None:
            changed = {key: x for key, x in entry.settings.items() if x != entry.reward.settings[key].default}
            line += "".join(f"; {key} {value}" for key, value in changed.items())
        if entry.name in plan.added:
            line += "; of tasks that name it"
        lines.append(line)
    for choice in choices:
        line = f"- `{choice.name}`, weight {choice.weight:g}; a reward model"
        if len(choice.dimensions) > 1:
            line += ": " + ", ".join(f"{name} weighs {weight:g}" for name, weight in choice.dimensions.items())
        lines.append(line)
    return "\n" + "\n".join(lines)


def _data(sources: Sequence[Source], stores: Sequence[Store], chosen: Sequence[Selection], noun: str) -> list[str]:
    """A line for each source."""
    lines = []
    for source, store, kept in zip(sources, stores, chosen, strict=True):
        lines.append(f"- `{_name(source)}`: {len(store) if kept is None else len(kept):,} {noun}")
    return lines


def _name(source: Source) -> str:
    return source.path if is_hub(source.path) else Path(source.path).name
