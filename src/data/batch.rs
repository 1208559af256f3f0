//! Puts examples together: the order of an epoch, batches, and the groups that a device runs.

use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::noise::Noising;
use crate::engine::{mix, Layout};
use crate::graph::{AnswerPlace, AnswerRows, Batch, DecoderRows, Targets};
use crate::task::{Encoded, Example, Shares, Target};

/// The order of the examples in an epoch.
pub fn order(count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(
        mix(seed ^ mix(epoch as u64)),
    ));
    order
}

/// How the targets of a batch are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction<'a> {
    /// What is hidden from the model.
    pub noising: Option<&'a Noising>,
    /// Whether a causal language model predicts the first token as well: behind a prompt, it can.
    pub predicts_first: bool,
    /// How much each class counts in the loss.
    pub shares: Option<&'a Shares>,
    /// Whether the loss also counts the prompt of the right answer.
    pub reads_prompts: bool,
    /// The log-probabilities of both answers by the model that this one is compared with, for each example.
    pub reference: &'a [[f32; 2]],
}

/// Divides a batch into groups of whole sequences, with about `group_rows` rows each. Puts the longest
/// sequences first, each into the group with the fewest rows. So the groups depend only on the examples.
/// `random` is the random key of the batch.
pub fn groups(
    examples: &[&Example],
    random: u64,
    prediction: Prediction,
    group_rows: usize,
) -> Vec<Batch> {
    let length = |index: &usize| examples[*index].rows();
    let rows: usize = (0..examples.len()).map(|index| length(&index)).sum();
    let count = rows.div_ceil(group_rows).clamp(1, examples.len().max(1));
    let mut longest_first: Vec<usize> = (0..examples.len()).collect();
    longest_first.sort_by_key(|index| (std::cmp::Reverse(length(index)), *index));
    let mut members: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); count];
    for index in longest_first {
        if let Some(group) = members.iter_mut().min_by_key(|(rows, _)| *rows) {
            group.0 += length(&index);
            group.1.push(index);
        }
    }
    let mut batches: Vec<Batch> = members
        .into_iter()
        .filter(|(_, members)| !members.is_empty())
        .map(|(_, mut members)| {
            members.sort_unstable();
            batch(
                &members.iter().map(|&i| examples[i]).collect::<Vec<_>>(),
                &members,
                random,
                prediction,
            )
        })
        .collect();
    share_totals(&mut batches);
    batches
}

/// Gives every group the numbers by which the loss of the whole batch is divided.
fn share_totals(groups: &mut [Batch]) {
    let (mut predictions, mut weights, mut tokens) = (0, 0.0, 0);
    for group in groups.iter() {
        predictions += group.total;
        match &group.targets {
            Targets::Shares { total, .. } => weights += total,
            Targets::Answers(answers) => tokens += answers.total,
            _ => {}
        }
    }
    for group in groups {
        group.total = predictions.max(1);
        match &mut group.targets {
            Targets::Shares { total, .. } => *total = weights,
            Targets::Answers(answers) => answers.total = tokens,
            _ => {}
        }
    }
}

