"""What the machine has to spare."""

from __future__ import annotations

import os


def free_memory() -> float:
    """Bytes of main memory that can be had without pushing anything out."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:  # no Linux
        pass
    return total_memory() / 2


def total_memory() -> float:
    """Bytes of main memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
