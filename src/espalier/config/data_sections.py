"""The sections of what is read: data, preference judgements, step labels. `sections.py` has all the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MinLen

from espalier.config.data_source import Mapped, SourceList, mapped_fields
from espalier.config.fields import CountOrZero, Names, NotNegative, OneOrMany, Share, named_weights, section
from espalier.config.template_args import TemplateArgs, template_values
from espalier.errors import ConfigError


@section
class DataConfig:
    """What is read, how, and what is held out."""

    data: Annotated[SourceList, MinLen(1)]
    """Data files or hub datasets, each PATH, PATH:FORMAT or PATH=PROPORTION (PATH:FORMAT=PROPORTION); in a file also
    {path, format, columns, ignore_columns, share}."""
    format: str = "auto"
    """Format of data that names none: auto, alpaca, sharegpt, messages, prompt, completion, text, transcript,
    pairs, compared, hh, judge, ranked, scores, labels, tree, nodes, steps, prm800k; of tasks task, gsm8k, math,
    choice, ifeval; or, of a folder, reviews."""
    columns: Mapped = ()
    """Fields of a format and the columns they are read from, as NAME=COLUMN, NAME=a.b[0].c or NAME==TEXT (a constant);
    for all data."""
    ignore_columns: Names = ()
    """Columns to leave out knowingly, by the names that a run lists as not read."""
    replay: SourceList = ()
    """Plain-text files mixed in as the part `replay`, every token trained."""
    replay_fraction: Share = 0.1
    """Share of replay among the samples of a step, if replay is given."""
    eval_data: SourceList = ()
    """Files to evaluate on; nothing in them is trained."""
    eval_fraction: Share = 0.0
    """Share of data to hold out for evaluation, if no eval_data is given."""
    max_length: CountOrZero = 0
    """Maximum length of a sample in tokens; longer ones lose their tail. 0 takes the model's limit."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with an unusable row: stop, or skip it and list it in rejected.jsonl."""
    alpaca_prompt: bool = False
    """Wrap Alpaca rows in the Alpaca instruction template instead of passing the bare instruction."""
    keep_wrong: bool = False
    """Train sft on answers that their rows call wrong (correct: false, label: 0), too, instead of skipping them."""
    cache: str = ""
    """Folder of tokenised data, keyed by content; empty takes the user's cache folder."""

    def __post_init__(self) -> None:
        mapped_fields(self.columns)
        if self.eval_data and self.eval_fraction:
            raise ConfigError("eval_data and eval_fraction are both given, and only one can be held out; drop one")
        if self.replay and not self.replay_fraction:
            raise ConfigError("replay is given, but replay_fraction is 0, which reads none of it; raise it, or drop it")
        if self.max_length == 1:
            raise ConfigError("max_length: got 1, expected 0 or at least 2: one token has nothing to predict")


@section
class TurnsConfig:
    """How conversations are given to the chat template."""

    template_args: TemplateArgs = ()
    """Names the chat template may use, as NAME=VALUE (enable_thinking=false), for all rows; a row's own
    chat_template_kwargs go first."""
    on_bad_turn: Literal["drop", "refuse"] = "drop"
    """What to do with turns that cannot be trained (an assistant turn before any question, a question without an
    answer, an empty answer): drop uses the rest of the conversation, refuse makes the row unusable."""
    merge_system: bool = False
    """Put the text of system turns into the user turn after them, for templates without a system turn."""
    merge_turns: bool = False
    """Join consecutive turns of one role, with a blank line between, for templates that want turns to alternate."""
    parse_control: Annotated[tuple[Literal["prompt", "completion", "text"], ...], OneOrMany] = ()
    """Where strings such as <|im_end|> become the control tokens they name: in prompts, in completions and answers, in
    plain texts. Elsewhere they stay ordinary characters."""

    def __post_init__(self) -> None:
        template_values(self.template_args)
        if len(set(self.parse_control)) < len(self.parse_control):
            raise ConfigError(f"parse_control: got {', '.join(self.parse_control)}, expected each place once")

    @property
    def template_values(self) -> dict[str, Any]:
        """`template_args` by name."""
        return template_values(self.template_args)


@section
class PreferenceConfig:
    """Which judgements and comparisons are trained on."""

    judged_by: Literal["auto", "ranks", "scores", "labels"] = "auto"
    """Which judgement decides if a row has several; auto takes ranks, else scores, else labels (good or bad)."""
    min_gap: NotNegative = 0.0
    """Minimum gap in score (or rank) of a comparison; smaller ones are left out, ties (gap 0) stay ties."""
    max_pairs: CountOrZero = 0
    """Maximum comparisons per prompt, sampled by seed; 0 keeps all."""
    flip: Share = 0.0
    """Share of comparisons and labels to flip, sampled by seed: for studies of robustness."""
    score_weights: Names = ()
    """Weights of score dimensions in their total, as NAME=WEIGHT; empty gives all the same weight."""

    def __post_init__(self) -> None:
        named_weights(self.score_weights, "score_weights", bare=False)

    @property
    def weights(self) -> dict[str, float]:
        """`score_weights` by name."""
        return named_weights(self.score_weights, "score_weights", bare=False)


@section
class StepLabelsConfig:
    """How step labels and outcomes become targets."""

    supervision: Literal["process", "outcome"] = "process"
    """process trains on step labels (on the outcome if a solution has none), outcome on the outcome alone."""
    neutral: Literal["good", "bad", "half", "ignore"] = "good"
    """Target of a neutral step; half is 0.5, ignore leaves the step out."""
    after_mistake: Literal["ignore", "bad", "keep"] = "ignore"
    """Target of the steps after the first bad one: ignore leaves them out, bad is 0, keep is their own label."""
    outcome: Literal["spread", "last", "ignore"] = "spread"
    """Which steps an outcome labels: spread all of them, last the last one, ignore none."""

    def __post_init__(self) -> None:
        if self.supervision == "outcome" and self.outcome == "ignore":
            raise ConfigError("supervision is outcome, but outcome is ignore, which trains nothing; change one of them")