/// Packs examples into one batch. `places` are their places in the whole batch, which together with `random`
/// give each example its random key.
pub fn batch(
    examples: &[&Example],
    places: &[usize],
    random: u64,
    prediction: Prediction,
) -> Batch {
    let (mut sequences, keys) = sequences(examples, places, random);
    let hidden: Vec<Example>;
    if let Some(Noising::Spans(spans)) = prediction.noising {
        let hide = |(example, key): (&&Example, &u64)| spans.hide(example, *key);
        hidden = sequences.iter().zip(&keys).map(hide).collect();
        sequences = hidden.iter().collect();
    }
    let lengths = sequences.iter().map(|example| example.text.tokens.len());
    let layout = Layout::new(lengths, keys.clone());
    let mut tokens: Vec<usize> = all_of(&sequences, |text| text.tokens.iter().map(|t| *t as usize));
    let types = all_of(&sequences, |text| {
        text.types.iter().map(|t| usize::from(*t))
    });
    let decoder = decoder_rows(&sequences, &keys);
    let is_compared = |example: &&Example| matches!(example.target, Target::OneOf { .. });
    let has_answers = examples.iter().any(is_compared);
    let targets = match prediction.noising {
        Some(Noising::Tokens(masking)) => masking.hide(&sequences, &layout, &mut tokens),
        _ if has_answers => {
            let rows = decoder.as_ref().map_or(&layout, |decoder| &decoder.layout);
            Targets::Answers(answers(examples, rows, places, prediction))
        }
        _ => targets(&sequences, prediction.shares).unwrap_or_else(|| {
            let rows = decoder.as_ref().map_or(&layout, |decoder| &decoder.layout);
            tokens_to_predict(&sequences, rows, prediction)
        }),
    };
    let total = match &targets {
        Targets::Tokens { rows, .. } => rows.len(),
        Targets::Classes(classes) => classes.len(),
        _ => examples.len(),
    };
    let reads = sequences.iter().zip(layout.ranges());
    let reads = reads.flat_map(|(example, range)| {
        let own = example.text.reads.iter();
        own.map(move |place| range.start + place)
    });
    Batch {
        reads: reads.collect(),
        soft: sequences
            .iter()
            .map(|example| example.text.soft.unwrap_or(0))
            .collect(),
        tokens,
        types,
        layout,
        cached: None,
        decoder,
        targets,
        total,
    }
}

