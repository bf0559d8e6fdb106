//! What goes between retune and the keeper: one line of JSON each way.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Confinement, Limits, Reason};

/// Kept of what a verifier prints: its end.
pub const TAIL_BYTES: usize = 4096;
/// Where an item's files are within the namespaces; a name that no project folder has.
pub const SCRATCH: &str = "/retune-item";

/// All that the keeper does for one item.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub command: String,
    pub limits: Limits,
    pub confinement: Confinement,
    pub view: View,
    pub files: Vec<ScratchFile>,
}

/// A file of the scratch folder.
#[derive(Debug, Serialize, Deserialize)]
pub struct ScratchFile {
    pub name: String,
    pub text: String,
}

/// What a confined process sees of this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Folders and files to see read-only, each at its own path, without links in it; none lies within another, unless the
    /// home folder stands between them.
    pub visible: Vec<PathBuf>,
    /// Names that lead there: a link, and where it points.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Parts of the visible that are hidden nevertheless.
    pub covered: Vec<PathBuf>,
    /// The user's home: an empty folder stands there.
    pub home: Option<PathBuf>,
    pub project: PathBuf,
    /// Names in the project folder that the scratch folder gets a link to.
    pub project_entries: Vec<String>,
    /// Processes and threads that the user has anyway, for kernels that count them all.
    pub processes_of_user: u64,
    /// All of the environment, but HOME and TMPDIR.
    pub environment: Vec<(String, String)>,
}

/// What the keeper tells at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub ended: Ended,
    /// The end of what was printed.
    pub output: String,
}

/// How an item ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Exit(i32),
    Signal(i32),
    Limit(Reason),
    /// It never ran: what could not be done, and why.
    Refused {
        step: String,
        error: String,
    },
    /// retune is gone, or does not want it any more.
    Stopped,
}
