//! Habits of other languages and tools, recognised in a text that does not parse: each with what to write.

use std::sync::OnceLock;

use regex::Regex;

use crate::diagnostic::{Problem, Span};

/// A habit: what it looks like, what is wrong, what to write. `$1` and so on are parts of what was found.
struct Habit {
    pattern: &'static str,
    message: &'static str,
    help: &'static str,
}

const HABITS: [Habit; 27] = [
    Habit {
        pattern: r"\b(?:target_modules|lora_target)[ \t]*[=:][ \t]*(?:\[([^\]\n]*)\]|[^\s,}]+)",
        message: "the target modules are not a setting",
        help: "select them after the block: `on {$1}` with the checkpoint's names, or `on block.*.attn.{q,v}` with ours; `deltarun plan` shows the tree",
    },
    Habit {
        pattern: r"//[^\n]*",
        message: "`//` does not begin a comment",
        help: "begin a comment with `#`",
    },
    Habit {
        pattern: r"/\*",
        message: "`/*` does not begin a comment",
        help: "begin each line of a comment with `#`",
    },
    Habit {
        pattern: r";",
        message: "`;` has no meaning here",
        help: "remove it: a new line or a `,` separates settings",
    },
    Habit {
        pattern: r"'([^'\n]*)'",
        message: "a string needs double quotes",
        help: "write `\"$1\"`",
    },
    Habit {
        pattern: r"[“”„«»]([^“”„«»\n]*)[“”„«»]?",
        message: "these are typographic quotes",
        help: "write `\"$1\"`",
    },
    Habit {
        pattern: r"([0-9.]*e)?[−–—]([0-9]+)",
        message: "this is a typographic dash, not a minus",
        help: "write `$1-$2`",
    },
    Habit {
        pattern: r"(?m)^[ \t]*-[ \t]+\w[^\n]*",
        message: "a list is not written with dashes",
        help: "write a list in brackets: `[first, second]`",
    },
    Habit {
        pattern: r"\b(?:pipeline|param|stage|task|unfreeze|insert|reparam)[ \t]+([A-Za-z_]\w*(?:[-.]\w+)+)",
        message: "a name may contain only letters, digits and `_`",
        help: "write `_` in place of other signs",
    },
    Habit {
        pattern: r"\b(?:insert|reparam)\b[^{}\n]*=[ \t]*(\w+)\(([^()\n]*)\)",
        message: "the settings of a method belong in braces",
        help: "write `$1 { $2 }`",
    },
    Habit {
        pattern: r"\b(?:optimizer|schedule)[ \t]*=[ \t]*(\w+)\(([^()\n]*)\)",
        message: "settings belong in braces",
        help: "write `$1 { $2 }`",
    },
    Habit {
        pattern: r"\b(tsv|csv|jsonl|json|parquet|text|conll)\(([^()\n]*)\)\.(head|few|split|sample|take)\(([^()\n]*)\)",
        message: "a file has no methods",
        help: "write `head($1($2), 1000)` for the first rows, `few($1($2), 16)` for some of each label, or `split(train, 10%)` for a part",
    },
    Habit {
        pattern: r"\bon[ \t]+\[([^\]\n]*)\]",
        message: "several modules are listed in braces, not in brackets",
        help: "write `on {$1}`",
    },
    Habit {
        pattern: r"\bon[ \t]+all-linear\b",
        message: "`all-linear` is PEFT's word",
        help: "select the layers: `on **.{q,k,v,o,up,down}`, with `gate` where there is one; `deltarun plan` shows the tree",
    },
    Habit {
        pattern: r"\[[ \t]*([0-9]*)[ \t]*:[ \t]*([0-9]*)[ \t]*\]",
        message: "blocks are not sliced with `:`",
        help: "write `[FIRST..END]` for the blocks from FIRST to before END, or `[last NUMBER]`",
    },
    Habit {
        pattern: r"\[-([0-9]+)\]",
        message: "blocks are not counted from the end with a minus",
        help: "write `[last $1]` for the last $1",
    },
    Habit {
        pattern: r"\b(reparam|insert|unfreeze)[ \t]*=[ \t]*",
        message: "a delta needs a name",
        help: "write `$1 NAME = ...`",
    },
    Habit {
        pattern: r"\b(reparam|insert)[ \t]+(\w+)[ \t]*(?:\{[^{}\n]*\})?[ \t]*\b(on|after|beside|before)\b",
        message: "a delta needs a name",
        help: "write `$1 NAME = $2 ... $3 ...`",
    },
    Habit {
        pattern: r"\binsert[ \t]+(\w+)[ \t]*=[ \t]*(\w+)[ \t]*(?:\{[^{}\n]*\}[ \t]*)?\bon\b",
        message: "`insert` places a module `after`, `beside` or `before` others",
        help: "write `reparam $1 = $2 ... on ...` to change weights, or `insert $1 = $2 ... after ...` to add a module",
    },
    Habit {
        pattern: r"\breparam[ \t]+(\w+)[ \t]*=[ \t]*(\w+)[ \t]*(?:\{[^{}\n]*\}[ \t]*)?\b(after|beside|before)\b",
        message: "`reparam` changes weights `on` modules",
        help: "write `insert $1 = $2 ... $3 ...` to add a module, or `reparam $1 = $2 ... on ...` to change weights",
    },
    Habit {
        pattern: r"\btask[ \t]*=[ \t]*(\w+)[ \t]*\{",
        message: "a task without a name takes no `=`",
        help: "write `task $1 { ... }`, or `task NAME = $1 { ... }`",
    },
    Habit {
        pattern: r"\b(backbone)[ \t]+([^\s\x22{/.-]*[/.-][^\s\x22{]*)",
        message: "a path needs quotes",
        help: "write `backbone \"$2\"`",
    },
    Habit {
        pattern: r"\b(tsv|csv|jsonl|text)\(([^\s\x22,()=]*[./][^\s\x22,()=]*)\)",
        message: "a path needs quotes",
        help: "write `$1(\"$2\")`",
    },
    Habit {
        pattern: r"(?m)^[ \t]*(\w+)[ \t]*:[ \t]*([^\n{]*[^\s{,;])",
        message: "a setting takes `=`, not `:`",
        help: "write `$1 = $2`",
    },
    Habit {
        pattern: r"[{,][ \t]*([0-9]+)[ \t]*[=:][ \t]*([A-Za-z_]\w*)",
        message: "a number before `=` needs quotes",
        help: "write `\"$1\" = $2`",
    },
    Habit {
        pattern: r"\x22(\w+)\x22[ \t]*:[ \t]*([^\s,}]+)",
        message: "a setting takes `=`, not `:`",
        help: "write `\"$1\" = $2`",
    },
    Habit {
        pattern: r"(?m)^[ \t]*(?:import|from|def|let|const|var|val)[ \t]+[^\n]*",
        message: "this statement belongs to another language",
        help: "write one of `pipeline`, `param`, `backbone`, `data`, `task`, `freeze`, `unfreeze`, `insert`, `reparam`, `stage`",
    },
];

