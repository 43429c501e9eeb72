"""What a run is made of, as frozen dataclasses that load without torch: config sections, YAML keys and flags are these.

Every field is one flag (`--samples-per-step`) and one YAML key (`samples_per_step`); names are unique over all sections,
so a config file is flat. Values are checked when a section is built; see `options.py` for how files and flags meet.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_strict = ConfigDict(extra="forbid")

Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]


@dataclass(frozen=True, config=_strict)
class ModelConfig:
    """Which model is trained, and which part of it."""

    model: str
    """Hugging Face directory or hub name of the model to start from."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; auto is bfloat16 on CUDA and float32 on CPU. Master weights are float32 either way."""
    layout: Literal["auto", "forest", "chain", "padded"] = "auto"
    """How samples are laid out; auto takes the forest where the architecture allows it."""
    template: str = ""
    """Chat template: a built-in name (chatml, llama3, alpaca, plain) or a Jinja file; empty keeps the tokenizer's own."""
    add_tokens: tuple[str, ...] = ()
    """New control tokens to add, initialised with the mean embedding and trained even under LoRA."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships."""
    adapter: str = ""
    """An existing LoRA adapter directory to continue."""
    lora_rank: CountOrZero = 0
    """Rank of LoRA matrices; 0 trains the full weights."""
    lora_alpha: Positive = 16.0
    """LoRA scale: updates are multiplied by alpha / rank (alpha / sqrt(rank) with rslora)."""
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout in front of LoRA matrices; needs dropout true."""
    lora_targets: tuple[str, ...] = ()
    """Module names to adapt; empty adapts every linear layer except the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps updates stable at high ranks."""
    qlora: bool = False
    """Hold the frozen base in 4 bits (CUDA, extra `qlora`)."""
    export: Literal["merged", "adapter"] = "merged"
    """What `model/` holds after LoRA training."""
    freeze_layers: Fraction = 0.0
    """Lowest fraction of layers to freeze, the input embedding with them."""
    freeze: tuple[str, ...] = ()
    """Freeze parameters whose names match one of these patterns (shell wildcards)."""
    dropout: bool = False
    """Keep the model's own dropouts on; they are all set to 0 otherwise."""
    router_loss: Annotated[float, Ge(0)] = 0.0
    """Coefficient of the mixture-of-experts load-balancing loss."""


@dataclass(frozen=True, config=_strict)
class DataConfig:
    """What is read, and what becomes of a row that cannot be used."""

    data: tuple[str, ...]
    """Data files or hub datasets, each PATH, PATH:FORMAT or PATH=PROPORTION (PATH:FORMAT=PROPORTION)."""
    format: str = "auto"
    """Format of all data files that name none: auto, alpaca, sharegpt, messages, prompt, completion, text."""
    replay: tuple[str, ...] = ()
    """Plain-text files mixed in as the part `replay`, every token trained."""
    replay_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the samples of a step that are replay, where replay is given."""
    eval_data: tuple[str, ...] = ()
    """Held-out files."""
    eval_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of data held out for evaluation, where no eval_data is given."""
    max_length: CountOrZero = 0
    """Longest sample in tokens; longer ones lose their tail. 0 takes the model's limit."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What a row that cannot be used does: stop the run, or be skipped and listed in rejected.jsonl."""
    cache: str = ""
    """Folder of tokenised data, keyed by content; empty takes the user's cache folder."""


@dataclass(frozen=True, config=_strict)
class OptimConfig:
    """How gradients become updates."""

    lr: Positive = 2e-5
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon trains 2-D weights of the layers with Muon and the rest with AdamW."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's decay of the gradient average."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """AdamW's decay of the squared-gradient average."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay on matrices; norms, biases and embeddings have none."""
    clip_norm: Annotated[float, Ge(0)] = 1.0
    """Largest gradient norm; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warm-up; wsd is warmup-stable-decay."""
    warmup: Fraction = 0.03
    """Share of the steps in which the rate rises from 0."""
    decay: Fraction = 0.2
    """Share of the steps in which a wsd schedule falls."""
    min_lr: Fraction = 0.0
    """Last learning rate as a share of the peak."""


@dataclass(frozen=True, config=_strict)
class LoopConfig:
    """How long a run goes on, what it writes and what it costs."""

    out: str
    """Run directory."""
    epochs: Positive = 1.0
    """Passes over the data; ignored where steps is given."""
    steps: CountOrZero = 0
    """Optimizer steps; 0 follows epochs."""
    samples_per_step: CountOrZero = 0
    """Samples in an optimizer step; 0 with tokens_per_step 0 takes 32."""
    tokens_per_step: CountOrZero = 0
    """Tokens in an optimizer step (as many whole groups as fit), instead of samples_per_step."""
    tokens_per_microbatch: CountOrZero = 0
    """Packed tokens in one forward, the only memory knob; 0 takes 2048 on CPU and 8192 on CUDA."""
    seed: CountOrZero = 0
    """Seed of data order and noise."""
    save_every: CountOrZero = 0
    """Steps between checkpoints; 0 saves at the end only."""
    keep: CountOrZero = 2
    """Checkpoints kept besides the best; 0 keeps all."""
    eval_every: CountOrZero = 0
    """Steps between evaluations; 0 evaluates at the end only, where there is held-out data."""
    patience: CountOrZero = 0
    """Evaluations without improvement before the run stops early; 0 never stops early."""
    resume: bool = False
    """Continue the run in `out` from its newest intact checkpoint."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    deterministic: bool = False
    """On CUDA, use only kernels that repeat bit for bit."""
    track: tuple[Literal["wandb", "trackio"], ...] = ()
    """Trackers beside metrics.jsonl and TensorBoard."""
    skip_checks: tuple[str, ...] = ()
    """Names of preflight checks to skip."""
    overwrite: bool = False
    """Start anew in an existing run directory, whose old run is removed."""


@dataclass(frozen=True, config=_strict)
class SFTConfig:
    """Fields of supervised fine-tuning; `algorithms/sft.py` says what they do."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are trained: every assistant turn, the last one, or everything."""
    neftune_alpha: Annotated[float, Ge(0)] = 0.0
    """Strength of uniform noise on input embeddings (NEFTune); 0 is none."""
    alpaca_prompt: bool = False
    """Wrap Alpaca rows in the Alpaca instruction template instead of passing the bare instruction."""


@dataclass(frozen=True, config=_strict)
class RunConfig:
    """A whole run of supervised fine-tuning."""

    model: ModelConfig
    data: DataConfig
    loop: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
