//! Looks up the tokens of label words and of texts in the settings of deltas.

use std::collections::BTreeMap;

use super::build::Builder;
use super::surroundings::{Surroundings, Words};
use super::{BackbonePlan, Change, Cloze, DeltaPlan, TaskPlan};
use crate::diagnostic::Problem;

impl Builder<'_> {
    /// Looks up all tokens that the plan needs. Reads the tokenizer only if there are any.
    pub(super) fn look_up_words(
        &self,
        backbone: &BackbonePlan,
        tasks: &mut BTreeMap<String, TaskPlan>,
        deltas: &mut [DeltaPlan],
        surroundings: &dyn Surroundings,
    ) {
        let has_words = tasks.values().any(|task| task.kind.cloze().is_some());
        if !has_words && deltas.iter().all(|delta| delta.texts().is_empty()) {
            return;
        }
        let words = match surroundings.tokenizer(backbone) {
            Ok(Some(words)) => words,
            Ok(None) => return,
            Err(problem) => return self.report(problem),
        };
        for cloze in tasks.values_mut().filter_map(|task| task.kind.cloze_mut()) {
            self.look_up_labels(cloze, &*words);
        }
        for delta in deltas {
            if let Err(problem) = look_up_texts(delta, &*words) {
                self.report(problem);
            }
        }
    }

    fn look_up_labels(&self, cloze: &mut Cloze, words: &dyn Words) {
        for word in cloze.words.clone() {
            match words.word(&word, cloze) {
                Ok(tokens) if cloze.tokens.contains(&tokens) => self.report(
                    Problem::new(
                        "delta::data::label_word",
                        format!("two labels have the word `{word}`"),
                    )
                    .at(cloze.span, "in here")
                    .help("give every label a word of its own"),
                ),
                Ok(tokens) => cloze.tokens.push(tokens),
                Err(problem) => self.report(problem),
            }
        }
    }
}

fn look_up_texts(delta: &mut DeltaPlan, words: &dyn Words) -> Result<(), Problem> {
    let span = delta.span;
    let Change::Method { method, .. } = &mut delta.change else {
        return Ok(());
    };
    let wrong = |message: String| {
        let problem = Problem::new("delta::data::tokens", message).at(span, "in this delta");
        problem.help("write another text")
    };
    let mut found = Vec::new();
    for text in method.texts() {
        let read = match method.reads_frame() {
            true => words.framed(text),
            false => words.tokens(text),
        };
        let tokens = read.map_err(|problem| problem.or_at(span))?;
        if tokens.is_empty() {
            return Err(wrong(format!(
                "the tokenizer finds no tokens in the text {text:?}"
            )));
        }
        found.push(tokens);
    }
    match found.is_empty() {
        true => Ok(()),
        false => method.set_tokens(found).map_err(wrong),
    }
}
