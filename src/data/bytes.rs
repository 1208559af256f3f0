//! Reads files of text: from the hub or the disk, unpacked, as Unicode.

use std::char::DecodeUtf16Error;
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

use ruzstd::decoding::StreamingDecoder;

use super::table::{at_line, unreadable};
use crate::diagnostic::Problem;
use crate::hub::local;
use crate::plan::{FilePlan, TextEncoding};

/// The text of a file.
///
/// # Errors
/// It cannot be read or unpacked, is no text, or is written otherwise than the pipeline says.
pub(super) fn read_text(file: &FilePlan) -> Result<String, Problem> {
    let path = local(&file.path).map_err(|problem| problem.at(file.span, "named here"))?;
    let bytes = std::fs::read(path).map_err(|e| unreadable(file, &e))?;
    let bytes = unpacked(file, bytes)?;
    if let Some((what, help)) = other_kind(&bytes) {
        return Err(
            at_line("delta::data::kind", file, 0, format!("the file is {what}"))
                .at(file.span, "this file")
                .help(help),
        );
    }
    match file.encoding {
        None => utf8(file, bytes),
        Some(TextEncoding::Latin1) => Ok(bytes.into_iter().map(char::from).collect()),
        Some(TextEncoding::Windows1252) => Ok(bytes.into_iter().map(of_windows).collect()),
        Some(TextEncoding::Utf16) => utf16(file, &bytes),
    }
}

/// A letter of Windows' code page 1252.
pub(super) fn of_windows(byte: u8) -> char {
    const OTHERS: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match byte {
        0x80..0xa0 => OTHERS[usize::from(byte - 0x80)],
        other => char::from(other),
    }
}

/// How a file begins.
pub(super) struct Beginning {
    /// Its first bytes as text, unpacked.
    pub text: String,
    /// The encoding, if it is not UTF-8.
    pub encoding: Option<TextEncoding>,
    /// Whether gzip or zstd packed it.
    pub is_packed: bool,
}

/// The first bytes of a file.
///
/// # Errors
/// It cannot be read or unpacked.
pub(super) fn beginning(path: &Path) -> Result<Beginning, Problem> {
    let path = local(path)?;
    let wrong = |e: std::io::Error| {
        let message = format!("`{}` cannot be read: {e}", path.display());
        let help = match e.kind() {
            ErrorKind::NotFound => "check the path; it is relative to the current directory",
            ErrorKind::PermissionDenied => "allow reading it: `chmod +r FILE`",
            _ => "download it again, or unpack it yourself to see what is wrong",
        };
        Problem::new("delta::data::missing_file", message).help(help)
    };
    if path.is_dir() {
        let message = format!("`{}` is a directory", path.display());
        return Err(Problem::new("delta::data::missing_file", message).help("name a file in it"));
    }
    let mut file = File::open(&path).map_err(wrong)?;
    let mut mark = Vec::new();
    file.by_ref()
        .take(4)
        .read_to_end(&mut mark)
        .map_err(wrong)?;
    let whole = Cursor::new(mark.clone()).chain(file);
    let reader: Box<dyn Read> = match mark.as_slice() {
        mark if mark.starts_with(GZIP) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        ZSTD => {
            let decoder = StreamingDecoder::new(whole);
            Box::new(decoder.map_err(|e| wrong(std::io::Error::other(e.to_string())))?)
        }
        _ => Box::new(whole),
    };
    let mut bytes = Vec::new();
    reader
        .take(1 << 16)
        .read_to_end(&mut bytes)
        .map_err(wrong)?;
    let is_other = !seems_utf8(&bytes) && other_kind(&bytes).is_none();
    let encoding = is_other.then(|| TextEncoding::of(&bytes));
    let text = match encoding {
        Some(TextEncoding::Utf16) => letters_of_utf16(&bytes)
            .map(|letter| letter.unwrap_or('\u{fffd}'))
            .collect(),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    };
    Ok(Beginning {
        text: text.trim_start_matches('\u{feff}').to_owned(),
        encoding,
        is_packed: mark.starts_with(GZIP) || mark == ZSTD,
    })
}

/// Whether the whole of a file is UTF-8.
///
/// # Errors
/// It cannot be read or unpacked.
pub(super) fn is_utf8(file: &FilePlan) -> Result<bool, Problem> {
    let path = local(&file.path)?;
    let bytes = std::fs::read(path).map_err(|e| unreadable(file, &e))?;
    Ok(std::str::from_utf8(&unpacked(file, bytes)?).is_ok())
}

