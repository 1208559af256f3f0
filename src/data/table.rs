//! Reads TSV, CSV, JSON lines and plain text into columns of texts.

use std::path::Path;
use std::sync::Arc;

use super::bytes::read_text;
use super::conll::conll;
use super::files::files_of;
use super::json_lines::{json, jsonl};
use super::lines::TextLines;
use super::parquet::parquet;
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan, Task};
use crate::text::{counted, did_you_mean, quoted_list};

/// A file's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct FileRows {
    /// In the order of the file.
    pub rows: Vec<Row>,
}

/// A problem in a line of a data file, or in a row of one without lines; line 0 is the file as a whole.
pub(super) fn at_line(
    code: &'static str,
    file: &FilePlan,
    line: usize,
    message: impl std::fmt::Display,
) -> Problem {
    let path = file.path.display();
    match line {
        0 => Problem::new(code, format!("`{path}`: {message}")),
        _ => Problem::new(code, format!("`{path}`, {} {line}: {message}", unit(file))),
    }
}

/// What the number of a row counts in a file.
pub(super) fn unit(file: &FilePlan) -> &'static str {
    match file.format {
        FileFormat::Json | FileFormat::Parquet => "row",
        _ => "line",
    }
}

/// A column that is read.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether its values are lists or objects, given as their JSON.
    pub is_structured: bool,
    /// Whether these lists are of messages alone.
    pub has_messages: bool,
    /// Whether a row may lack a value.
    pub may_be_null: bool,
}

impl<'a> Wanted<'a> {
    /// A column that a task reads.
    pub fn of(name: &'a str, task: &Task) -> Self {
        Wanted {
            name,
            is_structured: task.is_structured(name),
            has_messages: task.has_messages(name),
            may_be_null: task.may_be_null(name),
        }
    }

    /// A column of texts.
    pub fn text(name: &'a str) -> Self {
        Wanted {
            name,
            is_structured: false,
            has_messages: false,
            may_be_null: false,
        }
    }
}

/// A row of one file: its line, from 1, and the values of the wanted columns.
pub(super) type Numbered = (usize, Vec<String>);

/// A row of all files of a set: its place, and the values of the wanted columns.
pub type Row = (RowPlace, Vec<String>);

/// Where a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPlace {
    /// The file that has it.
    pub path: Arc<Path>,
    /// Its line in that file, or its number if the file has no lines, from 1.
    pub line: usize,
}

/// A problem of a row.
pub(super) fn at_row(
    code: &'static str,
    file: &FilePlan,
    place: &RowPlace,
    message: impl std::fmt::Display,
) -> Problem {
    let RowPlace { path, line } = place;
    let (path, unit) = (path.display(), unit(file));
    Problem::new(code, format!("`{path}`, {unit} {line}: {message}"))
}

impl FileRows {
    /// Reads the columns `wanted` of a file.
    ///
    /// # Errors
    /// The file does not exist, is not UTF-8, or has no rows; a column is missing, or a row has too many or too few.
    pub fn read(file: &FilePlan, wanted: &[&str]) -> Result<Self, Problem> {
        let wanted: Vec<Wanted> = wanted.iter().map(|name| Wanted::text(name)).collect();
        let rows = rows(file, &wanted)?;
        Ok(FileRows { rows })
    }
}

/// All rows of a file.
///
/// # Errors
/// As for [`FileRows::read`].
pub fn rows(file: &FilePlan, wanted: &[Wanted]) -> Result<Vec<Row>, Problem> {
    let mut read = Ok(Vec::new());
    visit(file, wanted, &mut |row| {
        match (&mut read, row) {
            (Ok(rows), Ok(row)) => rows.push(row),
            (_, Err(problem)) => read = Err(problem),
            (Err(_), Ok(_)) => {}
        }
        read.is_ok()
    })?;
    read.and_then(|rows| match rows.is_empty() {
        true => Err(no_examples(file)),
        false => Ok(rows),
    })
}

