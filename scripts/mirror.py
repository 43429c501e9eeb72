"""How code reads, in figures: a mirror, not a limit.

    python scripts/mirror.py [FOLDER ...]        # src/espalier, unless named; other trees to compare with

Counts are of the syntax tree. Code lines are not blank, no comment and no docstring. Per 1,000 code lines: conditional
expressions, comprehensions (generator expressions too), walruses. In percent: whole-line comments and lines over 100
columns, of code lines and comments together; names of one letter, of all names that are bound (parameters, targets of
assignments, loops, with, except and comprehensions), each place counted. Then functions over 60 lines, docstring
included, and `fmt: skip`.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONG_FUNCTION, WIDE = 60, 100


def docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of docstrings, and of the texts under fields that serve as their help."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        for child in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def bound_names(node: ast.AST) -> list[str]:
    """The names that a node of the tree binds by itself."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.ExceptHandler) and node.name:
        return [node.name]
    return []


def counts(text: str) -> Counter[str]:
    """The counts of one file."""
    tree = ast.parse(text)
    documented = docstring_lines(tree)
    found: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or number in documented:
            continue
        found["comments" if stripped.startswith("#") else "code"] += 1
        found["wide"] += len(line) > WIDE
        found["fmt: skip"] += "# fmt: skip" in line
    for node in ast.walk(tree):
        found["conditional"] += isinstance(node, ast.IfExp)
        found["comprehension"] += isinstance(node, COMPREHENSIONS)
        found["walrus"] += isinstance(node, ast.NamedExpr)
        for name in bound_names(node):
            found["names"] += 1
            found["one letter"] += len(name) == 1 and name != "_"
        if isinstance(node, FUNCTIONS):
            found["long functions"] += (node.end_lineno or node.lineno) - node.lineno + 1 > LONG_FUNCTION
    return found


def report(folder: Path) -> str:
    """The figures of all files below a folder, in one line each."""
    total: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.py")):
        total += counts(path.read_text(encoding="utf-8"))
    code, lines = max(1, total["code"]), max(1, total["code"] + total["comments"])
    rows = [
        ("code lines", f"{total['code']:,}"),
        ("conditional expressions", f"{1000 * total['conditional'] / code:.1f} per 1,000"),
        ("comprehensions", f"{1000 * total['comprehension'] / code:.1f} per 1,000"),
        ("walruses", f"{1000 * total['walrus'] / code:.1f} per 1,000"),
        ("whole-line comments", f"{100 * total['comments'] / lines:.1f} %"),
        (f"lines over {WIDE} columns", f"{100 * total['wide'] / lines:.1f} %"),
        ("names of one letter", f"{100 * total['one letter'] / max(1, total['names']):.1f} %"),
        (f"functions over {LONG_FUNCTION} lines", str(total["long functions"])),
        ("fmt: skip", str(total["fmt: skip"])),
    ]
    return "\n".join([str(folder), *(f"  {name:26} {value}" for name, value in rows)])


if __name__ == "__main__":
    for folder in sys.argv[1:] or [str(Path(__file__).resolve().parents[1] / "src" / "espalier")]:
        print(report(Path(folder)))
