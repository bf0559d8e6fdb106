//! `retune redact`: what of a file is private or secret, told without saying it, or taken out.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::{Ended, print_json};
use crate::error::{Error, Result};
use crate::formats::{durable, rows};
use crate::redact::{Found, Kind, Redacted, Redactor};

/// How much of the redacted text is shown on each side of a finding.
const SHOWN_BYTES: usize = 30;

/// Find what is private or secret in a file, or write a copy without it.
///
/// Of a file of rows (JSON lines, or an array) each row has its own placeholders; any other text is one. Nothing that is found is
/// ever printed: only its kind, its place, and the redacted text around it.
#[derive(clap::Args)]
pub struct Args {
    /// The file: rows, or any text
    file: PathBuf,
    /// Say what is found; exit code 1 where anything is
    #[arg(long, conflicts_with = "out", required_unless_present = "out")]
    check: bool,
    /// Write the redacted copy here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A regular expression of your own; what it matches becomes <CUSTOM_1> (can be given several times)
    #[arg(long, value_name = "REGEX")]
    pattern: Vec<String>,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

/// What a file held.
#[derive(Serialize)]
struct Report {
    file: PathBuf,
    /// `None`: the file is no rows, but one text.
    rows: Option<usize>,
    changed_rows: usize,
    kinds: BTreeMap<&'static str, usize>,
    found: Vec<Told>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
}

/// One finding, and where it is.
#[derive(Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(flatten)]
    found: Found,
    around: String,
}

pub fn run(args: &Args) -> Result<Ended> {
    let redactor = Redactor::new(&args.pattern)?;
    let text = std::fs::read_to_string(&args.file).map_err(Error::io("read", &args.file))?;
    let is_json = text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']);
    let (report, redacted) = match is_json.then(|| rows::values(&args.file)) {
        Some(Ok(values)) => of_rows(args, &redactor, &values, text.trim_start().starts_with('['))?,
        Some(Err(error)) => {
            eprintln!("note: read as a text, not as rows: {error}");
            of_text(args, &redactor, &text)?
        }
        None => of_text(args, &redactor, &text)?,
    };
    if let Some(out) = &args.out {
        durable::write(out, redacted.as_bytes())?;
    }
    match args.json {
        true => print_json(&report)?,
        false => show(&report)?,
    }
    Ok(if args.check && !report.found.is_empty() { Ended::WithProblems } else { Ended::Done })
}

/// Each row is a pair of its own; so are its placeholders.
fn of_rows(args: &Args, redactor: &Redactor, values: &[Value], is_array: bool) -> Result<(Report, String)> {
    let mut report = empty(args, Some(values.len()));
    let mut redacted = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let before = report.found.len();
        let row = redactor.pair().redact_json_with(value, &mut |field, redacted| {
            tell(&mut report, redacted, |_| (Some(i + 1), Some(field.to_owned()), None));
        })?;
        report.changed_rows += usize::from(report.found.len() > before);
        let end = match (is_array, i + 1 == values.len()) {
            (true, true) => "\n]\n",
            (true, false) => ",\n",
            (false, _) => "\n",
        };
        redacted.extend_from_slice(if is_array && i == 0 { b"[\n" } else { b"" });
        write!(redacted, "{row}{end}").map_err(Error::io("write", &args.file))?;
    }
    let redacted =
        String::from_utf8(redacted).map_err(|e| Error::data(format!("the rows are no text any more: {e}"), "report this"))?;
    Ok((report, redacted))
}

fn of_text(args: &Args, redactor: &Redactor, text: &str) -> Result<(Report, String)> {
    let mut report = empty(args, None);
    let redacted = redactor.pair().redact(text)?;
    let (mut line, mut at) = (1, 0);
    tell(&mut report, &redacted, |found| {
        line += text[at..found.start].matches('\n').count();
        at = found.start;
        (None, None, Some(line))
    });
    Ok((report, redacted.text))
}

fn empty(args: &Args, rows: Option<usize>) -> Report {
    Report { file: args.file.clone(), rows, changed_rows: 0, kinds: BTreeMap::new(), found: Vec::new(), out: args.out.clone() }
}

/// Row, field and line of a finding.
type Place = (Option<usize>, Option<String>, Option<usize>);

fn tell(report: &mut Report, redacted: &Redacted, mut place: impl FnMut(&Found) -> Place) {
    for (found, around) in redacted.found.iter().zip(redacted.surroundings(SHOWN_BYTES)) {
        *report.kinds.entry(found.kind.name()).or_default() += 1;
        let (row, field, line) = place(found);
        let around = around.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        report.found.push(Told { row, field, line, found: found.clone(), around });
    }
}

fn show(report: &Report) -> Result<()> {
    if report.out.is_none() {
        for Told { row, field, line, found, around } in &report.found {
            let place = match (row, field, line) {
                (Some(row), Some(field), _) => format!("row {row}, {field}"),
                (_, _, line) => format!("line {}", line.unwrap_or_default()),
            };
            say!("{place}: {} ({}), now {}", found.kind.name(), found.rule, found.placeholder)?;
            say!("    {around}")?;
        }
    }
    let Report { file, rows, changed_rows, kinds, found, out } = report;
    let within = rows.map_or(String::new(), |rows| format!("{changed_rows} of {rows} rows of "));
    if found.is_empty() {
        let within = rows.map_or(String::new(), |rows| format!("{rows} rows of "));
        say!("nothing found in {within}{}", file.display())?;
    } else {
        let kinds: Vec<String> =
            Kind::ALL.iter().filter_map(|kind| kinds.get(kind.name()).map(|n| format!("{n} {}", kind.name()))).collect();
        say!("{} found in {within}{}: {}", found.len(), file.display(), kinds.join(", "))?;
    }
    out.as_deref().map(Path::display).map_or(Ok(()), |out| say!("written without it: {out}"))
}