/// Calls `each` with every row of a file, or with the problem of that row, until `each` returns false. Several files are
/// read one after the other.
///
/// # Errors
/// A problem of a file as a whole: see [`FileRows::read`].
pub fn visit(
    file: &FilePlan,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Row, Problem>) -> bool,
) -> Result<(), Problem> {
    let mut left = file.most.unwrap_or(usize::MAX);
    let mut goes_on = true;
    for path in files_of(file)? {
        let name: Arc<Path> = path.clone().into();
        let one = FilePlan {
            path,
            more: Vec::new(),
            ..file.clone()
        };
        visit_one(&one, wanted, &mut |row| {
            left -= 1;
            let place = |line| RowPlace {
                path: name.clone(),
                line,
            };
            goes_on = each(row.map(|(line, values)| (place(line), values))) && left > 0;
            goes_on
        })?;
        if !goes_on {
            break;
        }
    }
    Ok(())
}

fn visit_one(
    file: &FilePlan,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    let text = || read_text(file);
    match file.format {
        FileFormat::Parquet => parquet(file, wanted, each),
        FileFormat::Json => json(file, &text()?, wanted, each),
        FileFormat::Tsv => tsv(file, wanted, each),
        FileFormat::Csv => csv(file, &text()?, wanted, each),
        FileFormat::Jsonl => jsonl(file, wanted, each),
        FileFormat::Conll => conll(file, &text()?, wanted, each),
        FileFormat::Text => {
            places(file, &["text".to_owned()], wanted)?;
            for line in lines(file)? {
                let row = |(number, line): (usize, String)| {
                    let row = wanted.iter().map(|_| line.clone());
                    (number, row.collect())
                };
                if !each(line.map(row)) {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// The indices of the wanted columns among those of a file.
pub(super) fn places(
    file: &FilePlan,
    columns: &[String],
    wanted: &[Wanted],
) -> Result<Vec<usize>, Problem> {
    let place = |wanted: &Wanted| {
        let name = wanted.name;
        let mut found = columns
            .iter()
            .enumerate()
            .filter(|(_, column)| *column == name);
        match (found.next(), found.next()) {
            (Some((place, _)), None) => Ok(place),
            (Some(_), Some(_)) => {
                let message = format!("the header has two columns named `{name}`");
                Err(at_line("delta::data::column", file, 1, message)
                    .at(file.span, "this file")
                    .help("give each column a name of its own"))
            }
            (None, _) => Err(no_column(file, columns, name)),
        }
    };
    wanted.iter().map(place).collect()
}

/// The problem of a missing column. It names the nearest column.
pub(super) fn no_column(file: &FilePlan, columns: &[String], name: &str) -> Problem {
    let known = || columns.iter().map(String::as_str);
    let message = format!("`{}` has no column `{name}`", file.path.display());
    let problem = Problem::new("delta::data::column", message).at(file.span, "this file");
    let near = did_you_mean(name, known()).map(|near| {
        format!(
            "did you mean `{near}`? the columns are {}",
            quoted_list(known())
        )
    });
    let help = other_reader(file, columns)
        .or(near)
        .or_else(|| headless(file, columns));
    problem.help(help.unwrap_or_else(|| format!("the columns are {}", quoted_list(known()))))
}

/// A suggestion for a header of another format.
fn other_reader(file: &FilePlan, columns: &[String]) -> Option<String> {
    let header = columns.join(", ");
    let (first, own) = match file.format {
        FileFormat::Csv => (columns.first()?, file.separator.unwrap_or(',')),
        FileFormat::Tsv => (columns.first()?, '\t'),
        _ => return None,
    };
    if first.starts_with('{') {
        return Some("read it with `jsonl(...)`: its first line is a JSON object".to_owned());
    }
    if first.starts_with('[') {
        return Some("read it with `json(...)`: it begins with a JSON list".to_owned());
    }
    let has = |symbol: char| columns.len() == 1 && first.contains(symbol) && !first.contains(own);
    match file.format {
        FileFormat::Csv if header.contains('\t') => {
            let header = header.replace('\t', ", ");
            Some(format!(
                "read it with `tsv(...)`: its header `{header}` has tabs"
            ))
        }
        FileFormat::Csv if has(';') || has('|') => {
            let symbol = if has(';') { ';' } else { '|' };
            Some(format!(
                "write `csv(\"...\", separator = \"{symbol}\")`: its header is `{first}`"
            ))
        }
        FileFormat::Tsv if has(',') => {
            Some(format!("read it with `csv(...)`: its header is `{first}`"))
        }
        _ => None,
    }
}

/// A suggestion for a first line that is an example, and no header.
fn headless(file: &FilePlan, columns: &[String]) -> Option<String> {
    let reader = match file.format {
        FileFormat::Csv => "csv",
        FileFormat::Tsv => "tsv",
        _ => return None,
    };
    let header = columns.join(", ");
    // A column's name is a word or two; a sentence or a number is an example.
    let is_value =
        |cell: &String| cell.split_whitespace().count() > 2 || cell.trim().parse::<f64>().is_ok();
    columns.iter().any(is_value).then(|| {
        let names = vec!["NAME"; columns.len()].join(", ");
        format!("if the file has no header, name its columns: `{reader}(\"...\", columns = [{names}])`; its first line is `{header}`")
    })
}

pub(super) fn no_examples(file: &FilePlan) -> Problem {
    at_line("delta::data::empty", file, 0, "the file has no examples")
        .at(file.span, "this file")
        .help("give a file with at least one row below its header")
}

pub(super) fn unreadable(file: &FilePlan, error: &std::io::Error) -> Problem {
    let path = file.path.display();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file `{path}`"),
        _ => format!("`{path}` cannot be read: {error}"),
    };
    Problem::new("delta::data::missing_file", message)
        .at(file.span, "named here")
        .help("check the path; it is relative to the directory of the `.delta` file")
}

/// Lines that are not blank, with their numbers.
///
/// # Errors
/// As for [`TextLines::open`].
pub(super) fn lines(
    file: &FilePlan,
) -> Result<impl Iterator<Item = Result<(usize, String), Problem>> + '_, Problem> {
    let is_blank = |line: &str| line.trim().is_empty();
    let lines = TextLines::open(file)?;
    Ok(lines.filter(move |line| !line.as_ref().is_ok_and(|(_, line)| is_blank(line))))
}

pub(super) fn wrong_width(file: &FilePlan, line: usize, found: usize, expected: usize) -> Problem {
    let message = format!(
        "the row has {}, but the header has {expected}",
        counted(found, "column")
    );
    at_line("delta::data::width", file, line, message)
        .at(file.span, "this file")
        .help("give every row a value for every column")
}

fn tsv_values(line: &str) -> Vec<String> {
    let line = line.trim_end_matches('\r');
    line.split('\t').map(str::to_owned).collect()
}

/// The values at these places.
fn chosen(row: &[String], places: &[usize]) -> Vec<String> {
    places.iter().map(|place| row[*place].clone()).collect()
}

fn tsv(
    file: &FilePlan,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    // A line with only tabs is a row of empty values, so we skip only lines without any character.
    let is_empty = |line: &(usize, String)| line.1.is_empty();
    let lines = TextLines::open(file)?;
    let mut lines = lines.filter(|line| !line.as_ref().is_ok_and(is_empty));
    let columns = match &file.columns {
        Some(columns) => columns.clone(),
        None => match lines.next().transpose()? {
            Some((_, header)) => tsv_values(&header),
            None => return Err(no_examples(file)),
        },
    };
    let places = places(file, &columns, wanted)?;
    for line in lines {
        let row = line.and_then(|(number, line)| {
            let row = tsv_values(&line);
            match row.len() == columns.len() {
                true => Ok((number, chosen(&row, &places))),
                false => Err(wrong_width(file, number, row.len(), columns.len())),
            }
        });
        if !each(row) {
            break;
        }
    }
    Ok(())
}

pub(super) fn csv_reader(text: &str, separator: char) -> csv::Reader<&[u8]> {
    csv::ReaderBuilder::new()
        .delimiter(separator as u8)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes())
}

fn csv(
    file: &FilePlan,
    text: &str,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    let separator = file.separator.unwrap_or(',');
    if let Some(line) = stray_quote(text, separator) {
        let message =
            "a quoted text has a quote that is not doubled, or has more text after its closing quote";
        let first = text.lines().next().unwrap_or_default().to_owned();
        let other = other_reader(file, &[first]);
        let problem = at_line("delta::data::csv", file, line, message).at(file.span, "this file");
        return Err(problem.help(other.as_deref().unwrap_or("write `\"\"` for a quote inside a quoted text, and quote every text with commas, quotes or line breaks")));
    }
    let mut reader = csv_reader(text, separator);
    let mut lines = Lines::of(text);
    let mut columns = file.columns.clone();
    let mut at = None;
    if let Some(columns) = &columns {
        at = Some(places(file, columns, wanted)?);
    }
    for record in reader.records() {
        let record = record.map_err(|e| {
            let line = e.position().map_or(0, |place| lines.at(place.byte()));
            at_line("delta::data::csv", file, line, e)
                .help("quote every text with commas or line breaks")
        })?;
        let line = record.position().map_or(0, |place| lines.at(place.byte()));
        let row: Vec<String> = record.iter().map(str::to_owned).collect();
        let (Some(known), Some(at)) = (&columns, &at) else {
            at = Some(places(file, &row, wanted)?);
            columns = Some(row);
            continue;
        };
        let row = match known.len() == row.len() {
            true => Ok((line, chosen(&row, at))),
            false => Err(wrong_width(file, line, row.len(), known.len())),
        };
        if !each(row) {
            break;
        }
    }
    match at {
        Some(_) => Ok(()),
        None => Err(no_examples(file)),
    }
}

/// Line numbers of ascending places. (The reader counts one line too few behind one that ends with `\r\n`.)
struct Lines<'t> {
    text: &'t str,
    byte: usize,
    line: usize,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let (byte, line) = (0, 1);
        Lines { text, byte, line }
    }

    /// The line of the first byte from `byte` on that ends no line.
    fn at(&mut self, byte: u64) -> usize {
        let bytes = self.text.as_bytes();
        let from = (byte as usize).clamp(self.byte, bytes.len());
        let ends = bytes[from..]
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'));
        let end = from + ends.count();
        self.line += bytes[self.byte..end]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        self.byte = end;
        self.line
    }
}

/// The line of the first stray quote: one that neither opens nor closes a value and is not doubled inside one. A value
/// that swallows the lines after it has such a quote sooner or later. If a value never closes, it is the line where the
/// value opens.
fn stray_quote(text: &str, separator: char) -> Option<usize> {
    let (mut line, mut opened) = (1, 1);
    let mut is_quoted = false;
    let mut symbols = text.chars().peekable();
    let mut is_start = true;
    while let Some(symbol) = symbols.next() {
        line += usize::from(symbol == '\n');
        match (is_quoted, symbol) {
            (true, '"') if symbols.peek() == Some(&'"') => drop(symbols.next()),
            (true, '"') => {
                is_quoted = false;
                let next = symbols.peek();
                if next != Some(&separator) && !matches!(next, None | Some('\n' | '\r')) {
                    return Some(line);
                }
            }
            (false, '"') if is_start => (is_quoted, opened) = (true, line),
            _ => {}
        }
        is_start = !is_quoted && (symbol == separator || symbol == '\n');
    }
    is_quoted.then_some(opened)
}