/// The most habits that are looked for in one text: the same one again says nothing new.
const MOST: usize = 20;

/// The habits in a text; `code` says which of its bytes are neither quoted nor in a comment.
pub(super) fn find(text: &str, code: &[bool]) -> Vec<Problem> {
    static PATTERNS: OnceLock<Vec<Regex>> = OnceLock::new();
    let patterns = PATTERNS.get_or_init(|| {
        let compiled = |habit: &Habit| Regex::new(habit.pattern).expect("a test compiles them");
        HABITS.iter().map(compiled).collect()
    });
    let mut found: Vec<Problem> = Vec::new();
    for (habit, pattern) in HABITS.iter().zip(patterns) {
        for captures in pattern.captures_iter(text).take(MOST) {
            let Some(whole) = captures.get(0) else {
                continue;
            };
            let indent = whole.as_str().len() - whole.as_str().trim_start().len();
            let span = Span {
                start: whole.start() + indent,
                end: whole.end(),
            };
            let is_taken = |problem: &Problem| {
                let mut labels = problem.labels.iter();
                labels.any(|(other, _)| other.start < span.end && span.start < other.end)
            };
            // A key in quotes is also a habit; anything else in quotes or in a comment is none.
            let line = text[..span.start].rfind('\n').map_or(0, |end| end + 1);
            let is_key =
                text[span.start..].starts_with('"') && !text[line..span.start].contains('#');
            let is_code = code[span.start] || is_key;
            if is_code && !found.iter().any(is_taken) {
                let mut help = habit.help.to_owned();
                for number in 1..captures.len() {
                    let part = captures.get(number).map_or("", |part| part.as_str());
                    help = help.replace(&format!("${number}"), part.trim());
                }
                let problem = Problem::new("delta::syntax::habit", habit.message);
                found.push(problem.at(span, "here").help(help));
            }
        }
    }
    found
}

/// The form of each statement, by its first word.
pub(super) const FORMS: [(&str, &str); 10] = [
    ("pipeline", "pipeline NAME"),
    ("param", "param NAME = VALUE"),
    ("backbone", "backbone \"DIRECTORY\" { max_length = 128 }"),
    (
        "data",
        "data { train = tsv(\"train.tsv\"), dev = tsv(\"dev.tsv\") }",
    ),
    (
        "task",
        "task classify { text = COLUMN, label = COLUMN, labels = [a, b] }",
    ),
    ("freeze", "freeze PATH"),
    ("unfreeze", "unfreeze NAME = PATH"),
    ("insert", "insert NAME = METHOD { ... } after PATH"),
    ("reparam", "reparam NAME = METHOD { ... } on PATH"),
    (
        "stage",
        "stage NAME { train = [DELTA, head], epochs = 3, optimizer = adamw { lr = 1e-3 } }",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_habit_is_found_in_its_example() {
        for (text, help) in [
            ("epochs: 3", "write `epochs = 3`"),
            ("a = 'b'", "write `\"b\"`"),
            ("lr = 5e−4", "write `5e-4`"),
            ("pipeline my-run.v2", "write `_`"),
            (
                "reparam x = lora(rank = 8) on q",
                "write `lora { rank = 8 }`",
            ),
            ("task = classify {", "write `task classify"),
            (
                "train = tsv(data/train.tsv)",
                "write `tsv(\"data/train.tsv\")`",
            ),
            ("backbone ../x/y", "write `backbone \"../x/y\"`"),
        ] {
            let found = find(text, &vec![true; text.len()]);
            let helps: Vec<_> = found.iter().filter_map(|p| p.help.clone()).collect();
            assert!(
                helps.iter().any(|found| found.starts_with(help)),
                "{text}: {helps:?}"
            );
        }
    }
}
