"""What the benchmarks beside PEFT share."""

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Steps of a process that do not count.
SKIPPED = 2


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


def spread(values):
    """The median of ratios, and the least and the largest in brackets."""
    values = list(values)
    return f"{middle(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def our_step(folder, threads, number):
    """The median time of a step of `step.delta` in the folder, and the peak memory of the run."""
    out = folder / f"run{number}"
    _, memory = measured([ROOT / "target/release/deltarun", folder / "step.delta", "--out", out,
                          "--threads", threads, "--quiet"])
    lines = (out / "log.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if '"lr"' in line]
    shutil.rmtree(out)
    return statistics.median(seconds[SKIPPED:]), memory


def torch_steps(model, batches):
    """The time of each step of AdamW on what requires gradients."""
    import torch
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.0)
    seconds = []
    for inputs, labels in batches:
        start = time.perf_counter()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return seconds
