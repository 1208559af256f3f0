//! Reads `backbone LOCATION { ... }`.

use std::collections::BTreeMap;

use super::build::Builder;
use super::surroundings::Surroundings;
use super::{BackbonePlan, TaskPlan, SHORTEST};
use crate::backbone::Config;
use crate::diagnostic::{Problem, Span};
use crate::engine::{Precision, Storage};
use crate::settings::Fields;
use crate::syntax::ast::{Block, Spanned, Statement, Value};

impl<'a> Builder<'a> {
    /// The backbone; none if the file has none, or it cannot be found.
    pub(super) fn backbone(
        &self,
        tasks: &BTreeMap<String, TaskPlan>,
        surroundings: &dyn Surroundings,
    ) -> Option<BackbonePlan> {
        let (location, block, span) = self.backbone_statement()?;
        let fields = Fields::new("backbone", span, block, self.scope, self.problems);
        let place = self.scope.resolve(location);
        let Value::Text(text) = &place.node else {
            fields.wrong("backbone", &place, "a string in quotes");
            return None;
        };
        let found = surroundings.backbone(text);
        let found = found.map_err(|problem| self.report(problem.or_at(location.span)));
        let (directory, mut config) = found.ok()?;
        read_dropout(&fields, &mut config);
        let max_length = fields
            .count("max_length", SHORTEST..=config.limit())
            .unwrap_or(config.longest().min(512));
        let weights = [("pretrained", false), ("random", true)];
        let random = fields.choice("weights", &weights).unwrap_or(false);
        let precisions = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
        let precision = fields.choice("precision", &precisions).unwrap_or_default();
        let own = surroundings.storage(&directory);
        let own = own.map_err(|problem| self.report(problem.or_at(location.span)));
        let storage = self.weight_storage(&fields, own.ok(), random, precision);
        let tokenizer = fields
            .text("tokenizer")
            .map(|text| self.base.join(text.node));
        fields.finish();
        let mut backbone = BackbonePlan {
            location: text.clone(),
            directory,
            tokenizer,
            config,
            max_length,
            random,
            precision,
            storage,
            span,
        };
        if !random && tasks.values().any(|task| task.kind.uses_language_model()) {
            match surroundings.has_head_weight(&backbone) {
                Ok(Some(is_there)) => backbone.config.has_head_weight = is_there,
                Ok(None) => self.knows_head.set(false),
                Err(problem) => self.report(problem.or_at(span)),
            }
        }
        Some(backbone)
    }

    fn backbone_statement(&self) -> Option<(&'a Spanned<Value>, Option<&'a Block>, Span)> {
        let found = self.once("backbone", |statement| match statement {
            Statement::Backbone { location, block } => Some((location, block.as_ref())),
            _ => None,
        });
        if found.is_none() {
            let problem = Problem::new("delta::plan::missing", "the file has no `backbone`");
            self.report(
                problem.help(
                    "add `backbone \"DIRECTORY\"` with the directory of a Hugging Face model",
                ),
            );
        }
        let ((location, block), span) = found?;
        Some((location, block, span))
    }

    /// How frozen weights are kept in memory. `own` is the storage that the backbone's file decides.
    fn weight_storage(
        &self,
        fields: &Fields,
        own: Option<Storage>,
        random: bool,
        precision: Precision,
    ) -> Storage {
        let known = [
            ("f32", Storage::F32),
            ("bf16", Storage::Bf16),
            ("int8", Storage::Int8),
            ("nf4", Storage::Nf4),
        ];
        let stated = fields.choice("storage", &known);
        let report = |key: &'static str, message: &str, help: &str| {
            if let Some(value) = fields.raw(key) {
                let problem = Problem::new("delta::plan::storage", message);
                self.report(problem.at(value.span, "here").help(help));
            }
        };
        if stated.is_some() && matches!(own, Some(Storage::File { .. })) {
            let message = "the weights of a GGUF file stay as they are in it";
            let help = "remove `storage`, or use the model's Hugging Face directory";
            report("storage", message, help);
        }
        let storage = match random {
            true => stated.unwrap_or_default(),
            false => stated.or(own).unwrap_or_default(),
        };
        if storage != Storage::F32 && random {
            let message =
                "weights that are drawn at random are there to be trained, and are kept in f32";
            report(
                "storage",
                message,
                "remove `storage`, or `weights = random`",
            );
        }
        if storage != Storage::F32 && precision != Precision::F32 {
            let message = "products decode these weights to f32, so `precision` changes nothing";
            let help = "remove `precision`, or keep the weights in f32";
            report("precision", message, help);
        }
        storage
    }
}

fn read_dropout(fields: &Fields, config: &mut Config) {
    match fields.value("dropout").map(|value| value.node) {
        None => {}
        Some(Value::Word(word)) if word == "off" => set_dropout(config, 0.0),
        Some(_) => {
            if let Some(probability) = fields.optional_number("dropout", 0.0..=0.99) {
                set_dropout(config, probability as f32);
            }
        }
    }
}

fn set_dropout(config: &mut Config, probability: f32) {
    config.dropout = probability;
    config.embedding_dropout = Some(probability);
    config.attention_dropout = probability;
    config.classifier_dropout = probability;
    let stated = &config.family().config;
    if stated.inner_dropout.is_some() {
        config.inner_dropout = probability;
    }
    if stated.last_dropout.is_some() {
        config.last_dropout = probability;
    }
}
