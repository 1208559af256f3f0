//! Turns a stage's plan into layers, which a forward pass then walks. Each layer has its parameters, its deltas in the
//! order of the file, and the places of its dropouts.
//!
//! We resolve paths here so that a pass does not. Only a method still looks up parameters by name in a pass, among the
//! few of its layer.

use std::ops::Range;

use super::{Graph, Placed};
use crate::backbone::family::{HeadStep, Kind, Reads, StepDropout};
use crate::backbone::{BlockKind, FeedForwardKind, NormKind, NormPlace, Stack};
use crate::delta::{Method, ParameterId};
use crate::engine::Activation;

/// All layers of a graph, for one stage.
pub(super) struct Layers {
    pub embeddings: Embeddings,
    /// In the order of the forward pass.
    pub stacks: Vec<StackLayers>,
    /// The blocks of all stacks, in the order of the forward pass.
    pub blocks: Vec<Block>,
    pub head: Vec<HeadLayer>,
    /// Which rows the head reads.
    pub reads: Reads,
}

/// Where the value of a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParameterIndex {
    /// Index into the backbone's own parameters, which never change.
    Backbone(usize),
    /// Index into the parameters of deltas and heads.
    Added(usize),
}

/// A parameter in a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle {
    pub index: ParameterIndex,
    pub is_trained: bool,
}

/// Identifies a dropout in the model by a hash of its path, so that each dropout draws its own mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DropoutPlace(pub u32);

impl DropoutPlace {
    /// FNV-1a over the path.
    fn new(path: &str) -> Self {
        DropoutPlace(path.bytes().fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        }))
    }
}

pub(super) struct Linear {
    pub weight: Handle,
    pub bias: Option<Handle>,
    pub deltas: Vec<DeltaLayer>,
}

#[derive(Clone, Copy)]
pub(super) enum Norm {
    Layer {
        weight: Handle,
        bias: Option<Handle>,
    },
    Rms {
        weight: Handle,
    },
}

/// An embedding table.
pub(super) struct EmbeddingTable {
    pub weight: Handle,
    pub deltas: Vec<DeltaLayer>,
}

pub(super) struct Embeddings {
    pub word: EmbeddingTable,
    pub types: Option<EmbeddingTable>,
    pub positions: Option<EmbeddingTable>,
    /// Of families that normalize embeddings.
    pub norm: Option<Norm>,
    pub dropout: DropoutPlace,
    /// Dropout of the decoder's embeddings.
    pub decoder_dropout: DropoutPlace,
    /// Deltas on the embeddings as a whole: prompts.
    pub deltas: Vec<DeltaLayer>,
}

pub(super) struct StackLayers {
    pub blocks: Range<usize>,
    pub is_causal: bool,
    /// Score biases by the distance between query and key, if the family has them (T5).
    pub distances: Option<EmbeddingTable>,
    /// The norm after the last block, present in pre-norm families.
    pub norm: Option<Norm>,
    pub dropout: DropoutPlace,
}

pub(super) struct Block {
    pub attention: Attention,
    /// A decoder's attention to the encoder's output.
    pub cross: Option<Attention>,
    pub feed_forward: FeedForward,
}

/// The norm, dropout and deltas around an attention or a feed-forward.
pub(super) struct SubLayer {
    pub norm: Option<Norm>,
    /// Dropout of the sub-layer's output.
    pub dropout: DropoutPlace,
    /// Its probability.
    pub probability: f32,
    /// Deltas on the sub-layer as a whole.
    pub deltas: Vec<DeltaLayer>,
    /// The norm of its output before the residual sum, in families that have one.
    pub norm_after: Option<Norm>,
}

pub(super) struct Attention {
    pub around: SubLayer,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// The norm of every head of the queries, in families that have one.
    pub q_norm: Option<Norm>,
    /// The norm of every head of the keys, in families that have one.
    pub k_norm: Option<Norm>,
    /// Its window, and how it rotates.
    pub kind: BlockKind,
    /// Deltas on q, k and v as the checkpoint stores them fused.
    pub fused: Vec<DeltaLayer>,
    /// Dropout of the attention weights.
    pub dropout: DropoutPlace,
    /// Its number among all attentions.
    pub number: usize,
    /// Whether it reads the encoder's output.
    pub is_cross: bool,
}

