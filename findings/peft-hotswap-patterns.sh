#!/usr/bin/env bash
# PEFT 0.21.2: `hotswap_adapter` ignores `alpha_pattern` and `rank_pattern`. Swapping an adapter for itself changes the model.
#
# A pattern gives some modules another alpha or rank, so another scale alpha / r. When swapping, PEFT works the scale out anew
# and looks the patterns up by the tensor's name, "….q_proj.lora_A.default.weight". A pattern has to match the end of the
# module's name, "….q_proj", so it never does, and every module gets `lora_alpha / r`. The weights themselves are
# swapped rightly. Loading the same adapter in the usual way gives the right scales.
#
# The check before the swap asks that both adapters have the same `alpha_pattern` and raises ValueError otherwise, so the
# case is taken for supported. Nothing warns. Affected: servers that swap adapters in place whose ranks or alphas differ by
# module, as those that `save_as_lora` writes with a share of the singular values as its rank. Expected: the scales of
# `PeftModel.from_pretrained`, or an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import sys
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7]])


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def scales(model):
    attention = model.base_model.model.model.layers[0].self_attn
    return {name: getattr(attention, name).scaling["default"] for name in ("q_proj", "v_proj")}


cases = {
    "no pattern": {},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 32}},
    "rank_pattern": {"rank_pattern": {"q_proj": 1}},
    "both, full names": {"rank_pattern": {"layers.0.self_attn.q_proj": 2},
                         "alpha_pattern": {"layers.0.self_attn.q_proj": 32}},
}
for case, patterns in cases.items():
    paths = []
    for seed in (1, 2):
        model = get_peft_model(base(), LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **patterns))
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight += 0.1 * torch.randn_like(weight)
        paths.append(f"{sys.argv[1]}/{case}_{seed}")
        model.save_pretrained(paths[-1])
    found = {}
    for what, path in {"itself": paths[0], "another": paths[1]}.items():
        want = PeftModel.from_pretrained(base(), path)
        model = PeftModel.from_pretrained(base(), paths[0])
        hotswap_adapter(model, path, adapter_name="default")
        found[what] = (logits(model) - logits(want)).abs().max().item()
    print(f"{case}: scales {scales(want)}, after swapping {scales(model)}; off by",
          {what: float(f"{value:.2g}") for what, value in found.items()})
    if case == "no pattern":
        assert max(found.values()) < 1e-5
    else:
        assert min(found.values()) > 0.1 and scales(model) == {"q_proj": 2.0, "v_proj": 2.0}, "changed"
print("still so: hotswapping ignores patterns")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
