"""Flags, YAML and Python build the same configs, and say where a bad value stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.assembly.runs import RUNS, RunConfig
from espalier.config.fields import infos
from espalier.config.options import PER_CALL, Parser, build, dump, flat, groups, load, options
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig
from espalier.errors import ConfigError

NEEDED = {"model": "m", "data": ["d.jsonl"], "out": "runs/x"}
NEEDED_FLAGS = ["--model", "m", "--data", "d.jsonl", "--out", "runs/x"]
SFTRun = RUNS["sft"]


def parse(*argv: str) -> RunConfig:
    config: RunConfig = Parser("espalier sft", "", "", SFTRun).read(list(argv))[0]
    return config


def written(folder: Path, text: str) -> str:
    path = folder / "f.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_yaml_and_python_build_the_same_config(tmp_path: Path) -> None:
    python = SFTRun(
        model=ModelConfig(model="m", lora_rank=8),
        data=DataConfig(data=("a.jsonl", "b.jsonl=2")),
        loop=LoopConfig(out="o", samples_per_step=16, deterministic=True),
        optim=OptimConfig(lr=3e-4),
    )
    flags = "--model m --lora-rank 8 --data a.jsonl b.jsonl=2 --out o --samples-per-step 16 --deterministic --lr 3e-4"
    yaml = "model: m\nlora_rank: 8\ndata: [a.jsonl, b.jsonl=2]\nout: o\n"
    yaml += "samples_per_step: 16\ndeterministic: true\nlr: 3e-4\n"
    assert parse(*flags.split()) == python
    assert parse("--config", written(tmp_path, yaml)) == python


def test_flags_go_before_yaml_and_yaml_before_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: d\nout: o\nlr: 1.0e-3\nwarmup: 0.1\ntrack: [wandb]\ncompile: true\n")
    config = parse("--lr", "2e-3", "--config", path, "--no-compile", "--track")
    assert (config.optim.lr, config.optim.warmup, config.optim.beta2) == (2e-3, 0.1, 0.95)
    assert config.loop.track == ()
    assert config.loop.compile is False


def test_a_flag_left_out_never_hides_a_yaml_value(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: d\nout: o\nresume: true\nsteps: 7\nfreeze: ['*.embed*']\n")
    config = parse("--config", path)
    assert config.loop.resume is True and config.loop.steps == 7 and config.model.freeze == ("*.embed*",)


def test_repeated_and_many_valued_list_flags_add_up() -> None:
    config = parse("--model", "m", "--out", "o", "--data", "a", "b", "--data", "c=0.5")
    assert config.data.data == ("a", "b", "c=0.5")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--lr -1", "--lr: got '-1', expected a number > 0. The default is 2e-05."),
        ("--lr=inf", "--lr: got 'inf', expected a number > 0"),
        ("--warmup 1.5", "--warmup: got '1.5', expected a number >= 0 and <= 1"),
        ("--steps 2.5", "--steps: got '2.5', expected a whole number >= 0"),
        ("--dtype float23", "--dtype: got 'float23', expected auto, float32 or bfloat16. Did you mean float32?"),
        ("--track wandbb", "--track: got 'wandbb', expected a list of wandb or trackio. Did you mean wandb?"),
        ("--sample-per-step 4", "--sample-per-step: no such flag. Did you mean --samples-per-step?"),
        ("--samples_per_step 4", "--samples_per_step: no such flag. Did you mean --samples-per-step?"),
        ("--sa 4", "--sa: no such flag."),
        ("--resume true", "true: unexpected argument"),
        ("--seed", "--seed: expected a value"),
        ("--resume --overwrite", "resume and overwrite are both on"),
        ("--data", "--data: got [], expected a list of one or more texts"),
    ],
)
def test_bad_flags(argv: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*NEEDED_FLAGS[:2], *NEEDED_FLAGS[4:], *([] if argv == "--data" else NEEDED_FLAGS[2:4]), *argv.split())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\nlr: 1\nlr: 2\n", "f.yaml:3: lr: given twice, first at"),
        ("model: m\nlearning_rat: 1\n", "f.yaml:2: learning_rat: no such key."),
        ("model: m\nsamples-per-step: 1\n", "f.yaml:2: samples-per-step: no such key. Did you mean samples_per_step?"),
        ("model: m\noptim:\n  lr: 1\n", "f.yaml:2: optim: no such key. Configs are flat"),
        ("model: m\ndata: d\nout: o\nlr: 0\n", "f.yaml:4: lr: got 0, expected a number > 0"),
        ("model: m\ndata: d\nout: o\nlr: true\n", "f.yaml:4: lr: got true, expected a number > 0"),
        ("model: m\ndata: d\nout: o\nlr: .nan\n", "f.yaml:4: lr: got nan, expected a number > 0"),
        ("model: m\ndata: d\nout:\n", "f.yaml:3: out: got nothing, expected text that is not empty"),
        ("model: {lora_rank: 3}\ndata: d\nout: o\n", "f.yaml:1: model: got {'lora_rank': 3}, expected text"),
        ("model: m\n\tdata: d\n", "f.yaml:2: not valid YAML"),
        ("- model\n", "f.yaml:1: expected lines of `key: value`"),
        ("model: !!python/object/apply:os.getcwd []\n", "f.yaml:1: not valid YAML"),
        ("", "model is missing"),
        ("model: m\nout: o\n", "data is missing: Data files"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("--config", written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        parse("--config", str(tmp_path / "absent.yaml"))
    (tmp_path / "latin.yaml").write_bytes("model: café".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 10 is not UTF-8"):
        parse("--config", str(tmp_path / "latin.yaml"))
    (tmp_path / "bom.yaml").write_text("model: m\ndata: d\nout: o\n", encoding="utf-8-sig")
    assert parse("--config", str(tmp_path / "bom.yaml")).model.model == "m"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"samples_per_step": 8, "tokens_per_step": 4096}, "samples_per_step and tokens_per_step are both given"),
        ({"schedule": "wsd", "warmup": 0.5, "decay": 0.6}, "warmup 0.5 and decay 0.6"),
        ({"schedule": "constant", "min_lr": 0.1}, "min_lr is given"),
        ({"lora_rank": 4, "lora_dropout": 0.1}, "dropout is off"),
        ({"lora_dropout": 0.1, "dropout": True}, "there is no LoRA"),
        ({"rslora": True}, "no new LoRA matrices"),
        ({"export": "adapter"}, "there is no LoRA"),
        ({"lora_rank": 4, "adapter": "a"}, "lora_rank and adapter are both given"),
        ({"eval_data": "e", "eval_fraction": 0.1}, "eval_data and eval_fraction are both given"),
        ({"replay": "r", "replay_fraction": 0}, "replay_fraction is 0"),
        ({"eval_every": 5}, "nothing is held out"),
        ({"patience": 2, "eval_fraction": 0.1}, "eval_every is 0"),
        ({"max_length": 1}, "expected 0 or at least 2"),
        ({"track": ["wandb", "wandb"]}, "each tracker once"),
        ({"alpaca_prompt": True, "format": "sharegpt"}, "format is sharegpt"),
    ],
)
def test_combinations_that_cannot_be_meant(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(SFTRun, {**NEEDED, **values})
    assert said in str(error.value)


def test_combinations_at_the_edge_are_fine() -> None:
    for values in (
        {"schedule": "wsd", "warmup": 0.4, "decay": 0.6},
        {"schedule": "cosine", "warmup": 0.9, "decay": 0.2},
        {"lora_rank": 4, "lora_dropout": 0.1, "dropout": True},
        {"adapter": "a", "export": "adapter"},
        {"replay_fraction": 0.5},
        {"eval_fraction": 0.1, "eval_every": 5, "patience": 2},
    ):
        build(SFTRun, {**NEEDED, **values})


def test_python_gets_the_same_errors() -> None:
    with pytest.raises(ConfigError, match=r"^lr: got -1, expected a number > 0"):
        OptimConfig(lr=-1)
    with pytest.raises(ConfigError, match=r"^lora_rnk: no such field. Did you mean lora_rank\?"):
        ModelConfig(model="m", lora_rnk=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="resume and overwrite"):
        replace(LoopConfig(out="o", resume=True), overwrite=True)


def test_every_field_has_a_unique_name_and_a_help_text() -> None:
    found = options(SFTRun)
    assert len(found) == sum(len(infos(kind)) for kind in groups(SFTRun).values())
    assert [name for name, option in found.items() if not option.info.description] == []


def test_a_dumped_config_replays(tmp_path: Path) -> None:
    config = build(
        SFTRun,
        {
            **NEEDED,
            "lr": 1e-7,
            "template": "a: b # ü\n'x'",
            "freeze": ["- *", "no", "1e3", "a\x85b\u2028"],
            "cache": "\x85",
            "resume": True,
        },
    )
    path = written(tmp_path, dump(config))
    assert load(SFTRun, path) == replace(config, loop=replace(config.loop, resume=False))
    assert parse("--config", path, "--resume") == config
    assert not any(f"\n{key}:" in dump(config) for key in PER_CALL)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    model=texts,
    data=st.lists(texts, min_size=1, max_size=3),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    warmup=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    compile=st.booleans(),
)
def test_any_config_survives_its_dictionary_and_its_file(
    tmp_path_factory: pytest.TempPathFactory, **values: object
) -> None:
    config = build(SFTRun, {"out": "o", **values})
    assert build(SFTRun, flat(config)) == config
    assert load(SFTRun, written(tmp_path_factory.mktemp("yaml"), dump(config))) == config


def test_help_lists_every_flag_under_its_section(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as done:
        parse("--help")
    text = capsys.readouterr().out
    assert done.value.code == 0
    for option in options(SFTRun).values():
        assert (f"--[no-]{option.flag[2:]} " if option.info.annotation is bool else f"{option.flag} ") in text
    lines = text.splitlines()
    assert next(line for line in lines if "--lr " in line).rstrip().endswith("Peak learning rate.  [2e-05]")
    assert "required" in next(line for line in lines if "--model " in line)
    heading = next(i for i, line in enumerate(lines) if line.startswith("Optim "))
    assert heading < next(i for i, line in enumerate(lines) if "--lr " in line)


def test_help_of_every_command_says_what_each_flag_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of sections that only change a default of another, and of fields that hold lists."""
    monkeypatch.setenv("COLUMNS", "160")
    for name, cls in RUNS.items():
        assert [key for key, option in options(cls).items() if not option.info.description] == [], name
        with pytest.raises(SystemExit):
            Parser(f"espalier {name}", "", "", cls).read(["--help"])
        text = capsys.readouterr().out
        assert "\nOptim  Optimizer and learning rate.\n" in text and "('" not in text, name
        if name == "dpo":
            assert "added up.  [sigmoid]" in text and "[1e-06]" in text
            title = "DPO  Raises the probability of preferred answers over that of the others, relative to a reference"
            assert f"{title} policy.\n" in text
