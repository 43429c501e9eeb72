"""What this installation and machine can do: versions against requirements, threads, CUDA, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

Verdict = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. A `fault` keeps runs from working; a `note` tells what is absent or slow."""

    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""


def packages(requirements: list[str]) -> list[Finding]:
    """Each requirement against what is installed; those of an extra are a note where missing.

    >>> packages(["surely-not-installed>=1"])[0].verdict
    'fault'
    """
    found = []
    for text in requirements:
        requirement = Requirement(text)
        extras = {
            e
            for e in metadata.metadata("espalier").get_all("Provides-Extra") or []
            if f'"{e}"' in str(requirement.marker)
        }
        extra = min(extras, default="")
        if extra == "dev":
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if extra:
                found.append(Finding(requirement.name, "absent", "note", f"pip install 'espalier[{extra}]'"))
            else:
                found.append(Finding(requirement.name, "absent", "fault", f"pip install '{requirement}'"))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        advice = (
            "" if fits else f"expected {requirement.specifier}; pip install '{requirement.name}{requirement.specifier}'"
        )
        found.append(Finding(requirement.name, version, "ok" if fits else "fault", advice))
    return found


def machine(folder: Path) -> list[Finding]:
    """Cores, memory and the disk space under `folder`, where runs are written."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found.append(Finding("cores", str(cores)))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found.append(Finding("memory", f"{size / 2**30:.1f} GiB"))
    free = shutil.disk_usage(folder).free
    low = free < 5 * 2**30
    advice = "a checkpoint holds the weights three times in float32, and two are kept" if low else ""
    found.append(Finding("disk free here", f"{free / 2**30:.1f} GiB", "note" if low else "ok", advice))
    return found


def accelerator() -> list[Finding]:
    """What torch sees: threads, CUDA devices and where bfloat16 is computed in hardware."""
    import torch

    threads, found = torch.get_num_threads(), []
    set_by = " (OMP_NUM_THREADS)" if os.environ.get("OMP_NUM_THREADS") else ""
    found.append(Finding("torch threads", f"{threads}{set_by}"))
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, but no device answers" if built else "this torch is built for the CPU"
        found.append(Finding("CUDA", "none", "note", why))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = device.major >= 8
        value = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}"
        advice = "" if bf16 else "no bfloat16 in hardware; use --dtype float32"
        found.append(Finding(f"CUDA {index}", value, "ok" if bf16 else "note", advice))
    amx = torch.cpu._is_amx_tile_supported() if hasattr(torch.cpu, "_is_amx_tile_supported") else False
    advice = "" if amx else "float32 is the default on a CPU because bfloat16 is slower without AMX"
    found.append(Finding("CPU bfloat16", "AMX" if amx else "no AMX", "ok" if amx else "note", advice))
    return found


def run() -> int:
    """Print the findings. Returns 1 where one is a fault."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    findings = machine(Path.cwd()) + packages(metadata.requires("espalier") or [])
    if not any(f.name == "torch" and f.verdict == "fault" for f in findings):
        findings += accelerator()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    style = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for f in findings:
        table.add_row(Text(f.verdict, style=style[f.verdict]), f.name, Text(f.value), Text(f.advice, style="dim"))
    Console(highlight=False).print(table)
    return int(any(f.verdict == "fault" for f in findings))