pub(super) struct FeedForward {
    pub around: SubLayer,
    /// Deltas on gate and up as the checkpoint stores them fused.
    pub fused: Vec<DeltaLayer>,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    /// Dropout of `down`'s input.
    pub dropout: DropoutPlace,
}

/// A step of a head.
pub(super) struct HeadLayer {
    /// The dropout of the step's input, if the family has one.
    pub dropout: Option<(StepDropout, DropoutPlace)>,
    pub kind: HeadStepLayer,
    /// Applied to the step's output.
    pub activation: Option<Activation>,
}

pub(super) enum HeadStepLayer {
    Norm(Norm),
    /// Logits over the vocabulary.
    Vocabulary {
        weight: Handle,
        bias: Option<Handle>,
    },
    Linear(Linear),
}

/// A delta at a site.
pub(super) struct DeltaLayer {
    pub method: Method,
    /// Whether a gate scales the delta's change.
    pub is_gated: bool,
    pub site: String,
    /// The delta's parameters at this site and those that all its sites share, by name.
    parameters: Vec<(String, Handle)>,
    pub dropout: DropoutPlace,
    /// The weight of the module at the site.
    pub weight: Option<Handle>,
    pub bias: Option<Handle>,
    /// The norm after the residual sum, in post-norm families.
    pub norm: Option<Norm>,
}

impl DeltaLayer {
    /// The parameter called `name` of this delta.
    pub fn parameter(&self, name: &str) -> Handle {
        let found = self.parameters.iter().find(|(own, _)| own == name);
        let (_, handle) = found.expect("a method reads the parameters that it names");
        *handle
    }
}

impl Graph {
    /// Builds the layers of the backbone, head and deltas in place.
    pub(super) fn layers_in_place(&self) -> Layers {
        let stacks = &self.architecture.stacks;
        let paths = stacks.iter().flat_map(Stack::block_paths);
        let of_stack = |stack: &Stack| StackLayers {
            blocks: stack.blocks.clone(),
            is_causal: stack.is_causal,
            distances: self.table(&format!("{}position", stack.path)),
            norm: self
                .norm(&format!("{}norm", stack.path))
                .filter(|_| self.pre_norm()),
            dropout: DropoutPlace::new(&format!("{}norm", stack.path)),
        };
        let task = self.task();
        let head = task.and_then(|task| self.head(task));
        let steps = head.map_or(&[][..], |head| &head.steps);
        Layers {
            embeddings: Embeddings {
                word: self
                    .table("embeddings.word")
                    .expect("every family has a table of words"),
                types: self.table("embeddings.type"),
                positions: self.table("embeddings.position"),
                norm: self.norm("embeddings.norm"),
                dropout: DropoutPlace::new(EMBEDDINGS),
                decoder_dropout: DropoutPlace::new("decoder.embeddings"),
                deltas: self.delta_layers(EMBEDDINGS),
            },
            stacks: stacks.iter().map(of_stack).collect(),
            blocks: paths
                .enumerate()
                .map(|(number, path)| self.block(number, &path))
                .collect(),
            head: steps.iter().map(|step| self.head_layer(step)).collect(),
            reads: match head.unwrap_or(&self.family.heads.classify).reads {
                Reads::First if self.config.pools_mean => Reads::Mean,
                reads => reads,
            },
        }
    }

    fn block(&self, number: usize, path: &str) -> Block {
        let feed_forward = format!("{path}.ff");
        let module = |name: &str| format!("{feed_forward}.{name}");
        Block {
            attention: self
                .attention_layer(&format!("{path}.attn"), 2 * number)
                .expect("every block has an attention"),
            cross: self.attention_layer(&format!("{path}.cross"), 2 * number + 1),
            feed_forward: FeedForward {
                around: self.sub_layer(&feed_forward, self.config.dropout),
                gate: match self.architecture.feed_forward.kind {
                    FeedForwardKind::Gated => self.linear_layer(&module("gate")),
                    FeedForwardKind::Plain => None,
                },
                fused: self.delta_layers(&module("gateup")),
                up: self.existing(&module("up")),
                down: self.existing(&module("down")),
                dropout: DropoutPlace::new(&module("down")),
            },
        }
    }

