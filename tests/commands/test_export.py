"""`espalier export`, and what runs do with adapters, from command lines; compared with transformers and peft alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters import X, logprobs, lora, make_adapter, peft_logprobs, save_base, written_logprobs
from espalier.commands import main as cli
from espalier.commands.export import _compared
from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.loop.metrics import read_lines
from espalier.models.load import load_model

CHATS = [{"prompt": f"add {i}", "response": f"<|tool|>{i + 1}"} for i in range(12)]
PAIRS = [{"prompt": f"add {i}", "chosen": f"<|tool|>{i + 1}", "rejected": f"{i}"} for i in range(12)]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a place with `base`; returns its exit code and what it printed."""
    for name, rows in (("chats.jsonl", CHATS), ("pairs.jsonl", PAIRS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return run


def trained(place: Path, name: str, data: str = "chats", command: str = "sft", base: str = "base") -> list[Any]:
    return [
        *(command, "--model", place / base, "--data", place / f"{data}.jsonl", "--out", place / name, "--steps", "2"),
        *("--samples-per-step", "4", "--lr", "1e-2", "--cache", place / "cache"),
    ]


ADAPTED = ("--lora-rank", "2", "--export", "adapter", "--add-tokens", "<|tool|>")


# --------------------------------------------------------------------------------------------------- base and adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_and_adapter_become_a_plain_model(dtype: torch.dtype, command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base") if dtype == torch.float32 else save_bfloat16(tmp_path / "base")
    adapter = make_adapter(base, lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), tmp_path / "adapter")
    (tmp_path / "adapter" / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    out = tmp_path / "out"
    code, said = command("export", "--model", base, "--adapter", adapter, "--out", out)
    assert code == 0, said
    assert f"merged adapter {adapter} (LORA) into {base}" in said and "read back by transformers" in said
    tolerance = 3e-5 if dtype == torch.float32 else 0.2
    assert torch.allclose(written_logprobs(out), peft_logprobs(base, adapter), atol=tolerance)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 4]
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert not (out / "adapter_config.json").exists()
    # Nothing that stands in the way is replaced.
    before = (out / "model.safetensors").read_bytes()
    code, said = command("export", "--model", base, "--adapter", adapter, "--out", out)
    assert code == 2 and f"out: {out} exists and is not empty" in said
    assert (out / "model.safetensors").read_bytes() == before


def test_a_base_with_code_of_its_own_is_merged_with_all_that_stands_beside_it(command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    expected = peft_logprobs(base, adapter)
    (tmp_path / "base" / "LICENSE").write_text("terms")
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}")
    own(tmp_path / "base")
    given = ("export", "--model", base, "--adapter", adapter, "--out", tmp_path / "out")
    code, said = command(*given, "--trust-remote-code")
    assert code == 0 and "read back by transformers" in said, said
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert (tmp_path / "out" / "preprocessor_config.json").is_file() and (tmp_path / "out" / "own.py").is_file()
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.allclose(logprobs(read), expected, atol=3e-5)


def own(folder: Path) -> None:
    """Make a saved llama one whose classes are in a file beside its weights."""
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        'class OwnConfig(LlamaConfig):\n    model_type = "own_llama"\n\n\n'
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_written_model_that_does_not_load_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base(tmp_path / "base")
    loaded = load_model(ModelConfig(model=base))

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("of a library")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    with pytest.raises(ModelError, match="was written, but transformers does not load it: ValueError: of a library"):
        _compared(loaded, Path(base), False)


def save_bfloat16(folder: Path) -> str:
    from tiny import tiny_model, tiny_tokenizer

    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give either run, or model and adapter"),
        (("--run", "r", "--adapter", "a"), "give either run, or model and adapter"),
        (("--model", "m", "--adapter", "a"), "no folder for the merged model; give out"),
        (("--run", "r", "--model", "m"), "model is given, but nothing is merged"),
    ],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], reason: str, command: Command) -> None:
    code, said = command("export", *arguments)
    assert code == 2 and reason in said


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("rows", [102, 128])
def test_a_run_with_new_tokens_is_merged_continued_and_resumed(rows: int, command: Command, tmp_path: Path) -> None:
    base, run = save_base(tmp_path / "base", vocab_size=rows), tmp_path / "run"
    code, said = command(*trained(tmp_path, "run"), *ADAPTED)
    assert code == 0, said
    grown = 103 if rows < 103 else 0
    assert ("grew from 102 to 103 rows: before PeftModel.from_pretrained, call base.resize_" in said) == bool(grown)
    ids = X.clamp(max=102)
    expected = peft_logprobs(base, str(run / "model"), rows=grown, ids=ids)

    code, said = command("export", "--run", run, "--merge")
    assert code == 0 and (run / "model" / "adapter_config.json").is_file(), said
    assert torch.allclose(written_logprobs(run / "merged", ids), expected, atol=3e-5)
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    assert tokenizer.encode("<|tool|>", add_special_tokens=False) == [102]

    # Continued without its token being named; the tokens of the data are the same ones.
    code, said = command(*trained(tmp_path, "more", "pairs", "dpo"), "--adapter", run / "model", "--export", "adapter")
    assert code == 0 and "tokens of the adapter's tokenizer that the base lacks: <|tool|> = 102" in said, said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more" / "model")
    assert tokenizer.encode("<|tool|>", add_special_tokens=False) == [102]
    assert next(iter(read_lines(tmp_path / "more" / "metrics.jsonl")))["loss"] == pytest.approx(0.6931, abs=1e-3)

    # A finished run, resumed with another export, and back.
    adapter = {file.name: file.read_bytes() for file in (run / "model").iterdir()}
    code, said = command("sft", "--config", run / "run.yaml", "--resume", "--export", "merged")
    assert code == 0 and "is written anew as merged weights" in said, said
    assert torch.allclose(written_logprobs(run / "model", ids), expected, atol=3e-5)
    assert not (run / "model" / "adapter_config.json").exists()
    code, said = command("sft", "--config", run / "run.yaml", "--resume", "--export", "adapter")
    assert code == 0, said
    assert {file.name: file.read_bytes() for file in (run / "model").iterdir()} == adapter


