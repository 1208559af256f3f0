#!/usr/bin/env bash
# PEFT 0.21.2: with two active OFT adapters the model before `merge_and_unload` and the model after it are two models. The
# order of the adapters is turned round by merging.
#
# OFT rotates the input of a weight. With adapters a and b active, `forward` first rotates by a and then by b, which is
# W·Rb·Ra. `merge` multiplies the weight by a's rotation and then by b's, which is W·Ra·Rb. Rotations do not commute, so
# the logits differ by whole units. Merging with the names in reverse gives the model before exactly. BOFT and HRA, the
# other kinds that rotate, keep their order; one active adapter is right.
#
# Affected: whoever activates two OFT adapters, in a `PeftModel` or in a mixed model (`get_peft_model(mixed=True)`, where the
# list of compatible kinds has OFT), checks the outputs and then merges. Nothing warns, and `safe_merge=True` looks for
# NaN only. Since 0.16, when `forward` began to rotate the input. Expected: one order.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import copy
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def check(config, is_mixed, active):
    """How far the merged model is off the one before, in the order of activation and in reverse."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)).eval()
    model = get_peft_model(base, config, adapter_name="a", mixed=is_mixed)
    model.add_adapter("b", config)
    for name in ("a", "b"):
        model.set_adapter(name)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.2 * torch.randn_like(weight)
    model.base_model.set_adapter(active)
    model.eval()
    want = logits(model)
    results = []
    for names in (None, active, active[::-1]):
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=True, adapter_names=names)
        results.append((logits(merged) - want).abs().max().item())
    return results


targets = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
kinds = {
    "OFT": OFTConfig(oft_block_size=8, r=0, **targets),
    "BOFT": BOFTConfig(boft_block_size=4, **targets),
    "HRA": HRAConfig(r=4, **targets),
    "LoRA": LoraConfig(r=4, **targets),
}
for kind, config in kinds.items():
    for is_mixed in ([False, True] if kind == "OFT" else [False]):
        for active in (["a", "b"], ["b", "a"], ["a"]):
            plain, same, reverse = check(config, is_mixed, active)
            print(f"{kind}{' in a mixed model' if is_mixed else ''}, active {active}: merged is off by {plain:.2g}, "
                  f"named in order {same:.2g}, named in reverse {reverse:.2g}")
            if kind == "OFT" and len(active) == 2:
                assert plain > 0.5 and same > 0.5 and reverse < 1e-3, "changed"
            else:
                assert plain < 1e-3 and same < 1e-3
print("still so: merging turns the order of OFT adapters round")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
