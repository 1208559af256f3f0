"""What the benchmarks beside PEFT share."""

import os
import pathlib
import resource
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def measured(command):
    """What a child process prints, and its peak memory in MB.

    A child's peak begins with what its parent has when it starts it: that is to be less than the child's own.
    """
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    assert usage.ru_maxrss > parent, f"{command}: the peak of {usage.ru_maxrss} KB may be its parent's"
    return out, usage.ru_maxrss / 1024


def middle(values):
    return statistics.median(list(values))
