//! Phone numbers: with a calling code, in the shapes that people write at home, and any behind a word that tells of a phone.

use std::sync::OnceLock;

use super::pattern::Pattern;
use super::{Hit, Kind};
use crate::error::Result;

/// What a number behind each calling code looks like, from libphonenumber (rules/README.md).
const CODES: &str = include_str!("rules/calling_codes.tsv");

/// `+49 30 123456`, `0049 (0)30 123456`: up to 15 digits, two signs between them at most.
static ABROAD: Pattern = Pattern::new(r"(?:\+ ?|\b00)[1-9](?:[ .\-/()]{0,3}\d){5,17}");
/// North America: `(201) 555-0123`, `201-555-0123`, `1-201-555-0123`, `201.555.0123`.
static AMERICAN: Pattern = Pattern::new(
    r"(?:\b1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}|\b[2-9]\d\d-[2-9]\d\d-\d{4}|\b[2-9]\d\d\.[2-9]\d\d\.\d{4})\b",
);
/// An area in brackets: `(11) 96123-4567`, `(02) 9999 1234`.
static BRACKETED: Pattern = Pattern::new(r"\(\d{2,5}\) ?\d{2,5}(?:[ -]\d{2,5}){1,3}\b|\(0\d{1,5}\) ?\d{4,8}\b");
/// The zero of many countries: `0171 1234567`, `0171/1234567`, `01 23 45 67 89`, `03-1234-5678`.
static TRUNK: Pattern =
    Pattern::new(r"\b0[1-9]\d{0,5}(?:(?: \d{2,8}){1,4}|(?:-\d{2,8}){1,4}|(?:\.\d\d){4}|/\d{3,8}(?: \d{2,5}){0,2})\b");
/// Any number behind a telling word.
static TOLD: Pattern = Pattern::new(concat!(
    r"(?i)\b(?:tele)?(?:phone|phon|fon|fono)s?\b|\b(?:tel|mobile|cell|cellular|handy|fax|whatsapp|signal|sms|dial|hotline|pager|celular|",
    r"call(?: me| us| him| her| them)?|text me|ring|reach (?:me|us)|(?:phone|mobile|contact)[_ -]?(?:no|num|number|nr))\b"
));
static NUMBER: Pattern = Pattern::new(
    r#"(?i)\A(?:[ _-]?(?:no|num|number|nr|line))?[^\d\n+($<*]{0,20}?((?:\+ ?)?(?:\(\+?\d[\d -]{0,6}\)|\d{1,5})(?:(?:[ .-]{0,3}|/)(?:\d{1,9}|\(\d{1,5}\))){1,8})"#,
);

/// Every phone number in a text.
pub fn find(text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
    for found in ABROAD.get()?.find_iter(text) {
        let plus = found.as_bytes().starts_with(b"+");
        if is_free(text, found.start(), found.end(), if plus { b"+" } else { b"+-" })
            && let Some(end) = valid_abroad(&text[found.range()], plus)?
        {
            hits.push(Hit::new(found.start()..found.start() + end, Kind::Phone, "phone-abroad"));
        }
    }
    for (pattern, rule, fits) in [
        (&AMERICAN, "phone-american", is_american as fn(&[u8]) -> bool),
        (&BRACKETED, "phone-area", is_area),
        (&TRUNK, "phone-national", is_national),
    ] {
        for found in pattern.get()?.find_iter(text) {
            let follows =
                matches!(&text[found.end()..], [b' ' | b'-', digit, ..] if digit.is_ascii_digit() && rule == "phone-national");
            if !follows && is_free(text, found.start(), found.end(), b"+-/=#$*") && fits(found.as_bytes()) {
                hits.push(Hit::new(found.range(), Kind::Phone, rule));
            }
        }
    }
    told(text, hits)
}

/// The number behind a telling word, whatever its shape: seven to fifteen digits.
fn told(text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
    let number = NUMBER.get()?;
    for word in TOLD.get()?.find_iter(text) {
        // The window bounds what is read behind each word.
        let window = &text[word.end()..text.len().min(word.end() + 80)];
        let Some(found) = number.captures(window).and_then(|captures| captures.get(1)) else { continue };
        let range = word.end() + found.start()..word.end() + found.end();
        let digits = digits(&text[range.clone()]);
        let dots = text[range.clone()].iter().filter(|b| **b == b'.').count();
        // One dot makes a decimal; four numbers with dots, an IP address.
        if (7..=15).contains(&digits.len())
            && dots != 1
            && is_free(text, range.start, range.end, b"$")
            && !super::personal::is_address(&text[range.clone()])
            && !is_date(&text[range.clone()])
        {
            hits.push(Hit::new(range, Kind::Phone, "phone-told"));
        }
    }
    Ok(())
}