/// The sequences of examples, and a random key for each.
fn sequences<'e>(
    examples: &[&'e Example],
    places: &[usize],
    random: u64,
) -> (Vec<&'e Example>, Vec<u64>) {
    let of_example = |(example, place): (&&'e Example, &usize)| {
        let key = mix(random ^ mix(*place as u64));
        let key = move |number: usize| match number {
            0 => key,
            _ => mix(key ^ number as u64),
        };
        let all: Vec<(&'e Example, u64)> = example
            .sequences()
            .enumerate()
            .map(|(number, sequence)| (sequence, key(number)))
            .collect();
        all
    };
    examples.iter().zip(places).flat_map(of_example).unzip()
}

/// Something of each token of all sequences.
fn all_of<'e, I: Iterator<Item = usize> + 'e>(
    sequences: &[&'e Example],
    of: impl Fn(&'e Encoded) -> I,
) -> Vec<usize> {
    let all = sequences.iter().flat_map(|example| of(&example.text));
    all.collect()
}

/// The rows that a decoder reads: all tokens but the last, which none follows.
fn decoder_rows(sequences: &[&Example], keys: &[u64]) -> Option<DecoderRows> {
    let read = |example: &&Example| example.decoder.len().saturating_sub(1);
    let layout = Layout::new(sequences.iter().map(read), keys.to_vec());
    let tokens = sequences.iter().flat_map(|example| {
        let tokens = &example.decoder[..read(example)];
        tokens.iter().map(|token| *token as usize)
    });
    (layout.rows() > 0).then(|| DecoderRows {
        tokens: tokens.collect(),
        layout,
    })
}

/// The tokens that a language model predicts, with their rows; a decoder's row predicts the token after its own.
fn tokens_to_predict(sequences: &[&Example], layout: &Layout, prediction: Prediction) -> Targets {
    let (mut rows, mut tokens) = (Vec::new(), Vec::new());
    for (example, range) in sequences.iter().zip(layout.ranges()) {
        let number = |token: &u32| *token as usize;
        if example.decoder.is_empty() {
            // Nothing stands before the first token but a prompt's rows, which predict it.
            let first = usize::from(!prediction.predicts_first);
            for places in places_to_predict(example) {
                let places = places.start.max(first)..places.end;
                tokens.extend(example.text.tokens[places.clone()].iter().map(number));
                rows.extend(range.start + places.start..range.start + places.end);
            }
        } else if example.target == Target::NextTokens {
            rows.extend(range);
            tokens.extend(example.decoder[1..].iter().map(number));
        }
    }
    Targets::Tokens { rows, tokens }
}

/// The tokens of answers that are compared and, if the loss counts it, of the right one's prompt.
fn answers(
    examples: &[&Example],
    layout: &Layout,
    places: &[usize],
    prediction: Prediction,
) -> AnswerRows {
    let mut answers = AnswerRows::default();
    let mut ranges = layout.ranges();
    let first = usize::from(!prediction.predicts_first);
    for (prompt, example) in examples.iter().enumerate() {
        let right = match example.target {
            Target::OneOf { right, .. } => right.unwrap_or(0),
            _ => 0,
        };
        answers.counts.push(1 + example.others.len());
        answers.right.push(right);
        for (answer, sequence) in example.sequences().enumerate() {
            let range = ranges.next().unwrap_or_default();
            let is_whole = prediction.reads_prompts && answer == right;
            // A decoder's rows are all the answer's, and each predicts the token after its own.
            let tokens = match sequence.decoder.split_first() {
                Some((_, tokens)) => tokens,
                None => &sequence.text.tokens,
            };
            let has_decoder = !sequence.decoder.is_empty();
            let begin = if has_decoder { 0 } else { first };
            for (place, token) in tokens.iter().enumerate().take(range.len()).skip(begin) {
                let within = |own: &std::ops::Range<usize>| own.contains(&place);
                let is_own = has_decoder || sequence.answers().iter().any(within);
                if is_own || is_whole {
                    answers.rows.push(range.start + place);
                    answers.tokens.push(*token as usize);
                    answers.places.push(AnswerPlace {
                        prompt,
                        answer,
                        is_own,
                    });
                    answers.total += usize::from(answer == right);
                }
            }
        }
    }
    if !prediction.reference.is_empty() {
        let of_example = |place: &usize| prediction.reference[*place];
        answers.reference = places.iter().flat_map(of_example).collect();
    }
    answers
}

/// The places of the tokens that a language model without a decoder predicts.
fn places_to_predict(example: &Example) -> Vec<std::ops::Range<usize>> {
    match &example.target {
        Target::NextTokens => std::iter::once(0..example.text.tokens.len()).collect(),
        Target::Answers(places) => places.clone(),
        _ => Vec::new(),
    }
}

/// The targets of examples; `None` if they are tokens.
fn targets(examples: &[&Example], shares: Option<&Shares>) -> Option<Targets> {
    let targets = examples.iter().map(|example| &example.target);
    match examples.first().map(|example| &example.target) {
        Some(Target::NextTokens | Target::Answers(_) | Target::OneOf { .. }) => None,
        Some(Target::Class(_)) => {
            let classes = targets.map(|target| match target {
                Target::Class(class) => *class,
                _ => 0,
            });
            let classes: Vec<usize> = classes.collect();
            let Some(shares) = shares else {
                return Some(Targets::Classes(classes));
            };
            let weights = classes
                .iter()
                .map(|class| f64::from(shares.weights[*class]));
            let total = weights.sum();
            let shares = classes.into_iter().flat_map(|class| shares.of(class));
            Some(Targets::Shares {
                shares: shares.collect(),
                total,
            })
        }
        Some(Target::Set(_)) => {
            let sets = targets.flat_map(|target| match target {
                Target::Set(set) => set.as_slice(),
                _ => &[],
            });
            Some(Targets::Sets(sets.map(|has| f32::from(*has)).collect()))
        }
        Some(Target::Classes(_)) => {
            let classes = targets.flat_map(|target| match target {
                Target::Classes(classes) => classes.as_slice(),
                _ => &[],
            });
            Some(Targets::Classes(classes.copied().collect()))
        }
        Some(Target::Number(_)) => {
            let numbers = targets.map(|target| match target {
                Target::Number(number) => *number,
                _ => 0.0,
            });
            Some(Targets::Numbers(numbers.collect()))
        }
        _ => Some(Targets::None),
    }
}
