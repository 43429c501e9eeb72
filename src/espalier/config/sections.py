"""The sections of a config, as frozen dataclasses that load without torch: their fields are YAML keys and flags.

Every field is one flag (`--samples-per-step`) and one YAML key (`samples_per_step`); names are unique over all sections
of a command, so a config file is flat. Values and their combinations are checked when a section is built, and raise
ConfigError. `options.py` merges files and flags.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen

from espalier.config.data_sections import DataConfig, PreferenceConfig, StepLabelsConfig, TurnsConfig
from espalier.config.data_source import Mapped, mapped_fields
from espalier.config.fields import (
    Count,
    CountOrZero,
    Fraction,
    Name,
    Names,
    NotNegative,
    OneOrMany,
    Positive,
    Seed,
    Share,
    section,
)
from espalier.config.sampling import SamplingConfig
from espalier.config.template_args import TemplateArgs, template_values
from espalier.errors import ConfigError

__all__ = [
    "DataConfig",
    "ExportConfig",
    "InspectConfig",
    "JudgeConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimConfig",
    "PreferenceConfig",
    "QuickstartConfig",
    "ReferenceConfig",
    "SampleConfig",
    "StepLabelsConfig",
    "TurnsConfig",
]

Dtype = Literal["auto", "float32", "bfloat16"]


@section
class ModelConfig:
    """The model to start from, and which of its weights are trained."""

    model: Name
    """Hugging Face directory or hub name of the model to start from."""
    dtype: Dtype = "auto"
    """Compute dtype; auto is bfloat16 on CUDA and float32 on CPU. Master weights are float32 either way."""
    layout: Literal["auto", "forest", "chain", "padded"] = "auto"
    """How samples are laid out; auto takes the forest if the architecture allows it."""
    template: str = ""
    """Chat template: a built-in name (chatml, llama3, alpaca, plain) or a Jinja file; empty keeps the tokenizer's."""
    add_tokens: Names = ()
    """New tokens to add, initialised with the mean embedding and trained even under LoRA. Those that the chat template
    writes around turns never come from content; answers that hold the others (<think>) are trained on them."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships."""
    adapter: str = ""
    """An existing LoRA adapter directory to continue training."""
    lora_rank: CountOrZero = 0
    """Rank of LoRA matrices; 0 trains the full weights."""
    lora_alpha: Positive = 16.0
    """LoRA scale: updates are multiplied by alpha / rank (alpha / sqrt(rank) with rslora)."""
    lora_dropout: Share = 0.0
    """Dropout before the LoRA matrices; needs dropout true."""
    lora_targets: Names = ()
    """Module names to adapt; empty adapts every linear layer except the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps updates stable at high ranks."""
    qlora: bool = False
    """Hold the frozen base in 4 bits (CUDA, extra `qlora`)."""
    export: Literal["merged", "adapter"] = "merged"
    """What `model/` holds after LoRA training: merged weights, or the adapter alone."""
    freeze_layers: Fraction = 0.0
    """Lowest fraction of layers to freeze, the input embedding with them."""
    freeze: Names = ()
    """Freeze parameters whose names match one of these patterns (shell wildcards)."""
    dropout: bool = False
    """Keep the model's own dropouts on; they are all set to 0 otherwise."""
    router_loss: NotNegative = 0.0
    """Coefficient of the mixture-of-experts load-balancing loss."""

    def __post_init__(self) -> None:
        lora = self.lora_rank > 0 or bool(self.adapter)
        if self.lora_rank and self.adapter:
            raise ConfigError("lora_rank and adapter are both given, and the adapter has its own rank; drop lora_rank")
        for name in ("lora_targets", "rslora"):
            if getattr(self, name) and not self.lora_rank:
                raise ConfigError(f"{name} is given, but no new LoRA matrices are made; give lora_rank, or drop {name}")
        for name, on in (
            ("qlora", self.qlora),
            ("export: adapter", self.export == "adapter"),
            ("lora_dropout", self.lora_dropout > 0),
        ):
            if on and not lora:
                raise ConfigError(f"{name} is given, but there is no LoRA; give lora_rank or adapter, or drop {name}")
        if self.lora_dropout and not self.dropout:
            raise ConfigError("lora_dropout is given, but dropout is off; turn dropout on, or drop lora_dropout")


