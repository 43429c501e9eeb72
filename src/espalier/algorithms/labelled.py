"""What algorithms over single good-or-bad answers read from samples."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.credit.shaping import response_start
from espalier.types import Sample


def is_good(s: Sample) -> bool:
    """Whether a sample is labelled good. Raises ValueError for a label other than 1 and 0."""
    if s.label not in (0, 1):
        raise ValueError(f"group {s.group}: a sample has the label {s.label}, expected 1 (good) or 0 (bad)")
    return s.label == 1


def mismatched(groups: Sequence[list[Sample]], part: str) -> list[list[Sample]]:
    """For every sample with a response, its prompt followed by the response of a sample of another prompt.

    The i-th sample of a group takes the response of the (i modulo its size)-th sample of the next group, in the order
    given and around its end, that has another prompt; so every rank that sees the same groups builds the same. A mate
    is cut to the longest sample among `groups`, so that none is longer than the model allows. It has part `part`, the
    key -1 - key of the sample whose prompt it has (keys of rows are >= 0), no judgements and no streams; mates of one
    group share a prompt and stand in one group. A sample for which no group has another prompt gets no mate.

    [P A1] [P A2] | [Q B]   ->   [P B] [P B] | [Q A1]
    """
    having = [[s for s in group if response_start(s) < len(s)] for group in groups]
    having = [group for group in having if group]
    longest = max((len(s) for group in having for s in group), default=0)
    groups_of_mates = []
    for number, group in enumerate(having):
        mates = []
        for place, s in enumerate(group):
            prompt = s.tokens[: response_start(s)]
            later = (*having[number + 1 :], *having[:number])
            donors = next((g for g in later if g[0].tokens[: response_start(g[0])] != prompt), None)
            if donors is None:
                continue
            donor = donors[place % len(donors)]
            mate = Sample(group=s.group, part=part, key=-1 - s.key, stop=donor.stop, temperature=s.temperature)
            mate.append(prompt, trained=False)
            start = response_start(donor)
            room = slice(start, start + longest - len(prompt))
            mate.tokens += donor.tokens[room]
            mate.mask += donor.mask[room]
            mate.weights += donor.weights[room]
            mates.append(mate)
        if mates:
            groups_of_mates.append(mates)
    return groups_of_mates
