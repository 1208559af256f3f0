//! Words for messages: counted plurals, lists, "did you mean".

/// A fraction in percent: `7%`, without the digits that binary fractions add.
pub fn percent(fraction: f64) -> String {
    format!("{}%", (fraction * 1e8).round() / 1e6)
}

/// `1 row`, `2 rows`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{} {noun}s", thousands(count))
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `` `a`, `b` and `c` ``; at most twelve, then how many more.
pub fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 12;
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        all if all.len() > MOST => {
            format!("{} and {} more", all[..MOST].join(", "), all.len() - MOST)
        }
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `a, b and c`.
pub fn list(items: &[String]) -> String {
    match items {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Reads JSON, whose first character may be a byte order mark.
///
/// # Errors
/// It is not JSON.
pub fn json(text: &str) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::from_str(text.trim_start_matches('\u{feff}'))
}

/// How deep a YAML document may be nested. A plan needs six.
const DEEPEST_YAML: usize = 32;

/// Bytes of a YAML document that is read. The largest plan has a few hundred thousand.
const LARGEST_YAML: usize = 16 << 20;

/// Reads YAML from outside.
///
/// # Errors
/// It is not YAML, or is too large or too deep: one sentence says which.
pub fn yaml(text: &str) -> Result<serde_yaml::Value, String> {
    if text.len() > LARGEST_YAML {
        return Err(format!("it is larger than {}", bytes(LARGEST_YAML)));
    }
    // The parser's time grows with the square of the depth of brackets. Those in a text in quotes open nothing.
    let (mut depth, mut quote) = (0usize, None);
    for symbol in text.bytes() {
        match (quote, symbol) {
            (Some(opening), _) if symbol == opening || symbol == b'\n' => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(symbol),
            (None, b'[' | b'{') => depth += 1,
            (None, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_YAML {
            return Err(format!("it is nested deeper than {DEEPEST_YAML} levels"));
        }
    }
    serde_yaml::from_str(text).map_err(|e| e.to_string())
}

/// The known name that was probably meant: the same in another case, one that begins the other
/// (`batch` for `batchsize`), or one within an edit distance of a third of the length.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let length = lower.chars().count();
    let distance = |candidate: &str| {
        let other = candidate.to_lowercase();
        let (short, long) = (
            length.min(other.chars().count()),
            length.max(other.chars().count()),
        );
        let begins = lower.starts_with(&other) || other.starts_with(&lower);
        let edits = strsim::damerau_levenshtein(&lower, &other);
        let is_near = edits <= long.div_ceil(3) && edits < short;
        (is_near || (begins && long <= 2 * short)).then_some(edits)
    };
    let near = known
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)));
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A text in lines of at most 80 columns: the first begins with `first`, the others with as many spaces.
pub fn wrapped(first: &str, text: &str) -> String {
    const COLUMNS: usize = 80;
    let indent = " ".repeat(first.chars().count());
    let mut lines = vec![first.to_owned()];
    let mut is_empty = true;
    for word in text.split(' ') {
        let line = lines
            .last_mut()
            .expect("there is a line from the beginning on");
        let fits = line.chars().count() + usize::from(!is_empty) + word.chars().count() <= COLUMNS;
        match (is_empty, fits) {
            (true, _) => line.push_str(word),
            (false, true) => line.extend([" ", word]),
            (false, false) => lines.push(format!("{indent}{word}")),
        }
        is_empty = false;
    }
    lines.join("\n")
}

/// A number of bytes as a person reads it.
pub fn bytes(count: usize) -> String {
    let count = count as f64;
    match count {
        c if c >= 1e9 => format!("{:.1} GB", c / 1e9),
        c if c >= 1e6 => format!("{:.1} MB", c / 1e6),
        c if c >= 1e3 => format!("{:.1} KB", c / 1e3),
        c => format!("{c} B"),
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
