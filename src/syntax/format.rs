//! The one canonical form of a `.delta` file: a setting to a line where its block had lines of its
//! own, two spaces... and every comment where it was.

use super::ast::*;
use crate::diagnostic::{Problem, Span};

/// The canonical form of a `.delta` file. Formatting twice gives the same as formatting once, and
/// the meaning does not change.
///
/// # Errors
/// The text cannot be parsed.
pub fn format(text: &str) -> Result<String, Vec<Problem>> {
    let pipeline = super::parse(text)?;
    let mut printer = Printer {
        text,
        comments: comments(text),
        next_comment: 0,
        out: String::new(),
        depth: 0,
        last_line_end: 0,
    };
    for statement in &pipeline.statements {
        printer.line(statement.span, |printer| printer.statement(&statement.node));
    }
    printer.comments_before(text.len());
    // A file is never replaced by one that says something else.
    match super::parse(&printer.out) {
        Ok(own) if own == pipeline => Ok(printer.out),
        _ => Err(vec![Problem::internal("the formatted file is another one")]),
    }
}

/// The places of all comments. A `#` inside a text in quotes is none.
fn comments(text: &str) -> Vec<Span> {
    let mut found = Vec::new();
    let mut symbols = text.char_indices();
    let mut in_text = false;
    while let Some((start, symbol)) = symbols.next() {
        match symbol {
            '\\' if in_text => {
                symbols.next();
            }
            '"' => in_text = !in_text,
            '\n' => in_text = false,
            '#' if !in_text => {
                let end = text[start..]
                    .find('\n')
                    .map_or(text.len(), |length| start + length);
                found.push(Span { start, end });
                while symbols.as_str().len() > text.len() - end {
                    symbols.next();
                }
            }
            _ => {}
        }
    }
    found
}

struct Printer<'a> {
    text: &'a str,
    comments: Vec<Span>,
    next_comment: usize,
    out: String,
    depth: usize,
    /// Where in the source the last printed line ended.
    last_line_end: usize,
}

