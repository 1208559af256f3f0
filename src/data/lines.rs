//! The lines of a file, read one by one: of a large file, no more than a line is in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};

use super::bytes::{is_packed, of_windows, read_text};
use super::table::unreadable;
use crate::diagnostic::Problem;
use crate::hub::local;
use crate::plan::{FilePlan, TextEncoding};

/// The lines of a file with their numbers, from 1, without their ends. After a problem, there are no more.
pub(super) struct TextLines<'f> {
    file: &'f FilePlan,
    reader: Box<dyn BufRead>,
    /// The letter of a byte; none where the bytes are UTF-8.
    letter: Option<fn(u8) -> char>,
    number: usize,
    is_over: bool,
}

impl<'f> TextLines<'f> {
    /// Begins a file. One that is packed or in UTF-16 is read as a whole.
    ///
    /// # Errors
    /// As for [`read_text`], which says later what is wrong with a later line.
    pub fn open(file: &'f FilePlan) -> Result<Self, Problem> {
        let path = local(&file.path).map_err(|problem| problem.at(file.span, "named here"))?;
        let mut reader = BufReader::new(File::open(path).map_err(|e| unreadable(file, &e))?);
        let start = reader.fill_buf().map_err(|e| unreadable(file, &e))?;
        let letter: Option<fn(u8) -> char> = match file.encoding {
            Some(TextEncoding::Latin1) => Some(char::from),
            Some(TextEncoding::Windows1252) => Some(of_windows),
            Some(TextEncoding::Utf16) | None => None,
        };
        let is_whole = is_packed(start) || file.encoding == Some(TextEncoding::Utf16);
        Ok(TextLines {
            file,
            reader: match is_whole {
                true => Box::new(Cursor::new(read_text(file)?)),
                false => Box::new(reader),
            },
            letter: letter.filter(|_| !is_whole),
            number: 0,
            is_over: false,
        })
    }

    fn read(&mut self) -> Result<Option<String>, Problem> {
        let mut bytes = Vec::new();
        let read = self.reader.read_until(b'\n', &mut bytes);
        if read.map_err(|e| unreadable(self.file, &e))? == 0 {
            return Ok(None);
        }
        if bytes.pop_if(|last| *last == b'\n').is_some() {
            bytes.pop_if(|last| *last == b'\r');
        }
        let line = match self.letter {
            Some(letter) => bytes.into_iter().map(letter).collect(),
            None => match String::from_utf8(bytes) {
                Ok(line) => line,
                // The whole file says more of what it is.
                Err(error) => {
                    let whole = read_text(self.file).err();
                    return Err(whole.unwrap_or_else(|| Problem::internal(error)));
                }
            },
        };
        Ok(Some(match self.number {
            0 => line
                .strip_prefix('\u{feff}')
                .map(str::to_owned)
                .unwrap_or(line),
            _ => line,
        }))
    }
}

impl Iterator for TextLines<'_> {
    type Item = Result<(usize, String), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let line = self.read().transpose()?;
        self.number += 1;
        self.is_over = line.is_err();
        Some(line.map(|line| (self.number, line)))
    }
}
