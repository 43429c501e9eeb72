"""Config section of `espalier overopt`."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen

from espalier.config.fields import Count, Name, Names, section
from espalier.errors import ConfigError


@section
class OveroptConfig:
    """A grid of runs against proxy rewards, and what they say of a gold reward."""

    model: Name
    """Hugging Face directory or hub name of the policy to start from; the proxies start from it, too."""
    data: Annotated[Names, MinLen(1)]
    """Tasks to answer."""
    pairs: Name
    """A local .jsonl of judged answers, of which each proxy learns from the first so many rows."""
    gold: Name
    """The gold reward, which trains nothing: the name of a rule, PATH.py:FUNCTION, or the folder of a reward model."""
    out: Name
    """Folder of all runs. A command that was killed goes on where it stopped if it is given once more."""
    gold_args: Names = ()
    """Settings of a gold rule, as NAME.KEY=VALUE."""
    sizes: Names = ("500", "1000", "2000")
    """Rows of `pairs` that each proxy learns from."""
    betas: Names = ("0", "0.05")
    """Strengths of the KL to the start."""
    seeds: Count = 2
    """Seeds of each cell, from 0."""
    steps: Count = 100
    """Steps of each cell."""
    loophole: Names = ()
    """Rules that are added to the largest proxy in a cell of their own, each NAME=WEIGHT, such as length=1."""
    loophole_args: Names = ()
    """Settings of these rules, as NAME.KEY=VALUE (length.target=60)."""
    best_of: Count = 64
    """Answers of the start to each prompt, for best-of-n."""
    prompts: Count = 128
    """Prompts of best-of-n."""
    every: Count = 10
    """Steps that make one point of a curve."""
    jobs: Count = 1
    """Children that run at the same time."""
    ppo: str = ""
    """YAML file with further settings of `espalier ppo`; the start's answers are drawn by those that they share."""
    reward: str = ""
    """YAML file with further settings of `espalier reward`."""
    resamples: Count = 1000
    """Bootstrap resamples per band."""
    plan: bool = False
    """Print the runs and their budget, and stop there."""

    def __post_init__(self) -> None:
        for key in ("sizes", "betas"):
            numbers(getattr(self, key), key)
        if any(size < 1 or size != int(size) for size in numbers(self.sizes, "sizes")):
            raise ConfigError(f"sizes: got {', '.join(self.sizes)}, expected whole numbers above 0", key="sizes")
        if any(beta < 0 for beta in numbers(self.betas, "betas")):
            raise ConfigError(f"betas: got {', '.join(self.betas)}, expected numbers of at least 0", key="betas")
        if self.loophole_args and not self.loophole:
            raise ConfigError("loophole_args is given, but there is no loophole; give one, or drop it")


def numbers(texts: tuple[str, ...], key: str) -> list[float]:
    """The numbers that a list says. Raises ConfigError for something else, or a number that is given twice."""
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except ValueError:
            raise ConfigError(f"{key}: got {text!r}, expected numbers", key=key) from None
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{key}: got {', '.join(texts) or 'nothing'}, expected different numbers", key=key)
    return values