    fn attention_layer(&self, path: &str, number: usize) -> Option<Attention> {
        let module = |name: &str| format!("{path}.{name}");
        Some(Attention {
            q: self.linear_layer(&module("q"))?,
            k: self.existing(&module("k")),
            v: self.existing(&module("v")),
            o: self.existing(&module("o")),
            q_norm: self.norm(&module("q_norm")),
            k_norm: self.norm(&module("k_norm")),
            kind: self.architecture.blocks[number / 2],
            around: self.sub_layer(path, self.architecture.attention.output_dropout),
            fused: self.delta_layers(&module("qkv")),
            dropout: DropoutPlace::new(&module("weights")),
            number,
            is_cross: number % 2 == 1,
        })
    }

    fn sub_layer(&self, path: &str, probability: f32) -> SubLayer {
        SubLayer {
            norm: self.norm(&format!("{path}.norm")),
            dropout: DropoutPlace::new(path),
            probability,
            deltas: self.delta_layers(path),
            norm_after: self.norm(&format!("{path}.norm_after")),
        }
    }

    fn head_layer(&self, step: &HeadStep) -> HeadLayer {
        let module = &step.module;
        let kind = match (step.kind, &step.weight) {
            (Some(Kind::Norm), _) => {
                HeadStepLayer::Norm(self.norm(module).expect("a head has its norm"))
            }
            (Some(Kind::Tied), Some(table)) => HeadStepLayer::Vocabulary {
                weight: self
                    .parameter(&format!("{module}.weight"))
                    .or_else(|| self.parameter(&format!("{table}.weight")))
                    .expect("a head is tied to a table"),
                bias: self.parameter(&format!("{module}.bias")),
            },
            // The pooler is a module of the backbone, where deltas may sit.
            _ => HeadStepLayer::Linear(self.existing(module)),
        };
        HeadLayer {
            dropout: step.dropout.map(|which| (which, DropoutPlace::new(module))),
            kind,
            activation: match step.activation.as_deref() {
                Some("config") => Some(self.config.activation),
                Some(name) => Activation::from_name(name),
                None => None,
            },
        }
    }

    fn existing(&self, path: &str) -> Linear {
        let linear = self.linear_layer(path);
        linear.unwrap_or_else(|| unreachable!("`{path}` is a module of every graph"))
    }

    fn linear_layer(&self, path: &str) -> Option<Linear> {
        Some(Linear {
            weight: self.parameter(&format!("{path}.weight"))?,
            bias: self.parameter(&format!("{path}.bias")),
            deltas: self.delta_layers(path),
        })
    }

    fn table(&self, path: &str) -> Option<EmbeddingTable> {
        Some(EmbeddingTable {
            weight: self.parameter(&format!("{path}.weight"))?,
            deltas: self.delta_layers(path),
        })
    }

    fn norm(&self, path: &str) -> Option<Norm> {
        let weight = self.parameter(&format!("{path}.weight"))?;
        Some(match self.architecture.norm.kind {
            NormKind::Rms => Norm::Rms { weight },
            NormKind::Layer => Norm::Layer {
                weight,
                bias: self.parameter(&format!("{path}.bias")),
            },
        })
    }

    /// The parameter that a pass reads at a path: the one in place there if there is one, else the backbone's own.
    fn parameter(&self, path: &str) -> Option<Handle> {
        if let Some(index) = self.active.replaced.get(path) {
            return Some(self.added(*index));
        }
        let index = ParameterIndex::Backbone(self.base.get_index_of(path)?);
        Some(Handle {
            index,
            is_trained: false,
        })
    }

    fn added(&self, index: usize) -> Handle {
        Handle {
            index: ParameterIndex::Added(index),
            is_trained: self.active.trained.contains(&index),
        }
    }

