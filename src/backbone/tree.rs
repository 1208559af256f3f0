//! The module tree, which is alike for all families: paths, kinds, parameters and their shapes.

use std::collections::HashSet;

use super::architecture::{FeedForwardKind, Stack};
use super::config::Config;
use super::family::{Bias, Dimension, Head, HeadStep, Kind, ModuleEntry};

/// The kind of a node of the tree, which decides which deltas can be placed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// A linear layer.
    Linear,
    /// Several linear layers that a checkpoint stores as one. A wildcard does not match it, only its own name does.
    Fused,
    /// A norm.
    Norm,
    /// An embedding table.
    Embedding,
    /// An attention as a whole, before its residual sum.
    Attention,
    /// A decoder's attention to the encoder's output, as a whole.
    CrossAttention,
    /// A feed-forward as a whole, before its residual sum.
    FeedForward,
    /// The embeddings as a whole.
    Embeddings,
    /// Anything else that has modules below it.
    Group,
}

impl Site {
    /// The site in words, for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Site::Linear => "a linear layer",
            Site::Fused => "a fused linear layer",
            Site::Norm => "a normalization layer",
            Site::Embedding => "an embedding table",
            Site::Attention => "an attention module",
            Site::CrossAttention => "a cross-attention module",
            Site::FeedForward => "a feed-forward module",
            Site::Embeddings => "the embeddings",
            Site::Group => "a group of modules",
        }
    }
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Module {
    /// `block.0.attn.q`.
    pub path: String,
    /// What it is.
    pub site: Site,
    /// Its name in a checkpoint without the family's prefix; empty for groups.
    pub checkpoint_name: String,
    /// Width of the input (linear) or of an entry (embedding).
    pub input: usize,
    /// Width of the output (linear), or number of entries (embedding).
    pub output: usize,
    /// Width of the keys, and of the values, of an attention; 0 elsewhere.
    pub keys: usize,
    /// Its own parameters.
    pub parameters: Vec<Parameter>,
}

impl Module {
    /// Whether a checkpoint stores it fused with other modules.
    pub fn is_part(&self) -> bool {
        let mut parameters = self.parameters.iter();
        parameters.any(|parameter| parameter.source.part.is_some())
    }
}

/// What a module does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It multiplies, or is looked up.
    Weight,
    /// It is added.
    Bias,
}

impl Role {
    /// The last part of paths and of names in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Role::Weight => "weight",
            Role::Bias => "bias",
        }
    }
}

/// One tensor of a backbone or a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// `block.0.attn.q.weight`.
    pub path: String,
    /// What its module does with it.
    pub role: Role,
    /// `(out, in)`, or `(out)`.
    pub shape: Vec<usize>,
    /// Where it is in a checkpoint.
    pub source: CheckpointTensor,
    /// Fresh weights have the backbone's standard deviation, divided by the square root of this. If absent, nothing is
    /// divided.
    pub fan: Option<usize>,
}

impl Parameter {
    /// The number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it is added to the output of its module.
    pub fn is_bias(&self) -> bool {
        self.role == Role::Bias
    }
}

/// Where a parameter is in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointTensor {
    /// The tensor's name, without the family's prefix.
    pub name: String,
    /// A name that takes precedence over `name`, if there is such a tensor.
    pub preferred: Option<String>,
    /// A name to use instead if there is no tensor `name`.
    pub fallback: Option<String>,
    /// Tensors that must equal this one, if the checkpoint has them.
    pub copies: Vec<String>,
    /// Whether the name may have the family's prefix.
    pub prefixed: bool,
    /// Whether the checkpoint has it as `(in, out)`.
    pub transposed: bool,
    /// Which of the tensor's outputs it is, if several modules share the tensor.
    pub part: Option<Part>,
}

/// Some of the outputs of a tensor that several modules share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first of them.
    pub first: usize,
    /// The number of all outputs of the tensor.
    pub outputs: usize,
}

impl CheckpointTensor {
    /// The first of the tensor's outputs, and the number of all, for a parameter with `own` outputs.
    pub fn outputs(&self, own: usize) -> Part {
        self.part.unwrap_or(Part {
            first: 0,
            outputs: own,
        })
    }

    /// The tensor's name in a checkpoint of a model with a head.
    pub fn full_name(&self, prefix: &str) -> String {
        match self.prefixed {
            true => format!("{prefix}{}", self.name),
            false => self.name.clone(),
        }
    }
}

