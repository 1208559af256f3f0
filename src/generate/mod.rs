//! Writes texts: extends prompts by the tokens that a model finds likely.
//!
//! In: a graph whose head is a language model's, and prompts. Out: tokens. This module knows no files but the backbone's
//! defaults, and no plans.

mod beam;
mod decoding;
mod sample;
mod writer;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::data::{batch, Prediction};
use crate::diagnostic::Problem;
use crate::engine::mix;
use crate::graph::{device_problem, Generation, Graph};
use crate::task::Example;

pub use decoding::{Decoding, Defaults};
use sample::{choose, forbid, penalize};
pub use writer::Writer;

/// Makes a text of tokens.
pub type Decode<'a> = &'a dyn Fn(&[u32]) -> Result<String, Problem>;

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Its tokens, the one that ended it among them.
    pub tokens: Vec<u32>,
    /// Whether it ended by itself, and not at the most tokens that it may have.
    pub ended: bool,
    /// Whether no more tokens come.
    pub is_over: bool,
}

/// When an answer is over.
struct Ending<'a> {
    decoding: &'a Decoding,
    decode: Decode<'a>,
}

impl Ending<'_> {
    /// Whether an answer ends with its last token.
    fn is_reached(&self, tokens: &[u32]) -> Result<bool, Problem> {
        let is_end = tokens
            .last()
            .is_some_and(|last| self.decoding.ends.contains(last));
        if is_end || self.decoding.stop.is_empty() {
            return Ok(is_end);
        }
        let text = (self.decode)(tokens)?;
        Ok(self.decoding.stop.iter().any(|stop| text.contains(stop)))
    }

    /// The tokens of a prompt that a penalty for repetition counts: a decoder has read none of the encoder's.
    fn occurred<'e>(&self, prompt: &'e Example) -> &'e [u32] {
        match prompt.decoder.split_last() {
            None => &prompt.text.tokens,
            Some((_, read)) => read,
        }
    }
}

/// The text of an answer, without what ended it.
///
/// # Errors
/// The tokenizer cannot decode it.
pub fn text_of(written: &Written, decoding: &Decoding, decode: Decode) -> Result<String, Problem> {
    let mut text = decode(&written.tokens)?;
    let ends = decoding.stop.iter().filter_map(|stop| text.find(stop));
    if let Some(end) = ends.min() {
        text.truncate(end);
    }
    Ok(text)
}

/// Answers prompts. `each` sees every new token with the number of its prompt, and ends that answer by returning false.
///
/// # Errors
/// The device fails; the tokenizer cannot decode an answer.
pub fn generate(
    graph: &Graph,
    prompts: &[&Example],
    decoding: &Decoding,
    decode: Decode,
    each: &mut dyn FnMut(usize, &Written) -> bool,
) -> Result<Vec<Written>, Problem> {
    let ending = Ending { decoding, decode };
    if decoding.beams > 1 {
        let mut all = Vec::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let written = beam::search(graph, prompt, decoding, &ending)?;
            each(number, &written);
            all.push(written);
        }
        return Ok(all);
    }
    let mut all = vec![Written::default(); prompts.len()];
    let mut random: Vec<ChaCha8Rng> = prompts
        .iter()
        .map(|prompt| ChaCha8Rng::seed_from_u64(key(prompt, decoding.seed)))
        .collect();
    let mut running: Vec<usize> = (0..prompts.len()).collect();
    let (mut extended, mut logits) = Extended::begin(graph, prompts)?;
    for length in 1..=decoding.max_tokens {
        let (mut going, mut tokens) = (Vec::new(), Vec::new());
        for (place, logits) in logits.iter_mut().enumerate() {
            let number = running[place];
            let written = &mut all[number];
            let occurred = [ending.occurred(prompts[number]), &written.tokens].concat();
            check_finite(logits)?;
            penalize(logits, &occurred, decoding.repetition_penalty);
            if length <= decoding.min_tokens {
                forbid(logits, &decoding.ends);
            }
            let token = choose(logits, decoding, &mut random[number]);
            written.tokens.push(token as u32);
            written.ended = ending.is_reached(&written.tokens)?;
            let longest = room(graph, prompts[number], decoding);
            written.is_over = written.ended || length >= longest;
            if each(number, written) && !written.is_over {
                going.push(place);
                tokens.push(token);
            }
        }
        if going.is_empty() {
            break;
        }
        if going.len() < running.len() {
            extended.select(&going);
            running = going.iter().map(|place| running[*place]).collect();
        }
        logits = extended.next(graph, &tokens)?;
    }
    Ok(all)
}