def test_an_adapter_is_the_reference_of_a_new_policy(command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    code, said = command("export", "--model", base, "--adapter", adapter, "--out", tmp_path / "merged")
    assert code == 0, said
    losses = {}
    for kind, reference in (("adapter", adapter), ("merged", tmp_path / "merged")):
        for where in ("memory", "precomputed"):
            name = f"{kind}-{where}"
            code, said = command(
                *trained(tmp_path, name, "pairs", "dpo"),
                *("--lora-rank", "2", "--reference-model", reference, "--reference", where),
                *("--skip-checks", "first_loss", "reference"),
            )
            assert code == 0, said
            losses[name] = [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")]
    first = losses["merged-memory"]
    assert abs(first[0] - 0.6931) > 1e-3
    assert all(numbers == pytest.approx(first, abs=1e-5) for numbers in losses.values()), losses


def test_an_adapter_that_is_no_reference_is_refused_before_data_is_read(command: Command, tmp_path: Path) -> None:
    import peft

    base = save_base(tmp_path / "base")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapter = make_adapter(base, settings, tmp_path / "adapter")
    code, said = command(*trained(tmp_path, "run", "pairs", "dpo"), "--reference-model", adapter)
    assert code == 2 and "reference_model: adapter" in said and "neither merged nor continued" in said


def test_an_adapter_answers(command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(target_modules=["q_proj", "lm_head"]), tmp_path / "adapter")
    command("export", "--model", base, "--adapter", adapter, "--out", tmp_path / "merged")
    prompt = ("--prompt", "2+2", "--max-tokens", "8")
    answers = {}
    for name, model in (("base", (base,)), ("both", (base, "--adapter", adapter)), ("merged", (tmp_path / "merged",))):
        code, answers[name] = command("sample", "--model", *model, *prompt)
        assert code == 0
    assert answers["both"] == answers["merged"] != answers["base"]


def test_the_way_out_of_an_adapter_as_the_model_is_one_that_works(command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    training = ("--data", tmp_path / "chats.jsonl", "--out", tmp_path / "run", "--steps", "1")
    for name, more in (("sample", ("--prompt", "x")), ("sft", training)):
        code, said = command(name, "--model", adapter, *more)
        assert code == 2 and f"Pass --model {base} --adapter {adapter}, or merge the two first" in said
        code, said = command(name, "--model", base, "--adapter", adapter, *more)
        assert code == 0, said


def test_a_head_that_is_adapted_is_refused_before_a_run_is_begun(command: Command, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(target_modules=["q_proj", "lm_head"]), tmp_path / "adapter")
    for name, data in (("sft", "chats"), ("dpo", "pairs"), ("reward", "pairs")):
        code, said = command(*trained(tmp_path, "run", data, name), "--adapter", adapter)
        assert code == 2 and "adapts lm_head, which cannot be continued. Merge it into its base first" in said, said
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    code, said = command("export", "--model", base, "--adapter", adapter, "--out", tmp_path / "merged")
    assert code == 0
    code, said = command(*trained(tmp_path, "run", "pairs", "reward", "merged"), "--lora-rank", "2")
    assert code == 0, said
