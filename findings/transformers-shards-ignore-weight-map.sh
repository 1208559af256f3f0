#!/usr/bin/env bash
# transformers 5.24.0: when two shards of a model hold a tensor of the same name, `from_pretrained` takes the
# value of the shard whose file name sorts last, whatever `weight_map` in `model.safetensors.index.json` says.
#
# The index gives one file per tensor name. transformers uses it only to list the files, then reads every tensor
# of each; a later one overwrites an earlier one. No warning. Stale copies are valid and occur: a checkpoint
# whose index points some names to an added overlay file, shards that were reused from another checkpoint, or a
# single tensor that was patched by adding a file. Renaming the files changes the loaded model.
#
# Affected: users of such checkpoints. Readers that look each name up in the index (vLLM has an open pull request
# to do so) get other weights from the same files. Expected: the copy that the index names, or an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 safetensors==0.8.0
cat > "$dir/check.py" <<'EOF'
import json
import os
import sys
import warnings

warnings.filterwarnings("ignore")
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "safetensors", safetensors.__version__)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32))
tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
TWICE = "model.norm.weight"


def loaded(number, first, second, named):
    """The value of the tensor that `first` holds as 1 and `second` as 2, where the index names `named`."""
    folder = f"{sys.argv[1]}/{number}"
    model.config.save_pretrained(folder)
    half = len(tensors) // 2
    parts = {first: dict(list(tensors.items())[:half]), second: dict(list(tensors.items())[half:])}
    weight_map = {name: file for file, part in parts.items() for name in part}
    weight_map[TWICE] = named
    for value, (file, part) in enumerate(parts.items(), 1):
        part[TWICE] = torch.full_like(tensors[TWICE], value)
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
    size = sum(tensor.numel() * 4 for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    json.dump(index, open(os.path.join(folder, "model.safetensors.index.json"), "w"))
    value = int(LlamaForCausalLM.from_pretrained(folder).model.norm.weight[0])
    got = [first, second][value - 1]
    print(f"the index names {named}; the value comes from {got}")
    return got


a, b, overlay = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "added.safetensors"
assert loaded(0, a, b, b) == b
assert loaded(1, a, b, a) == b, "changed"
assert loaded(2, a, overlay, overlay) == a, "changed"
print("still so: the file that sorts last wins over the index")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
