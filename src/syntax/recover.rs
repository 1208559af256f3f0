//! All that is wrong with a text that does not parse: habits of other languages, brackets and quotes that are
//! never closed, and for each statement what could have stood where it stops making sense.

use pest::Parser;

use super::grammar::{Grammar, Rule};
use super::{explain, habits};
use crate::diagnostic::{Problem, Span};

/// The words that statements begin with.
pub(super) const KEYWORDS: [&str; 10] = [
    "pipeline", "param", "backbone", "data", "task", "freeze", "unfreeze", "insert", "reparam",
    "stage",
];

/// What is wrong with a text that is no pipeline; at least one problem.
pub(super) fn problems(text: &str) -> Vec<Problem> {
    let scan = Scan::of(text);
    let failing: Vec<(Span, Problem)> = scan
        .statements
        .iter()
        .filter_map(|statement| {
            let part = &text[statement.start..statement.end];
            let error = Grammar::parse(Rule::file, part).err()?;
            Some((*statement, moved(explain(&error, part), statement.start)))
        })
        .collect();
    // A statement that parses has no habits, whatever it looks like.
    let is_within = |problem: &Problem, statement: &Span| {
        let mut labels = problem.labels.iter();
        labels.any(|(span, _)| statement.start <= span.start && span.start < statement.end)
    };
    let mut found = scan.problems;
    let habits = habits::find(text, &scan.code).into_iter();
    found.extend(habits.filter(|habit| failing.iter().any(|(span, _)| is_within(habit, span))));
    // Where something was recognised, what pest expected there is noise.
    for (statement, problem) in failing {
        if !found.iter().any(|known| is_within(known, &statement)) {
            found.push(problem);
        }
    }
    if found.is_empty() {
        // Each statement is sound alone: the whole says why they are not together.
        found.extend(
            Grammar::parse(Rule::file, text)
                .err()
                .map(|e| explain(&e, text)),
        );
    }
    found.sort_by_key(|problem| problem.labels.first().map(|(span, _)| *span));
    found
}

fn moved(mut problem: Problem, by: usize) -> Problem {
    for (span, _) in &mut problem.labels {
        (span.start, span.end) = (span.start + by, span.end + by);
    }
    problem
}

/// A text cut into statements, without a look at their meaning.
struct Scan {
    statements: Vec<Span>,
    /// Which bytes are neither in a text in quotes nor in a comment.
    code: Vec<bool>,
    problems: Vec<Problem>,
}

impl Scan {
    fn of(text: &str) -> Self {
        let mut scan = Scan {
            statements: Vec::new(),
            code: vec![true; text.len()],
            problems: Vec::new(),
        };
        let mut open: Vec<(usize, char)> = Vec::new();
        let mut start = 0;
        let mut at_line_start = true;
        let mut place = 0;
        while let Some(symbol) = text[place..].chars().next() {
            let next = place + symbol.len_utf8();
            match symbol {
                '#' => {
                    let end = text[place..]
                        .find('\n')
                        .map_or(text.len(), |end| place + end);
                    scan.code[place..end].fill(false);
                    place = end;
                    continue;
                }
                '"' => {
                    let (end, is_closed) = scan.quoted(text, place);
                    if !is_closed {
                        // The brackets of this line are closed within the quotes.
                        let line = text[..place].rfind('\n').unwrap_or(0);
                        open.retain(|(opened, _)| *opened < line);
                    }
                    place = end;
                    at_line_start = false;
                    continue;
                }
                '{' | '[' | '(' => open.push((place, symbol)),
                '}' | ']' | ')' => scan.close(&mut open, place, symbol),
                _ => {}
            }
            let is_statement = at_line_start && is_keyword(&text[place..]);
            // Inside of a block what looks like a statement is a setting, unless it begins a line.
            let is_first = place == 0 || text.as_bytes()[place - 1] == b'\n';
            if is_statement && (open.is_empty() || is_first) {
                scan.unclosed(&mut open);
                if !text[start..place].trim().is_empty() {
                    scan.statements.push(Span { start, end: place });
                }
                start = place;
            }
            at_line_start = symbol == '\n' || (at_line_start && symbol.is_whitespace());
            place = next;
        }
        scan.unclosed(&mut open);
        scan.statements.push(Span {
            start,
            end: text.len(),
        });
        scan
    }

    /// Passes over a text in quotes; gives its end, and whether it is closed.
    fn quoted(&mut self, text: &str, start: usize) -> (usize, bool) {
        let mut is_escaped = false;
        for (offset, symbol) in text[start + 1..].char_indices() {
            let place = start + 1 + offset;
            match symbol {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => {
                    self.code[start..=place].fill(false);
                    return (place + 1, true);
                }
                '\n' => {
                    self.code[start..place].fill(false);
                    self.never_closed(start, "\"", "close it on the same line: `\"...\"`");
                    return (place, false);
                }
                _ => {}
            }
        }
        self.code[start..].fill(false);
        self.never_closed(start, "\"", "close it on the same line: `\"...\"`");
        (text.len(), false)
    }

    /// Closes the innermost bracket of this kind; those within it were never closed.
    fn close(&mut self, open: &mut Vec<(usize, char)>, place: usize, symbol: char) {
        match open
            .iter()
            .rposition(|(_, opening)| closing(*opening) == symbol)
        {
            Some(matching) => {
                let mut within = open.split_off(matching + 1);
                open.pop();
                self.unclosed(&mut within);
            }
            None => self.problems.push(
                Problem::new(
                    "delta::syntax::bracket",
                    format!("this `{symbol}` has no opening bracket"),
                )
                .at(
                    Span {
                        start: place,
                        end: place + 1,
                    },
                    "here",
                )
                .help("remove it"),
            ),
        }
    }

    fn unclosed(&mut self, open: &mut Vec<(usize, char)>) {
        for (start, symbol) in open.drain(..) {
            let help = format!("add `{}` where it ends", closing(symbol));
            self.never_closed(start, &symbol.to_string(), &help);
        }
    }

    fn never_closed(&mut self, start: usize, symbol: &str, help: &str) {
        let span = Span {
            start,
            end: start + 1,
        };
        self.problems.push(
            Problem::new(
                "delta::syntax::unclosed",
                format!("this `{symbol}` is never closed"),
            )
            .at(span, "opened here")
            .help(help),
        );
    }
}

fn closing(opening: char) -> char {
    match opening {
        '{' => '}',
        '[' => ']',
        _ => ')',
    }
}

/// Whether a text begins with the first word of a statement, in whatever case.
fn is_keyword(text: &str) -> bool {
    let length = text
        .bytes()
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        .count();
    let (word, rest) = text.split_at(length);
    let is_setting = rest.trim_start_matches([' ', '\t']).starts_with('=');
    let is_word = KEYWORDS
        .iter()
        .any(|keyword| keyword.eq_ignore_ascii_case(word));
    is_word && (!is_setting || word.eq_ignore_ascii_case("task"))
}