/// The modules of a backbone, in the order of the forward pass.
#[derive(Clone, Debug)]
pub struct Tree {
    modules: Vec<Module>,
}

impl Tree {
    /// The tree of a backbone with these dimensions.
    pub fn new(config: &Config) -> Self {
        let family = config.family();
        let mut modules: Vec<Module> = Vec::new();
        let mut groups = HashSet::new();
        let stacks = config.stacks();
        let stack_of = |path: &str| {
            let is_in = |stack: &&Stack| {
                path.strip_prefix(stack.path)
                    .is_some_and(|rest| rest.starts_with("block.N."))
            };
            stacks.iter().find(is_in)
        };
        let mut add = |path: &str, entry: &ModuleEntry, block: usize| {
            let number = |text: &str| text.replacen(".N.", &format!(".{block}."), 1);
            let name = name_of(config, entry).filter(|_| block > 0 || !entry.not_first);
            if let Some(name) = name.map(number) {
                let path = number(path);
                add_groups(&mut modules, &mut groups, &path, config);
                modules.push(sized_module(config, &path, &name, entry, 0));
            }
        };
        let entries: Vec<_> = family.modules.iter().collect();
        for part in entries.chunk_by(|a, b| stack_of(a.0) == stack_of(b.0)) {
            let count = stack_of(part[0].0).map_or(1, |stack| stack.blocks.len());
            for block in 0..count {
                part.iter()
                    .for_each(|(path, entry)| add(path, entry, block));
            }
        }
        add_fused(&mut modules);
        add_head_weight(&mut modules, config);
        Tree { modules }
    }

    /// All nodes.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The node at `path`.
    pub fn module(&self, path: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.path == path)
    }

    /// All parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.modules.iter().flat_map(|module| &module.parameters)
    }
}

/// The parameters that a head adds to the backbone, for `labels` outputs.
pub fn head_parameters(config: &Config, head: &Head, labels: usize) -> Vec<Parameter> {
    head.steps
        .iter()
        .filter_map(|step| head_module(config, step, labels))
        .flat_map(|module| module.parameters)
        .collect()
}

/// The parameters of the family's language-model head; empty if it has no such head.
pub fn language_model_parameters(config: &Config) -> Vec<Parameter> {
    match config.family().heads.language_model() {
        Some(head) => head_parameters(config, head, 0),
        None => Vec::new(),
    }
}

/// The name of a module in a checkpoint; `None` if this backbone has no such module.
fn name_of<'e>(config: &Config, entry: &'e ModuleEntry) -> Option<&'e str> {
    let gated = entry
        .gated
        .as_ref()
        .filter(|_| config.feed_forward() == FeedForwardKind::Gated);
    gated.or(entry.name.as_ref()).map(String::as_str)
}

fn head_module(config: &Config, step: &HeadStep, labels: usize) -> Option<Module> {
    let entry = ModuleEntry {
        kind: step.kind?,
        name: step.name.clone(),
        gated: None,
        copies: Vec::new(),
        shape: step.shape.clone(),
        bias: step.bias,
        transposed: false,
        part: 0,
        of: Vec::new(),
        not_first: false,
        fan: step.fan.clone(),
    };
    let mut module = sized_module(config, &step.module, step.name.as_ref()?, &entry, labels);
    if let Some(name) = step.untied.as_ref().filter(|_| config.is_head_own()) {
        let weight = Parameter {
            path: format!("{}.weight", step.module),
            role: Role::Weight,
            shape: vec![module.output, config.hidden],
            source: CheckpointTensor {
                name: String::new(),
                preferred: None,
                fallback: None,
                copies: Vec::new(),
                prefixed: false,
                transposed: false,
                part: None,
            },
            fan: None,
        };
        module.parameters.insert(0, weight);
        for parameter in &mut module.parameters {
            let own = format!("{name}.{}", parameter.role.name());
            let tied = std::mem::replace(&mut parameter.source.name, own);
            // If `config.json` ties the head, the decoder's bias may be stored only in the module above it.
            parameter.source.fallback = (parameter.is_bias() && !config.is_untied).then_some(tied);
        }
    }
    let untied = step.untied.as_ref().filter(|_| !config.is_head_own());
    for parameter in &mut module.parameters {
        parameter.source.prefixed = false;
        // As in transformers, the decoder's own bias takes precedence over the one in the module above it.
        parameter.source.preferred = untied.map(|name| format!("{name}.bias"));
    }
    Some(module)
}

