"""journal.jsonl: outcomes that cannot be computed again identically, such as a judge's or a missed deadline's.

A line is one answer's: the step, which rollout, the sha256 of its ids, the outcome. A run that was killed inside a step
draws the rollout again, bit for bit; an answer with the same ids then gets the outcome that it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from espalier.errors import EspalierError
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.outcomes import Key, Outcome, outcome_from_json, outcome_to_json

Entry = tuple[Key, Sequence[int], Outcome]
"""Which rollout, the ids of prompt and answer, what the rewards say."""
_Which = tuple[bool, Key, str]


def journal_path(folder: Path, rank: int) -> Path:
    """`journal.jsonl`, and `journals/rank-00003.jsonl` for rank 3: each rank grades its own share."""
    return folder / "journals" / f"rank-{rank:05d}.jsonl" if rank else folder / "journal.jsonl"


class Journal:
    """The journal of one rank.

    The file is not truncated on resume: its lines about later steps are what a resumed run reads. They are read at the
    first `recall`, those of its step and after, and forgotten as steps pass. Of two lines about the same ids the first
    counts. A last line that a kill cut is dropped.

    fingerprint: enters the sha256, so that outcomes of other rewards are never taken.

    Raises EspalierError if the file cannot be opened, read or written.
    """

    def __init__(self, path: Path, fingerprint: str = ""):
        self.path, self.fingerprint = path, fingerprint
        path.parent.mkdir(exist_ok=True)
        self._file = MetricsFile(path)
        self._earlier: dict[int, dict[_Which, Outcome]] | None = None

    def recall(self, step: int, key: Key, ids: Sequence[int], *, held_out: bool = False) -> Outcome | None:
        """The outcome of these ids in an earlier attempt at the step, or at the evaluation after so many steps
        (`held_out`); None if there was none. Steps never go back."""
        if self._earlier is None:
            self._earlier = self._read(step)
        for passed in [earlier for earlier in self._earlier if earlier < step]:
            del self._earlier[passed]
        return self._earlier.get(step, {}).get((held_out, key, self._digest(ids)))

    def write(self, step: int, entries: Sequence[Entry], *, held_out: bool = False) -> None:
        """Add a line for each entry, and make all of them last with one flush."""
        for (row, epoch, k), ids, outcome in entries:
            record = {"step": step, "held_out": held_out, "row": row, "epoch": epoch, "k": k}
            self._file.append({**record, "sha256": self._digest(ids), "outcome": outcome_to_json(outcome)})
        if entries:
            self._file.sync()

    def _read(self, first: int) -> dict[int, dict[_Which, Outcome]]:
        steps: dict[int, dict[_Which, Outcome]] = {}
        for number, line in enumerate(read_lines(self.path), 1):
            try:
                key = (line["row"], line["epoch"], line["k"])
                if line["step"] >= first:
                    outcomes = steps.setdefault(line["step"], {})
                    outcomes.setdefault((line["held_out"], key, line["sha256"]), outcome_from_json(line["outcome"]))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise EspalierError(
                    f"{self.path}:{number}: got {str(line)[:80]}, expected an outcome as this run writes it ({error}). "
                    "Put the original file back, or delete it: everything is graded again then"
                ) from error
        return steps

    def _digest(self, ids: Sequence[int]) -> str:
        return hashlib.sha256(f"{self.fingerprint}:{','.join(map(str, ids))}".encode()).hexdigest()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
