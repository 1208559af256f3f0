#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0: `initialize_kv_prefix_from_text` begins a prefix as the keys and values of a text's
# first tokens. On a model whose blocks attend within a window (Mistral 0.1, Gemma 2 and 3, Qwen with windows), a text that
# is longer than the window gives the blocks with a window the keys and values of later tokens, without a word: their cache
# has dropped the first ones. In a Gemma 3, which mixes both kinds of blocks, one row of the prefix then stands for one token
# in some blocks and for another token in the others.
#
# Whoever begins a prefix from a long text should pass only as many tokens as the prefix has rows.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import copy

import peft
import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_text
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

print("transformers", transformers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
WINDOW, ROWS = 6, 3
model = Gemma3ForCausalLM(Gemma3TextConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2,
    max_position_embeddings=64, initializer_range=0.2)).eval()


def tokenizer(ids):
    """A tokenizer for which every text has these tokens."""
    return lambda *_, **__: {"input_ids": torch.tensor([ids])}


def prefix(ids):
    """The keys of each block's prefix, begun from a text of these tokens."""
    tuned = get_peft_model(copy.deepcopy(model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=ROWS))
    rows = initialize_kv_prefix_from_text(tuned, tokenizer(ids), text="any", use_chat_template=False)
    keys = rows.view(ROWS, 4, 2, 16)[:, :, 0]  # rows, blocks, columns
    return keys


text = [5, 9, 33, 12, 40, 7, 22, 31, 18, 50]
first = prefix(text[:ROWS])
for length in (WINDOW - 1, len(text)):
    found = prefix(text[:length])
    off = {f"block {block}, {kind.split('_')[0]}": round((found[:, block] - first[:, block]).abs().max().item(), 4)
           for block, kind in enumerate(model.config.layer_types)}
    print(f"a text of {length} tokens, a window of {WINDOW}: keys are off those of the first {ROWS} tokens by", off)
    for kind, value in off.items():
        is_wrong = length > WINDOW and "sliding" in kind
        assert (value > 0.1) == is_wrong, "PEFT's prefixes changed"
EOF2
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
