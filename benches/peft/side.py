"""What the benchmarks beside PEFT share."""

import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def measured(command):
    """What a child process prints, and its peak memory in MB."""
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    return out, usage.ru_maxrss / 1024


def middle(values):
    return statistics.median(list(values))
