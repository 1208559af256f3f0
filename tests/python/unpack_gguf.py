"""Writes a language model that lies in a folder as GGUF, its weights quantized, as a Hugging Face directory in f32.

    unpack_gguf.py FOLDER OUT
"""

import pathlib
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

source, out = sys.argv[1:]
(file,) = pathlib.Path(source).glob("**/*.gguf")
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
# What it was quantized with is nothing that its weights have any more.
del model.config.quantization_config
model.hf_quantizer = None
model.is_quantized = False
model.save_pretrained(out)
tokenizer.save_pretrained(out)