fn sized_module(
    config: &Config,
    path: &str,
    name: &str,
    entry: &ModuleEntry,
    labels: usize,
) -> Module {
    let size = |dimension: &Dimension| config.size(*dimension, labels);
    let shape: Vec<usize> = entry.shape.iter().map(size).collect();
    let parameter = |role: Role, shape: Vec<usize>| Parameter {
        path: format!("{path}.{}", role.name()),
        role,
        shape,
        source: CheckpointTensor {
            name: format!("{name}.{}", role.name()),
            preferred: None,
            fallback: None,
            copies: entry
                .copies
                .iter()
                .map(|copy| format!("{copy}.{}", role.name()))
                .collect(),
            prefixed: true,
            transposed: entry.transposed && role == Role::Weight,
            part: (!entry.of.is_empty()).then(|| Part {
                first: entry.of[..entry.part].iter().map(size).sum(),
                outputs: entry.of.iter().map(size).sum(),
            }),
        },
        fan: entry.fan.as_ref().map(|fan| fan.iter().map(size).product()),
    };
    let mut parameters = Vec::new();
    if entry.kind != Kind::Tied {
        parameters.push(parameter(Role::Weight, shape.clone()));
    }
    let has_bias = match entry.bias {
        Bias::Yes => true,
        Bias::No => false,
        Bias::Attention => config.attention_bias,
        Bias::FeedForward => config.feed_forward_bias,
    };
    if has_bias && entry.kind != Kind::Embedding {
        parameters.push(parameter(Role::Bias, vec![shape[0]]));
    }
    Module {
        path: path.to_owned(),
        site: match entry.kind {
            Kind::Linear | Kind::Tied => Site::Linear,
            Kind::Norm => Site::Norm,
            Kind::Embedding => Site::Embedding,
        },
        checkpoint_name: name.to_owned(),
        input: shape.last().copied().unwrap_or(0),
        output: shape[0],
        keys: 0,
        parameters,
    }
}

/// Adds the groups above `path` that are not there yet.
fn add_groups(
    modules: &mut Vec<Module>,
    groups: &mut HashSet<String>,
    path: &str,
    config: &Config,
) {
    let parts: Vec<&str> = path.split('.').collect();
    for depth in 1..parts.len() {
        let group = parts[..depth].join(".");
        if groups.insert(group.clone()) {
            let site = match parts[..depth] {
                [.., "block", _, "attn"] => Site::Attention,
                [.., "block", _, "cross"] => Site::CrossAttention,
                [.., "block", _, "ff"] => Site::FeedForward,
                ["embeddings"] => Site::Embeddings,
                _ => Site::Group,
            };
            modules.push(Module {
                path: group,
                site,
                checkpoint_name: String::new(),
                input: config.hidden,
                output: config.hidden,
                keys: match site {
                    Site::Attention | Site::CrossAttention => config.size(Dimension::Keys, 0),
                    _ => 0,
                },
                parameters: Vec::new(),
            });
        }
    }
}

/// Lets a tied embedding be read from the head's decoder, for checkpoints that have only the decoder's weight.
fn add_head_weight(modules: &mut [Module], config: &Config) {
    let head = config.family().heads.language_model();
    let step = head.and_then(|head| head.steps.last());
    let Some((table, untied)) = step.and_then(|s| s.weight.as_ref().zip(s.untied.as_ref())) else {
        return;
    };
    let tables = modules.iter_mut().filter(|module| module.path == *table);
    for parameter in tables.flat_map(|table| &mut table.parameters) {
        parameter.source.fallback = (!config.is_head_own()).then(|| format!("{untied}.weight"));
    }
}

/// Adds a node for every tensor that several modules share: `q`, `k` and `v` of one `c_attn` make
/// `qkv`.
fn add_fused(modules: &mut Vec<Module>) {
    let shared: Vec<&Module> = modules.iter().filter(|module| module.is_part()).collect();
    let mut fused: Vec<Module> = Vec::new();
    for module in shared {
        let (parent, leaf) = module.path.rsplit_once('.').unwrap_or(("", &module.path));
        match fused
            .iter_mut()
            .find(|f| f.checkpoint_name == module.checkpoint_name)
        {
            Some(existing) => {
                existing.path.push_str(leaf);
                existing.output += module.output;
            }
            None => fused.push(Module {
                path: format!("{parent}.{leaf}"),
                site: Site::Fused,
                checkpoint_name: module.checkpoint_name.clone(),
                input: module.input,
                output: module.output,
                keys: 0,
                parameters: Vec::new(),
            }),
        }
    }
    modules.extend(fused);
}
