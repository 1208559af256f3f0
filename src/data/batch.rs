//! Puts examples together: the order of an epoch, batches, and the groups that a device runs.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::{mix, Layout};
use crate::graph::{Batch, DecoderRows, Pairs, Targets};
use crate::task::{Example, Shares, Target};

/// The order of the examples in an epoch.
pub fn order(count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(
        mix(seed ^ mix(epoch as u64)),
    ));
    order
}

/// How tokens are masked for a masked language model (Devlin et al., arXiv 1810.04805, section 3.1). Of the
/// chosen tokens, 80 % become the mask, 10 % become a random token, and 10 % stay.
#[derive(Clone, Copy, Debug)]
pub struct Masking {
    /// The share of tokens that are chosen; at least one in every text.
    pub share: f32,
    /// The mask's number.
    pub mask_token: u32,
    /// The number of tokens in the vocabulary.
    pub vocabulary: usize,
}

/// How the targets of a batch are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction<'a> {
    /// How a masked language model's tokens are chosen.
    pub masking: Option<Masking>,
    /// Whether a causal language model predicts the first token as well: behind a prompt, it can.
    pub predicts_first: bool,
    /// How much each class counts in the loss.
    pub shares: Option<&'a Shares>,
    /// Whether the loss of a pair also counts the prompt of the preferred answer.
    pub reads_prompts: bool,
    /// The log-probabilities of both answers by the model that pairs are compared with, for each example.
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
    let weights = batches.iter().map(|batch| match &batch.targets {
        Targets::Shares { total, .. } => *total,
        _ => 0.0,
    });
    let weights: f64 = weights.sum();
    for batch in &mut batches {
        if let Targets::Shares { total, .. } = &mut batch.targets {
            *total = weights;
        }
    }
    let tokens = batches.iter().map(|batch| match &batch.targets {
        Targets::Pairs(pairs) => pairs.total,
        _ => 0,
    });
    let tokens: usize = tokens.sum();
    for batch in &mut batches {
        if let Targets::Pairs(pairs) = &mut batch.targets {
            pairs.total = tokens;
        }
    }
    let total: usize = batches.iter().map(|batch| batch.total).sum();
    batches
        .iter_mut()
        .for_each(|batch| batch.total = usize::max(total, 1));
    batches
}

