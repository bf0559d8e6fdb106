//! Takes out of a text what is private or secret, before anything of it is stored: `docs/redact.md` says what is found.
//!
//! Every text goes through `Pair`. What is found becomes a placeholder, the same one for the same value over all texts of the
//! pair. Where anything fails the answer is an error, never the text.

mod json;
mod pair;
mod pattern;
mod personal;
mod phone;
mod secrets;
mod shape;
#[cfg(test)]
mod tests;
mod users;
mod vendor;
#[cfg(test)]
mod vendor_tests;

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};

pub use pair::Pair;

use crate::error::{Error, Result};

/// What a thing is. Where two overlap, the first of this list names the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    PrivateKey,
    Jwt,
    ApiKey,
    Secret,
    Email,
    Ip,
    Phone,
    User,
    Custom,
}

impl Kind {
    pub const ALL: [Self; 9] =
        [Self::PrivateKey, Self::Jwt, Self::ApiKey, Self::Secret, Self::Email, Self::Ip, Self::Phone, Self::User, Self::Custom];

    /// As it stands in a placeholder.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrivateKey => "PRIVATE_KEY",
            Self::Jwt => "JWT",
            Self::ApiKey => "API_KEY",
            Self::Secret => "SECRET",
            Self::Custom => "CUSTOM",
            Self::Email => "EMAIL",
            Self::Ip => "IP",
            Self::Phone => "PHONE",
            Self::User => "USER",
        }
    }
}

/// A text without what was private in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redacted {
    pub text: String,
    /// In the order of the text.
    pub found: Vec<Found>,
}

impl Redacted {
    /// The redacted text around each finding, so many bytes on each side.
    pub fn surroundings(&self, bytes: usize) -> Vec<&str> {
        // How much longer the text has become up to a finding.
        let mut longer = 0isize;
        let around = |found: &Found| {
            let start = found.start.saturating_add_signed(longer);
            let end = start + found.placeholder.len();
            longer += found.placeholder.len() as isize - (found.end - found.start) as isize;
            let (from, to) = (start.saturating_sub(bytes), (end + bytes).min(self.text.len()));
            &self.text[self.text.floor_char_boundary(from)..self.text.ceil_char_boundary(to)]
        };
        self.found.iter().map(around).collect()
    }
}

/// One thing that was taken out. It never holds the thing itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    pub kind: Kind,
    pub placeholder: String,
    /// The rule that found it.
    pub rule: String,
    /// Where it stood, in bytes of the raw text.
    pub start: usize,
    pub end: usize,
}

/// All rules, ready to run. Made once; any number of pairs and threads share it.
pub struct Redactor {
    vendor: &'static vendor::Vendor,
    custom: Vec<Regex>,
}

impl Redactor {
    /// `extra_patterns` are regular expressions of the user's; what one of them matches becomes `<CUSTOM_1>`.
    pub fn new(extra_patterns: &[String]) -> Result<Self> {
        let compile = |(i, source): (usize, &String)| {
            let error = |why: String| {
                let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let hint =
                    "give a regular expression without look-around and back-references, as in the regex crate: (?i)project-\\d+";
                Error::usage(format!("extra pattern {} to redact ({source:?}): {why}", i + 1), hint)
            };
            let regex = RegexBuilder::new(source).build().map_err(|e| error(e.to_string()))?;
            match regex.is_match(b"") {
                true => Err(error("it matches the empty text".to_owned())),
                false => Ok(regex),
            }
        };
        Ok(Self { vendor: vendor::vendor()?, custom: extra_patterns.iter().enumerate().map(compile).collect::<Result<_>>()? })
    }

    /// A fresh set of placeholders, for the texts of one pair.
    pub fn pair(&self) -> Pair<'_> {
        Pair::new(self)
    }

    /// What all rules find in a text, in any order; they may overlap.
    fn find(&self, text: &str, names: &users::Names) -> Result<Vec<Hit>> {
        let (mut hits, bytes) = (Vec::new(), text.as_bytes());
        let user_parts = secrets::find(bytes, &mut hits)?;
        self.vendor.find(bytes, &mut hits)?;
        personal::emails(text, &user_parts, &mut hits);
        personal::addresses(bytes, &mut hits)?;
        phone::find(bytes, &mut hits)?;
        hits.extend(users::home_folders(bytes)?.into_iter().map(|range| Hit::new(range, Kind::User, "home-folder")));
        names.find(bytes, &mut hits);
        for regex in &self.custom {
            hits.extend(
                regex
                    .find_iter(bytes)
                    .filter(|found| !found.is_empty())
                    .map(|found| Hit::new(found.range(), Kind::Custom, "extra-pattern")),
            );
        }
        Ok(hits)
    }
}

/// A place that a rule found, in bytes.
#[derive(Clone, PartialEq, Eq)]
struct Hit {
    range: Range<usize>,
    kind: Kind,
    rule: &'static str,
}

impl Hit {
    fn new(range: Range<usize>, kind: Kind, rule: &'static str) -> Self {
        Self { range, kind, rule }
    }
}
