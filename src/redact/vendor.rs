//! Keys that say by their form, or by their vendor's name beside them, what they are: the rules of Betterleaks (rules/README.md).
//!
//! One pass over the text finds which keywords occur; only the rules of these run, and are compiled.

use std::sync::OnceLock;

use aho_corasick::AhoCorasick;
use serde::Deserialize;

use super::pattern::{Pattern, failed};
use super::shape;
use super::{Hit, Kind};
use crate::error::Result;

const RULES: &str = include_str!("rules/betterleaks.json");

/// The rule set, ready to run.
pub struct Vendor {
    pub rules: Vec<Rule>,
    /// What no rule takes for a secret: variables, templates, one letter many times.
    allowed: Vec<Pattern>,
    keywords: AhoCorasick,
    /// Which rules wait for a keyword.
    waiting: Vec<Vec<usize>>,
}

/// One rule, and what must hold of what it matched.
pub struct Rule {
    pub id: String,
    pub pattern: Pattern,
    pub keywords: Vec<String>,
    /// Which group holds the secret; else the first one that took part, else the whole match.
    group: Option<usize>,
    /// The least entropy, and whether it is enough by itself.
    entropy: Option<(f64, bool)>,
    /// Words are no secret here: the form alone is that of many identifiers.
    random_only: bool,
    never: Vec<Pattern>,
    never_around: Vec<Pattern>,
    must: Vec<Pattern>,
}

#[derive(Deserialize)]
struct File {
    allowed: Vec<String>,
    rules: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    regex: String,
    keywords: Vec<String>,
    group: Option<usize>,
    entropy: Option<f64>,
    #[serde(default)]
    entropy_inclusive: bool,
    #[serde(default = "yes")]
    words: bool,
    #[serde(default)]
    never: Vec<String>,
    #[serde(default)]
    never_around: Vec<String>,
    #[serde(default)]
    must: Vec<String>,
}

fn yes() -> bool {
    true
}

/// Reads the rules once for the process.
pub fn vendor() -> Result<&'static Vendor> {
    static READ: OnceLock<std::result::Result<Vendor, String>> = OnceLock::new();
    READ.get_or_init(read).as_ref().map_err(|why| failed(&format!("the rules of vendors: {why}")))
}

fn read() -> std::result::Result<Vendor, String> {
    let file: File = serde_json::from_str(RULES).map_err(|error| error.to_string())?;
    let patterns = |sources: Vec<String>| sources.into_iter().map(Pattern::owned).collect::<Vec<_>>();
    let rules: Vec<Rule> = file
        .rules
        .into_iter()
        .map(|row| Rule {
            id: row.id,
            pattern: Pattern::owned(row.regex),
            keywords: row.keywords,
            group: row.group,
            entropy: row.entropy.map(|least| (least, row.entropy_inclusive)),
            random_only: !row.words,
            never: patterns(row.never),
            never_around: patterns(row.never_around),
            must: patterns(row.must),
        })
        .collect();
    let mut keywords: Vec<&str> = rules.iter().flat_map(|rule| rule.keywords.iter().map(String::as_str)).collect();
    keywords.sort_unstable();
    keywords.dedup();
    let waiting = keywords
        .iter()
        .map(|keyword| (0..rules.len()).filter(|i| rules[*i].keywords.iter().any(|k| k == keyword)).collect())
        .collect();
    let automaton = AhoCorasick::builder().ascii_case_insensitive(true).build(&keywords).map_err(|error| error.to_string())?;
    Ok(Vendor { rules, allowed: patterns(file.allowed), keywords: automaton, waiting })
}

impl Vendor {
    /// Every key in the text, by the rule that found it.
    pub fn find(&'static self, text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
        let mut runs = vec![false; self.rules.len()];
        let mut missing = self.waiting.len();
        let mut seen = vec![false; self.waiting.len()];
        for found in self.keywords.find_overlapping_iter(text) {
            let keyword = found.pattern().as_usize();
            if std::mem::replace(&mut seen[keyword], true) {
                continue;
            }
            for rule in &self.waiting[keyword] {
                runs[*rule] = true;
            }
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
        for rule in self.rules.iter().zip(runs).filter_map(|(rule, runs)| runs.then_some(rule)) {
            self.find_by(rule, text, hits)?;
        }
        Ok(())
    }

    fn find_by(&'static self, rule: &'static Rule, text: &[u8], hits: &mut Vec<Hit>) -> Result<()> {
        for captures in rule.pattern.get()?.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            let secret = match rule.group {
                Some(group) => captures.get(group),
                None => captures.iter().skip(1).flatten().find(|group| !group.is_empty()),
            };
            let secret = secret.unwrap_or(whole);
            if self.holds(rule, secret.as_bytes(), whole.as_bytes())? {
                hits.push(Hit::new(secret.range(), Kind::ApiKey, &rule.id));
            }
        }
        Ok(())
    }

    fn holds(&self, rule: &Rule, secret: &[u8], whole: &[u8]) -> Result<bool> {
        if let Some((least, inclusive)) = rule.entropy {
            let entropy = shape::entropy(secret);
            if entropy < least || (entropy == least && !inclusive) {
                return Ok(false);
            }
        }
        if rule.random_only && shape::reads_as_words(secret) {
            return Ok(false);
        }
        let any = |patterns: &[Pattern], text: &[u8]| -> Result<bool> {
            for pattern in patterns {
                if pattern.get()?.is_match(text) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        for pattern in &rule.must {
            if !pattern.get()?.is_match(secret) {
                return Ok(false);
            }
        }
        Ok(!any(&rule.never, secret)? && !any(&rule.never_around, whole)? && !any(&self.allowed, secret)?)
    }
}

#[cfg(test)]
impl Rule {
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        std::iter::once(&self.pattern).chain(&self.never).chain(&self.never_around).chain(&self.must)
    }
}
