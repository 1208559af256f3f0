//! The names of a GGUF file's tensors in a Hugging Face checkpoint.

use std::path::Path;

use serde_json::{Map, Value};

use super::{wrong, Gguf};
use crate::diagnostic::Problem;
use crate::text::quoted_list;

/// An architecture of llama.cpp's that deltarun reads and writes.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name in GGUF files.
    pub name: &'static str,
    /// `model_type` of transformers.
    pub model_type: &'static str,
    /// transformers' class of its language model.
    pub class: &'static str,
    /// The families of deltarun whose models llama.cpp takes for it.
    families: &'static [&'static str],
    modules: &'static [(&'static str, &'static str)],
    /// transformers' name of the activation of its feed-forwards.
    pub activation: &'static str,
    /// Whether llama.cpp permutes the rows of queries and keys.
    permutes: bool,
    /// Whether llama.cpp adds 1 to the weights of norms.
    adds_one: bool,
}

const ARCHITECTURES: [Architecture; 6] = [
    Architecture {
        name: "llama",
        model_type: "llama",
        class: "LlamaForCausalLM",
        families: &["llama", "mistral"],
        modules: &LLAMA,
        activation: "silu",
        permutes: true,
        adds_one: false,
    },
    Architecture {
        name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        families: &["qwen2"],
        modules: &LLAMA,
        activation: "silu",
        permutes: false,
        adds_one: false,
    },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        families: &["qwen3"],
        modules: &LLAMA,
        activation: "silu",
        permutes: false,
        adds_one: false,
    },
    Architecture {
        name: "gemma",
        model_type: "gemma",
        class: "GemmaForCausalLM",
        families: &["gemma"],
        modules: &LLAMA,
        activation: "gelu_pytorch_tanh",
        permutes: false,
        adds_one: true,
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        families: &["gemma2"],
        modules: &GEMMA_2,
        activation: "gelu_pytorch_tanh",
        permutes: false,
        adds_one: true,
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        families: &["gemma3"],
        modules: &GEMMA_2,
        activation: "gelu_pytorch_tanh",
        permutes: false,
        adds_one: true,
    },
];

/// The architecture that llama.cpp takes a family's models for, if deltarun writes it.
pub fn architecture_of_family(family: &str) -> Option<&'static str> {
    let mut all = ARCHITECTURES.iter();
    let found = all.find(|architecture| architecture.families.contains(&family))?;
    Some(found.name)
}

/// How the tensors of a file are called, and which of them llama.cpp stores otherwise.
pub(in crate::backbone) struct Names {
    architecture: &'static Architecture,
    /// The heads of queries and of keys.
    heads: (usize, usize),
    /// The number of blocks.
    blocks: usize,
}

/// What llama.cpp does to a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backbone) struct Rearranged {
    /// It permutes the rows of so many heads: those of the rotary embedding's two halves stand in turn.
    pub permuted: Option<usize>,
    /// It adds 1.
    pub plus_one: bool,
}

const FIXED: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// The norms around the sub-layers of Gemma 2 have the names of others in Llama.
const GEMMA_2: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const LLAMA: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Names {
    /// The names of a file's architecture.
    ///
    /// # Errors
    /// deltarun does not know it, or the file lacks what it needs.
    pub(in crate::backbone) fn of(file: &Gguf) -> Result<Self, Problem> {
        let architecture = architecture(file)?;
        let count = |key: &str| -> Result<usize, Problem> {
            let key = format!("{}.{key}", architecture.name);
            number(&file.metadata, &key).ok_or_else(|| lacks(file.path(), &key))
        };
        let heads = count("attention.head_count")?;
        let keys = count("attention.head_count_kv").unwrap_or(heads);
        Ok(Names {
            architecture,
            heads: (heads, keys),
            blocks: count("block_count")?,
        })
    }

    /// The names of an architecture that we write, with its heads of queries and of keys.
    pub(super) fn new(architecture: &str, heads: (usize, usize)) -> Option<Self> {
        let mut all = ARCHITECTURES.iter();
        Some(Names {
            architecture: all.find(|own| own.name == architecture)?,
            heads,
            blocks: usize::MAX,
        })
    }

    /// The GGUF name of a tensor with this Hugging Face name, and what llama.cpp does to it.
    pub(super) fn gguf(&self, name: &str) -> Option<(String, Rearranged)> {
        if let Some((own, _)) = FIXED.iter().find(|(_, fixed)| *fixed == name) {
            return Some(((*own).to_owned(), self.rearranged(own)));
        }
        let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let modules = self.architecture.modules;
        let (own, _) = modules.iter().find(|(_, other)| *other == module)?;
        Some((format!("blk.{block}.{own}.{kind}"), self.rearranged(own)))
    }

    /// What llama.cpp does to the tensors of a module: to its bias as to its rows.
    fn rearranged(&self, module: &str) -> Rearranged {
        let module = module.trim_end_matches(".weight");
        let (queries, keys) = self.heads;
        Rearranged {
            permuted: match module {
                "attn_q" => Some(queries),
                "attn_k" => Some(keys),
                _ => None,
            }
            .filter(|_| self.architecture.permutes),
            plus_one: self.architecture.adds_one && module.ends_with("norm"),
        }
    }

    /// The Hugging Face name of a tensor, and what llama.cpp does to it.
    pub(in crate::backbone) fn hugging_face(&self, name: &str) -> Option<(String, Rearranged)> {
        if let Some((own, fixed)) = FIXED.iter().find(|(own, _)| *own == name) {
            return Some(((*fixed).to_owned(), self.rearranged(own)));
        }
        let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        block
            .parse::<usize>()
            .ok()
            .filter(|number| *number < self.blocks)?;
        let (module, kind) = rest.split_once('.')?;
        let modules = self.architecture.modules;
        let (own, module) = modules.iter().find(|(own, _)| *own == module)?;
        let name = format!("model.layers.{block}.{module}.{kind}");
        Some((name, self.rearranged(own)))
    }
}

/// The architecture of a file.
///
/// # Errors
/// deltarun does not know it.
pub(super) fn architecture(file: &Gguf) -> Result<&'static Architecture, Problem> {
    if file.metadata.get("general.type").and_then(Value::as_str) == Some("adapter") {
        return Err(wrong(file.path(), "it is a LoRA, and no model").help(
            "name the run that it was exported from; llama.cpp reads it beside its model: `--lora`",
        ));
    }
    let parts = number(&file.metadata, "split.count").unwrap_or(1);
    if parts > 1 {
        let message = format!("it is one of {parts} parts of a model");
        return Err(wrong(file.path(), message)
            .help("join them with llama.cpp's `llama-gguf-split --merge`"));
    }
    let stated = file
        .metadata
        .get("general.architecture")
        .and_then(Value::as_str);
    let stated = stated.ok_or_else(|| lacks(file.path(), "general.architecture"))?;
    let known = ARCHITECTURES.iter().find(|known| known.name == stated);
    known.ok_or_else(|| {
        let message = format!("the architecture `{stated}` of a GGUF file is not read");
        let names = ARCHITECTURES.iter().map(|known| known.name);
        wrong(file.path(), message).help(format!(
            "use a file of one of the architectures {}, or the model's Hugging Face directory",
            quoted_list(names)
        ))
    })
}

pub(super) fn lacks(path: &Path, key: &str) -> Problem {
    wrong(path, format!("its metadata has no `{key}`"))
}

/// A whole number of the metadata.
pub(super) fn number(metadata: &Map<String, Value>, key: &str) -> Option<usize> {
    usize::try_from(metadata.get(key)?.as_u64()?).ok()
}
