//! The keys of `config.json` that a family's description names.

use serde::Deserialize;

/// Declares the keys of `config.json`: those that every family has, and those that some have.
macro_rules! config_keys {
    (
        always { $($always:ident),* $(,)? }
        sometimes { $($(#[$doc:meta])* $sometimes:ident),* $(,)? }
    ) => {
        /// The keys of `config.json` for each dimension and setting.
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)]
        pub struct ConfigKeys {
            $(pub $always: Key,)*
            $($(#[$doc])* pub $sometimes: Option<Key>,)*
        }

        impl ConfigKeys {
            /// All keys that the description names.
            pub(super) fn all(&self) -> impl Iterator<Item = &Key> {
                let always = [$(&self.$always),*];
                let sometimes = [$(&self.$sometimes),*];
                always.into_iter().chain(sometimes.into_iter().flatten())
            }
        }
    };
}

config_keys! {
    always {
        hidden,
        layers,
        heads,
        // If the description has no default: four times the hidden width.
        inner,
        vocabulary,
        norm_epsilon,
        activation,
        attention_dropout,
        pad_token,
    }
    sometimes {
        /// For a family with an encoder and a decoder; `layers` is then the encoder's number. Default: equal to
        /// `layers`.
        decoder_layers,
        /// Default: equal to `heads`.
        key_value_heads,
        /// Default: the hidden width divided by `heads`.
        head_width,
        /// For a family with a fixed number of positions.
        positions,
        /// For a family whose scores have a bias by the distance of the key.
        distance_buckets,
        longest_distance,
        /// For a family with rotary embeddings. Such a family also has the keys `rope_scaling` and `rope_parameters`.
        rope_theta,
        /// Scores are divided by the square root of this. Default: of a head's width.
        score_width,
        /// Scores `s` become `cap · tanh(s / cap)`.
        score_cap,
        attention_bias,
        feed_forward_bias,
        types,
        /// The activation of feed-forwards, and whether they are gated. If present, these two keys override
        /// `activation`.
        inner_activation,
        gated,
        /// 0 if the family has no such key.
        dropout,
        /// Default: the dropout of hidden states.
        embedding_dropout,
        /// 0 if the family has no such key.
        inner_dropout,
        /// 0 if the family has no such key.
        last_dropout,
        /// Default: the dropout of hidden states.
        classifier_dropout,
        /// The standard deviation of fresh weights that have no `fan`.
        initializer_range,
        /// A factor of the standard deviation of fresh weights that have a `fan`.
        initializer_factor,
        /// Whether classifiers read a sequence's first row (`cls`) or the mean of its rows (`mean`).
        pooling,
        /// The token with which a decoder's sequences begin.
        start_token,
        /// The token with which texts end, if the classifier reads its row.
        end_token,
        /// Whether a language-model head has the word embedding as its weight. Without this key, it has.
        tied,
        /// Whether a language-model head divides hidden states by the square root of their width.
        scaled_logits,
        /// Logits `l` of a language-model head become `cap · tanh(l / cap)`.
        logit_cap,
    }
}

/// A key of `config.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its name.
    pub key: String,
    /// Other names that transformers knows it by.
    #[serde(default)]
    pub also: Vec<String>,
    /// Another key, whose value transformers uses if this one is absent.
    #[serde(default)]
    pub otherwise: Option<String>,
    /// The value that transformers uses if the key is absent. A key without it is required, unless its field has a
    /// default of its own.
    #[serde(default)]
    pub default: Option<serde_json::Value>,
}
