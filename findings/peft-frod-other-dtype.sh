#!/usr/bin/env bash
# PEFT 0.21.2: a FRoD adapter is another model when its base is loaded in another dtype. Trained on a base in float32
# and loaded on the same base in bfloat16 or float16, the logits are off by whole units. LoRA's are off by rounding.
#
# FRoD writes an adapted weight as U (S + L) Vᵀ. V is one basis for all blocks, from a decomposition of the base
# weights; U and L then follow from V and a block's weight. The file holds V, S and L but not U. On loading, PEFT first
# decomposes the base at hand and computes U from that new V; then it puts the stored V into the model and leaves U
# alone. The eigenvectors of the decomposition lie close together and turn, swap or change sign under rounding, so U
# belongs to one basis and V to another. Even an adapter that was never trained, the identity, then changes the model.
#
# Affected: training in float32 and serving in 16 bits, which is usual for BERT and small models, or the other way
# round. Nothing warns: all tensors of the file are found and loaded. The documentation says that `save_projection=True`,
# the default, is there "to make checkpoint loading independent of regeneration details". Since 0.20, which brought
# the method. Expected: U from the V of the file, which gives the right model, as the last part shows.
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
from peft import FrodConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.frod.layer import FrodLayer
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7]])
TARGETS = ["q_proj", "v_proj"]


def base(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)).to(dtype).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def off(a, b):
    return (a - b).abs().max().item()


configs = {
    "FRoD": lambda: FrodConfig(task_type="CAUSAL_LM", target_modules=TARGETS, progressbar=False),
    "LoRA": lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=4),
}
for kind, make in configs.items():
    for trained in (False, True):
        model = get_peft_model(base(torch.float32), make()).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad and trained:
                    weight += 0.01 * torch.randn_like(weight)
        want = logits(model)
        folder = f"{sys.argv[1]}/{kind}_{trained}"
        model.save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            loaded = PeftModel.from_pretrained(base(dtype), folder).eval()
            found = off(logits(loaded), want)
            rounding = off(logits(base(dtype)), logits(base(torch.float32)))
            print(f"{kind}, {'trained' if trained else 'untrained'}, base in {dtype}: off by {found:.3f}"
                  f" (the bare model in that dtype: {rounding:.3f})")
            if kind == "LoRA" or dtype == torch.float32:
                assert found < 0.2, "changed"
            else:
                assert found > 1, "changed"
            if kind == "FRoD" and dtype != torch.float32:
                for layer in loaded.modules():
                    if isinstance(layer, FrodLayer):
                        basis = layer.frod_V["default"]
                        layer.frod_U["default"] = layer._calculate_frod_u_and_lambda(basis, layer.weight)[0].to(dtype)
                print(f"    with U from the V of the file: {off(logits(loaded), want):.3f}")
                assert off(logits(loaded), want) < 0.3
print("still so: FRoD's file fits the dtype that it was trained with only")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
