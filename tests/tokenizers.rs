//! Texts become the tokens that transformers makes of them, whatever `tokenizer_config.json` says, by
//! `tests/fixtures/make_tokenizers.py`.

use crate::common::{config, fixture};
use deltarun::data::TextEncoder;
use deltarun::plan::{Cloze, Piece, Words};
use deltarun::task::Encoder;
use serde_json::Value;

#[test]
fn tokens_are_those_of_transformers() {
    let mut cases = 0;
    for entry in std::fs::read_dir(fixture("tokenizers")).unwrap() {
        let directory = entry.unwrap().path();
        let name = directory.file_name().unwrap().display().to_string();
        let text = std::fs::read_to_string(directory.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let longest = expected["max_length"].as_u64().unwrap() as usize;
        let encoder = TextEncoder::open(&directory, longest, &config(&directory));
        let encoder = encoder.unwrap_or_else(|problem| panic!("{name}: {problem:?}"));
        for row in expected["rows"].as_array().unwrap() {
            let texts: Vec<String> = serde_json::from_value(row["texts"].clone()).unwrap();
            let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let types: Vec<u8> = serde_json::from_value(row["types"].clone()).unwrap();
            let found = encoder.texts(&texts);
            let found = found.unwrap_or_else(|problem| panic!("{name}: {problem:?}"));
            assert_eq!(found.tokens, ids, "{name}: {texts:?}");
            assert_eq!(found.types, types, "{name}: {texts:?}");
        }
        cases += 1;
    }
    assert_eq!(cases, 72);
}

/// A causal model's word brings the space before it: that of the template is not there twice.
#[test]
fn the_space_before_a_causal_mask_is_the_words_own() {
    let directory = fixture("tokenizers/gpt2_stored_prefix");
    let encoder = TextEncoder::open(&directory, 20, &config(&directory)).unwrap();
    let cloze = |template: &str| Cloze {
        template: Piece::parse(template).unwrap(),
        words: vec!["go".to_owned()],
        tokens: Vec::new(),
        takes_mean: false,
        range: None,
        span: Default::default(),
    };
    let tokens = |template: &str| {
        let found = encoder.cloze(&cloze(template), &["fi".to_owned()]);
        found.unwrap().tokens
    };
    let plain = encoder.texts(&["fi go".to_owned()]).unwrap().tokens;
    assert_eq!(tokens("{text} go {mask}"), plain);
    // The word then makes of the whole what transformers makes of the sentence.
    let word = encoder.tokens("go").unwrap();
    let sentence = encoder.texts(&["fi go go".to_owned()]).unwrap().tokens;
    let joined: Vec<u32> = plain
        .iter()
        .copied()
        .chain(word.iter().map(|t| *t as u32))
        .collect();
    assert_eq!(joined, sentence);
}

/// A padding token in a text moves RoBERTa's positions and hides GPT-2's last token: it is refused by name.
#[test]
fn padding_in_a_text_is_refused_where_it_would_be_taken_for_padding() {
    let said = |family: &str, extra: &str, text: &str, reads_tokens: bool| {
        let directory = fixture("tokenizers").join(family);
        let json = std::fs::read_to_string(directory.join("config.json")).unwrap();
        let json = json.replacen('{', &format!("{{{extra}"), 1);
        let config = deltarun::backbone::Config::parse(&json).unwrap();
        let encoder = TextEncoder::open(&directory, 20, &config).unwrap();
        let encoded = encoder.texts(&[text.to_owned()]).unwrap();
        let checked = encoder.check_padding(&encoded, reads_tokens);
        checked.err().map(|problem| problem.message)
    };
    let message = said("roberta_prefix", "", "a <pad> film", true).unwrap();
    assert!(message.contains("`<pad>`"), "{message}");
    let gpt2 = |tokens| {
        said(
            "gpt2_prefix_left",
            "\"pad_token_id\": 0, ",
            "a <|endoftext|>",
            tokens,
        )
    };
    assert!(gpt2(false).unwrap().contains("`<|endoftext|>`"));
    // A language model predicts every token, and BERT counts positions whatever the token.
    assert_eq!(gpt2(true), None);
    assert_eq!(said("bert_plain", "", "a [PAD] film", false), None);
}

/// A BPE with `dropout` has other tokens for one text each time it reads it: no result could be had twice.
#[test]
fn a_tokenizer_that_draws_its_tokens_is_refused() {
    let own = fixture("tokenizers/added_decoder_as_stored");
    let text = std::fs::read_to_string(own.join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["model"]["type"], "BPE");
    let place = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer_config.json"] {
        if own.join(file).exists() {
            std::fs::copy(own.join(file), place.path().join(file)).unwrap();
        }
    }
    for (share, is_read) in [(Value::Null, true), (0.0.into(), true), (0.1.into(), false)] {
        json["model"]["dropout"] = share;
        std::fs::write(place.path().join("tokenizer.json"), json.to_string()).unwrap();
        match TextEncoder::open(place.path(), 16, &config(&own)) {
            Ok(_) => assert!(is_read),
            Err(problem) => assert!(
                !is_read && problem.message.contains("`dropout`"),
                "{}",
                problem.message
            ),
        }
    }
}
