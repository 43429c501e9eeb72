"""What the checks of a run see of faults that are put into the code.

    python scripts/faults.py                 # all faults of faults.toml
    python scripts/faults.py 20 pairs dpo    # those with these numbers, or with such a word in name or setting
    python scripts/faults.py --healthy       # every setting without a fault: none may be stopped

A fault is put into a copy of src/espalier; then the commands of its setting run on rows made here, with the embedded
model or a tiny one. A line says what stopped the run: the check's name, `crash` for an error without one, or `silent`.
Last comes how many of the faults that a run can see (`seen` in faults.toml) were stopped by a check. Every setting is
run without a fault first, and counts as a false alarm if that is stopped. torch and transformers are imported once and
every command is a fork, so that all of it takes about ten minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_settings import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 120
"""Seconds that one command may take."""


# ---------------------------------------------------------------------------------------------------------------- rows


def rows() -> dict[str, list[dict[str, Any]]]:
    """Files of sums with right and wrong answers."""
    draw = random.Random(0)
    out: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, row: dict[str, Any]) -> None:
        out.setdefault(f"{name}.jsonl", []).append(row)

    for i in range(40):
        a, b = draw.randrange(100), draw.randrange(100)
        prompt, right, wrong = f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", f"It is {a + b + 1 + i % 3}."
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": right}]
        more = [{"role": "user", "content": "And one more?"}, {"role": "assistant", "content": f"{a + b + 1}."}]
        light = [turns[0], {**turns[1], "weight": 0.5}]
        add("chat", {"messages": [*(light if i % 3 else turns), *(more if i % 2 else [])]})
        system = [{"role": "system", "content": "Be exact."}]
        add("system", {"messages": [*(system if i % 2 else []), *turns]})
        add("markup", {"messages": [{"role": "user", "content": f"<tool> {prompt}"}, turns[1]]})
        add("tasks", {"question": prompt, "answer": str(a + b)})
        add("alpaca", {"instruction": "Add the numbers.", "input": f"{a} and {b}", "output": right})
        add("text", {"text": " ".join(f"{n} + {b} = {n + b}." for n in range(a, a + 12))})
        add("pairs", {"prompt": prompt, "chosen": right, "rejected": wrong})
        add("repeated", {"prompt": f"What is {i % 13} + 1?", "chosen": f"{i % 13 + 1}", "rejected": wrong})
        add(
            "hh",
            {
                "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {right}",
                "rejected": f"\n\nHuman: {prompt}\n\nAssistant: {wrong}",
            },
        )
        add("labels", {"prompt": prompt, "completion": right if i % 3 else wrong, "label": bool(i % 3)})
        add("labels2", {"prompt": f"{prompt} Say it.", "completion": right if i % 4 else wrong, "label": bool(i % 4)})
        answers = [right, wrong, f"{a} and {b} make {a}.", f"I think it is {a + b + 7}."]
        add("ranked", {"prompt": prompt, "responses": answers, "ranks": [0, 1, 1, 3]})
        add("scored", {"prompt": prompt, "responses": answers[:3], "scores": [9, 5, 4]})
        marks = [{"right": 9, "short": 4}, {"right": 2, "short": None}, {"right": 3, "short": 6}]
        add("dims", {"prompt": prompt, "responses": answers[:3], "scores": marks})
        steps = [f"We add {a} and {b}.", f"{a} + {b} = {a + b + i % 2}.", f"So it is {a + b + i % 2}.", "Done."]
        add("steps", {"question": prompt, "steps": steps, "mistake_index": 1 if i % 2 else None})
        replies = [
            {"role": "assistant", "text": text, "replies": [{"role": "prompter", "text": "And now?", "replies": [
                {"role": "assistant", "text": f"{a + b + n}.", "replies": []} for n in range(2)]}]}
            for text in answers[:2]
        ]  # fmt: skip
        add("tree", {"prompt": {"role": "prompter", "text": prompt, "replies": replies}})
    return out


DROPS = (
    "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BOS = "{{ bos_token }}" + DROPS.replace(" if m.role != 'system'", "")


def prepare(folder: Path) -> dict[str, str]:
    """Write rows, templates and models; returns the models' folders by name."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM
    from transformers import PreTrainedTokenizerFast as Tokenizer

    for name, content in rows().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "drops.jinja").write_text(DROPS)
    (folder / "bos.jinja").write_text(BOS)
    embedded = ROOT / "src/espalier/embedded/model"
    models = {"embedded": str(embedded)}

    def save(name: str, model: Any, tokenizer: Any) -> None:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        models[name] = str(folder / name)

    def embedded_tokenizer(**names: str) -> Any:
        return Tokenizer.from_pretrained(embedded, **names)

    def embedded_model() -> Any:
        return AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32)

    torch.manual_seed(0)
    plain = embedded_tokenizer()
    sizes = {"vocab_size": len(plain), "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    save("gpt2", GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=512, **sizes)), plain)
    sizes |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(**sizes, sliding_window=4, initializer_range=0.5)
    save("windowed", MistralForCausalLM(config), plain)
    # The same files as the embedded model's, and other weights that may take their place.
    for name in ("start", "moved"):
        shutil.copytree(embedded, folder / name)
        models[name] = str(folder / name)
    weights = load_file(embedded / "model.safetensors")
    moved = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(moved, folder / "moved/model.safetensors", metadata={"format": "pt"})
    save("padstop", embedded_model(), embedded_tokenizer(pad_token="<|endoftext|>"))
    stopless = embedded_model()
    stopless.config.eos_token_id = stopless.generation_config.eos_token_id = None
    save("stopless", stopless, embedded_tokenizer())
    for name, token, special in (("markup", "<tool>", False), ("bos", "<|begin|>", True), ("stops", "<|end|>", True)):
        tokenizer = embedded_tokenizer()
        tokenizer.add_tokens([token], special_tokens=special)
        model = embedded_model()
        model.resize_token_embeddings(len(tokenizer))
        if name == "bos":
            tokenizer.bos_token = token
            tokenizer.add_bos_token = True
        if name == "stops":
            tokenizer.chat_template = BOS.removeprefix("{{ bos_token }}").replace("eos_token", "'<|end|>'")
        save(name, model, tokenizer)
    return models


# ---------------------------------------------------------------------------------------------------------------- runs


@contextlib.contextmanager
def copy_of(source: Path, fault: dict[str, Any] | None) -> Iterator[Path]:
    """A folder with espalier in it, the fault put in. Raises ValueError if its place is not there exactly once."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source, Path(folder) / "espalier", ignore=shutil.ignore_patterns("__pycache__"))
        if fault:
            path = Path(folder) / "espalier" / fault["file"]
            text = path.read_text()
            if text.count(fault["old"]) != 1:
                raise ValueError(f"{fault['file']} holds the place {text.count(fault['old'])} times; expected once")
            path.write_text(text.replace(fault["old"], fault["new"]))
        yield Path(folder)


def forked(arguments: list[str], code: Path, work: Path) -> tuple[int, str]:
    """Exit code and output of one command in a fork that imports espalier from `code`."""
    log = work / "log"
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.chdir(work)
            with open(log, "wb") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            sys.path.insert(0, str(code))
            from espalier.commands.main import main

            status = main(arguments)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
    began = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > LIMIT:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 124, "no end"
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def launched(arguments: list[str], code: Path, work: Path) -> tuple[int, str]:
    """Exit code and output of one command on two processes."""
    environment = {**os.environ, "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "espalier"]
    done = subprocess.run(
        [*launch, *arguments], cwd=work, env=environment, capture_output=True, text=True, timeout=2 * LIMIT
    )
    return done.returncode, done.stdout + done.stderr


def outcome(setting: str, code: Path, base: Path, models: dict[str, str]) -> tuple[str, str]:
    """What came of a setting: `silent`, `crash` or the name of the check that stopped it; and the last line."""
    # Checks in the loop say where they stopped, and their name in the way out.
    from_names = re.compile(r"^(?:\[rank0\]: )?error: (?:step \d+: .*--skip-checks (?=\w+ )|(?=\w+:))(\w+)", re.M)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for path in base.iterdir():
            if path.is_file():
                shutil.copy(path, work)
        for line in SETTINGS[setting]:
            words = ["" if word == "''" else word for word in line.format(**models).split()]
            if words[0] == "copy":
                shutil.copy(*words[1:])
                continue
            run = launched if setting == "ranks" else forked
            status, output = run(words, code, work)
            if status:
                names = from_names.findall(output)
                last = output.strip().splitlines()[-1:] or [""]
                return (names[-1] if names and "Traceback" not in output else "crash"), last[0][:200]
    return "silent", ""


def main(words: list[str]) -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1", "COLUMNS": "300"}
    healthy_only = "--healthy" in words
    words = [word for word in words if word != "--healthy"]
    faults = tomllib.loads((ROOT / "scripts/faults.toml").read_text())["fault"]
    for number, fault in enumerate(faults, 1):
        fault["number"] = number
    wanted = [
        f for f in faults if not words or any(w == str(f["number"]) or w in f["name"] + f["setting"] for w in words)
    ]
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)
    del peft, transformers
    stopped, silent, alarms = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        models = prepare(base)
        with copy_of(ROOT / "src/espalier", None) as code:
            for setting in sorted({f["setting"] for f in wanted}):
                verdict, last = outcome(setting, code, base, models)
                if verdict != "silent":
                    alarms.append(setting)
                print(
                    f"healthy  {setting:16} {'runs' if verdict == 'silent' else f'STOPPED {verdict}: {last}'}",
                    flush=True,
                )
        if healthy_only:
            return len(alarms)
        for fault in wanted:
            try:
                with copy_of(ROOT / "src/espalier", fault) as code:
                    verdict, last = outcome(fault["setting"], code, base, models)
            except ValueError as error:
                verdict, last = "not put in", str(error)
            mark = "" if fault["seen"] else " (cannot be seen)"
            print(f"{fault['number']:3} {fault['name']:36} {fault['setting']:14} {verdict}{mark}  {last}", flush=True)
            if fault["seen"]:
                caught = verdict not in ("silent", "crash", "not put in") and fault["setting"] not in alarms
                (stopped if caught else silent).append(fault["name"])
    print(f"stopped by a check: {len(stopped)} of {len(stopped) + len(silent)}; false alarms: {alarms or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
