"""In which form a run reads its examples, and which judgements it takes from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from espalier.config.sections import PreferenceConfig, StepLabelsConfig, TurnsConfig
from espalier.types import Consumes, Wants


# Names and values of these fields, and of the sections inside, enter `Renderer.fingerprint`:
# another name or another default makes a different token store of every cached one.
@dataclass(frozen=True, slots=True)
class Form:
    """Everything beside tokenizer and length that decides what samples an example becomes.

    consumes: chats, rankings or steps. wants: what a ranking must offer, or its row is refused (see
    `algorithms.traits.Traits`). reads: samples are read by a scalar head, at the end of a text (what the template
    writes behind a response belongs to it) or at the end of each step. preference: which comparisons are kept. seed: of
    what is drawn (capped pairs, flips). labels: what step labels count as. unread: a token that is not read at the end
    of a text, None if all are: the pad token of a model that others trained. turns: what becomes of
    turns, and what the chat template is given.
    """

    consumes: Consumes = "chat"
    wants: Wants = "pairs"
    reads: bool = False
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    seed: int = 0
    labels: StepLabelsConfig = field(default_factory=StepLabelsConfig)
    unread: int | None = None
    turns: TurnsConfig = field(default_factory=TurnsConfig)


CHATS = Form()
