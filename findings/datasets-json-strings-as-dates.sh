#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset("json")` turns JSON strings that look like dates into timestamps, block by block
# of 10 MB, so a row's text depends on the rows around it.
#
# pyarrow's JSON reader takes a column for timestamps if every string of the block is an ISO 8601 date, and
# datasets keeps its guess.
# - All rows dates: the column is `timestamp[s]` and rows are `datetime`, not the text. "2024-01-01" and
#   "2024-01-01 00:00:00" become the same value; a zone is converted to UTC and dropped. `to_json` then writes a
#   number, so writing and reading strings twice gives integers. `from_list` of the same rows gives strings.
# - The first block has another string, a later block only dates: the column is a string, but its dates read
#   "2024-01-04 00:00:00" where the file says "2024-01-04". No error or warning.
# - The first block only dates, a later one another string: loading fails. The order of rows decides.
# - `features=` with `Value("string")` does not help: the dates are read first and then written as strings, in
#   another form than the file's.
#
# Affected: text or labels that are dates (extraction, normalisation, chat answers: `messages[].content` too),
# sorted by answer or in small splits. Expected: a JSON string is a string, as the CSV loader leaves such a text,
# at least where the caller's features say so.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cat > "$dir/check.py" <<'EOF'
import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
from datasets import Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

print({name: version(name) for name in ("datasets", "pyarrow")})
datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)
folder = Path(sys.argv[1])


def load(name, rows, **more):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / f"{name}_cache"), **more)


day = datetime.datetime(2024, 1, 4)
few = [{"text": "2024-01-04"}, {"text": "2024-01-04 00:00:00"}]
got = load("few", few)
print("only dates:", got.features["text"], got["text"][:])
assert got["text"][:] == [day, day], "changed"
got.to_json(str(folder / "again.jsonl"))
print("written again:", (folder / "again.jsonl").read_text().split())
assert '"2024' not in (folder / "again.jsonl").read_text(), "changed"
assert Dataset.from_list(few)["text"][:] == [row["text"] for row in few]

chat = load("chat", [{"messages": [{"role": "assistant", "content": "2024-01-04"}]}])
print("chat:", chat[0])
assert chat[0]["messages"][0]["content"] == day, "changed"

many = [{"text": "2024-01-04"}] * 500_000  # more than one block of 10 MB
got = load("word_first", [{"text": "hello"}] + many)
print("a word first:", got.features["text"], got[1], "…", got[-1])
assert got[1]["text"] == "2024-01-04" and got[-1]["text"] == "2024-01-04 00:00:00", "changed"
try:
    load("word_last", many + [{"text": "hello"}])
    raise SystemExit("changed")
except DatasetGenerationError as error:
    print("a word last:", error.__cause__)

got = load("told", few, features=Features({"text": Value("string")}))
print("told that it is a string:", got["text"][:])
assert got["text"][:] == ["2024-01-04 00:00:00"] * 2, "changed"
csv = folder / "few.csv"
csv.write_text("text\n2024-01-04\n2024-01-04 00:00:00\n")
got = load_dataset("csv", data_files=str(csv), split="train", cache_dir=str(folder / "csv_cache"))
print("the same in CSV:", got["text"][:])
assert got["text"][:] == [row["text"] for row in few]
print("still so: strings are read as dates")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
