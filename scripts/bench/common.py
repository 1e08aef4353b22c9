"""What the benchmark scripts share: running programs, medians, and what the machine is."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import time


def processor():
    """The processor's name as Linux gives it, and how many of them this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        family = {key: next(line.split(":")[1].strip() for line in lines if line.startswith(key)) for key in ("model name", "cpu family")}
        name = f"{family['model name']}, family {family['cpu family']}"
    except (OSError, StopIteration):
        pass
    return name, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine():
    """Where and when a measurement was taken."""
    name, processors = processor()
    return {"processor": name, "processors": processors, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


def run_json(command, env=None):
    """What a program prints, as JSON; its messages are shown when it fails."""
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout)


def median(values):
    """The median of those that are there; none of none."""
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def spread(values):
    """Median, smallest and largest."""
    values = [value for value in values if value is not None]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": len(values)} if values else None


def write_json(path, value):
    """Saves a result, so that an interrupted run leaves what it has."""
    if path:
        part = pathlib.Path(f"{path}.part")
        part.write_text(json.dumps(value, indent=1) + "\n")
        part.replace(path)


def table(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