/// Packs examples into one batch. `places` are their places in the whole batch, which together with `random`
/// give each example its random key.
pub fn batch(
    examples: &[&Example],
    places: &[usize],
    random: u64,
    prediction: Prediction,
) -> Batch {
    let Prediction {
        masking,
        predicts_first,
        shares,
        ..
    } = prediction;
    let key = |place: &usize| mix(random ^ mix(*place as u64));
    // Each sequence of an example has a random key of its own.
    let (mut sequences, mut keys) = (Vec::new(), Vec::new());
    for (example, place) in examples.iter().zip(places) {
        for (number, sequence) in example.sequences().enumerate() {
            sequences.push(sequence);
            keys.push(match number {
                0 => key(place),
                _ => mix(key(place) ^ number as u64),
            });
        }
    }
    let mut tokens: Vec<usize> = Vec::new();
    let mut types: Vec<usize> = Vec::new();
    let (mut rows, mut predicted) = (Vec::new(), Vec::new());
    let (mut reads, mut soft) = (Vec::new(), Vec::new());
    let mut decoded: Vec<usize> = Vec::new();
    for (example, key) in sequences.iter().zip(&keys) {
        let start = tokens.len();
        tokens.extend(example.text.tokens.iter().map(|&token| token as usize));
        types.extend(example.text.types.iter().map(|&kind| usize::from(kind)));
        reads.extend(example.text.reads.iter().map(|place| start + place));
        soft.push(example.text.soft.unwrap_or(0));
        let own = example.decoder.iter().map(|&token| token as usize);
        let own: Vec<usize> = own.collect();
        if let ([read @ .., _], [_, next @ ..]) = (own.as_slice(), own.as_slice()) {
            let start = decoded.len();
            decoded.extend_from_slice(read);
            if example.target == Target::NextTokens {
                rows.extend(start..decoded.len());
                predicted.extend_from_slice(next);
            }
        } else {
            // Nothing stands before the first token but a prompt's rows, which predict it.
            let first = start + usize::from(!predicts_first);
            for place in places_to_predict(example) {
                let place = (start + place.start).max(first)..start + place.end;
                predicted.extend_from_slice(&tokens[place.clone()]);
                rows.extend(place);
            }
        }
        if let Some(masking) = masking {
            mask(
                example,
                masking,
                *key,
                &mut tokens[start..],
                |position, token| {
                    rows.push(start + position);
                    predicted.push(token);
                },
            );
        }
    }
    let decoder = (!decoded.is_empty()).then(|| DecoderRows {
        tokens: decoded,
        layout: Layout::new(sequences.iter().map(|e| e.decoder.len() - 1), keys.clone()),
    });
    let layout = Layout::new(
        sequences.iter().map(|example| example.text.tokens.len()),
        keys,
    );
    let tokens_at = Targets::Tokens {
        rows,
        tokens: predicted,
    };
    let targets = match masking {
        Some(_) => tokens_at,
        None if examples.iter().any(|example| !example.others.is_empty()) => {
            Targets::Pairs(pairs(&sequences, &layout, places, prediction))
        }
        None => targets(examples, shares).unwrap_or(tokens_at),
    };
    let total = match &targets {
        Targets::Tokens { rows, .. } => rows.len(),
        Targets::Classes(classes) => classes.len(),
        _ => examples.len(),
    };
    Batch {
        tokens,
        types,
        layout,
        reads,
        soft,
        cached: None,
        decoder,
        targets,
        total,
    }
}

/// The tokens of pairs: those of both answers and, if the loss counts it, of the preferred one's prompt.
fn pairs(
    sequences: &[&Example],
    layout: &Layout,
    places: &[usize],
    prediction: Prediction,
) -> Pairs {
    let mut pairs = Pairs::default();
    for (number, (example, range)) in sequences.iter().zip(layout.ranges()).enumerate() {
        let is_whole = prediction.reads_prompts && number % 2 == 0;
        let first = usize::from(!prediction.predicts_first);
        for place in first..range.len() {
            let is_answer = example.answers().iter().any(|own| own.contains(&place));
            if is_answer || is_whole {
                pairs.rows.push(range.start + place);
                pairs.tokens.push(example.text.tokens[place] as usize);
                pairs.places.push((number, is_answer));
                pairs.total += usize::from(number % 2 == 0);
            }
        }
    }
    if !prediction.reference.is_empty() {
        let of_example = |place: &usize| prediction.reference[*place];
        pairs.reference = places.iter().flat_map(of_example).collect();
    }
    pairs
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
        Some(Target::NextTokens | Target::Answers(_) | Target::Preferred(_)) => None,
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

fn mask(
    example: &Example,
    masking: Masking,
    key: u64,
    tokens: &mut [usize],
    mut chosen: impl FnMut(usize, usize),
) {
    let mut random = ChaCha8Rng::seed_from_u64(key);
    let mut places: Vec<usize> = (0..tokens.len())
        .filter(|&i| !example.text.special.get(i).copied().unwrap_or(false))
        .collect();
    let count = (places.len() as f32 * masking.share).round().max(1.0) as usize;
    places.shuffle(&mut random);
    places.truncate(count);
    places.sort_unstable();
    for place in places {
        chosen(place, tokens[place]);
        let draw: f32 = random.random();
        if draw < 0.8 {
            tokens[place] = masking.mask_token as usize;
        } else if draw < 0.9 {
            tokens[place] = random.random_range(0..masking.vocabulary);
        }
    }
}
