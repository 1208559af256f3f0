"""What llama.cpp (xllamacpp) makes of a GGUF file, beside an adapter if there is one: for each prompt, the log-probabilities
of the most probable next tokens, as JSON, or null where llama.cpp tells none: where the next token is a part of a character
or ends the text. Usage: llama_cpp.py MODEL.gguf ADAPTER.gguf|- PROMPT..."""

import json
import sys

import xllamacpp


def main():
    model, adapter, *prompts = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 128
    params.n_parallel = 1
    params.n_gpu_layers = 0
    # Otherwise keys and values are rounded to 16 bits.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter != "-":
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 12})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        told = answer["choices"][0]["logprobs"]
        found.append(told and [[token["id"], token["logprob"]] for token in told["content"][0]["top_logprobs"]])
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
