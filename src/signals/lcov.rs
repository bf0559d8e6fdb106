//! lcov's tracefiles, as lcov, coverage.py, c8, jest, llvm-cov and tarpaulin write them (`man geninfo`, "FILES").
//!
//! Lines count, neither branches nor functions. A line that several records or files speak of counts once, and is covered where
//! any of them ran it, as `lcov --add-tracefile` has it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::BufRead;
use std::path::Path;

use super::Observed;
use super::text::{each_line, plain};
use crate::error::{Error, Result};

/// The lines that could run, and those that did, of each file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coverage {
    files: BTreeMap<String, Source>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Source {
    lines: BTreeMap<u32, bool>,
    /// LF and LH of records that list no lines: (found, hit), the largest of them.
    sums: (u64, u64),
}

impl Source {
    fn merge(&mut self, other: Self) {
        for (line, hit) in other.lines {
            *self.lines.entry(line).or_default() |= hit;
        }
        self.sums = (self.sums.0.max(other.sums.0), self.sums.1.max(other.sums.1));
    }

    /// (found, hit)
    fn counts(&self) -> (u64, u64) {
        match self.lines.is_empty() {
            true => self.sums,
            false => (self.lines.len() as u64, self.lines.values().filter(|hit| **hit).count() as u64),
        }
    }
}

impl Coverage {
    pub fn merge(&mut self, other: Self) {
        for (file, source) in other.files {
            match self.files.entry(file) {
                Entry::Vacant(place) => drop(place.insert(source)),
                Entry::Occupied(mut place) => place.get_mut().merge(source),
            }
        }
    }

    /// 0 to 100; `None` where no line could run, which is not 0%.
    pub fn percent(&self) -> Option<f64> {
        let (found, hit) = self.counts();
        (found > 0).then(|| hit as f64 * 100.0 / found as f64)
    }

    /// (found, hit)
    pub fn counts(&self) -> (u64, u64) {
        self.files.values().map(Source::counts).fold((0, 0), |sum, (found, hit)| (sum.0 + found, sum.1 + hit))
    }
}

pub fn read(reader: impl BufRead, name: &str, from: &str) -> Result<Observed> {
    let mut trace = Trace::default();
    let (mut number, mut wrong) = (0u64, None);
    each_line(reader, name, |line| {
        number += 1;
        if wrong.is_none() {
            wrong = trace.line(plain(line.bytes).trim()).err().map(|what| (number, what));
        }
    })?;
    let next = "give the tracefile as the tool wrote it";
    if let Some((number, what)) = wrong {
        return Err(Error::file(Path::new(name), format!("line {number} {what}"), next));
    }
    if trace.open.is_some() {
        return Err(Error::file(Path::new(name), "ends within a record: it was cut", "run the tests with coverage again"));
    }
    if trace.records == 0 {
        return Err(Error::file(Path::new(name), "has no record of lcov in it", next));
    }
    let (found, hit) = trace.coverage.counts();
    let note = match found {
        0 => format!("{from}: no line could run, so it says nothing of coverage"),
        _ => format!("{from}: {hit} of {found} lines ran, in {} files", trace.coverage.files.len()),
    };
    Ok(Observed::with_coverage(trace.coverage, from, vec![note]))
}

#[derive(Default)]
struct Trace {
    coverage: Coverage,
    records: u64,
    open: Option<(String, Source)>,
}

impl Trace {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line == "end_of_record" {
            let (file, source) = self.open.take().ok_or("ends a record that none began")?;
            self.records += 1;
            self.coverage.merge(Coverage { files: BTreeMap::from([(file, source)]) });
            return Ok(());
        }
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (key, value) = line.split_once(':').ok_or_else(|| format!("is no line of lcov: {}", shown(line)))?;
        match (key, &mut self.open) {
            ("SF", Some((file, _))) => return Err(format!("begins a record within that of {file}: the file was cut")),
            ("SF", open) => *open = Some((value.to_owned(), Source::default())),
            ("DA" | "LF" | "LH", None) => return Err(format!("stands outside of a record: {}", shown(line))),
            ("DA", Some((_, source))) => {
                let mut parts = value.split(',');
                let number = parts.next().and_then(|n| n.trim().parse().ok());
                // Counts of gcc are negative or fractions at times; what is above 0 ran.
                let count = parts.next().and_then(|n| n.trim().parse::<f64>().ok());
                let (Some(number), Some(count)) = (number, count) else {
                    return Err(format!("has no line and count: {}", shown(line)));
                };
                *source.lines.entry(number).or_default() |= count > 0.0;
            }
            ("LF" | "LH", Some((_, source))) => {
                let count = value.trim().parse().map_err(|_| format!("has no count: {}", shown(line)))?;
                if key == "LF" { source.sums.0 = count } else { source.sums.1 = count }
            }
            // Names of tests, functions, branches, versions, and what later versions add.
            (key, _) if key.chars().all(|c| c.is_ascii_uppercase()) => (),
            _ => return Err(format!("is no line of lcov: {}", shown(line))),
        }
        Ok(())
    }
}

fn shown(line: &str) -> String {
    let short: String = line.chars().take(60).collect();
    if short.len() < line.len() { format!("{short:?}...") } else { format!("{short:?}") }
}
