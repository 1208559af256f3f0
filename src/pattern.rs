//! Python's regular expressions, in which PEFT names modules.

use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};

/// A compiled expression.
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles an expression with Python's syntax.
    ///
    /// # Errors
    /// It is no regular expression: one sentence says why.
    pub fn new(expression: &str) -> Result<Self, String> {
        // Oniguruma knows `\Z`, which is Python's end of a text, as the end or the line break before it: a module's
        // name has none.
        let compiled = Regex::with_options(
            expression,
            RegexOptions::REGEX_OPTION_NONE,
            Syntax::python(),
        );
        compiled
            .map(Pattern)
            .map_err(|e| e.description().to_owned())
    }

    /// Whether it matches a beginning of the text (`re.match`).
    pub fn matches_start(&self, text: &str) -> bool {
        self.at_start(text, None).is_some()
    }

    /// Whether it matches the whole text (`re.fullmatch`).
    pub fn matches_whole(&self, text: &str) -> bool {
        let options = SearchOptions::SEARCH_OPTION_WHOLE_STRING;
        let param = MatchParam::default();
        let found = self.0.match_with_param(text, 0, options, None, param);
        matches!(found, Ok(Some(end)) if end == text.len())
    }

    /// The text of the last group, where it matches a beginning of the text.
    pub fn last_group<'t>(&self, text: &'t str) -> Option<&'t str> {
        let mut region = Region::new();
        self.at_start(text, Some(&mut region))?;
        let (start, end) = region.pos(region.len().checked_sub(1)?)?;
        text.get(start..end)
    }

    /// An expression that Oniguruma gives up on, after ten million steps back, matches nothing.
    fn at_start(&self, text: &str, region: Option<&mut Region>) -> Option<usize> {
        let options = SearchOptions::SEARCH_OPTION_NONE;
        let param = MatchParam::default();
        let found = self.0.match_with_param(text, 0, options, region, param);
        found.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11's `re.match` and `re.fullmatch` say.
    #[test]
    fn expressions_mean_what_they_mean_in_python() {
        let name = "model.layers.3.self_attn.q_proj";
        for (expression, starts, is_whole) in [
            (r"model", true, false),
            (r".*q_proj\Z", true, true),
            (r"(?P<stem>.*)\.(q|v)_proj$", true, true),
            (r"layers", false, false),
            (r"(?:model|model.layers.*)", true, true),
            (r".*\.(?!k_proj)\w+", true, true),
        ] {
            let pattern = Pattern::new(expression).unwrap();
            assert_eq!(pattern.matches_start(name), starts, "{expression}");
            assert_eq!(pattern.matches_whole(name), is_whole, "{expression}");
        }
        let number = Pattern::new(r".*?\.[^.]*\.(\d+)\.").unwrap();
        assert_eq!(number.last_group(name), Some("3"));
        assert!(Pattern::new("(").is_err());
    }
}
