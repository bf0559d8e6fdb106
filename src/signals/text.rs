//! Lines of bounded length out of bytes as they come, without colours, and the counts in a line.

use std::borrow::Cow;
use std::io::{self, BufRead};
use std::path::Path;

use crate::error::{Error, Result};

/// What is longer is cut here; a message of cargo has some kilobytes.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Cuts bytes into lines, whatever the pieces they come in.
#[derive(Default)]
pub struct Lines {
    pending: Vec<u8>,
    cut: bool,
}

/// A line without its end. `cut`: it was longer, and this is how it begins.
pub struct Line<'a> {
    pub bytes: &'a [u8],
    pub cut: bool,
}

impl Lines {
    pub fn push(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Line)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            if self.pending.is_empty() && !self.cut && end <= MAX_LINE_BYTES {
                each(Line { bytes: &bytes[..end], cut: false });
            } else {
                self.keep(&bytes[..end]);
                self.finish(each);
            }
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    /// The last line, where it has no end.
    pub fn finish(&mut self, each: &mut impl FnMut(Line)) {
        if !self.pending.is_empty() {
            each(Line { bytes: &self.pending, cut: self.cut });
        }
        // A line of megabytes is no reason to hold on to them.
        self.pending = Vec::new();
        self.cut = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_LINE_BYTES.saturating_sub(self.pending.len());
        self.cut |= bytes.len() > room;
        self.pending.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// All lines of a reader.
pub fn each_line(mut reader: impl BufRead, name: &str, mut each: impl FnMut(Line)) -> Result<()> {
    let mut lines = Lines::default();
    loop {
        let length = match reader.fill_buf() {
            Ok([]) => break,
            Ok(bytes) => {
                lines.push(bytes, &mut each);
                bytes.len()
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", name)(error)),
        };
        reader.consume(length);
    }
    lines.finish(&mut each);
    Ok(())
}

/// As a terminal shows it: without escape sequences, and only what stands behind the last carriage return, as a progress line
/// is written over.
pub fn plain(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let bytes = bytes.iter().rposition(|b| *b == b'\r').map_or(bytes, |at| &bytes[at + 1..]);
    if !bytes.contains(&0x1b) {
        return String::from_utf8_lossy(bytes);
    }
    let mut shown = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        if byte != 0x1b {
            shown.push(byte);
            continue;
        }
        match rest.next() {
            // A control sequence ends with one of these bytes (ECMA-48, 5.4).
            Some(b'[') => while rest.next().is_some_and(|b| !(0x40..=0x7e).contains(&b)) {},
            // A command to the terminal (a title, a link) ends with BEL or ESC \.
            Some(b']') => while rest.next_if(|b| *b != 0x07 && *b != 0x1b).is_some() {},
            _ => (),
        }
        if rest.peek() == Some(&0x07) {
            rest.next();
        }
    }
    Cow::Owned(String::from_utf8_lossy(&shown).into_owned())
}

/// "1 failed, 2 passed" as (1, "failed"), (2, "passed"). What is no number and a word is left out.
pub fn counts(text: &str) -> impl Iterator<Item = (u64, &str)> {
    text.split([',', ';', '|']).filter_map(|piece| {
        let (number, word) = piece.trim().split_once(' ')?;
        Some((number.parse().ok()?, word.trim()))
    })
}

/// The count of a word in such a text.
pub fn count_of(text: &str, words: &[&str]) -> u64 {
    counts(text).filter(|(_, word)| words.contains(word)).map(|(n, _)| n).sum()
}

/// The bytes behind a byte order mark.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// A redirection of Windows PowerShell writes UTF-16.
pub fn refuse_utf16(head: &[u8], name: &str) -> Result<()> {
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Err(Error::file(Path::new(name), "this is UTF-16", "save it as UTF-8 (PowerShell: `| Out-File -Encoding utf8`)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, &mut |line| seen.push((line.bytes.to_vec(), line.cut)));
        }
        lines.finish(&mut |line| seen.push((line.bytes.to_vec(), line.cut)));
        seen
    }

    #[test]
    fn lines_are_the_same_in_whatever_pieces_they_come() {
        let text = b"one\ntwo\r\n\nthree";
        let whole = lines(&[text]);
        assert_eq!(whole.iter().map(|(line, _)| &line[..]).collect::<Vec<_>>(), [&b"one"[..], b"two\r", b"", b"three"]);
        for at in 0..=text.len() {
            assert_eq!(lines(&[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn a_line_without_end_is_held_up_to_its_limit() {
        let piece = vec![b'x'; 1 << 20];
        let mut pieces = vec![&piece[..]; 100];
        pieces.push(b"\nnext");
        let seen = lines(&pieces);
        assert_eq!(seen.iter().map(|(line, cut)| (line.len(), *cut)).collect::<Vec<_>>(), [(MAX_LINE_BYTES, true), (4, false)]);
    }

    #[test]
    fn a_line_is_read_as_a_terminal_shows_it() {
        assert_eq!(plain(b"\x1b[1m\x1b[31merror\x1b[0m: no\r"), "error: no");
        assert_eq!(plain(b"Building 1/2\rBuilding 2/2\r   Compiling shop"), "   Compiling shop");
        assert_eq!(plain(b"\x1b]8;;file:///a\x1b\\link\x1b]8;;\x1b\\ \x1b]0;title\x07end"), "link end");
        assert_eq!(plain(b"\x1b["), "");
        assert_eq!(plain(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn counts_are_numbers_with_a_word() {
        assert_eq!(
            counts("3 passed; 0 filtered out; finished in 0.1s").collect::<Vec<_>>(),
            [(3, "passed"), (0, "filtered out")]
        );
        assert_eq!(count_of("1 error, 2 errors, 3 warnings", &["error", "errors"]), 3);
    }
}
