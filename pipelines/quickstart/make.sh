#!/bin/sh
# Makes everything in this folder anew: the data, the tokenizer, and the pre-trained tiny BERT. The
# result has the same bits every time on the same machine.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo run --release --example make_quickstart
cargo run --release -- pipelines/quickstart/pretrain.delta --out "$work/pretrain"
cargo run --release -- merge "$work/pretrain" "$work/backbone"
rm -rf pipelines/quickstart/backbone
mv "$work/backbone" pipelines/quickstart/backbone
