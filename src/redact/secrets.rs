//! Secrets that are told by what stands around them: private keys, JWTs, credentials in URLs, and values behind a telling name.

use std::ops::Range;

use super::pattern::Pattern;
use super::{Hit, Kind, shape, users};
use crate::error::Result;

static KEY_BEGINS: Pattern = Pattern::new(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}");
static KEY_ENDS: Pattern = Pattern::new(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}");
/// What a key may hold behind its first line: header lines, then base64. Lines may be joined by a written-out `\n`.
static KEY_BODY: Pattern = Pattern::new(
    r#"\A(?:[\s"',+]|\\[nrt])*(?:[A-Za-z-]{4,20}: [^\r\n\\]{0,100}(?:[\s"',+]|\\[nrt])+)*(?:[A-Za-z0-9+/=]{16,}(?:[\s"',+]|\\[nrt])*)+(?:[A-Za-z0-9+/]{0,15}={0,2})"#,
);
/// RFC 7519 and 7516: base64url of `{"`, then two to four more parts.
static JWT: Pattern = Pattern::new(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){1,3}");

static URL: Pattern = Pattern::new(r#"\b[A-Za-z][A-Za-z0-9+.-]{1,19}://[^\s/?#"'`]{1,512}@"#);

/// What is read of a value without quotes to tell what it is; one that is longer then goes whole.
const UNQUOTED_BYTES: usize = 128;
/// `password: ..`, `"token": "..`, `API_KEY=..`, `--secret ..`, `<password>..`, `set_password("..`, `the password is ..`.
static NAMED: Pattern = Pattern::new(concat!(
    r"(?i)(pass(?:word|wd|phrase|code)|pwd|secret|token|credential|",
    r"(?:api|app|access|account|auth|encryption|license|master|private|secret|service|shared|signing)[ _.-]?key)",
    r#"[\w.-]{0,32}(?:\\?["'`\]]){0,2}"#,
    r"(?:[ \t]{0,3}:[ \t]{0,3}&?[\w\[\]<>]{1,20}[ \t]{0,3}=|(?: [\w-]{1,20}){0,4} (?:is|was):?|[ \t]{0,8}(?:=>|:=|={1,3}|:|(,)|\(|->)|>|([ \t]))",
    r#"[ \t]{0,8}(?:(?:\\?["'`])([^\x00-\x20"'`\\]{8,})(?:\\?["'`]|[\r\n]|\z)|([^\x00-\x20"'`<>,;(){}\[\]\\]{8,128}))"#
));
static BEARER: Pattern =
    Pattern::new(r"(?i)\b(?:authorization\W{1,6}(?:bearer|basic|token|apikey)?|bearer|basic)[ \t]+([A-Za-z0-9+/=_.~-]{12,2048})");

/// Everything that this file knows, and where the user parts of URLs stand: no e-mail begins in them.
pub fn find(text: &[u8], hits: &mut Vec<Hit>) -> Result<Vec<Range<usize>>> {
    private_keys(text, hits)?;
    for jwt in JWT.get()?.find_iter(text) {
        hits.push(Hit::new(jwt.range(), Kind::Jwt, "jwt"));
    }
    named(text, hits)?;
    for captures in BEARER.get()?.captures_iter(text) {
        if let Some(value) = captures.get(1)
            && shape::is_random_token(value.as_bytes())
        {
            hits.push(Hit::new(value.range(), Kind::Secret, "authorization"));
        }
    }
    urls(text, hits)
}

/// Whole blocks, and keys that were cut off before their last line. A first line without a key behind it is no secret.
fn private_keys(text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
    let (begins, ends, body) = (KEY_BEGINS.get()?, KEY_ENDS.get()?, KEY_BODY.get()?);
    let starts: Vec<Range<usize>> = begins.find_iter(text).map(|found| found.range()).collect();
    let last_lines: Vec<Range<usize>> =
        if starts.is_empty() { Vec::new() } else { ends.find_iter(text).map(|found| found.range()).collect() };
    for (i, start) in starts.iter().enumerate() {
        let limit = starts.get(i + 1).map_or(text.len(), |next| next.start);
        let Some(key) = body.find(&text[start.end..limit]) else { continue };
        let next = last_lines.partition_point(|end| end.start < start.end);
        let end = match last_lines.get(next) {
            // Between a key and its last line stands little else: a checksum, a quote.
            Some(end) if end.end <= limit && end.start <= start.end + key.end() + 200 => end.end,
            _ => start.end + key.end(),
        };
        hits.push(Hit::new(start.start..end, Kind::PrivateKey, "private-key"));
    }
    Ok(())
}

/// `scheme://user:password@` and `scheme://token@`.
fn urls(text: &[u8], hits: &mut Vec<Hit>) -> Result<Vec<Range<usize>>> {
    let mut user_parts = Vec::new();
    for url in URL.get()?.find_iter(text) {
        let Some(scheme) = url.as_bytes().windows(3).position(|w| w == b"://") else { continue };
        let start = url.start() + scheme + 3;
        // Up to the last @: a password may hold one.
        let user_part = start..url.end() - 1;
        match text[user_part.clone()].iter().position(|b| *b == b':') {
            Some(colon) => {
                let (user, password) = (start..start + colon, start + colon + 1..user_part.end);
                if !text[password.clone()].is_empty() && !shape::is_template(&text[password.clone()]) {
                    hits.push(Hit::new(password, Kind::Secret, "url-credentials"));
                    if users::is_personal(&text[user.clone()]) {
                        hits.push(Hit::new(user, Kind::User, "url-credentials"));
                    }
                }
            }
            None if shape::is_random_token(&text[user_part.clone()]) => {
                hits.push(Hit::new(user_part.clone(), Kind::Secret, "url-credentials"));
            }
            None => continue,
        }
        user_parts.push(user_part);
    }
    Ok(user_parts)
}

/// Values behind a telling name, where they look like what the name says.
fn named(text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
    let pattern = NAMED.get()?;
    let mut at = 0;
    while let Some(captures) = pattern.captures_at(text, at) {
        let (Some(name), Some(value)) = (captures.get(1), captures.get(4).or_else(|| captures.get(5))) else { break };
        let (comma, space, quoted) = (captures.get(2).is_some(), captures.get(3).is_some(), captures.get(4).is_some());
        // `passwd, "hunter2x9"` is an argument; `a_token, b2_token` is a list.
        if (comma && !quoted) || (space && !is_option(text, name.start())) {
            at = name.end();
            continue;
        }
        let mut range = value.range();
        let is_cut = !quoted && range.len() == UNQUOTED_BYTES;
        if !quoted {
            range.end = range.start + next_parameter(&text[range.clone()]);
            range.end -= text[range.clone()].iter().rev().take_while(|b| matches!(b, b'.' | b':' | b'!' | b'?')).count();
        }
        let lower = name.as_bytes().to_ascii_lowercase();
        let password = lower.starts_with(b"pass") || lower == b"pwd";
        if is_value(text, &range, password, quoted) {
            if is_cut {
                range.end += text[range.end..].iter().take_while(|b| !is_delimiter(**b)).count();
            }
            hits.push(Hit::new(range.clone(), Kind::Secret, if password { "named-password" } else { "named-token" }));
            at = range.end;
        } else {
            // A name may stand in what was taken for a value: `token: token=..`.
            at = name.end();
        }
    }
    Ok(())
}

/// Only an option of a command line has its value right behind it: `--db-password hunter2x9`.
fn is_option(text: &[u8], name: usize) -> bool {
    let word = text[..name].iter().rev().take(40).take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).count();
    text[name - word..name].starts_with(b"-")
}

