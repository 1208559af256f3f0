"""The table of docs/performance.md, in one go: deltarun beside PEFT and plain transformers.

    pip install torch transformers==5.23.0 peft==0.21.2 accelerate
    cargo build --release
    python benches/peft/table.py MODEL DATA [--pairs 7]

MODEL and DATA are those of `step.py` and `epoch.py`, which make the rows. Prints Markdown: the commit and the machine, then
a row each with medians, and the least and the largest ratio in brackets.
"""

import argparse
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
STEPS = [
    ["--methods", "lora", "--shapes", "32x64", "32x128"],
    ["--methods", "lora", "--shapes", "32x64", "--dropout"],
    ["--methods", "lora", "--shapes", "32x64", "--precision", "bf16"],
    ["--methods", "full", "bitfit", "houlsby", "prefix", "--shapes", "32x64"],
    ["--methods", "lora", "--shapes", "8x128", "--base"],
]


def said(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    value = lambda key: next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "?")
    flags = value("flags").split()
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_int8") if flag in flags]
    return f"{value('model name')} (family {value('cpu family')}), {', '.join(kinds)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pairs", default="7")
    options = parser.parse_args()
    commit = said(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"])
    print(f"Commit {commit}, {processor()}, {platform.system()}, two threads on each side, {options.pairs} pairs.\n")
    runs = [[str(HERE / "step.py"), options.model, "--pairs", options.pairs, *more] for more in STEPS]
    runs.append([str(HERE / "epoch.py"), options.model, options.data, "--pairs", options.pairs, "--examples", "576"])
    for number, run in enumerate(runs):
        lines = said([sys.executable, *run]).splitlines()
        # One header for the steps, one for the epochs.
        header = 0 if number in (0, len(runs) - 1) else 2
        print("\n".join(([""] if number == len(runs) - 1 else []) + lines[header:]), flush=True)


if __name__ == "__main__":
    main()
