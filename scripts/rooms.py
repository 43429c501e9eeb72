"""The rooms of a package, in figures: how many, on how many floors, with how many arrows, and what goes in circles.

    python scripts/rooms.py [PACKAGE_FOLDER ...]        # src/espalier, unless named; other trees to compare with

A room is a file or a folder at the top of the package. An arrow leads from a room to one that it imports, at the top of
a file, later or for type checking. A room stands one floor above the highest that it imports. A circle is a set of
files that import each other, directly or around others; rooms in a circle stand on one floor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

Arrows = dict[str, set[str]]


def file_arrows(folder: Path) -> Arrows:
    """The modules that each module of a package imports."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        names[".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")] = path
    arrows: Arrows = {}
    for name, path in names.items():
        arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` names a module, `from module import name` does not.
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    targets.append(full if full in names else node.module)
            arrows[name].update(target for target in targets if target in names and target != name)
    return arrows


def circles(arrows: Arrows) -> list[set[str]]:
    """The sets of nodes that reach each other, of two and more."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(arrows[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += arrows[node]
        return seen

    reached = {node: reach(node) for node in arrows}
    groups: list[set[str]] = []
    for node in arrows:
        if node in reached[node] and not any(node in circle for circle in groups):
            groups.append({other for other in reached[node] if node in reached[other]})
    return groups


def floors(arrows: Arrows, together: Iterable[set[str]]) -> int:
    """The length of the longest way down, those that stand together counted once."""
    leader = {node: min(circle) for circle in together for node in circle}
    down: Arrows = {}
    for node, targets in arrows.items():
        own = leader.get(node, node)
        down.setdefault(own, set()).update(leader.get(target, target) for target in targets)
        down[own].discard(own)
    height: dict[str, int] = {}

    def climb(node: str) -> int:
        if node not in height:
            height[node] = 1 + max((climb(target) for target in down[node]), default=0)
        return height[node]

    return max(map(climb, down))


def report(folder: Path) -> str:
    """The figures of a package, one per line."""
    arrows = file_arrows(folder)
    package = folder.name

    def room(module: str) -> str:
        return module.removeprefix(package).lstrip(".").split(".")[0]

    between: Arrows = {}
    for module, targets in arrows.items():
        between.setdefault(room(module), set()).update(room(target) for target in targets)
    for name, targets in between.items():
        targets.discard(name)
    between.pop("", None)  # the package itself
    for targets in between.values():
        targets.discard("")
    room_circles = circles(between)
    files = [name for name in between if (folder / f"{name}.py").exists()]
    lines = [
        f"{folder}",
        f"  rooms                 {len(between)}, of which files {len(files)}",
        f"  floors                {floors(between, room_circles)}",
        f"  arrows between rooms  {sum(map(len, between.values()))}",
        f"  circles of rooms      {len(room_circles)}",
        f"  circles of files      {len(circles(arrows))}",
    ]
    lines += [f"    {', '.join(sorted(circle))}" for circle in circles(arrows)]
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:] or [str(Path(__file__).resolve().parents[1] / "src" / "espalier")]:
        print(report(Path(argument)))