impl Printer<'_> {
    fn source(&self, span: Span) -> &str {
        &self.text[span.start..span.end]
    }

    fn spans_lines(&self, span: Span) -> bool {
        self.source(span).contains('\n')
    }

    /// Prints one node on lines of its own, with the comments and the blank line before it, and the
    /// comment at its end.
    fn line(&mut self, span: Span, print: impl FnOnce(&mut Self)) {
        self.comments_before(span.start);
        self.blank_line(span.start);
        self.indent();
        print(self);
        self.last_line_end = span.end;
        self.trailing_comment(span.end);
        self.out.push('\n');
    }

    fn indent(&mut self) {
        for _ in 0..self.depth {
            self.out.push_str("    ");
        }
    }

    /// Keeps at most one blank line between what was printed and what begins at `start`.
    fn blank_line(&mut self, start: usize) {
        let between = &self.text[self.last_line_end.min(start)..start];
        let lines = between.matches('\n').count();
        let at_block_start =
            self.out.ends_with("{\n") || self.out.ends_with("[\n") || self.out.is_empty();
        if lines > 1 && !at_block_start && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    /// Prints the comments that stand before `end` on lines of their own.
    fn comments_before(&mut self, end: usize) {
        while let Some(comment) = self.comments.get(self.next_comment).copied() {
            if comment.start >= end {
                break;
            }
            self.blank_line(comment.start);
            self.indent();
            let text = self.source(comment).trim_end().to_owned();
            self.out.push_str(&text);
            self.out.push('\n');
            self.last_line_end = comment.end;
            self.next_comment += 1;
        }
    }

    /// Prints the comment that stands on the line where a node ended.
    fn trailing_comment(&mut self, end: usize) {
        let Some(comment) = self.comments.get(self.next_comment).copied() else {
            return;
        };
        let is_trailing = comment.start >= end && !self.text[end..comment.start].contains('\n');
        // A comment inside the node (in a block that was joined) is moved behind it.
        if is_trailing || comment.start < end {
            let text = self.source(comment).trim_end().to_owned();
            self.out.push_str("  ");
            self.out.push_str(&text);
            self.last_line_end = comment.end;
            self.next_comment += 1;
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Pipeline { name } => self.words(&["pipeline", &name.node]),
            Statement::Param { name, value } => {
                self.words(&["param", &name.node, "= "]);
                self.value(value);
            }
            Statement::Backbone { location, block } => {
                self.out.push_str("backbone ");
                self.value(location);
                self.optional_block(block.as_ref());
            }
            Statement::Data { name, block } => {
                self.words(&["data "]);
                if let Some(name) = name {
                    self.words(&[&name.node, ""]);
                }
                self.block(block);
            }
            Statement::Task { name, kind, block } => {
                self.words(&["task "]);
                if let Some(name) = name {
                    self.words(&[&name.node, "= "]);
                }
                self.words(&[&kind.node, ""]);
                self.block(block);
            }
            Statement::Freeze { selection } => {
                self.words(&["freeze "]);
                self.selection(selection);
            }
            Statement::Unfreeze {
                name,
                selection,
                origin,
            } => {
                self.words(&["unfreeze", &name.node, "= "]);
                self.selection(selection);
                self.origin(origin.as_ref());
            }
            Statement::Place(place) => self.place(place),
            Statement::Stage { name, block } => {
                self.words(&["stage", &name.node, ""]);
                self.block(block);
            }
        }
    }

    fn words(&mut self, words: &[&str]) {
        self.out.push_str(&words.join(" "));
    }

    fn place(&mut self, place: &Place) {
        let keyword = place.preposition.keyword();
        self.words(&[keyword, &place.name.node, "=", &place.method.node]);
        self.optional_block(place.block.as_ref());
        self.words(&["", place.preposition.word(), ""]);
        self.selection(&place.selection);
        self.origin(place.origin.as_ref());
    }

    fn origin(&mut self, origin: Option<&Spanned<Value>>) {
        if let Some(run) = origin {
            self.words(&["", "from", ""]);
            self.value(run);
        }
    }

    fn optional_block(&mut self, block: Option<&Block>) {
        if let Some(block) = block {
            self.out.push(' ');
            self.block(block);
        }
    }

    /// A selection is printed as it was written, with single spaces.
    fn selection(&mut self, selection: &Selection) {
        let text = without_comments(self.source(selection.span));
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.find('"').unwrap_or(rest.len()));
            let part = single_spaced(part)
                .replace(", ", ",")
                .replace(" ,", ",")
                .replace("{ ", "{")
                .replace(" }", "}")
                .replace("except{", "except {");
            self.out.push_str(&part);
            if part.ends_with(',') && !after.is_empty() {
                self.out.push(' ');
            }
            let (quoted, after) = after.split_at(quoted_length(after));
            self.out.push_str(quoted);
            rest = after;
        }
    }

    fn block(&mut self, block: &Block) {
        if block.settings.is_empty() && !self.has_comment(block.span) {
            self.out.push_str("{}");
        } else if self.spans_lines(block.span) {
            self.out.push_str("{\n");
            self.depth += 1;
            self.last_line_end = block.span.start;
            for setting in &block.settings {
                self.line(setting.span(), |printer| printer.setting(setting));
            }
            self.comments_before(block.span.end - 1);
            self.depth -= 1;
            self.indent();
            self.out.push('}');
        } else {
            self.out.push_str("{ ");
            for (i, setting) in block.settings.iter().enumerate() {
                self.separator(i);
                self.setting(setting);
            }
            self.out.push_str(" }");
        }
    }

    fn has_comment(&self, span: Span) -> bool {
        self.comments
            .iter()
            .any(|comment| span.start < comment.start && comment.end < span.end)
    }

    fn separator(&mut self, index: usize) {
        if index > 0 {
            self.out.push_str(", ");
        }
    }

    fn setting(&mut self, setting: &Setting) {
        let key = self.source(setting.key.span).to_owned();
        self.words(&[&key, "= "]);
        self.value(&setting.value);
    }

    fn value(&mut self, value: &Spanned<Value>) {
        match &value.node {
            Value::Block(block) => self.block(block),
            Value::Record { name, block } => {
                self.words(&[&name.node, ""]);
                self.block(block);
            }
            Value::List(values) => self.list(value.span, values),
            Value::Call { name, arguments } => {
                self.words(&[&name.node]);
                self.out.push('(');
                for (i, argument) in arguments.iter().enumerate() {
                    self.separator(i);
                    if let Some(key) = &argument.key {
                        self.words(&[&key.node, "= "]);
                    }
                    self.value(&argument.value);
                }
                self.out.push(')');
            }
            Value::Every { .. } => {
                let text = without_comments(self.source(value.span));
                self.out.push_str(&single_spaced(&text));
            }
            _ => {
                let text = self.source(value.span).to_owned();
                self.out.push_str(&text);
            }
        }
    }

    fn list(&mut self, span: Span, values: &[Spanned<Value>]) {
        if self.spans_lines(span) && !values.is_empty() {
            self.out.push_str("[\n");
            self.depth += 1;
            self.last_line_end = span.start;
            for value in values {
                self.line(value.span, |printer| {
                    printer.value(value);
                    printer.out.push(',');
                });
            }
            self.comments_before(span.end - 1);
            self.depth -= 1;
            self.indent();
            self.out.push(']');
        } else {
            self.out.push('[');
            for (i, value) in values.iter().enumerate() {
                self.separator(i);
                self.value(value);
            }
            self.out.push(']');
        }
    }
}

/// The length of the text in quotes with which `text` begins; 0 if it begins with none.
fn quoted_length(text: &str) -> usize {
    let mut symbols = text.char_indices().skip(1);
    while let Some((place, symbol)) = symbols.next() {
        match symbol {
            '\\' => drop(symbols.next()),
            '"' => return place + 1,
            _ => {}
        }
    }
    text.len()
}

/// A part of a file without its comments.
fn without_comments(text: &str) -> String {
    let mut kept = text.to_owned();
    for comment in comments(text).into_iter().rev() {
        kept.replace_range(comment.start..comment.end, "");
    }
    kept
}

/// A text with one space for each run of white space.
fn single_spaced(text: &str) -> String {
    let mut spaced = String::new();
    for letter in text.chars() {
        match letter.is_whitespace() {
            true if spaced.ends_with(' ') => {}
            true => spaced.push(' '),
            false => spaced.push(letter),
        }
    }
    spaced
}
