//! The reports that `retune record` and `retune watch` read.

use std::fs::{self, File};
use std::io::{BufReader, stdin};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::signals::{self, Kind, Observed};

/// Reports of tools. Each may be given several times; `docs/record.md` says which command makes which, and what counts.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Reports")]
pub struct SignalArgs {
    /// JUnit XML of any test tool; a folder: all TEST-*.xml or, without those, all *.xml in it
    #[arg(long, value_name = "FILE|DIR")]
    junit: Vec<PathBuf>,
    /// SARIF 2.1.0 of a linter or a type checker
    #[arg(long, value_name = "FILE")]
    sarif: Vec<PathBuf>,
    /// Coverage as lcov writes it
    #[arg(long, value_name = "FILE")]
    lcov: Vec<PathBuf>,
    /// `cargo build|check|clippy|test --message-format=json`
    #[arg(long, value_name = "FILE")]
    cargo_json: Vec<PathBuf>,
    /// What tsc printed
    #[arg(long, value_name = "FILE")]
    tsc: Vec<PathBuf>,
    /// `eslint -f json`
    #[arg(long, value_name = "FILE")]
    eslint: Vec<PathBuf>,
    /// What any other known tool printed (cargo, pytest, jest, go test, mypy, ruff, ...)
    #[arg(long, value_name = "FILE")]
    log: Vec<PathBuf>,
}

/// File systems keep times in steps, some of two seconds.
const STEP_OF_TIME: Duration = Duration::from_secs(2);

impl SignalArgs {
    /// Reads all that were given. `-` is the standard input, once.
    pub fn observe(&self) -> Result<Observed> {
        self.refuse_second_stdin()?;
        let mut parts = Vec::new();
        for (kind, path) in self.all() {
            for file in files(kind, path)? {
                parts.push(read(kind, &file)?);
            }
        }
        Ok(signals::combine(parts))
    }

    /// Reads those that a command has written since `began`; what cannot be read is a note, as the command has ended and its exit
    /// code is to be ours. A report that is older is of another run.
    pub fn observe_since(&self, began: SystemTime) -> Observed {
        let (mut parts, mut notes) = (Vec::new(), Vec::new());
        for (kind, path) in self.all() {
            let found = files(kind, path).unwrap_or_else(|error| {
                notes.push(format!("{error}: not counted"));
                Vec::new()
            });
            for file in found {
                match read_since(kind, &file, began) {
                    Ok(Some(observed)) => parts.push(observed),
                    Ok(None) => notes.push(format!("{} is older than this run: not counted", file.display())),
                    Err(error) => notes.push(format!("{error}: not counted")),
                }
            }
        }
        let mut observed = signals::combine(parts);
        observed.notes.extend(notes);
        observed
    }

    /// `retune watch` gives its standard input to the command.
    pub fn refuse_stdin(&self) -> Result<()> {
        match self.all().any(|(_, path)| path == Path::new("-")) {
            true => Err(Error::usage("`-` is the command's own standard input here", "name the file that the command writes")),
            false => Ok(()),
        }
    }

    fn refuse_second_stdin(&self) -> Result<()> {
        match self.all().filter(|(_, path)| *path == Path::new("-")).count() {
            0 | 1 => Ok(()),
            n => Err(Error::usage(format!("`-` is given {n} times, and there is one standard input"), "name files")),
        }
    }

    fn all(&self) -> impl Iterator<Item = (Kind, &Path)> {
        let lists = [
            (Kind::Junit, &self.junit),
            (Kind::Sarif, &self.sarif),
            (Kind::Lcov, &self.lcov),
            (Kind::CargoJson, &self.cargo_json),
            (Kind::Tsc, &self.tsc),
            (Kind::EslintJson, &self.eslint),
            (Kind::Log, &self.log),
        ];
        lists.into_iter().flat_map(|(kind, paths)| paths.iter().map(move |path| (kind, path.as_path())))
    }
}

fn read(kind: Kind, path: &Path) -> Result<Observed> {
    if path == Path::new("-") {
        return signals::read(kind, stdin().lock(), "standard input");
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    signals::read(kind, BufReader::new(file), &path.to_string_lossy())
}

fn read_since(kind: Kind, path: &Path, began: SystemTime) -> Result<Option<Observed>> {
    let written = fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(Error::io("read", path))?;
    if written + STEP_OF_TIME < began {
        return Ok(None);
    }
    read(kind, path).map(Some)
}

/// A folder of JUnit reports stands for its files: surefire writes one a class.
fn files(kind: Kind, path: &Path) -> Result<Vec<PathBuf>> {
    if kind != Kind::Junit || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let file = entry.map_err(Error::io("read", path))?.path();
        if file.extension().is_some_and(|extension| extension == "xml") {
            all.push(file);
        }
    }
    all.sort();
    let is_test = |file: &&PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("TEST-"));
    let tests: Vec<PathBuf> = all.iter().filter(is_test).cloned().collect();
    match (all.is_empty(), tests.is_empty()) {
        (true, _) => Err(Error::file(path, "has no *.xml in it", "give the folder that the tests write their reports to")),
        (false, true) => Ok(all),
        (false, false) => Ok(tests),
    }
}
