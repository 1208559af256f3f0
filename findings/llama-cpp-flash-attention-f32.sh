#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): a model stored in F32, with keys and values kept in F32, does not compute in F32 on
# a CPU by default. Its log-probabilities are some 1e-3 off transformers', and 1e-6 with flash attention disabled.
#
# The setting is `auto` by default, which takes flash attention on the CPU as well; that kernel rounds its operands to 16
# bits whatever the types of the weights and of the cache are. Nothing in the settings or in the log says that a model in
# F32 is rounded. Whoever checks a converter, a LoRA or another engine against llama.cpp in F32 sees an error a thousand
# times larger than the formats explain, and looks for it in the conversion.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 gguf==0.19.0
"$dir/venv/bin/pip" install -q --no-deps xllamacpp==2026.10.11549
cat > "$dir/check.py" <<'EOF2'
import json
import sys
from importlib.metadata import version

import gguf
import torch
import transformers
import xllamacpp
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "gguf", version("gguf"), "xllamacpp", version("xllamacpp"))
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokens = ["<s>", "</s>", *letters, "qz"]
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokens), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True)
model = LlamaForCausalLM(config).eval()
path = f"{sys.argv[1]}/model.gguf"
writer = gguf.GGUFWriter(path, "llama")
writer.add_block_count(2)
writer.add_context_length(256)
writer.add_embedding_length(64)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_rope_dimension_count(16)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(tokens)
writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(letters) + 1))
writer.add_token_merges(["q z"])  # one is needed, and no prompt has it
writer.add_bos_token_id(0)
writer.add_eos_token_id(1)
writer.add_add_bos_token(False)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
for name, weight in model.state_dict().items():
    if name == "lm_head.weight":
        continue
    weight = weight.numpy()
    if "q_proj" in name or "k_proj" in name:  # the converter's order of rows
        weight = weight.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64).copy()
    writer.add_tensor(names.get_name(name, (".weight",)), weight)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

prompts = ["the quick brown fox jumps", "one two three four", "a model in single precision", "rounded or not"]
ids = {letter: number for number, letter in enumerate(tokens)}
space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
worst = {}
for flash in ["AUTO", "DISABLED"]:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 10})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        told = answer["choices"][0]["logprobs"]
        if told is None:  # the next token is a part of a character
            continue
        own = torch.tensor([[ids[letter] for letter in space.pre_tokenize_str(prompt)[0][0]]])
        with torch.no_grad():
            exact = torch.log_softmax(model(own).logits[0, -1], -1)
        found += [abs(token["logprob"] - exact[token["id"]].item()) for token in told["content"][0]["top_logprobs"]]
    assert len(found) >= 10, found
    worst[flash] = max(found)
    del server
print({flash: f"{value:.1e}" for flash, value in worst.items()})
assert worst["DISABLED"] < 2e-5, "llama.cpp's arithmetic changed"
assert worst["AUTO"] > 50 * worst["DISABLED"], "flash attention does not round any more"
EOF2
"$dir/venv/bin/python" "$dir/check.py" "$dir" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
