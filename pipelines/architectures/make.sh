#!/bin/sh
# Makes the tiny Llama and the tiny T5 of `pipelines/architectures.delta` anew, with the quickstart's text and
# tokenizer. The result has the same bits every time on the same machine.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo run --release --example make_quickstart
for model in llama t5; do
    cargo run --release -- "pipelines/architectures/pretrain_$model.delta" --out "$work/pretrain_$model"
    cargo run --release -- merge "$work/pretrain_$model" "$work/$model"
    rm -rf "pipelines/architectures/$model"
    mv "$work/$model" "pipelines/architectures/$model"
done