    pub(super) fn delta_layers(&self, site: &str) -> Vec<DeltaLayer> {
        let placed = self.active.sites.get(site).into_iter().flatten();
        placed
            .map(|placed| self.delta_layer(placed, site))
            .collect()
    }

    fn delta_layer(&self, placed: &Placed, site: &str) -> DeltaLayer {
        let parameters = |site: Option<&str>| -> Vec<_> {
            let is_own = |id: &ParameterId| id.delta() == Some(&placed.delta) && id.site() == site;
            let ids = self.values.keys().enumerate();
            ids.filter(|(_, id)| is_own(id))
                .map(|(index, id)| (id.name().to_owned(), self.added(index)))
                .collect()
        };
        DeltaLayer {
            method: placed.method.clone(),
            is_gated: placed.is_gated,
            site: site.to_owned(),
            parameters: [parameters(Some(site)), parameters(None)].concat(),
            dropout: DropoutPlace::new(&format!("{}.{site}", placed.delta)),
            weight: self.parameter(&format!("{site}.weight")),
            bias: self.parameter(&format!("{site}.bias")),
            norm: match self.architecture.norm.place {
                NormPlace::Pre => None,
                NormPlace::Post => self.norm(&format!("{site}.norm")),
            },
        }
    }
}

/// The path of the embeddings as a whole.
const EMBEDDINGS: &str = "embeddings";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backbone::read_config;
    use crate::engine::Device;

    fn layers_of(fixture: &str, statements: &str) -> Layers {
        let base = Path::new("tests/fixtures");
        let text = format!(
            "backbone \"{fixture}\"\ndata {{ train = tsv(\"t.tsv\") }}\n\
             task classify {{ text = a, label = b, labels = [x, y] }}\n{statements}\n\
             stage tune {{ train = [one, two, head], steps = 1, optimizer = sgd {{ lr = 1 }} }}"
        );
        let around = |name: &str| {
            let directory = base.join(name);
            Ok((directory.clone(), read_config(&directory)?))
        };
        let pipeline = crate::syntax::parse(&text).unwrap();
        let plan = crate::plan::plan(&pipeline, &Default::default(), base, &around).unwrap();
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
        graph.activate(&plan, 0).unwrap();
        graph.layers.unwrap()
    }

    fn places(layers: &Layers) -> Vec<u32> {
        let mut places = vec![layers.embeddings.dropout, layers.embeddings.decoder_dropout];
        places.extend(layers.stacks.iter().map(|stack| stack.dropout));
        places.extend(
            layers
                .head
                .iter()
                .filter_map(|layer| Some(layer.dropout?.1)),
        );
        let mut deltas = Vec::new();
        for block in &layers.blocks {
            for attention in [Some(&block.attention), block.cross.as_ref()]
                .into_iter()
                .flatten()
            {
                places.extend([attention.dropout, attention.around.dropout]);
                let Attention { q, k, v, o, .. } = attention;
                deltas.extend([q, k, v, o].map(|linear| &linear.deltas));
                deltas.extend([&attention.fused, &attention.around.deltas]);
            }
            let ff = &block.feed_forward;
            places.extend([ff.dropout, ff.around.dropout]);
            let linears = [Some(&ff.up), Some(&ff.down), ff.gate.as_ref()];
            deltas.extend(linears.into_iter().flatten().map(|linear| &linear.deltas));
            deltas.extend([&ff.around.deltas, &ff.fused]);
        }
        places.extend(deltas.into_iter().flatten().map(|delta| delta.dropout));
        places.into_iter().map(|place| place.0).collect()
    }

    /// Two dropouts with the same number would draw the same mask.
    #[test]
    fn places_of_dropout_have_numbers_of_their_own() {
        for fixture in ["bert_a", "gpt2", "llama_a", "t5_v1_1"] {
            let layers = layers_of(
                fixture,
                "reparam one = lora { dropout = 0.1 } on **.{q,k,v,o,up}\n\
                 reparam two = lora { dropout = 0.1 } on **.{v,down}",
            );
            let mut all = places(&layers);
            let count = all.len();
            assert!(count > 15, "{fixture}: {count}");
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count, "{fixture}");
        }
    }
}