@section
class OptimConfig:
    """Optimizer and learning rate."""

    lr: Positive = 2e-5
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon trains 2-D weights of the layers with Muon and the rest with AdamW."""
    beta1: Share = 0.9
    """AdamW's decay of the gradient average."""
    beta2: Share = 0.95
    """AdamW's decay of the squared-gradient average."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay on matrices; norms, biases and embeddings have none."""
    clip_norm: NotNegative = 1.0
    """Maximum gradient norm; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning-rate schedule after warm-up; wsd is warmup-stable-decay."""
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    decay: Fraction = 0.2
    """Share of the steps in which the learning rate of a wsd schedule falls."""
    min_lr: Fraction = 0.0
    """Final learning rate as a share of the peak."""

    def __post_init__(self) -> None:
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ConfigError(
                f"warmup {self.warmup:g} and decay {self.decay:g} are shares of the same steps and exceed 1 together; "
                "lower one of them"
            )
        if self.schedule == "constant" and self.min_lr:
            raise ConfigError("min_lr is given, but the schedule constant never falls; choose another, or drop min_lr")


@section
class LoopConfig:
    """Length of the run, size of a step, checkpoints, memory."""

    out: Name
    """Run directory."""
    epochs: Positive = 1.0
    """Passes over the data; ignored if steps is given."""
    steps: CountOrZero = 0
    """Optimizer steps; 0 follows epochs."""
    samples_per_step: CountOrZero = 0
    """Samples in an optimizer step; 0 takes 32, unless tokens_per_step is given."""
    tokens_per_step: CountOrZero = 0
    """Tokens in an optimizer step (as many whole groups as fit), instead of samples_per_step."""
    tokens_per_microbatch: CountOrZero = 0
    """Packed tokens in one forward, the only memory knob; 0 takes 2048 on CPU and 8192 on CUDA."""
    seed: Seed = 0
    """Seed of data order and noise."""
    save_every: CountOrZero = 0
    """Steps between checkpoints; 0 saves ten times in a run."""
    keep: CountOrZero = 2
    """Newest checkpoints to keep besides the best; 0 keeps all."""
    eval_every: CountOrZero = 0
    """Steps between evaluations on held-out data; 0 evaluates at the end only."""
    patience: CountOrZero = 0
    """Evaluations without improvement before the run stops early; 0 never stops early."""
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint; start it if there is none yet."""
    resume_from: str = ""
    """With resume, go back to this checkpoint (step-000100); later ones are moved to checkpoints/abandoned."""
    accept_changes: bool = False
    """With resume, continue under another config, machine or data; the run no longer repeats bit for bit."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    deterministic: bool = False
    """On CUDA, use only kernels that repeat bit for bit."""
    track: Annotated[tuple[Literal["wandb", "trackio"], ...], OneOrMany] = ()
    """Trackers to use besides metrics.jsonl and TensorBoard."""
    skip_checks: Names = ()
    """Checks before the first step to skip."""
    overwrite: bool = False
    """Remove the run in `out`, if there is one, and start a new one."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite are both on: one continues the old run, one removes it; drop one")
        for name in ("resume_from", "accept_changes"):
            if getattr(self, name) and not self.resume:
                raise ConfigError(f"{name} is given, but resume is off; turn resume on, or drop {name}")
        if self.samples_per_step and self.tokens_per_step:
            raise ConfigError("samples_per_step and tokens_per_step are both given, and one decides a step; drop one")
        if self.patience and not self.eval_every:
            raise ConfigError("patience is given, but eval_every is 0, so there is one evaluation; give eval_every")
        if len(set(self.track)) < len(self.track):
            raise ConfigError(f"track: got {', '.join(self.track)}, expected each tracker once")


@section
class ReferenceConfig:
    """The reference policy."""

    reference: Literal["memory", "precomputed"] = "memory"
    """Where the reference's log-probabilities come from: memory computes them in each step, precomputed once before the
    first step, into the cache."""
    reference_model: str = ""
    """Hugging Face directory or hub name of the reference, or an adapter directory, merged into its base; empty takes
    the policy as it starts (under LoRA the base, or the adapter that is continued)."""


@section
class JudgeConfig:
    """Evaluation of a scoring model on held-out data."""

    eval_only: bool = False
    """Train nothing; evaluate the reward model in `model` on all of `data`."""
    judged: Count = 2000
    """Maximum number of held-out groups to evaluate on."""
    resamples: Count = 1000
    """Bootstrap resamples per confidence interval."""
    outcome_model: str = ""
    """For a process reward model: an outcome reward model to compare it with on the same solutions."""


@section
class InspectConfig:
    """What to show."""

    rows: Count = 5
    """Rows to show per source."""
    html: str = ""
    """Also write the rows as one HTML page to this path."""


@section
class ExportConfig:
    """What to export, and where to."""

    run: str = ""
    """Run directory (its model/, or its newest intact checkpoint if it has none), or a checkpoint."""
    merge: bool = False
    """Merge the run's adapter into its base, and write the plain model."""
    model: str = ""
    """Base of `adapter`; with run, the base of its adapter if that is not where the run found it."""
    adapter: str = ""
    """An adapter directory of any kind that peft can merge, to be merged into `model`."""
    out: str = ""
    """Folder to write to; empty takes `model/` in the run directory, or `merged/` there if an adapter is merged."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships."""

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.adapter):
            raise ConfigError("give either run, or model and adapter; expected one of the two")
        if self.adapter and not self.out:
            raise ConfigError("adapter is given, but no folder for the merged model; give out", key="out")
        if self.model and not self.adapter and not self.merge:
            raise ConfigError("model is given, but nothing is merged; give adapter, or run with merge, or drop model")