/// Whether the beginning of a file is UTF-8. A few broken letters do not count: the reader reports them. The last letter may
/// be cut.
fn seems_utf8(bytes: &[u8]) -> bool {
    if std::str::from_utf8(bytes).map_or_else(|e| e.error_len().is_none(), |_| true) {
        return true;
    }
    let (mut letters, mut broken) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        letters += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        broken += usize::from(!chunk.invalid().is_empty());
    }
    // By chance alone, hardly any two bytes are one letter.
    letters > broken
}

/// The magic numbers of gzip and zstd.
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Whether bytes begin a file that gzip or zstd packed, or one that is no text.
pub(super) fn is_packed(start: &[u8]) -> bool {
    start.starts_with(GZIP) || start.starts_with(ZSTD) || other_kind(start).is_some()
}

/// The bytes of a file; those that gzip or zstd packed are unpacked.
fn unpacked(file: &FilePlan, bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    let (read, program) = if bytes.starts_with(GZIP) {
        (ungzipped(&bytes), "gunzip -k")
    } else if bytes.starts_with(ZSTD) {
        (unzstd(&bytes), "zstd -d")
    } else {
        return Ok(bytes);
    };
    read.map_err(|reason| {
        let message = format!("the file cannot be unpacked: {reason}");
        let help =
            format!("download it again, or unpack it with `{program} FILE` to see what is wrong");
        at_line("delta::data::kind", file, 0, message)
            .at(file.span, "this file")
            .help(help)
    })
}

fn ungzipped(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    // A file may have several members, one after the other.
    let mut reader = flate2::read::MultiGzDecoder::new(bytes);
    let read = reader.read_to_end(&mut whole);
    read.map(|_| whole).map_err(|e| e.to_string())
}

fn unzstd(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let (mut whole, mut rest) = (Vec::new(), bytes);
    // A file may have several frames, one after the other.
    while !rest.is_empty() {
        let mut decoder = StreamingDecoder::new(&mut rest).map_err(|e| e.to_string())?;
        decoder.read_to_end(&mut whole).map_err(|e| e.to_string())?;
    }
    Ok(whole)
}

/// What the first bytes of a file say that it is, if it is no text, and how to make one of it.
fn other_kind(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let kinds: [(&[u8], &str, &str); 2] = [
        (
            b"PK\x03\x04",
            "a ZIP archive or a spreadsheet",
            "unpack it, or save it as CSV",
        ),
        (b"PAR1", "a Parquet file", "read it with `parquet(...)`"),
    ];
    let found = kinds
        .into_iter()
        .find(|(start, ..)| bytes.starts_with(start));
    found.map(|(_, what, help)| (what, help))
}

fn utf8(file: &FilePlan, bytes: Vec<u8>) -> Result<String, Problem> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text
            .strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            let encoding = TextEncoding::of(error.as_bytes());
            let found = match encoding {
                TextEncoding::Utf16 => "UTF-16, not UTF-8",
                _ => "not UTF-8",
            };
            let encoding = encoding.name();
            Err(at_line(
                "delta::data::not_utf8",
                file,
                line,
                format!("the text is {found}"),
            )
            .at(file.span, "this file")
            .help(format!(
                "write `encoding = \"{encoding}\"` behind its path in the pipeline, or convert it: `iconv -f {} -t utf-8 FILE > NEW`",
                encoding.replace("latin-1", "latin1")
            )))
        }
    }
}

/// The letters of UTF-16, in the order of bytes that the first two say.
fn letters_of_utf16(bytes: &[u8]) -> impl Iterator<Item = Result<char, DecodeUtf16Error>> + '_ {
    let is_big = bytes.starts_with(b"\xfe\xff");
    let unit = move |pair: &[u8; 2]| match is_big {
        true => u16::from_be_bytes(*pair),
        false => u16::from_le_bytes(*pair),
    };
    char::decode_utf16(bytes.as_chunks::<2>().0.iter().map(unit))
}

fn utf16(file: &FilePlan, bytes: &[u8]) -> Result<String, Problem> {
    let rest = bytes.as_chunks::<2>().1;
    let text: Result<String, _> = letters_of_utf16(bytes).collect();
    match text {
        Ok(text) if rest.is_empty() => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            Ok(text.to_owned())
        }
        _ => Err(
            at_line("delta::data::not_utf8", file, 0, "the text is not UTF-16")
                .at(file.span, "this file")
                .help("remove `encoding`, or write `encoding = \"latin-1\"`"),
        ),
    }
}
