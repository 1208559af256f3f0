//! Writes the answers of examples whose answers are known, for metrics.

use std::sync::Arc;

use super::{generate, text_of, Decoding};
use crate::data::TextEncoder;
use crate::diagnostic::Problem;
use crate::graph::Graph;
use crate::ranks::{all_items, own_of};
use crate::task::{Example, Target, Texts};

/// Writes answers.
#[derive(Clone)]
pub struct Writer {
    encoder: Arc<TextEncoder>,
    decoding: Decoding,
}

/// Answers that are written together.
const AT_ONCE: usize = 16;

impl Writer {
    /// A writer with a backbone's tokenizer.
    pub fn new(encoder: Arc<TextEncoder>, decoding: Decoding) -> Self {
        Writer { encoder, decoding }
    }

    /// What a graph writes for each example, and the text that the example wants, both as the tokenizer decodes them and
    /// without spaces around. Of a conversation, the last answer counts.
    ///
    /// # Errors
    /// The device fails; the tokenizer cannot decode an answer.
    pub fn texts(&self, graph: &Graph, examples: &[Example]) -> Result<Vec<Texts>, Problem> {
        // Products are shared out to other threads from a thread of the pool alone.
        rayon::scope(|_| self.texts_on_this_thread(graph, examples))
    }

    fn texts_on_this_thread(
        &self,
        graph: &Graph,
        examples: &[Example],
    ) -> Result<Vec<Texts>, Problem> {
        let decode = |tokens: &[u32]| self.encoder.decode(tokens);
        let mut parts = Vec::new();
        for examples in own_of(0, examples.chunks(AT_ONCE)) {
            let asked: Vec<(Example, &[u32])> = examples.iter().map(asked).collect();
            let prompts: Vec<&Example> = asked.iter().map(|(prompt, _)| prompt).collect();
            let written = generate(graph, &prompts, &self.decoding, &decode, &mut |_, _| true)?;
            let mut texts: Vec<Texts> = Vec::with_capacity(examples.len());
            for (written, (_, wanted)) in written.iter().zip(&asked) {
                let written = text_of(written, &self.decoding, &decode)?;
                let wanted = decode(wanted)?;
                texts.push((written.trim().to_owned(), wanted.trim().to_owned()));
            }
            parts.push(texts);
        }
        Ok(all_items(0, parts, examples.len().div_ceil(AT_ONCE)).concat())
    }
}

/// The prompt of an example, and the tokens of its answer.
fn asked(example: &Example) -> (Example, &[u32]) {
    let mut prompt = Example {
        target: Target::None,
        ..example.clone()
    };
    if let [start, wanted @ ..] = example.decoder.as_slice() {
        // The last token of a decoder's sequence is predicted and never read.
        prompt.decoder = vec![*start, *start];
        return (prompt, wanted);
    }
    let tokens = &example.text.tokens;
    let answer = example.answers().last().cloned();
    let answer = answer.unwrap_or(tokens.len()..tokens.len());
    prompt.text.tokens.truncate(answer.start);
    prompt.text.types.truncate(answer.start);
    prompt.text.special.truncate(answer.start);
    (prompt, &tokens[answer])
}
