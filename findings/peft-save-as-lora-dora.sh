#!/usr/bin/env bash
# PEFT 0.21.2: `save_as_lora` and `convert_to_lora` take a DoRA adapter and leave its magnitudes out. The result
# is another model, at any rank, and nothing says so.
#
# The functions promise an approximation that gets better with the rank, and raise TypeError for kinds whose
# update is not a delta of the weight (HiRA, KaSA, SHiRA say so in `supports_lora_conversion`). A DoRA layer
# answers True, and its `get_delta_weight` gives B·A alone; DoRA's update also rescales every row of the base
# weight. DoRA's full update is a delta too (merging computes it), so it could be converted. The only warning
# is that an adapter that is already LoRA needs no conversion, which holds for plain LoRA.
#
# Affected: whoever converts DoRA for a server without DoRA, the reason for which the docs offer the function.
# Since 0.19, which brought the function. Expected: TypeError, or the right delta.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF'
import sys
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, save_as_lora
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
tokens = torch.arange(2, 12)[None]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model(tokens).logits


share = {}
for name, dora in (("lora", False), ("dora", True)):
    config = LoraConfig(r=2, lora_alpha=2, use_dora=dora, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base(), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    want = logits(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_as_lora(f"{sys.argv[1]}/{name}", model, rank=16)  # the full rank of these weights
    print(name, "warnings:", [str(w.message) for w in caught])
    got = logits(PeftModel.from_pretrained(base(), f"{sys.argv[1]}/{name}").eval())
    merged = logits(model.merge_and_unload())
    share[name] = ((got - want).norm() / (want - logits(base())).norm()).item()
    print(f"{name}: error of the converted adapter beside what the adapter changes: {share[name]:.1e}; "
          f"largest error of merge_and_unload: {(merged - want).abs().max():.1e}")
    assert (merged - want).abs().max() < 1e-4
assert share["lora"] < 1e-4 and share["dora"] > 0.1, "changed"
print("still so: DoRA is converted without its magnitudes")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
