//! E-mail addresses and IP addresses.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::pattern::Pattern;
use super::{Hit, Kind};
use crate::error::Result;

static IPV4: Pattern = Pattern::new(r"(?:\d{1,3}\.){3}\d{1,3}");
static IPV6: Pattern = Pattern::new(
    r"(?i)(?:[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe[89ab][0-9a-f]|64:ff9b|::ffff)(?::[0-9a-f]{0,4}){1,7}(?:(?:\.\d{1,3}){3})?",
);
/// What says that four numbers are a version or a chapter. Looked for right before them.
static NUMBERED: Pattern = Pattern::new(
    r#"(?i)(?:\b(?:version|ver|release|rev|revision|build|section|chapter|clause|figure|table|tag)s?["']?[ :=]{0,3}["']?v?|\bv\.? ?|[=~><!^]= ?|[a-z]-)\z"#,
);

/// Top-level domains that a dotted name in code (`weight@self.data`) is not taken for an address without.
const DOMAINS: &str = " com org net edu gov mil int info biz name pro app dev cloud online site shop store tech xyz club live life news \
    blog email agency solutions systems software digital media group team work world today space design studio consulting services example \
    test invalid local localdomain localhost lan corp home internal ";
/// `icon@2x.png`: what looks like an address and is a file.
const FILES: &str = " png jpg jpeg gif svg webp ico js mjs cjs ts tsx jsx css scss less json html xml yml yaml toml txt lock ";

fn is_in(list: &str, word: &[u8]) -> bool {
    std::str::from_utf8(word).is_ok_and(|word| list.contains(&format!(" {} ", word.to_ascii_lowercase())))
}

/// Addresses as people write them. `user_parts` of URLs hold none: `https://me:pw@host.com`.
pub fn emails(text: &str, user_parts: &[Range<usize>], hits: &mut Vec<Hit>) {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('@') {
        let part = user_parts.partition_point(|part| part.end < at);
        if user_parts.get(part).is_some_and(|part| part.start <= at) {
            continue;
        }
        let local = local_part(text, at);
        let Some(domain) = domain(text, at + 1) else { continue };
        let name = &bytes[local.clone()];
        if name.is_empty() || name == b"git" || name.first() == Some(&b'.') {
            continue;
        }
        let labels: Vec<&[u8]> = bytes[domain.clone()].split(|b| *b == b'.').collect();
        let top = labels[labels.len() - 1];
        let plain = |label: &[u8]| label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let code = labels.len() == 2 && plain(name) && plain(labels[0]) && top.len() > 2 && !is_in(DOMAINS, top);
        let call = bytes.get(domain.end) == Some(&b'(');
        if !code && !call && !is_in(FILES, top) {
            hits.push(Hit::new(local.start..domain.end, Kind::Email, "email"));
        }
    }
}

/// What stands before the @, back to the first character that no local part has.
fn local_part(text: &str, at: usize) -> Range<usize> {
    let is_local =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '%' | '+' | '-' | '\'' | '&' | '=') || is_latin(c);
    let mut start = at;
    for (i, c) in text[..at].char_indices().rev().take(64) {
        if !is_local(c) {
            break;
        }
        start = i;
    }
    // `to=bob@..`, `'bob@..`: the sign before is the text's.
    let name = &text[start..at];
    if let Some(equals) = name.rfind(['=', '&']) {
        start += equals + 1;
    }
    start += text[start..at].len() - text[start..at].trim_start_matches(['\'', '-', '%', '+']).len();
    start..at
}

fn is_latin(c: char) -> bool {
    c.is_alphabetic() && ('\u{a0}'..'\u{250}').contains(&c)
}

/// A host with a dot and a top-level domain of letters.
fn domain(text: &str, start: usize) -> Option<Range<usize>> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-') || is_latin(c);
    let length = text[start..].chars().take(254).take_while(|c| is_host(*c)).map(char::len_utf8).sum::<usize>();
    let is_label = |label: &str| !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-');
    let mut host = &text[start..start + length];
    // `bob@example.com.` and `bob@example.com.-`: what follows the host is the sentence's.
    while let Some((rest, top)) = host.rsplit_once('.') {
        let is_top = (2..=24).contains(&top.len()) && (top.bytes().all(|b| b.is_ascii_alphabetic()) || top.starts_with("xn--"));
        if is_top && rest.split('.').all(is_label) {
            return Some(start..start + host.len());
        }
        host = rest;
    }
    None
}

/// Versions 4 and 6. Loopback, the unspecified address, network masks and broadcast are nobody's.
pub fn addresses(text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
    let pattern = IPV4.get()?;
    let mut at = 0;
    while let Some(found) = pattern.find_at(text, at) {
        at = found.end();
        let after = &text[found.end()..];
        let longer = after.first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
            || matches!(after, [b'.', digit, ..] if digit.is_ascii_digit())
            || matches!(after, [b'-', letter, ..] if letter.is_ascii_alphabetic());
        let before = found.start().checked_sub(1).map(|i| text[i]);
        let inside = before.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
        let Some(address) = std::str::from_utf8(found.as_bytes()).ok().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
            continue;
        };
        if !longer && !inside && is_somebodys(address) && !is_numbered(text, found.start())? {
            hits.push(Hit::new(found.range(), Kind::Ip, "ipv4"));
        }
    }
    for found in IPV6.get()?.find_iter(text) {
        let before = found.start().checked_sub(1).map(|i| text[i]);
        let inside = before.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'.' | b'_'));
        let longer = text.get(found.end()).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        // `fe80::1:` ends a clause.
        let written = found.as_bytes().strip_suffix(b":").filter(|rest| !rest.ends_with(b":")).unwrap_or(found.as_bytes());
        let parses = std::str::from_utf8(written).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
        if parses && !inside && !longer {
            hits.push(Hit::new(found.start()..found.start() + written.len(), Kind::Ip, "ipv6"));
        }
    }
    Ok(())
}

fn is_somebodys(address: Ipv4Addr) -> bool {
    let [first, .., last] = address.octets();
    let mask = u32::from(address).leading_ones() + u32::from(address).trailing_zeros() == 32 && first == 255;
    first != 0 && first != 127 && !mask && !(first >= 224 && last == 255)
}

fn is_numbered(text: &[u8], start: usize) -> Result<bool> {
    Ok(NUMBERED.get()?.is_match(&text[start.saturating_sub(24)..start]))
}

/// Whether a text is an address of version 4 and nothing else.
pub fn is_address(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv4Addr>().is_ok())
}
