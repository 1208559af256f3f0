//! Metrics of written texts. Each takes pairs of a written text and the wanted one, and gives a value from 0 to 1.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use regex::Regex;

use super::Metric;

/// A written text and the wanted one.
pub type Texts = (String, String);

/// The values of all metrics of texts.
pub fn metrics_of_texts(texts: &[Texts]) -> Vec<(Metric, f64)> {
    if texts.is_empty() {
        return Vec::new();
    }
    vec![
        (Metric::ExactMatch, mean(texts, exact_match)),
        (Metric::F1OfWords, mean(texts, f1_of_words)),
        (Metric::Bleu, bleu(texts)),
        (Metric::Chrf, chrf(texts)),
        (Metric::RougeL, mean(texts, rouge_l)),
    ]
}

fn mean(texts: &[Texts], of: fn(&str, &str) -> f64) -> f64 {
    let sum: f64 = texts
        .iter()
        .map(|(written, wanted)| of(written, wanted))
        .sum();
    sum / texts.len() as f64
}

/// The words of an answer as SQuAD's scripts compare them: without case, punctuation and articles. Two answers without
/// words are equal, as in evaluate-v2.0.py.
fn answer_words(text: &str) -> Vec<String> {
    static ARTICLES: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b(a|an|the)\b"));
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    let text = ARTICLES.replace_all(&text, " ");
    text.split_whitespace().map(str::to_owned).collect()
}

fn exact_match(written: &str, wanted: &str) -> f64 {
    f64::from(u8::from(answer_words(written) == answer_words(wanted)))
}

fn f1_of_words(written: &str, wanted: &str) -> f64 {
    let (written, wanted) = (answer_words(written), answer_words(wanted));
    if written.is_empty() || wanted.is_empty() {
        return f64::from(u8::from(written == wanted));
    }
    let common = common(&counts(written.iter()), &counts(wanted.iter()));
    f1(common, written.len(), wanted.len())
}

/// The F-measure of the longest common subsequence of words, as `rouge_score` has it without a stemmer (Lin 2004).
fn rouge_l(written: &str, wanted: &str) -> f64 {
    let words = |text: &str| {
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
        let words = words.filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let (written, wanted) = (words(written), words(wanted));
    let mut longest = vec![0usize; wanted.len() + 1];
    for word in &written {
        let mut diagonal = 0;
        for (place, other) in wanted.iter().enumerate() {
            let above = longest[place + 1];
            longest[place + 1] = match word == other {
                true => diagonal + 1,
                false => above.max(longest[place]),
            };
            diagonal = above;
        }
    }
    f1(longest[wanted.len()], written.len(), wanted.len())
}

fn f1(common: usize, written: usize, wanted: usize) -> f64 {
    match common {
        0 => 0.0,
        _ => 2.0 * common as f64 / (written + wanted) as f64,
    }
}

/// The BLEU of all texts together (Papineni et al. 2002) with words of up to four, as `sacrebleu` computes it by default:
/// the tokenizer of mteval-v13a, and counts of 0 smoothed exponentially.
fn bleu(texts: &[Texts]) -> f64 {
    const ORDER: usize = 4;
    let (mut right, mut all) = ([0; ORDER], [0; ORDER]);
    let mut lengths = (0, 0);
    for (written, wanted) in texts {
        let (written, wanted) = (bleu_words(written), bleu_words(wanted));
        lengths = (lengths.0 + written.len(), lengths.1 + wanted.len());
        for order in 1..=ORDER {
            let (own, other) = (
                counts(written.windows(order)),
                counts(wanted.windows(order)),
            );
            right[order - 1] += common(&own, &other);
            all[order - 1] += own.values().sum::<usize>();
        }
    }
    if right.iter().all(|count| *count == 0) || all.contains(&0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let logs = right.iter().zip(all).map(|(right, all)| {
        if *right > 0 {
            return (*right as f64 / all as f64).ln();
        }
        smoothing *= 2.0;
        (1.0 / (smoothing * all as f64)).ln()
    });
    let mean = logs.sum::<f64>() / ORDER as f64;
    let brevity = (1.0 - lengths.1 as f64 / lengths.0 as f64).min(0.0);
    (mean + brevity).exp()
}

/// The words of mteval-v13a.
fn bleu_words(text: &str) -> Vec<String> {
    static MARKS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (pattern(r"([\{-\~\[-\x60 -\&\(-\+\:-\@\/])"), " $1 "),
            (pattern(r"([^0-9])([\.,])"), "$1 $2 "),
            (pattern(r"([\.,])([^0-9])"), " $1 $2"),
            (pattern(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let mut text = text.trim_end().replace("<skipped>", "");
    text = text.replace("-\n", "").replace('\n', " ");
    for (entity, mark) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, mark);
    }
    text = format!(" {text} ");
    for (pattern, with) in MARKS.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text.split_whitespace().map(str::to_owned).collect()
}

/// The chrF of all texts together (Popović 2015): the F-measure, with recall counting twice, of the mean precision and
/// recall of runs of up to six characters without spaces, as `sacrebleu` computes it by default.
fn chrf(texts: &[Texts]) -> f64 {
    const ORDER: usize = 6;
    const RECALL: f64 = 2.0 * 2.0;
    let mut sums = [(0, 0, 0); ORDER];
    let characters =
        |text: &str| -> Vec<char> { text.split_whitespace().flat_map(str::chars).collect() };
    for (written, wanted) in texts {
        let (written, wanted) = (characters(written), characters(wanted));
        for (order, (own, other, both)) in (1..).zip(&mut sums) {
            let (of_written, of_wanted) = (
                counts(written.windows(order)),
                counts(wanted.windows(order)),
            );
            // A text without a run of this length has nothing to be right or wrong about.
            if !of_wanted.is_empty() {
                *own += of_written.values().sum::<usize>();
            }
            *other += of_wanted.values().sum::<usize>();
            *both += common(&of_written, &of_wanted);
        }
    }
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for (own, other, both) in sums
        .into_iter()
        .filter(|(own, other, _)| *own > 0 && *other > 0)
    {
        precision += both as f64 / own as f64;
        recall += both as f64 / other as f64;
        orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    (1.0 + RECALL) * precision * recall / orders / (RECALL * precision + recall)
}

fn counts<T: Hash + Eq>(all: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    all.for_each(|one| *counts.entry(one).or_insert(0) += 1);
    counts
}

/// How many are in both.
fn common<T: Hash + Eq>(a: &HashMap<T, usize>, b: &HashMap<T, usize>) -> usize {
    let both = a
        .iter()
        .map(|(one, count)| b.get(one).map_or(0, |other| *count.min(other)));
    both.sum()
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of this file")
}
