"""Two binaries of deltarun by turns on the same pipelines: time and peak memory of whole runs.

    python benches/alternate.py BEFORE AFTER PIPELINE... [--pairs 7]

Prints the medians, the median time of BEFORE by that of AFTER (above 1: AFTER is faster), the median peak of AFTER by that of
BEFORE, and whether both left the same bits. Runs are left in a temporary folder, which is removed.
"""

import argparse
import hashlib
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("before")
parser.add_argument("after")
parser.add_argument("pipelines", nargs="+")
parser.add_argument("--pairs", type=int, default=7)
options = parser.parse_args()


def run(binary, pipeline):
    """Seconds, peak in MB and the hash of the delta."""
    with tempfile.TemporaryDirectory() as place:
        out = pathlib.Path(place) / "run"
        start = time.perf_counter()
        process = subprocess.Popen([binary, pipeline, "--quiet", "--out", out], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        assert status == 0, f"{binary} {pipeline} failed"
        delta = (out / "delta.safetensors").read_bytes()
        return seconds, usage.ru_maxrss / 1024, hashlib.sha256(delta).hexdigest()


for pipeline in options.pipelines:
    found = {"before": [], "after": []}
    for pair in range(options.pairs):
        order = ["before", "after"] if pair % 2 else ["after", "before"]
        for name in order:
            found[name].append(run(getattr(options, name), pipeline))
    seconds = {name: statistics.median(row[0] for row in rows) for name, rows in found.items()}
    peaks = {name: statistics.median(row[1] for row in rows) for name, rows in found.items()}
    bits = {row[2] for rows in found.values() for row in rows}
    print(f"{pipeline}: {seconds['before']:.2f} s and {seconds['after']:.2f} s, ratio {seconds['before'] / seconds['after']:.3f}; "
          f"{peaks['before']:.0f} MB and {peaks['after']:.0f} MB, ratio {peaks['after'] / peaks['before']:.3f}; "
          f"{'the same bits' if len(bits) == 1 else 'other bits'}")
