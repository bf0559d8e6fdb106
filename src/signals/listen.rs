//! What a command prints, read as it comes: every line goes to a listener a tool, and each says at the end what it heard.
//!
//! Tools print what others printed: a failed test's output stands in the report of its runner, and may hold any runner's words.
//! A listener that is in such a part is `quoting`, and hears alone until it is through.

use std::io::BufRead;
use std::path::Path;

use super::text::{Line, each_line, plain};
use super::{Kind, Observed, cargo_json, checkers, combine, go, libtest, lint, not_that, pytest, runners, rustc};
use crate::domain::RunResult;
use crate::error::{Error, Result};

/// Reads the lines of one tool among those of others.
pub trait Listener {
    fn kind(&self) -> Kind;

    /// A line as a terminal shows it, without its end.
    fn line(&mut self, line: &str);

    /// What is printed now is what something else printed before.
    fn quoting(&self) -> bool {
        false
    }

    /// What it heard; `None` where nothing was of its tool. `from` is the source of the signals.
    fn done(&mut self, from: &str) -> Option<Observed>;

    /// Asked after `done`: what is missing at the end, so that what was heard is not all.
    fn cut(&self) -> Option<&'static str> {
        None
    }
}

/// All listeners.
pub struct Hall {
    listeners: Vec<Box<dyn Listener + Send>>,
    /// Lines that were neither blank nor the words of a package manager.
    spoken: u64,
    /// Commands that `npm run` and its like announced.
    announced: Vec<String>,
    banner: Banner,
    cut_lines: u64,
}

/// More are not kept: a build of a thousand packages announces as many.
const MAX_ANNOUNCED: usize = 64;

impl Default for Hall {
    fn default() -> Self {
        Self {
            listeners: vec![
                Box::new(libtest::Libtest::default()),
                Box::new(pytest::Pytest::default()),
                Box::new(rustc::RustcText::default()),
                Box::new(cargo_json::CargoJson::default()),
                Box::new(go::GoTest::default()),
                Box::new(runners::Jest::default()),
                Box::new(runners::Vitest::default()),
                Box::new(runners::Mocha::default()),
                Box::new(runners::NodeTest::default()),
                Box::new(runners::Unittest::default()),
                Box::new(runners::Maven::default()),
                Box::new(runners::Ctest::default()),
                Box::new(checkers::Tsc::default()),
                Box::new(checkers::Mypy::default()),
                Box::new(checkers::PyrightText::default()),
                Box::new(lint::EslintLine::default()),
                Box::new(lint::EslintText::default()),
                Box::new(lint::Ruff::default()),
                Box::new(lint::DependencyCruiser::default()),
            ],
            spoken: 0,
            announced: Vec::new(),
            // bun tells its command first of all.
            banner: Banner::Yarn,
            cut_lines: 0,
        }
    }
}

/// What one listener heard.
pub struct Heard {
    pub kind: Kind,
    pub observed: Observed,
    pub cut: Option<&'static str>,
}

impl Hall {
    pub fn line(&mut self, line: &Line) {
        self.cut_lines += u64::from(line.cut);
        let text = plain(line.bytes);
        let text = text.as_ref();
        // No tool says anything by a blank line, and some outputs are full of them.
        if text.trim().is_empty() {
            return;
        }
        self.spoken += u64::from(!self.is_announcement(text));
        match self.listeners.iter().position(|listener| listener.quoting()) {
            Some(at) => self.listeners[at].line(text),
            None => self.listeners.iter_mut().for_each(|listener| listener.line(text)),
        }
    }

    /// What all of them heard; `name` is where the lines came from.
    pub fn done(&mut self, name: &str) -> Vec<Heard> {
        let heard = self.listeners.iter_mut().filter_map(|listener| {
            let kind = listener.kind();
            let observed = listener.done(&format!("{name} ({})", kind.what()))?;
            Some(Heard { kind, observed, cut: listener.cut() })
        });
        heard.collect()
    }

    /// Commands that were told before they ran: `> tsc --noEmit` (npm, pnpm), `$ tsc --noEmit` (yarn, bun).
    pub fn announced(&self) -> &[String] {
        &self.announced
    }

    /// npm and pnpm tell `> shop@1.0.0 check`, then `> tsc --noEmit`; yarn `yarn run v1.22.22`, then `$ tsc --noEmit`; bun the
    /// latter alone, as its first line. Elsewhere such lines are anybody's.
    fn is_announcement(&mut self, line: &str) -> bool {
        let before = std::mem::replace(&mut self.banner, Banner::None);
        let command = match (line.strip_prefix("> "), line.strip_prefix("$ "), before) {
            (Some(command), _, Banner::Npm) => command,
            (Some(package), ..) if package.split_whitespace().next().is_some_and(|name| name.contains('@')) => {
                self.banner = Banner::Npm;
                return true;
            }
            (_, Some(command), Banner::Yarn) => command,
            _ if line.starts_with("yarn run v") => {
                self.banner = Banner::Yarn;
                return true;
            }
            _ => return line.starts_with("Done in "),
        };
        if self.announced.len() < MAX_ANNOUNCED {
            self.announced.push(command.to_owned());
        }
        true
    }
}

/// What a package manager said in the line before.
#[derive(Clone, Copy)]
enum Banner {
    None,
    Npm,
    Yarn,
}

/// Reads a file of lines. What was asked for must be in it.
pub fn read(asked: Kind, reader: impl BufRead, name: &str) -> Result<Observed> {
    let mut hall = Hall::default();
    each_line(reader, name, |line| hall.line(&line))?;
    let heard = hall.done(name);
    let is_meant = |kind: Kind| match asked {
        Kind::Log => true,
        // `cargo test --message-format=json` prints its tests as text.
        Kind::CargoJson => matches!(kind, Kind::CargoJson | Kind::CargoTestText),
        _ => kind == asked,
    };
    if let Some(cut) = heard.iter().filter(|heard| is_meant(heard.kind)).find_map(|heard| heard.cut) {
        return Err(Error::file(Path::new(name), cut, "run it again to its end, and give all of its output"));
    }
    let found = heard.iter().any(|heard| is_meant(heard.kind) && (asked != Kind::CargoJson || heard.kind == asked));
    if found {
        let mut observed = combine(heard.into_iter().filter(|heard| is_meant(heard.kind)).map(|heard| heard.observed).collect());
        if hall.cut_lines > 0 {
            observed.notes.push(format!("{name}: {} lines of more than 16 MiB were read in part", hall.cut_lines));
        }
        return Ok(observed);
    }
    match heard.first() {
        // A compiler that finds nothing says nothing.
        None if asked == Kind::Tsc && hall.spoken == 0 => Ok(clean(asked, &format!("{name} ({})", asked.what()))),
        Some(other) => Err(not_that(asked, other.kind, name)),
        None => {
            let next = match asked {
                Kind::Log => {
                    "name its format (--junit, --sarif, --lcov, --cargo-json, --tsc, --eslint), or let the tool write one of them"
                }
                _ => "give what the tool itself printed",
            };
            Err(Error::file(Path::new(name), format!("holds nothing of {}", asked.what()), next))
        }
    }
}

/// A tool that ended well and said nothing.
pub fn clean(kind: Kind, from: &str) -> Observed {
    let result = match kind {
        Kind::Tsc => RunResult { compile_pass: Some(true), type_errors: Some(0), ..RunResult::default() },
        Kind::EslintText => RunResult { lint_errors: Some(0), ..RunResult::default() },
        _ => RunResult::default(),
    };
    Observed::new(result, from, Vec::new())
}
