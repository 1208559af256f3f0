//! The names of a GGUF file's tensors in a Hugging Face checkpoint.

use std::path::Path;

use serde_json::{Map, Value};

use super::{wrong, Gguf};
use crate::diagnostic::Problem;

/// How the tensors of an architecture are called, and which of them llama.cpp stores otherwise.
pub(in crate::backbone) struct Names {
    /// The heads whose rows llama.cpp permutes in the weights of queries and of keys: those of the rotary embedding's two
    /// halves stand in turn. None in architectures that keep them.
    permuted: Option<(usize, usize)>,
    /// The number of blocks.
    blocks: usize,
}

const FIXED: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

const MODULES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
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
            let key = format!("{architecture}.{key}");
            number(&file.metadata, &key).ok_or_else(|| lacks(file.path(), &key))
        };
        let heads = count("attention.head_count")?;
        let keys = count("attention.head_count_kv").unwrap_or(heads);
        Ok(Names {
            blocks: count("block_count")?,
            ..Names::new(architecture, (heads, keys))
        })
    }

    /// The names of an architecture, with its heads of queries and of keys.
    pub(super) fn new(architecture: &str, heads: (usize, usize)) -> Self {
        Names {
            permuted: (architecture == "llama").then_some(heads),
            blocks: usize::MAX,
        }
    }

    /// The GGUF name of a tensor with this Hugging Face name, and the number of heads whose rows are permuted, if they are.
    pub(super) fn gguf(&self, name: &str) -> Option<(String, Option<usize>)> {
        if let Some((own, _)) = FIXED.iter().find(|(_, fixed)| *fixed == name) {
            return Some(((*own).to_owned(), None));
        }
        let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let (own, _) = MODULES.iter().find(|(_, other)| *other == module)?;
        Some((format!("blk.{block}.{own}.{kind}"), self.heads_of(own)))
    }

    /// The heads whose rows are permuted in a module.
    fn heads_of(&self, module: &str) -> Option<usize> {
        let (queries, keys) = self.permuted?;
        match module {
            "attn_q" => Some(queries),
            "attn_k" => Some(keys),
            _ => None,
        }
    }

    /// The Hugging Face name of a tensor, and the number of heads whose rows are permuted, if they are.
    pub(in crate::backbone) fn hugging_face(&self, name: &str) -> Option<(String, Option<usize>)> {
        if let Some((_, fixed)) = FIXED.iter().find(|(own, _)| *own == name) {
            return Some(((*fixed).to_owned(), None));
        }
        let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        block
            .parse::<usize>()
            .ok()
            .filter(|number| *number < self.blocks)?;
        let (module, kind) = rest.split_once('.')?;
        let (own, module) = MODULES.iter().find(|(own, _)| *own == module)?;
        let name = format!("model.layers.{block}.{module}.{kind}");
        Some((name, self.heads_of(own)))
    }
}

/// The architecture of a file.
///
/// # Errors
/// deltarun does not know it.
pub(super) fn architecture(file: &Gguf) -> Result<&'static str, Problem> {
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
    match stated {
        Some("llama") => Ok("llama"),
        Some("qwen2") => Ok("qwen2"),
        Some(other) => {
            let message = format!("the architecture `{other}` of a GGUF file is not read");
            Err(wrong(file.path(), message).help("use a file of the architecture `llama` or `qwen2`, or the model's Hugging Face directory"))
        }
        None => Err(lacks(file.path(), "general.architecture")),
    }
}

pub(super) fn lacks(path: &Path, key: &str) -> Problem {
    wrong(path, format!("its metadata has no `{key}`"))
}

/// A whole number of the metadata.
pub(super) fn number(metadata: &Map<String, Value>, key: &str) -> Option<usize> {
    usize::try_from(metadata.get(key)?.as_u64()?).ok()
}
