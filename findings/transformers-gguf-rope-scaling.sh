#!/usr/bin/env bash
# transformers 5.24.0: a Llama GGUF with RoPE scaling loads without its scaling, and nothing says so.
#
# GGUF stores scaling in two ways: the keys `llama.rope.scaling.type` and `llama.rope.scaling.factor` (linear,
# YaRN), and for Llama 3.1, 3.2 and 3.3 the tensor `rope_freqs.weight` with a factor per frequency, which
# llama.cpp's converter writes. `from_pretrained(gguf_file=…)` maps `rope.freq_base` and `rope.dimension_count`
# for Llama but no key of the scaling (of the older architectures only gpt-oss is handled), and leaves the tensor
# out without listing it as unexpected. The config says rope_type "default" and the logits are those of the
# unscaled model: near for a few tokens, further off with every position.
#
# Affected: fine-tuning or evaluating Llama 3.x, or a model with linear scaling, from a GGUF file, and saving it
# again as safetensors (the wrong config is saved with it). Expected: the scaling in `rope_parameters`, or a
# warning. The docs offer the loading for further training, with the file turned into the full model in f32.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
cat > "$dir/check.py" <<'EOF'
import sys
import warnings

warnings.filterwarnings("ignore")
from importlib.metadata import version

import gguf
import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "gguf", version("gguf"))
HEADS, HEAD, HIDDEN, VOCABULARY = 2, 16, 32, 64
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
tokens = torch.arange(2, 60)[None]


def build(rope):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3, rope_parameters=rope)).eval()


def write(model, rope, path):
    """The model as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the two halves of a head
            array = array.reshape(HEADS, 2, HEAD // 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", np.ascontiguousarray(array))
    if rope["rope_type"] == "llama3":
        factors = build(PLAIN).model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
        print("rope_freqs.weight:", [round(float(f), 2) for f in factors])
        writer.add_tensor("rope_freqs.weight", factors.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model):
    with torch.no_grad():
        return model(tokens).logits


plain = logits(build(PLAIN))
for rope in (PLAIN, LINEAR, LLAMA3):
    kind = rope["rope_type"]
    model = build(rope)
    write(model, rope, f"{sys.argv[1]}/{kind}.gguf")
    loaded = LlamaForCausalLM.from_pretrained(sys.argv[1], gguf_file=f"{kind}.gguf").eval()
    right = (logits(loaded) - logits(model)).abs().max().item()
    unscaled = (logits(loaded) - plain).abs().max().item()
    print(f"{kind}: loaded with rope_parameters {loaded.config.rope_parameters}; largest difference of the logits: "
          f"{right:.1e} to the model that was written, {unscaled:.1e} to the one without scaling")
    assert unscaled < 1e-4 and (right < 1e-4 if kind == "default" else right > 1e-2), "changed"
print("still so: RoPE scaling is lost")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