/// Where the next parameter of a query begins, or the end: `?token=..&page=2`.
fn next_parameter(value: &[u8]) -> usize {
    let is_next = |at: &usize| {
        let name = value[at + 1..].iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b';')).count();
        name > 0 && value.get(at + 1 + name) == Some(&b'=')
    };
    (0..value.len()).filter(|at| value[*at] == b'&').find(is_next).unwrap_or(value.len())
}

fn is_delimiter(byte: u8) -> bool {
    byte <= b' '
        || matches!(byte, b'"' | b'\'' | b'`' | b'<' | b'>' | b',' | b';' | b'(' | b')' | b'{' | b'}' | b'[' | b']' | b'\\')
}

fn is_value(text: &[u8], range: &Range<usize>, password: bool, quoted: bool) -> bool {
    let value = &text[range.clone()];
    let code = !quoted && (matches!(text.get(range.end), Some(b'(' | b'[' | b'{')) || is_code(value));
    !code && (shape::is_random_token(value) || (password && shape::is_strong_password(value)))
}

/// Without quotes a value may be code: a path, a reference, a number, a name of three parts or more.
fn is_code(value: &[u8]) -> bool {
    let underscores = value.iter().filter(|b| **b == b'_').count();
    // EC_KEY_get0_public: in each part the letters are of one case, but for the first.
    let of_one_case = |part: &[u8]| {
        let rest = &part[1.min(part.len())..];
        part.iter().all(u8::is_ascii_alphanumeric)
            && (!rest.iter().any(u8::is_ascii_uppercase) || !part.iter().any(u8::is_ascii_lowercase))
    };
    let name = !value[0].is_ascii_digit() && value.split(|b| *b == b'_').all(of_one_case);
    // 16384u32, -1073741717i32, 0x8031002C; a key of hexadecimal digits is longer.
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let number = digits.first().is_some_and(u8::is_ascii_digit)
        && (digits.iter().filter(|b| !b.is_ascii_digit()).all(|b| matches!(b, b'_' | b'.' | b'u' | b'i' | b'f' | b'e' | b'x'))
            || (digits.starts_with(b"0x") && (underscores > 0 || value.len() < 34)));
    matches!(value.first(), Some(b'&' | b'*' | b':'))
        || value.windows(2).any(|w| w == b"::" || w == b"->" || w == b"==")
        || number
        || (name && underscores >= 2)
        || is_path_of_names(value)
}

/// `self.config2.token`, `os.environ`: names with dots between.
fn is_path_of_names(value: &[u8]) -> bool {
    let mut parts = value.split(|b| *b == b'.');
    value.contains(&b'.')
        && parts.all(|part| {
            part.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
                && part.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
                && (part.len() <= 3 || shape::entropy(part) < 3.6)
        })
}
