#!/usr/bin/env bash
# PEFT 0.21.2: HRA with `apply_GS=True` begins as a random model, or as NaN. Half of its reflections are rounding errors.
#
# HRA multiplies a weight by `r` reflections. With `init_weights=True`, the default, PEFT stores every vector twice, since
# a reflection done twice is the identity: the tuned model begins as the base model. With `apply_GS=True` the vectors are
# made orthogonal before use. The second of two equal vectors then has nothing left but rounding errors, and these are
# divided by their norm. So a reflection about noise takes the place of the one that should cancel the first. The logits
# are off by whole units before any training, by other amounts in other dtypes, and all NaN where the difference is
# exactly zero (always in float64 here, now and then in float32). The gradient of the stored vectors is some ten million
# times that of HRA without the option, since a change of 1e-8 turns the noise around.
#
# Affected: whoever sets `apply_GS=True`, one of the two variants of HRA in its paper, and keeps the other defaults. The
# configuration asks for an even `r`, so that "the default initialization method" works, and names no conflict. Nothing
# warns. Since 0.12, which brought the method. Expected: the base model, or an error. `init_weights=False` avoids NaN.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import warnings

import peft
import torch
import transformers
from peft import HRAConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7], [1, 2, 3, 4, 5, 6]])


def base(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)).to(dtype).eval()


def begin(dtype, orthogonal):
    """How far an untrained adapter is off the base model, its loss and its largest gradient."""
    bare = base(dtype)
    with torch.no_grad():
        want = bare(input_ids=ids).logits
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(bare, HRAConfig(
            task_type="CAUSAL_LM", r=8, apply_GS=orthogonal, target_modules=["q_proj", "v_proj", "down_proj"])).eval()
    got = model(input_ids=ids, labels=ids)
    got.loss.backward()
    gradient = max(weight.grad.abs().max().item() for weight in model.parameters() if weight.grad is not None)
    return (got.logits - want).abs().max().item(), got.loss.item(), gradient, len(told)


for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for orthogonal in (False, True):
        off, loss, gradient, told = begin(dtype, orthogonal)
        print(f"{dtype}, apply_GS={orthogonal}: off the base model by {off:.2g}, loss {loss:.2f}, "
              f"largest gradient {gradient:.2g}, {told} warnings")
        if orthogonal:
            assert not off < 1, "changed"  # NaN is not less either
            assert not gradient < 1e4, "changed"
        else:
            assert off < 0.2 and gradient < 100, "changed"
print("still so: the default vectors and Gram-Schmidt do not go together")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py"
