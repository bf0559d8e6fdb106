//! What documents share: a limit, and errors that say where.

use std::io::{self, BufRead, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// No report that a person has a use for is larger; what is, is refused.
const MAX_DOCUMENT_BYTES: u64 = 512 << 20;

/// Reads no further than the limit, which is an error.
pub struct Limited<R> {
    reader: R,
    left: u64,
}

pub fn limited<R: BufRead>(reader: R) -> Limited<R> {
    Limited { reader, left: MAX_DOCUMENT_BYTES }
}

impl<R: BufRead> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let length = bytes.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Limited<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.reader.fill_buf()?;
        if self.left == 0 && !bytes.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20),
            ));
        }
        let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&bytes[..length])
    }

    fn consume(&mut self, length: usize) {
        self.left -= length as u64;
        self.reader.consume(length);
    }
}

/// What a reader gives as UTF-8, whatever it was: tests print bytes of any kind, and reports hand them on as they are.
pub struct Lossy<R> {
    reader: R,
    text: Vec<u8>,
    taken: usize,
    /// The beginning of a character whose end is still to come.
    partial: Vec<u8>,
}

impl<R: BufRead> Lossy<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, text: Vec::new(), taken: 0, partial: Vec::new() }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.text.clear();
        self.taken = 0;
        // Until something can be told: one byte of a character alone cannot.
        while self.text.is_empty() {
            let bytes = self.reader.fill_buf()?;
            let (length, at_end) = (bytes.len(), bytes.is_empty());
            let mut raw = std::mem::take(&mut self.partial);
            raw.extend_from_slice(bytes);
            self.reader.consume(length);
            if raw.is_empty() {
                break;
            }
            let mut chunks = raw.utf8_chunks().peekable();
            while let Some(chunk) = chunks.next() {
                self.text.extend_from_slice(chunk.valid().as_bytes());
                let invalid = chunk.invalid();
                let may_go_on = chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
                if may_go_on && !at_end {
                    self.partial = invalid.to_vec();
                } else if !invalid.is_empty() {
                    self.text.extend_from_slice("\u{fffd}".as_bytes());
                }
            }
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Lossy<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let length = bytes.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Lossy<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.text.len() {
            self.refill()?;
        }
        Ok(&self.text[self.taken..])
    }

    fn consume(&mut self, length: usize) {
        self.taken += length;
    }
}

/// A whole JSON document, field by field: what `T` does not name is skipped as it is read.
pub fn json<T: DeserializeOwned>(reader: impl Read, what: &str, name: &str) -> Result<T> {
    serde_json::from_reader(reader).map_err(|error| broken_json(&error, what, name))
}

fn broken_json(error: &serde_json::Error, what: &str, name: &str) -> Error {
    if error.classify() == serde_json::error::Category::Io {
        return Error::file(Path::new(name), format!("cannot be read: {error}"), "check the file and its disk");
    }
    let next = match error.is_eof() {
        true => "it was cut: make it again and let the tool finish",
        false => "give the file as the tool wrote it",
    };
    Error::file(Path::new(name), format!("is no valid {what}: {error}"), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_read_as_text_whatever_the_pieces() {
        let bytes = "a\u{e4}\u{20ac}\u{1f600}".bytes().chain(*b"\xff\xe4b\xe2\x82").collect::<Vec<u8>>();
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        for size in 1..=bytes.len() {
            let mut text = String::new();
            Lossy::new(io::BufReader::with_capacity(size, &bytes[..])).read_to_string(&mut text).unwrap();
            assert_eq!(text, whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_document_beyond_its_limit_is_an_error() {
        let mut limited = Limited { reader: &[b'x'; 10][..], left: 9 };
        let error = limited.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let mut exact = Limited { reader: &[b'x'; 9][..], left: 9 };
        assert_eq!(exact.read_to_end(&mut Vec::new()).unwrap(), 9);
    }
}
