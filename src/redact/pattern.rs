//! A regular expression that is compiled when it is first needed: most texts hold the keyword of no rule, or of a few.

use std::borrow::Cow;
use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Matches bytes, with the ASCII classes that rule sets are written for; its time is linear in the text.
pub struct Pattern {
    source: Cow<'static, str>,
    compiled: OnceLock<std::result::Result<Regex, String>>,
}

impl Pattern {
    pub const fn new(source: &'static str) -> Self {
        Self { source: Cow::Borrowed(source), compiled: OnceLock::new() }
    }

    pub fn owned(source: String) -> Self {
        Self { source: Cow::Owned(source), compiled: OnceLock::new() }
    }

    /// The compiled form. A pattern that does not compile is an error each time, so that nothing passes in its place.
    pub fn get(&self) -> Result<&Regex> {
        let compiled = self.compiled.get_or_init(|| {
            let mut builder = RegexBuilder::new(&self.source);
            builder.unicode(false).build().map_err(|error| error.to_string())
        });
        compiled.as_ref().map_err(|why| failed(&format!("a built-in pattern does not compile: {why}")))
    }

    #[cfg(test)]
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Redaction could not be carried out; whoever asked must keep nothing of the text.
pub fn failed(why: &str) -> Error {
    Error::data(format!("the text cannot be redacted: {why}"), "the text is withheld; report this, without the text")
}
