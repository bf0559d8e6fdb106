//! Pairs and runs from elsewhere into the store, a row at a time: what was taken, what was there, what was refused and why.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;
use serde_json::{Value, json};

use super::record::{BATCH, Recorder, short_digest};
use crate::domain::{NewRun, RunResult, Source};
use crate::error::{Error, Result};
use crate::formats::rows;
use crate::store::Store;

/// What to take from a file, and as what.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// For rows that do not name one.
    pub role: Option<String>,
    /// Who wrote the answers: pairs need it.
    pub source: Option<Source>,
    /// Texts with `{{ field }}` of the row, in place of the shapes that are known.
    pub prompt: Option<String>,
    pub output: Option<String>,
    pub system: Option<String>,
    /// What names a row's task.
    pub task: Option<String>,
    /// What every row's result is, where it is known.
    pub result: RunResult,
}

/// What became of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    pub rows: usize,
    pub taken: usize,
    /// They were there already, or stand twice in the file.
    pub duplicate: usize,
    pub refused: usize,
    /// Rows whose texts could not be redacted; their numbers are there.
    pub withheld: usize,
    /// Why rows were refused, and how many; a digit in a reason is `#`.
    pub reasons: BTreeMap<String, usize>,
    /// The first refused rows: their line, and why.
    pub first_refused: Vec<(usize, String)>,
}

/// Refused rows that are told one by one.
const TOLD: usize = 10;

/// Takes the rows of a file, a batch a commit. Killed and run again it takes the rest: each row has an id that its content gives.
pub fn import(
    store: &mut Store,
    recorder: &Recorder,
    path: &Path,
    request: &ImportRequest,
    progress: &mut dyn FnMut(&Imported) -> Result<()>,
) -> Result<Imported> {
    let reader = Reader::new(request)?;
    let mut imported = Imported::default();
    let mut batch: Vec<(bool, NewRun)> = Vec::new();
    let mut flush = |batch: &mut Vec<(bool, NewRun)>, imported: &mut Imported| -> Result<()> {
        let rows = batch.drain(..).map(|(pair, run)| recorder.row(&run, pair)).collect::<Result<Vec<_>>>()?;
        for (row, recorded) in rows.iter().zip(store.record_runs(&rows)?) {
            let count = if recorded.repeated { &mut imported.duplicate } else { &mut imported.taken };
            *count += 1;
            imported.withheld += usize::from(!recorded.repeated && row.withheld.is_some());
        }
        progress(imported)
    };
    rows::each(path, &mut |line, row| {
        imported.rows += 1;
        // Checked before the batch: one bad row must not hold up the others.
        match row
            .and_then(|row| reader.read(row))
            .and_then(|run| recorder.row(&run.1, run.0).map(|_| run).map_err(|e| e.to_string()))
        {
            Ok(run) => batch.push(run),
            Err(why) => {
                imported.refused += 1;
                let kind: String = why.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).take(200).collect();
                *imported.reasons.entry(kind).or_default() += 1;
                if imported.first_refused.len() < TOLD {
                    imported.first_refused.push((line, why));
                }
            }
        }
        if batch.len() == BATCH { flush(&mut batch, &mut imported) } else { Ok(()) }
    })?;
    flush(&mut batch, &mut imported)?;
    Ok(imported)
}

/// How a row becomes a run.
struct Reader<'a> {
    request: &'a ImportRequest,
    templates: Environment<'a>,
}

impl<'a> Reader<'a> {
    fn new(request: &'a ImportRequest) -> Result<Self> {
        if request.prompt.is_some() != request.output.is_some() {
            return Err(Error::usage("one of --prompt and --output is missing", "give both: what was asked, and the answer"));
        }
        let mut templates = Environment::new();
        // A field that a row lacks is an error, not an empty text.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        templates.set_syntax(syntax.map_err(|e| Error::unsupported(format!("templates: {e}"), "report this"))?);
        templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        for (name, text) in
            [("prompt", &request.prompt), ("output", &request.output), ("system", &request.system), ("task", &request.task)]
        {
            if let Some(text) = text {
                // A bare name is that field.
                let is_field = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                let text = if is_field && name == "task" { format!("{{{{ {text} }}}}") } else { text.clone() };
                templates.add_template_owned(name, text).map_err(|e| {
                    Error::usage(format!("--{name} is no template: {e}"), "write fields of the row as {{ field }}")
                })?;
            }
        }
        Ok(Self { request, templates })
    }

    /// Whether it is a pair to learn from, and the run.
    fn read(&self, row: Value) -> Result<(bool, NewRun), String> {
        let (pair, mut run) = self.shape(&row)?;
        if run.role.is_empty() {
            run.role = self.request.role.clone().ok_or("it names no role, and --role is not given")?;
        }
        if pair && run.source.is_none() {
            run.source.clone_from(&self.request.source);
            if run.source.is_none() {
                return Err("it says not who wrote the answer: give --source".to_owned());
            }
        }
        if let Some(task) = self.render("task", &row)? {
            run.task = Some(task);
        }
        if run.id.is_none() {
            // The same pair of the same source is the same run, in whatever file it stands; a run is all that its row says.
            let source = run.source.as_ref().map(|source| &source.name);
            let what = match pair {
                true => json!([run.role, source, run.messages, run.prompt, run.system, run.output, run.tools]),
                false => row,
            };
            run.id = Some(format!("i{}", short_digest(&what.to_string())));
        }
        Ok((pair, run))
    }

    fn shape(&self, row: &Value) -> Result<(bool, NewRun), String> {
        let result = self.request.result.clone();
        if let (Some(prompt), Some(output)) = (self.render("prompt", row)?, self.render("output", row)?) {
            let system = self.render("system", row)?;
            return Ok((true, NewRun { prompt: Some(prompt), output: Some(output), system, result, ..NewRun::default() }));
        }
        if row.get("hypotheses").is_some() {
            return selected(row).map(|(prompt, output)| {
                (true, NewRun { prompt: Some(prompt), output: Some(output), result, ..NewRun::default() })
            });
        }
        if row.get("role").is_some_and(Value::is_string) {
            let run: NewRun = serde_json::from_value(row.clone()).map_err(|e| e.to_string())?;
            return Ok((false, run));
        }
        let example = rows::example_of(row.clone())?.ok_or("it is marked as bad work")?;
        let mut messages = example.messages;
        if let Some(system) = self.render("system", row)?
            && messages.first().is_none_or(|first| first.role != "system")
        {
            messages.insert(0, crate::domain::Message::new("system", system));
        }
        Ok((true, NewRun { messages: Some(messages), tools: example.tools, result, ..NewRun::default() }))
    }

    fn render(&self, name: &str, row: &Value) -> Result<Option<String>, String> {
        let Ok(template) = self.templates.get_template(name) else { return Ok(None) };
        template.render(minijinja::value::Serde(row)).map(Some).map_err(|e| format!("--{name} does not fit the row: {e}"))
    }
}

/// What a user asked, and the hypothesis that was selected.
fn selected(row: &Value) -> Result<(String, String), String> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let asked = text(row.get("user_input")).ok_or("it has no \"user_input\"")?;
    let chosen = text(row.get("selected_id")).ok_or("no hypothesis was selected")?;
    let hypotheses = row["hypotheses"].as_array().ok_or("\"hypotheses\" is no list")?;
    let found = hypotheses.iter().find(|hypothesis| hypothesis["id"].as_str() == Some(&chosen));
    let answer = text(found.and_then(|found| found.get("text"))).ok_or_else(|| format!("no hypothesis is called {chosen}"))?;
    Ok((asked, answer))
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
