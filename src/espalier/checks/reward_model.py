"""The check of reward models: an answer's score is the same alone, among others, and by transformers' own class.

The class is loaded from the folder as a user would, and shares nothing with the forest but the ids: one answer at a
time, without padding, its `logits` plus the bias that config.json has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from espalier.assembly.machine import free_memory
from espalier.checks.exported import SPARE
from espalier.checks.rehearsal import first_step
from espalier.checks.table import Outcome, failed, passed
from espalier.engines.protocols import from_first, together
from espalier.errors import CheckError
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.assembly.reward_models import Member
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

SHORTEST = 4
"""Answers that transformers scores."""
LIMITS = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}
"""The largest difference by dtype, as a share of the score, or of 1 for a smaller one."""
FACTOR = 3
"""A difference may be so many times what the class itself changes when it scores an answer beside another one."""
_WAY_OUT = (
    "The scores would not be this model's: set --layout padded, or let --reward PATH.py:FUNCTION score the text; and "
    "report this with the model."
)
Scores = list[tuple[float, ...]]


def check_reward_models(evidence: Evidence) -> Outcome:
    """The answers of the rehearsal, scored by each reward model of the run."""
    session = evidence.session
    rollouts = session.rollouts
    assert rollouts is not None and rollouts.scorers is not None
    drawn = [group for group in first_step(session) if group[0].part == "main"]
    values: list[str] = []
    for member in rollouts.scorers.members:
        groups = [[rollouts.scorers.as_read(s, member.unread) for s in group] for group in drawn]
        value, limit, good = _compared(session, member, groups)
        values.append(f"{member.choice.name}: {value}")
        if not good:
            return failed(values[-1], limit, _WAY_OUT)
    return passed("; ".join(values), limit)


def _compared(session: Session, member: Member, groups: Sequence[list[Sample]]) -> tuple[str, str, bool]:
    """What was found of one model, its limit, and whether it is within that."""
    samples = [s for group in groups for s in group]
    among = member.engine.scores(groups)
    few = sorted(range(len(samples)), key=lambda i: len(samples[i].tokens))[:SHORTEST]
    alone = [member.engine.scores([[samples[i]]])[0] for i in few]

    def by_class() -> tuple[Scores, Scores] | str | None:
        return _plain(session, member, [samples[i] for i in few]) if session.main else None

    scored = together(by_class, f"{member.choice.path} was not scored by transformers", session.processes, CheckError)
    plain = from_first(scored, session.processes)
    bound = LIMITS[str(member.model.compute).removeprefix("torch.")]
    worst = apart([among[i] for i in few], alone)
    value = f"{len(samples)} answers, {worst:.1e} between one alone and all"
    if isinstance(plain, str):
        return f"{value}; not by transformers: {plain}", f"<= {bound:.0e} of the score", worst <= bound
    theirs, beside = plain
    bound = max(bound, FACTOR * apart(theirs, beside))
    other = apart(theirs, alone)
    value += f", {other:.1e} from transformers"
    return value, f"<= {bound:.0e} of the score", worst <= bound and other <= bound


def apart(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """The largest difference as a share of the score, or of 1 if that is smaller; infinite if one is not finite.

    >>> apart([(0.5,), (4.0,)], [(0.25,), (5.0,)])
    0.25
    """
    worst = 0.0
    for a, b in ((x, y) for xs, ys in zip(some, others, strict=True) for x, y in zip(xs, ys, strict=True)):
        share = abs(a - b) / max(1.0, abs(a))
        worst = max(worst, share) if share == share else float("inf")
    return worst


def _plain(session: Session, member: Member, samples: Sequence[Sample]) -> tuple[Scores, Scores] | str:
    """What transformers' class says of each answer, alone and then beside the first one, padded on the right; or why it
    is not asked."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from espalier.models.load import quiet

    folder, compute = member.choice.folder, member.model.compute
    need = SPARE * member.model.frozen.total * compute.itemsize
    on_device = session.device.type == "cuda" and torch.cuda.mem_get_info()[0] >= need
    if not on_device and need > free_memory():
        return f"a second copy needs {need / 2**30:.1f} GiB"
    auto: Any = AutoModelForSequenceClassification
    try:
        with quiet():
            model = auto.from_pretrained(
                str(folder), dtype=compute, trust_remote_code=session.config.model.trust_remote_code
            )
    # What a folder that others wrote raises is transformers' affair.
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    model.eval().to(session.device if on_device else "cpu")
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("espalier_reward_bias")
    bias = torch.tensor(stored or 0.0, dtype=torch.float64)
    pad = model.config.get_text_config().pad_token_id

    def say(rows: Sequence[list[int]]) -> tuple[float, ...]:
        """The scores of the first row."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [pad or 0] * (longest - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[0].double().cpu()
        return tuple((logits + bias).tolist())

    rows = [s.tokens[: s.reads[0] + 1] for s in samples]
    with torch.no_grad():
        alone = [say([row]) for row in rows]
        # Without a pad token the class takes one row at a time.
        longest = max(rows, key=len) if pad is not None else []
        return alone, [say([row, longest] if longest else [row]) for row in rows]
