"""Whole runs on a tiny model: from a config or a command line to the files a user finds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from espalier.assembly.runs import RUNS, RunConfig
from espalier.commands import main as cli
from espalier.commands import train as run
from espalier.commands.check import run as check
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig
from espalier.errors import CheckError
from espalier.loop.metrics import read_lines
from tiny import tiny_model, tiny_tokenizer

ROWS = [("2+2", "4"), ("3+3", "6"), ("capital of France", "Paris"), ("say hi", "hi there"), ("7-5", "2"), ("9-5", "4")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", [{"prompt": q, "response": a} for q, a in ROWS])


@pytest.fixture
def config(model: str, data: str, tmp_path: Path) -> Callable[..., RunConfig]:
    def build(**more: Any) -> RunConfig:
        parts: dict[str, dict[str, Any]] = {
            "model": {"model": model},
            "data": {"data": (data,), "cache": str(tmp_path / "cache")},
            "loop": {"out": str(tmp_path / "run"), "samples_per_step": 3, "epochs": 4},
            "optim": {"lr": 1e-2},
            "sft": {},
        }
        for name, fields in more.items():
            parts[name].update(fields)
        kinds = {"model": ModelConfig, "data": DataConfig, "loop": LoopConfig, "optim": OptimConfig}
        built = {name: kind(**parts[name]) for name, kind in kinds.items()}
        from espalier.algorithms.sft import SFT

        return RUNS["sft"](**built, algorithm=SFT(**parts["sft"]))

    return build


def steps(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_lines(folder / "metrics.jsonl") if "loss" in r]


def test_a_run_learns_its_rows_and_leaves_a_model(config: Any, tmp_path: Path, capsys: Any) -> None:
    out = run.train(config(loop={"epochs": 30}))
    said = capsys.readouterr().out
    made = steps(tmp_path / "run")
    assert len(made) == 60 and made[0]["loss"] > 2 and made[-1]["loss"] < 0.3
    assert made[0]["tokens"] > made[0]["scored"] > 0 and made[-1]["epoch"] == 30
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        *("run.yaml", "manifest.json", "metrics.jsonl", "preflight.json", "checkpoints", "model", "tensorboard")
    }
    for line in ("layout forest", "trains", "60 steps", "memory about", "update"):
        assert line in said or line in " ".join(said.split())
    tokenizer = AutoTokenizer.from_pretrained(out)
    answering = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "capital of France"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    answer = answering.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "Paris<|im_end|>"  # generation ends at the trained stop token


def test_the_same_run_twice_is_the_same_bits(config: Any, tmp_path: Path) -> None:
    first = run.train(config(loop={"out": str(tmp_path / "a")}))
    second = run.train(config(loop={"out": str(tmp_path / "b")}))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_lora_trains_little_and_exports_merged_or_alone(config: Any, tmp_path: Path, model: str) -> None:
    lora = {"lora_rank": 4, "rslora": True}
    merged = run.train(config(model=lora, loop={"out": str(tmp_path / "a")}))
    alone = run.train(config(model={**lora, "export": "adapter"}, loop={"out": str(tmp_path / "b")}))
    from peft import PeftModel

    ids = torch.tensor([[5, 9, 40, 41, 42]])
    whole = AutoModelForCausalLM.from_pretrained(merged)(ids).logits
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), alone)(ids).logits
    base = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    assert torch.allclose(whole, wrapped, atol=1e-5) and not torch.allclose(whole, base, atol=1e-2)
    assert {p.name for p in alone.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_frozen_layers_do_not_move(config: Any, model: str) -> None:
    out = run.train(config(model={"freeze_layers": 0.5, "freeze": ("model.norm.weight",)}))
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out).state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any(n.startswith("model.layers.1.") for n in moved) and "lm_head.weight" in moved
    assert not [n for n in moved if n.startswith(("model.layers.0.", "model.embed_tokens", "model.norm"))]


def test_replay_has_a_loss_of_its_own(config: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a fox\n\n" * 20)
    run.train(config(data={"replay": (str(text),), "replay_fraction": 0.4}, sft={"replay_coef": 0.5}))
    for r in steps(tmp_path / "run"):
        assert r["loss"] == pytest.approx(r.get("nll", 0.0) + 0.5 * r.get("nll_replay", 0.0), rel=1e-6)
    assert any(r.get("nll_replay", 0) > 0 for r in steps(tmp_path / "run"))


def test_proportions_draw_each_file_as_often_as_asked(config: Any, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}] * 2)
    b = write(tmp_path / "b.jsonl", [{"prompt": "x" * 30, "response": "y"}] * 50)
    cfg = config(data={"data": (f"{a}=0.75", f"{b}=0.25")}, loop={"steps": 10, "samples_per_step": 4})
    run.train(cfg)
    lengths = {r["tokens"] for r in steps(tmp_path / "run")}
    assert len(lengths) == 1  # three short rows and one long one in every step


def test_neftune_is_part_of_the_loss_and_the_same_in_every_packing(config: Any, tmp_path: Path) -> None:
    runs = {}
    for name, more in {"off": {}, "on": {"neftune_alpha": 5.0}, "again": {"neftune_alpha": 5.0}}.items():
        budget = 4096 if name != "again" else 24
        run.train(config(sft=more, loop={"out": str(tmp_path / name), "epochs": 1, "tokens_per_microbatch": budget}))
        runs[name] = [r["loss"] for r in steps(tmp_path / name)]
    assert runs["on"] == pytest.approx(runs["again"], rel=1e-5)
    assert abs(runs["on"][0] - runs["off"][0]) > 1e-3


def test_everything_can_be_trained(config: Any, tmp_path: Path) -> None:
    run.train(config(sft={"train_on": "all"}))
    first = steps(tmp_path / "run")[0]
    assert first["scored"] == first["tokens"] - first["samples"]  # all but each sample's first token


def test_dropout_is_keyed_by_the_sample(config: Any, tmp_path: Path) -> None:
    lora = {"lora_rank": 4, "lora_dropout": 0.5, "dropout": True}
    losses = []
    for name, budget in (("whole", 4096), ("split", 24)):
        run.train(config(model=lora, loop={"out": str(tmp_path / name), "tokens_per_microbatch": budget}))
        losses.append([r["loss"] for r in steps(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    run.train(config(model={"lora_rank": 4}, loop={"out": str(tmp_path / "off")}))
    assert abs(steps(tmp_path / "off")[-1]["loss"] - losses[0][-1]) > 1e-4


@pytest.mark.slow
def test_compiled_layers_train_the_same(config: Any, tmp_path: Path) -> None:
    losses = []
    for name, compiled in (("eager", False), ("compiled", True)):
        run.train(config(loop={"out": str(tmp_path / name), "compile": compiled}))
        losses.append([r["loss"] for r in steps(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_held_out_rows_are_scored_and_the_best_kept(config: Any, tmp_path: Path, capsys: Any) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "zz", "response": "q" * 5}])
    cfg = config(
        data={"eval_data": (held,)}, loop={"eval_every": 1, "patience": 2, "epochs": 50, "save_every": 1, "keep": 1}
    )
    out = run.train(cfg)
    evaluations = [r for r in read_lines(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in r]
    losses = [r["eval_loss"] for r in evaluations]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 100  # two evaluations without improvement end the run
    assert evaluations[0]["eval_tokens"] == 6 and 0 <= evaluations[0]["eval_accuracy"] <= 1
    kept = tmp_path / "run" / "checkpoints" / f"step-{evaluations[best]['step']:06d}" / "model" / "model.safetensors"
    assert kept.read_bytes() == (out / "model.safetensors").read_bytes()
    assert "no better for 2 evaluations" in capsys.readouterr().out


def test_rows_read_are_rows_kept_and_rejected(config: Any, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "response": "b"}, "{broken", {"prompt": "c"}])
    run.train(config(data={"data": (bad,), "on_bad_row": "skip"}, loop={"epochs": 1}))
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    assert checks[0]["value"].startswith("3 read, 1 kept, 2 rejected")
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [r["where"].rsplit(":", 1)[1] for r in rejected] == ["2", "3"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", ("rows.jsonl:2", "JSON", "expected")),
        ({"messages": [{"role": "wizard", "content": "x"}]}, ("rows.jsonl:2", "wizard", "expected")),
        ({"messages": [{"role": "user", "content": "x"}]}, ("rows.jsonl:2", "assistant")),
        ({"prompt": "x", "response": 3}, ("rows.jsonl:2", "response")),
    ],
)
def test_a_bad_row_is_one_line(model: str, tmp_path: Path, capsys: Any, row: Any, words: tuple[str, ...]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    first = {"messages": turns} if "messages" in row else {"prompt": "a", "response": "b"}
    data = write(tmp_path / "rows.jsonl", [first, row])
    code = cli.main(
        ["sft", "--model", model, "--data", data, "--out", str(tmp_path / "r"), "--cache", str(tmp_path / "c")]
    )
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error
    for word in words:
        assert word in error


def test_a_limit_beyond_the_models_is_refused(model: str, data: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--model", model, "--data", data, "--out", str(tmp_path / "r"), "--max-length", "999"]
    assert cli.main(["sft", *arguments]) == 2
    assert "max_length: got 999, but the model takes at most 256" in capsys.readouterr().err


def test_truncated_rows_keep_their_head_and_are_counted(config: Any, tmp_path: Path) -> None:
    long = write(
        tmp_path / "long.jsonl", [{"prompt": "a", "response": "b" * 80}, *[{"prompt": "c", "response": "d"}] * 9]
    )
    run.train(config(data={"data": (long,), "max_length": 64}, loop={"epochs": 1, "samples_per_step": 10}))
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    assert checks[0]["value"] == "10 read, 10 kept, 0 rejected, 1 truncated"
    (step,) = steps(tmp_path / "run")
    prompt = len("<user\na<\n<assistant\n")  # one token for each character and control token
    assert step["scored"] == (64 - prompt) + 9 * 2


def test_check_stops_before_training(config: Any, tmp_path: Path) -> None:
    check(config())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["preflight.json"]
    with pytest.raises(CheckError, match=r"update: .*raise lr"):
        check(config(optim={"lr": 1e-30}))
    run.train(config(loop={"steps": 1}))  # in the folder that a check used


def test_inspect_sample_and_export(model: str, data: str, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "rows.html"
    assert cli.main(["inspect", "--model", model, "--data", data, "--rows", "2", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "⟦4⟨|im_end|⟩⟧" in said and "Paris" not in said and "4" in page.read_text()
    assert cli.main(["sample", "--model", model, "--prompt", "2+2", "--max-tokens", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("sampler local: up to 256 answers") and "2+2" in said
    assert cli.main(["export", "--run", model, "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "config.json").is_file()
    assert cli.main(["export", "--run", str(tmp_path)]) == 2


def test_a_users_files_beside_the_model_are_kept(config: Any, tmp_path: Path, capsys: Any) -> None:
    lora = {"lora_rank": 2}
    folder = run.train(config(loop={"steps": 1}, model=lora))
    (folder / "x.gguf").write_text("converted")
    (folder / "notes.json").write_text("mine")
    for steps, export in ((1, "adapter"), (1, "merged"), (2, "merged")):
        more = config(loop={"steps": steps, "resume": True, "accept_changes": True}, model={**lora, "export": export})
        assert run.train(more) == folder
        assert (folder / "adapter_config.json").is_file() == (export == "adapter")
        assert (folder / "x.gguf").read_text() == "converted" and (folder / "notes.json").read_text() == "mine"
        assert "kept notes.json, x.gguf, which the export did not write" in " ".join(capsys.readouterr().out.split())
