"""What this installation and machine can do: versions against requirements, threads, CUDA, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

Verdict = Literal["ok", "note", "fault"]


GIB = 2**30
LOW_DISK = 5 * GIB
STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. A `fault` keeps runs from working; a `note` names what is absent or slow."""

    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""


def packages(requirements: list[str]) -> list[Finding]:
    """Each requirement against what is installed; a missing package of an extra is a note.

    >>> packages(["surely-not-installed>=1"])[0].verdict
    'fault'
    """
    findings = []
    for text in requirements:
        requirement = Requirement(text)
        extra = _extra(requirement)
        # Tools for working on espalier itself; no run needs them.
        if extra != "dev":
            findings.append(_package(requirement, extra))
    return findings


def _extra(requirement: Requirement) -> str:
    """The extra of espalier that a requirement belongs to, empty if it is always required."""
    extras = metadata.metadata("espalier").get_all("Provides-Extra") or []
    named = [extra for extra in extras if f'"{extra}"' in str(requirement.marker)]
    return min(named, default="")


def _package(requirement: Requirement, extra: str) -> Finding:
    name, specifier = requirement.name, requirement.specifier
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra:
            return Finding(name, "absent", "note", f"pip install 'espalier[{extra}]'")
        return Finding(name, "absent", "fault", f"pip install '{requirement}'")
    if specifier.contains(version, prereleases=True):
        return Finding(name, version)
    return Finding(name, version, "fault", f"expected {specifier}; pip install '{name}{specifier}'")


def machine(folder: Path) -> list[Finding]:
    """Cores, memory and the disk space under `folder`, where runs are written."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [Finding("python", system), Finding("cores", str(_cores()))]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        findings.append(Finding("memory", f"{size / GIB:.1f} GiB"))
    findings.append(_disk(shutil.disk_usage(folder).free))
    return findings


def _cores() -> int:
    """The cores that this process may use; not every system can restrict them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _disk(free: int) -> Finding:
    value = f"{free / GIB:.1f} GiB"
    if free >= LOW_DISK:
        return Finding("disk free here", value)
    advice = "a checkpoint needs three times the weights in float32, and two checkpoints are kept"
    return Finding("disk free here", value, "note", advice)


def accelerator() -> list[Finding]:
    """What torch sees: threads, CUDA devices, and whether bfloat16 is computed in hardware."""
    import torch

    threads = str(torch.get_num_threads())
    if os.environ.get("OMP_NUM_THREADS"):
        threads += " (OMP_NUM_THREADS)"
    findings = [Finding("torch threads", threads)]
    if not torch.cuda.is_available():
        reason = "this torch is built for the CPU"
        if torch.version.cuda:
            reason = f"torch is built for CUDA {torch.version.cuda}, but no device answers"
        findings.append(Finding("CUDA", "none", "note", reason))
    for index in range(torch.cuda.device_count()):
        findings.append(_device(index, torch.cuda.get_device_properties(index)))
    # A private function of torch, and the only one that says it: absent in some versions.
    amx = hasattr(torch.cpu, "_is_amx_tile_supported") and torch.cpu._is_amx_tile_supported()
    if amx:
        findings.append(Finding("CPU bfloat16", "AMX"))
    else:
        advice = "float32 is the default on a CPU because bfloat16 is slower without AMX"
        findings.append(Finding("CPU bfloat16", "no AMX", "note", advice))
    return findings


def _device(index: int, device: Any) -> Finding:
    """A CUDA device; from compute capability 8 on bfloat16 is computed in hardware."""
    memory = f"{device.total_memory / GIB:.0f} GiB"
    value = f"{device.name}, {memory}, capability {device.major}.{device.minor}"
    if device.major >= 8:
        return Finding(f"CUDA {index}", value)
    return Finding(f"CUDA {index}", value, "note", "no bfloat16 in hardware; use --dtype float32")


def run() -> int:
    """Print the findings. Returns 1 if one is a fault, else 0."""
    from rich.table import Table
    from rich.text import Text

    from espalier.loop.terminal import Terminal

    findings = packages(metadata.requires("espalier") or [])
    # Without torch there is nothing to ask about devices.
    usable = not any(finding.name == "torch" and finding.verdict == "fault" for finding in findings)
    findings = machine(Path.cwd()) + findings
    if usable:
        findings += accelerator()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in findings:
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        table.add_row(verdict, finding.name, Text(finding.value), Text(finding.advice, style="dim"))
    Terminal(highlight=False).print(table)
    return 1 if any(finding.verdict == "fault" for finding in findings) else 0
