"""What a tree of processes uses: CPU seconds and memory. It only reads."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree has used so far."""

    #: CPU seconds, user and system.
    cpu: float
    #: Bytes of resident memory, what is shared counted in each process.
    memory: int


def usage(root: int) -> Usage:
    """The usage of *root* and everything that descends from it."""
    processes = _from_proc() if Path("/proc/self/stat").exists() else _from_ps()
    family = [root]
    for pid in family:
        family += [child for child, (parent, _, _) in processes.items() if parent == pid]
    own = [processes[pid] for pid in family if pid in processes]
    return Usage(sum(cpu for _, cpu, _ in own), sum(memory for _, _, memory in own))


def _from_proc() -> dict[int, tuple[int, float, int]]:
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        # parent, utime + stime, and those of its children that ended; rss
        cpu = sum(int(field) for field in fields[11:15]) / tick
        found[int(entry.name)] = (int(fields[1]), cpu, int(fields[21]) * page)
    return found


def _from_ps() -> dict[int, tuple[int, float, int]]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss=,time="], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        pid, parent, memory, time = line.split()
        days, _, clock = time.rpartition("-")
        seconds = int(days or 0) * 86400.0
        for power, part in enumerate(reversed(clock.split(":"))):
            seconds += float(part) * 60**power
        found[int(pid)] = (int(parent), seconds, int(memory) * 1024)
    return found
