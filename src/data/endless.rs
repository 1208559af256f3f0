//! Words without an end: a tokenizer reads them as one unknown token, and needs many times their size to do so.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, Tokenizer};

/// The number of characters beyond which every run of ASCII letters and digits is a part of one unknown token. None if
/// there is no such number, or if the tokenizer may divide a run.
pub(super) fn longest_word(tokenizer: &Tokenizer) -> Option<usize> {
    keeps_runs_whole(tokenizer).then_some(())?;
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => Some(model.max_input_chars_per_word),
        ModelWrapper::WordLevel(model) => {
            let words = model.get_vocab().into_keys();
            words.map(|word| word.chars().count()).max()
        }
        ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => None,
    }
}

/// Whether letters and digits that stand together stay together until the model reads them. Only for tokenizers of
/// which that is known.
fn keeps_runs_whole(tokenizer: &Tokenizer) -> bool {
    let is_known = matches!(
        tokenizer.get_normalizer(),
        None | Some(NormalizerWrapper::BertNormalizer(_) | NormalizerWrapper::Lowercase(_))
    ) && matches!(
        tokenizer.get_pre_tokenizer(),
        Some(
            PreTokenizerWrapper::BertPreTokenizer(_)
                | PreTokenizerWrapper::Whitespace(_)
                | PreTokenizerWrapper::WhitespaceSplit(_)
        )
    );
    // An added token is taken out of the middle of a word.
    let added = tokenizer.get_added_tokens_decoder();
    let is_letter = |letter: char| letter.is_ascii_alphanumeric();
    let touches = |token: &str| token.starts_with(is_letter) || token.ends_with(is_letter);
    is_known && !added.values().any(|token| touches(&token.content))
}

/// The text with the runs cut that are longer than `longest` characters: each is then just too long.
pub(super) fn without_endless_words(text: &str, longest: usize) -> String {
    let mut length = 0;
    let is_kept = |letter: &char| {
        length = match letter.is_ascii_alphanumeric() {
            true => length + 1,
            false => 0,
        };
        length <= longest + 1
    };
    text.chars().filter(is_kept).collect()
}