/// Neither a part of a longer number or name, nor behind a sign that says it is something else.
fn is_free(text: &[u8], start: usize, end: usize, signs: &[u8]) -> bool {
    let before = start.checked_sub(1).map(|i| text[i]);
    let after = text.get(end);
    // `11 00 55 ..`: one number of a row of numbers.
    let in_row = !text[start..].starts_with(b"+") && matches!(text[..start], [.., digit, b' '] if digit.is_ascii_digit());
    let in_front = in_row || before.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.') || signs.contains(&b));
    let decimal = matches!(&text[end..], [b'.' | b',', digit, ..] if digit.is_ascii_digit());
    let time = matches!(&text[end..], [b':', digit, ..] if digit.is_ascii_digit());
    !in_front && !decimal && !time && !after.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'%'))
}

fn digits(number: &[u8]) -> Vec<u8> {
    number.iter().copied().filter(u8::is_ascii_digit).collect()
}

fn groups(number: &[u8]) -> Vec<&[u8]> {
    number.split(|b| !b.is_ascii_digit()).filter(|group| !group.is_empty()).collect()
}

/// Where a number with a calling code ends: the most groups of digits that are a number of its country.
fn valid_abroad(written: &[u8], plus: bool) -> Result<Option<usize>> {
    let separated = written[1..].iter().any(|b| !b.is_ascii_digit());
    if !plus && !separated {
        return Ok(None);
    }
    let mut end = written.len();
    loop {
        // The zero in `+44 (0)20` is for those at home.
        let mut number = written[..end].to_vec();
        if let Some(zero) = number.windows(3).position(|w| w == b"(0)") {
            number.drain(zero..zero + 3);
        }
        let all = digits(&number);
        let all = if plus { &all[..] } else { all.strip_prefix(b"00").unwrap_or(&all) };
        if all.len() < 6 {
            return Ok(None);
        }
        if is_valid(all)? {
            return Ok(Some(end));
        }
        // Without its last group: `+1 201-555-0123 24 hours a day`.
        let Some(last) = written[..end].iter().rposition(|b| !b.is_ascii_digit()) else { return Ok(None) };
        end = written[..last].iter().rposition(u8::is_ascii_digit).map_or(0, |digit| digit + 1);
        if end == 0 {
            return Ok(None);
        }
    }
}

/// Whether calling code and number go together.
fn is_valid(all: &[u8]) -> Result<bool> {
    static READ: OnceLock<Vec<(&str, Pattern)>> = OnceLock::new();
    let codes = READ.get_or_init(|| {
        let rows = CODES.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t'));
        rows.map(|(code, national)| (code, Pattern::owned(format!(r"\A(?:{national})\z")))).collect()
    });
    for (code, national) in codes {
        if let Some(rest) = all.strip_prefix(code.as_bytes())
            && rest.len() >= 4
            && (*code != "1" || is_american(rest))
            && national.get()?.is_match(rest)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Area and exchange begin with 2 to 9, and neither is one of the service codes (N11).
fn is_american(number: &[u8]) -> bool {
    let all = digits(number);
    let all = if all.len() == 11 { &all[1..] } else { &all[..] };
    all.len() == 10 && [0, 3].iter().all(|i| all[*i] >= b'2' && all[i + 1..i + 3] != *b"11")
}

fn is_area(number: &[u8]) -> bool {
    let n = digits(number).len();
    (9..=12).contains(&n) && (number.starts_with(b"(0") || number.contains(&b'-'))
}

fn is_national(number: &[u8]) -> bool {
    let (n, groups) = (digits(number).len(), groups(number));
    // 01 02 03 04 05 counts.
    let value = |group: &[u8]| group.iter().fold(0i64, |all, b| (all * 10 + i64::from(b - b'0')).min(1 << 40));
    let steps: Vec<i64> = groups.windows(2).map(|pair| value(pair[1]) - value(pair[0])).collect();
    let counts = steps.len() > 1 && steps.iter().all(|step| *step == steps[0] && step.abs() <= 10);
    (9..=12).contains(&n) && !counts && !is_date(number)
}

/// 2024-01-31, 31/01/2024, with or without a time behind.
fn is_date(number: &[u8]) -> bool {
    let groups = groups(number);
    let is_year = |group: &[u8]| group.len() == 4 && (group.starts_with(b"19") || group.starts_with(b"20"));
    let is_day = |group: &[u8]| matches!(group, [b'0'..=b'3', b'0'..=b'9'] | [b'1'..=b'9']);
    match groups[..] {
        [first, second] => is_year(first) && is_year(second),
        [first, second, third, ..] => {
            (is_year(first) && is_day(second) && is_day(third)) || (is_day(first) && is_day(second) && is_year(third))
        }
        _ => false,
    }
}
