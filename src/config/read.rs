//! The file, with what the environment says over it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Config;
use crate::error::{Error, Result};

/// Under the root.
pub const FILE: &str = ".agent/learning-config.json";

/// Old names, and what became of them.
const PER_TOKEN: &str = "maxCostPerToken";
const PER_MILLION: &str = "maxCostPerMillionTokens";

/// Settings as they were read, and what a user should know of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<String>,
}

impl Config {
    /// The file of a project, or the defaults where there is none; `ENABLE_AUTO_FINETUNE` of the environment stands above it.
    ///
    /// # Errors
    /// No JSON, an unknown key (the nearest known one is named), a value of the wrong kind or out of bounds.
    pub fn load(root: &Path) -> Result<Loaded> {
        let path = root.join(FILE);
        let mut loaded = match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Loaded { config: Self::default(), warnings: Vec::new() }
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        if let Ok(value) = std::env::var("ENABLE_AUTO_FINETUNE") {
            loaded.config.auto_train.enabled = switch("ENABLE_AUTO_FINETUNE", &value)?;
        }
        Ok(loaded)
    }

    /// The settings in a text; `path` is for the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded> {
        let wrong = |message: String| Error::file(path, message, "mend it there, or remove the file to have the defaults");
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON: {e}")))?;
        let Value::Object(settings) = &mut value else { return Err(wrong("holds no object of settings".to_owned())) };
        let mut warnings = Vec::new();
        if let Some(Value::Object(router)) = settings.get_mut("modelRouter") {
            warnings.extend(old_price(router).map_err(&wrong)?);
        }
        unknown_keys(settings, &known(), "", path)?;
        let config: Self = kinds(&value, path)?;
        config.check(path)?;
        Ok(Loaded { config, warnings })
    }

    /// As the file of a new project holds it: every setting, with its default.
    pub fn to_text(&self) -> String {
        // Numbers, texts and lists with text keys are always JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    pub fn path_in(root: &Path) -> PathBuf {
        root.join(FILE)
    }
}

/// US dollars a token became US dollars a million tokens.
fn old_price(router: &mut Map<String, Value>) -> Result<Option<String>, String> {
    let Some(old) = router.remove(PER_TOKEN) else { return Ok(None) };
    if router.contains_key(PER_MILLION) {
        return Err(format!("modelRouter has both {PER_TOKEN} and {PER_MILLION}; keep the second"));
    }
    let Some(price) = old.as_f64() else { return Err(format!("modelRouter.{PER_TOKEN} is {old}, expected a number")) };
    // A whole number of micro-dollars a token is what people write; binary fractions are not told.
    let understood = (price * 1e6 * 1e6).round() / 1e6;
    router.insert(PER_MILLION.to_owned(), Value::from(understood));
    Ok(Some(format!("modelRouter.{PER_TOKEN} {old} is an old name: understood as {PER_MILLION} {understood} (US dollars)")))
}

/// Every key that there is, as JSON shows them.
fn known() -> Map<String, Value> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(mut known)) => {
            // Written only where it is not the usual one.
            if let Some(Value::Object(weights)) = known.get_mut("rewardWeights") {
                weights.insert("halfErrors".to_owned(), Value::from(0.0));
            }
            known
        }
        _ => Map::new(),
    }
}

fn unknown_keys(settings: &Map<String, Value>, known: &Map<String, Value>, before: &str, path: &Path) -> Result<()> {
    for (key, value) in settings {
        let Some(expected) = known.get(key) else {
            let nearest =
                known.keys().min_by_key(|other| strsim::damerau_levenshtein(&other.to_lowercase(), &key.to_lowercase()));
            return Err(Error::file(
                path,
                format!("unknown setting '{before}{key}'"),
                nearest.map_or_else(String::new, |nearest| {
                    let all: Vec<&str> = known.keys().map(String::as_str).collect();
                    format!("did you mean '{before}{nearest}'? Known there: {}", all.join(", "))
                }),
            ));
        };
        if let (Value::Object(inner), Value::Object(known)) = (value, expected) {
            unknown_keys(inner, known, &format!("{before}{key}."), path)?;
        }
    }
    Ok(())
}

/// The settings one section at a time, so that an error names the section.
fn kinds(value: &Value, path: &Path) -> Result<Config> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let sections = value.as_object().into_iter().flatten();
        let one = |(key, value): (&String, &Value)| {
            let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            serde_json::from_value::<Config>(alone).err().map(|error| (key.clone(), error))
        };
        let (section, error) = sections.filter_map(one).next().map_or((String::new(), error), |found| found);
        Error::file(path, format!("{section}: {error}"), "mend the value; docs/config.md says what each setting may be")
    })
}

/// A switch of the environment.
fn switch(name: &str, value: &str) -> Result<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        other => Err(Error::usage(format!("{name} is '{other}'"), format!("set {name} to true or false, or leave it out"))),
    }
}