fn check_finite(logits: &[f32]) -> Result<(), Problem> {
    match logits.iter().all(|logit| logit.is_finite()) {
        true => Ok(()),
        false => {
            let message = "the model computed a logit that is NaN or infinite";
            Err(Problem::failure("delta::generate::not_finite", message)
                .help("look for NaN or infinity in the weights of the run and of its backbone"))
        }
    }
}

/// The most tokens of an answer to this prompt.
fn room(graph: &Graph, prompt: &Example, decoding: &Decoding) -> usize {
    let left = graph.most_rows().filter(|_| prompt.decoder.is_empty());
    let left = left.map_or(usize::MAX, |rows| rows.saturating_sub(prompt.rows()));
    decoding.max_tokens.min(left).max(1)
}

/// The random key of a prompt: of its tokens, so that an answer does not depend on the others.
fn key(prompt: &Example, seed: u64) -> u64 {
    let tokens = prompt.text.tokens.iter();
    tokens.fold(mix(seed), |key, token| mix(key ^ u64::from(*token)))
}

/// Sequences with what was written so far.
enum Extended {
    /// The graph keeps what it read.
    Kept(Generation),
    /// Everything is read anew for each token.
    Anew(Vec<Example>),
}

impl Extended {
    fn begin(graph: &Graph, prompts: &[&Example]) -> Result<(Self, Vec<Vec<f32>>), Problem> {
        let (generation, logits) = read(graph, prompts)?;
        let extended = match graph.keeps_what_it_read() {
            true => Extended::Kept(generation),
            false => Extended::Anew(prompts.iter().map(|prompt| (*prompt).clone()).collect()),
        };
        Ok((extended, logits))
    }

    fn select(&mut self, order: &[usize]) {
        match self {
            Extended::Kept(generation) => generation.select(order),
            Extended::Anew(examples) => {
                *examples = order.iter().map(|place| examples[*place].clone()).collect();
            }
        }
    }

    /// The logits of each sequence behind a new token.
    fn next(&mut self, graph: &Graph, tokens: &[usize]) -> Result<Vec<Vec<f32>>, Problem> {
        match self {
            Extended::Kept(generation) => {
                let logits = graph.extend(generation, tokens).map_err(device_problem)?;
                Ok(rows(logits.shape(), &logits.read()))
            }
            Extended::Anew(examples) => {
                for (example, token) in examples.iter_mut().zip(tokens) {
                    match example.decoder.pop() {
                        Some(last) => example.decoder.extend([*token as u32, last]),
                        None => {
                            example.text.tokens.push(*token as u32);
                            example.text.types.push(0);
                            example.text.special.push(false);
                        }
                    }
                }
                let examples: Vec<&Example> = examples.iter().collect();
                read(graph, &examples).map(|(_, logits)| logits)
            }
        }
    }
}

fn read(graph: &Graph, prompts: &[&Example]) -> Result<(Generation, Vec<Vec<f32>>), Problem> {
    let places: Vec<usize> = (0..prompts.len()).collect();
    let batch = batch(prompts, &places, 0, Prediction::default());
    let (generation, logits) = graph.begin(&batch).map_err(device_problem)?;
    Ok((generation, rows(logits.shape(), &logits.read())))
}

fn rows((_, columns): (usize, usize), values: &[f32]) -> Vec<Vec<f32>> {
    values.chunks(columns.max(1)).map(<[f32]>::to_vec).collect()
}
