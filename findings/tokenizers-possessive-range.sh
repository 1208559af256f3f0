#!/usr/bin/env bash
# tiktoken's pattern of cl100k_base (GPT-4) holds `\p{N}{1,3}+`: one to three digits, possessive. Hugging Face
# tokenizers reads regular expressions with Oniguruma in Ruby syntax, where a `+` behind a range is no
# possessive mark but repeats the group. So the same pattern takes a number of any length as one piece.
# - transformers' `convert_tiktoken_to_fast` copies the pattern into a `tokenizer.json` as it is. For text with
#   numbers of four digits or more, the converted tokenizer gives other tokens than the encoding it came from.
# - The same `tokenizer.json` gives other tokens in the Rust crate with its feature `fancy-regex` (as in builds
#   without a C compiler or for wasm) than with its default `onig`. fancy-regex agrees with tiktoken.
# No warning in either. `?+`, `++` and `*+` are possessive in both, so all other parts of the pattern agree.
#
# Affected: tokenizers 0.23 (Python 0.23.3, crate 0.23.2) and transformers 5.24.0 with tiktoken since 0.8, which
# wrote the pattern in that form; whoever copies it. Expected: the tokens of tiktoken, which the converter's docstring
# promises, or a refusal; `\p{N}{1,3}` without `+` means the same to all.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 tiktoken==0.14.0 blobfile==3.3.0
cat > "$dir/check.py" <<'EOF'
import sys
from importlib.metadata import version
from pathlib import Path

import tiktoken
import tiktoken_ext.openai_public as public
from tokenizers import Tokenizer
from transformers.integrations.tiktoken import convert_tiktoken_to_fast

print({name: version(name) for name in ("tiktoken", "tokenizers", "transformers")})
# The pattern as tiktoken has it; the vocabulary is our own, since the real one is a download.
line = next(line for line in Path(public.__file__).read_text().splitlines() if r"\p{N}{1,3}+" in line)
pattern = line.split('"""')[1]
print("pattern of cl100k_base:", pattern)
ranks = {bytes([byte]): byte for byte in range(256)}
for number in ("12", "123", "1234", "12345", "123456"):
    ranks[number.encode()] = len(ranks)
texts = ["123", "a 12 b", "123456 apples"]
for name, pattern in (("own", pattern), ("plain", pattern.replace("{1,3}+", "{1,3}"))):
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    convert_tiktoken_to_fast(encoding, f"{sys.argv[1]}/{name}")
    fast = Tokenizer.from_file(f"{sys.argv[1]}/{name}/tokenizer.json")
    for text in texts:
        want = [encoding.decode([token]) for token in encoding.encode(text)]
        got = [fast.decode([token]) for token in fast.encode(text, add_special_tokens=False).ids]
        print(f"{name:5} {text!r}: tiktoken {want}, converted {got}")
        assert (want == got) == (name == "plain" or text != "123456 apples"), "changed"
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"

mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'EOF'
[package]
name = "possessive"
version = "0.0.0"
edition = "2021"
[features]
onig = ["tokenizers/onig"]
fancy-regex = ["tokenizers/fancy-regex"]
[dependencies]
tokenizers = { version = "=0.23.2", default-features = false }
EOF
cat > "$dir/src/main.rs" <<'EOF'
fn main() {
    let path = std::env::args().nth(1).expect("a path");
    let tokenizer = tokenizers::Tokenizer::from_file(path).expect("a tokenizer");
    let encoding = tokenizer.encode("123456", false).expect("an encoding");
    println!("{}", encoding.get_tokens().join(" "));
}
EOF
export CARGO_TARGET_DIR="$dir/target"
for feature in onig fancy-regex; do
    tokens=$(cd "$dir" && cargo run -q --features "$feature" -- "$dir/own/tokenizer.json")
    echo "tokenizers crate 0.23.2 with $feature: 123456 -> $tokens"
    case $feature in
        onig) [ "$tokens" = "123456" ] ;;
        fancy-regex) [ "$tokens" = "123 4 5 6" ] ;;
    esac || { echo "changed"; exit 1; }
done
echo "still so: one pattern, two meanings"