@section
class ScoreConfig:
    """The scoring model, what it scores, and where the scores go."""

    model: Name
    """Hugging Face directory or hub name of a reward model or process reward model."""
    data: Annotated[Names, MinLen(1)]
    """Files or hub datasets of rankings, conversations or (process models) solutions in steps, each PATH or
    PATH:FORMAT."""
    out: str = "scores.jsonl"
    """File to write: a line per row with `file`, `line` and `scores` (or `error`). A command that was killed goes on
    where it stopped if it is given once more."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    adapter: str = ""
    """An adapter of a reward model, put into the model first; it may bring the head that scores."""
    aggregate: Literal["product", "min", "last", "mean"] = "product"
    """Process models: how the probabilities of its steps become the number of a whole solution, `aggregate`."""
    format: str = "auto"
    """Format of data that names none."""
    columns: Mapped = ()
    """Fields of a format and the columns they are read from, as NAME=COLUMN, NAME=a.b[0].c or NAME==TEXT (a constant);
    for all data."""
    ignore_columns: Names = ()
    """Columns to leave out knowingly, by the names that are listed as not read."""
    max_length: CountOrZero = 0
    """Maximum length of a sample in tokens; longer ones lose their tail. 0 takes the model's limit."""
    tokens_per_microbatch: CountOrZero = 0
    """Packed tokens in one forward; 0 takes 2048 on CPU and 8192 on CUDA."""
    dtype: Dtype = "auto"
    """Compute dtype; auto is bfloat16 on CUDA and float32 on CPU."""
    template: str = ""
    """Chat template: a built-in name or a Jinja file; empty keeps the tokenizer's own."""
    template_args: TemplateArgs = ()
    """Names the chat template may use, as NAME=VALUE (enable_thinking=false)."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships."""

    def __post_init__(self) -> None:
        mapped_fields(self.columns)
        template_values(self.template_args)


@section
class _AskConfig:
    """The model and the prompts."""

    model: Name
    """Hugging Face directory or hub name."""
    prompt: Annotated[Names, MinLen(1)]
    """Prompts, each answered separately."""
    adapter: str = ""
    """An adapter directory of any kind that peft can merge, put into the model before it answers."""
    system: str = ""
    """System message before every prompt."""
    chat: bool = True
    """Wrap prompts in the model's chat template; otherwise the model continues the plain text."""


# Keys stand in the order of the bases from the last one on, then its own.
@section
class SampleConfig(SamplingConfig, _AskConfig):
    """The model, the prompts and how answers are sampled."""

    temperature: NotNegative = 0.0
    seed: Seed = 0
    """Seed of the sampler."""
    dtype: Dtype = "auto"
    """Compute dtype; auto is bfloat16 on CUDA and float32 on CPU."""
    template: str = ""
    """Chat template: a built-in name or a Jinja file; empty keeps the tokenizer's own."""
    template_args: TemplateArgs = ()
    """Names the chat template may use, as NAME=VALUE (enable_thinking=false)."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships."""

    def __post_init__(self) -> None:
        if self.system and not self.chat:
            raise ConfigError("system is given, but chat is off, so there is no place for it; drop one")
        template_values(self.template_args)


@section
class QuickstartConfig:
    """Fine-tunes the model that ships with Espalier on generated data, and shows answers before and after."""

    out: Name = "runs/quickstart"
    """Run directory; an earlier quickstart in it is replaced."""
    seed: Seed = 0
    """Seed of data, order and noise."""
