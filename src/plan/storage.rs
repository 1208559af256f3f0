//! How a plan's frozen weights are kept in memory, and what cannot be done with them then.

use super::build::Builder;
use super::{BackbonePlan, Change, Plan};
use crate::backbone::Tree;
use crate::diagnostic::Problem;
use crate::engine::Storage;

impl BackbonePlan {
    /// How a weight of the backbone is kept. Only the matrices of blocks are kept in 8 bits or fewer; embeddings and
    /// what else is a matrix are kept in bfloat16 then, as in quantized models of transformers.
    pub fn storage_of(&self, path: &str) -> Storage {
        match self.storage {
            Storage::Int8 | Storage::Nf4 if self.config.block_of(path).is_none() => Storage::Bf16,
            storage => storage,
        }
    }

    /// The bytes of the backbone's own weights in memory.
    pub fn weight_bytes(&self) -> usize {
        let tree = Tree::new(&self.config);
        let of = |parameter: &crate::backbone::Parameter| match *parameter.shape.as_slice() {
            [out, input] => self.storage_of(&parameter.path).bytes((out, input)),
            _ => 4 * parameter.count(),
        };
        match self.storage {
            Storage::File { bytes } => bytes,
            _ => tree.parameters().map(of).sum(),
        }
    }
}

impl Builder<'_> {
    /// Reports deltas that need the weights which a backbone keeps in codes.
    pub(super) fn check_storage(&self, plan: &Plan) {
        let backbone = &plan.backbone;
        if backbone.storage == Storage::F32 {
            return;
        }
        let tree = Tree::new(&backbone.config);
        for delta in &plan.deltas {
            let report = |message: String, help: &str| {
                let problem = Problem::new("delta::plan::storage", message);
                self.report(problem.at(delta.span, "declared here").help(help));
            };
            match &delta.change {
                Change::Unfreeze { parameters } => {
                    let is_coded = |path: &&String| {
                        matches!(
                            backbone.storage_of(path),
                            Storage::Int8 | Storage::Nf4 | Storage::File { .. }
                        ) && tree
                            .parameters()
                            .any(|own| own.path == **path && own.shape.len() == 2)
                    };
                    if let Some(path) = parameters.iter().find(is_coded) {
                        report(
                            format!("`{}` unfreezes `{path}`, whose few bits per weight would round small updates away", delta.name),
                            match backbone.storage {
                                Storage::File { .. } => "train a delta such as `lora` instead, or use the model's Hugging Face directory",
                                _ => "train a delta such as `lora` instead, or write `storage = bf16`",
                            },
                        );
                    }
                }
                Change::Method { method, sites } => {
                    let mut modules = sites.iter().filter_map(|site| tree.module(site));
                    let reads = modules.any(|module| {
                        delta
                            .parameters(module)
                            .iter()
                            .any(|own| own.init.reads_weight())
                    });
                    if reads {
                        report(
                            format!("`{}` ({}) is computed from whole weights, which the backbone keeps in codes", delta.name, method.name()),
                            match backbone.storage {
                                Storage::File { .. } => "use `lora` with its usual `init`, or the model's Hugging Face directory",
                                _ => "use `lora` with its usual `init`, or remove `storage`",
                            },
                        );
                    }
                }
            }
        }
    }
}
