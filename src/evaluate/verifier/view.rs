//! What a confined verifier sees of this machine: system folders, toolchains and the project. All else is not there.
//!
//! Everything is looked up by its real path; names that lead there through links become links again.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use super::plan::{SCRATCH, View};
use super::{Confinement, Verifier, sys, watch};
use crate::error::{Error, Result};

/// Programs and libraries that the system has for everybody.
const SYSTEM: [&str; 11] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/gnu/store", "/run/current-system"];
/// Of /etc what programs need to run: how libraries are found, which of two programs a name means, the time zone.
const ETC: [&str; 12] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "timezone",
    "mime.types",
    "os-release",
    "ssl/certs",
    "static",
    "profiles",
    "locale.conf",
];
/// Toolchains that live in the home folder, whole: none keeps a credential in there.
const TOOLCHAINS: [&str; 12] = [
    ".rustup",
    ".pyenv",
    ".nvm",
    ".asdf",
    ".volta",
    ".rbenv",
    ".sdkman",
    ".ghcup",
    ".juliaup",
    ".julia/juliaup",
    ".local/share/mise/installs",
    ".local/share/uv/python",
];
/// Their variables: where they are, if not there, and which version is meant.
const TOOLCHAIN_HOMES: [(&str, &str); 3] = [("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv"), ("NVM_DIR", ".nvm")];
/// Variables that name a folder of a toolchain.
const FOLDER_VARIABLES: [&str; 7] =
    ["RUSTUP_HOME", "PYENV_ROOT", "NVM_DIR", "JAVA_HOME", "GOROOT", "VIRTUAL_ENV", "CONDA_PREFIX"];
/// The whole environment, with LC_* and the folders above; everything else may be a secret.
const VARIABLES: [&str; 8] =
    ["PATH", "LANG", "LANGUAGE", "TZ", "RUSTUP_TOOLCHAIN", "PYENV_VERSION", "LD_LIBRARY_PATH", "PYTHONPATH"];
/// Beside a folder of programs, what belongs to them: `~/.local/lib`, a virtual environment's `pyvenv.cfg`.
const BESIDE_BIN: [&str; 5] = ["lib", "lib64", "libexec", "include", "pyvenv.cfg"];
/// Folders of the home where programs may lie but secrets do for sure: a PATH that leads there is not followed.
const SECRET: [&str; 9] = [".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config", ".agent", ".password-store"];
/// At the top of a project: what holds secrets, or what the work on it is steered by.
const COVERED: [&str; 9] = [".agent", ".git", ".env", ".netrc", ".npmrc", ".pypirc", ".ssh", ".aws", ".config"];
/// Too much to be shown whole; these stand at these places within the namespaces as their own.
const NEVER: [&str; 9] = ["/", "/tmp", "/var/tmp", "/proc", "/dev", "/sys", "/etc", "/run", "/var"];
/// A folder with more is no folder of programs, or no project: nothing is linked beyond.
const MAX_ENTRIES: usize = 4000;

/// # Errors
/// The project, or something that the user wants to be seen, is not there or holds the home folder.
pub fn of(verifier: &Verifier) -> Result<View> {
    let variable = |name: &str| verifier.environment.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let home = variable("HOME")
        .filter(|h| h.starts_with('/'))
        .and_then(|h| Path::new(h).canonicalize().ok())
        .filter(|h| h != Path::new("/"));
    let strict = verifier.confinement == Confinement::Namespaces;
    let mut sight = Sight { strict, home: home.clone(), found: Vec::new(), links: BTreeMap::new() };

    SYSTEM.iter().for_each(|path| sight.add(Path::new(path)));
    ETC.iter().for_each(|name| sight.add(&Path::new("/etc").join(name)));
    // Debian keeps Java's configuration here, by version.
    for name in entries(Path::new("/etc")).into_iter().filter(|n| n.starts_with("java") || n.starts_with("python")) {
        sight.add(&Path::new("/etc").join(name));
    }
    for folder in variable("PATH").unwrap_or_default().split(':').map(Path::new).filter(|p| p.is_absolute()) {
        sight.add_programs(folder);
    }
    for folder in FOLDER_VARIABLES.into_iter().filter_map(variable).map(Path::new).filter(|p| p.is_absolute()) {
        sight.add(folder);
    }
    if let Some(home) = &home {
        TOOLCHAINS.iter().for_each(|name| sight.add(&home.join(name)));
    }
    sight.add(Path::new("/home/linuxbrew/.linuxbrew"));
    for path in &verifier.see {
        sight.demand(path, "--verifier-see")?;
    }
    let project = sight.demand(&verifier.project, "the project folder")?;
    if !project.is_dir() {
        return Err(Error::file(
            &project,
            "is not a folder, a verifier's project is one",
            "give the folder that its files are in",
        ));
    }
    if strict && sys::is_root() && !is_open(&project) {
        return Err(Error::file(
            &project,
            "only its owner may read it, and as root the verifier runs as nobody",
            format!("let others read it (`chmod o+rx {}`), or start retune as an ordinary user", project.display()),
        ));
    }
    let names = entries(&project);
    let covered = names.iter().filter(|n| is_covered(&project, n)).map(|n| project.join(n)).collect();
    let project_entries = names.into_iter().filter(|n| !n.starts_with('.')).collect();
    let environment = environment(verifier, home.as_deref(), &project);
    let (visible, links) = sight.settle();
    Ok(View {
        visible,
        links,
        covered,
        home,
        project,
        project_entries,
        environment,
        processes_of_user: watch::processes_of_user(sys::ids().0),
    })
}

/// Whether others may look into a folder.
fn is_open(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    folder.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o005 == 0o005)
}

/// Also sockets and pipes: a read-only mount keeps nobody from talking through them.
fn is_covered(project: &Path, name: &str) -> bool {
    let kind = project.join(name).symlink_metadata().map(|m| m.file_type());
    COVERED.contains(&name) || name.starts_with(".env.") || kind.is_ok_and(|kind| kind.is_socket() || kind.is_fifo())
}

fn environment(verifier: &Verifier, home: Option<&Path>, project: &Path) -> Vec<(String, String)> {
    let is_passed = |name: &str| {
        VARIABLES.contains(&name)
            || FOLDER_VARIABLES.contains(&name)
            || name.starts_with("LC_")
            || verifier.pass.iter().any(|p| p == name)
    };
    let mut environment: Vec<(String, String)> =
        verifier.environment.iter().filter(|(name, _)| is_passed(name)).cloned().collect();
    // Where HOME is another than the user's own, toolchains are found by their variables.
    for (name, folder) in TOOLCHAIN_HOMES {
        let path = home.map(|home| home.join(folder)).filter(|path| path.is_dir());
        if let (Some(path), false) = (path, environment.iter().any(|(n, _)| n == name)) {
            environment.push((name.to_owned(), path.to_string_lossy().into_owned()));
        }
    }
    if !environment.iter().any(|(name, _)| name == "PATH") {
        environment.push(("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()));
    }
    environment.retain(|(name, _)| !matches!(name.as_str(), "HOME" | "TMPDIR" | "RETUNE_PROJECT"));
    environment.push(("RETUNE_PROJECT".to_owned(), project.to_string_lossy().into_owned()));
    environment
}

/// The names in a folder, sorted; those that are not UTF-8 are left out.
fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().take(MAX_ENTRIES).filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

struct Sight {
    /// Without namespaces nothing is hidden, so nothing is too much to be seen.
    strict: bool,
    home: Option<PathBuf>,
    found: Vec<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Sight {
    /// What is not there, or would show too much, is left out.
    fn add(&mut self, path: &Path) {
        let Ok(real) = path.canonicalize() else { return };
        if !self.is_too_much(&real) && !self.is_secret(&real) {
            if real != path {
                self.links.insert(path.to_owned(), real.clone());
            }
            self.found.push(real);
        }
    }

    /// A folder of PATH, and what its programs need beside it; they may be links to elsewhere (uv, pipx).
    fn add_programs(&mut self, folder: &Path) {
        self.add(folder);
        self.add_beside(folder);
        let is_system = |path: &Path| SYSTEM.iter().any(|system| path.starts_with(system));
        let Ok(real) = folder.canonicalize() else { return };
        if is_system(&real) || self.is_too_much(&real) || self.is_secret(&real) {
            return;
        }
        for name in entries(&real) {
            let program = real.join(name);
            let Ok(target) = program.canonicalize() else { continue };
            if program.is_symlink() && !target.starts_with(&real) && !is_system(&target) {
                self.add(&target);
                target.parent().into_iter().for_each(|folder| self.add_beside(folder));
            }
        }
    }

    fn add_beside(&mut self, folder: &Path) {
        if let (Some("bin"), Some(prefix)) = (folder.file_name().and_then(|n| n.to_str()), folder.parent()) {
            BESIDE_BIN.iter().for_each(|name| self.add(&prefix.join(name)));
            // A virtual environment's python looks for its library beside the one that it is a link to.
            self.add(folder);
        }
    }

    /// What the user wants to be seen must be there, and must not be everything.
    fn demand(&mut self, path: &Path, what: &str) -> Result<PathBuf> {
        let real = path.canonicalize().map_err(Error::io("find", path))?;
        if self.strict && self.is_too_much(&real) {
            return Err(Error::file(
                &real,
                format!("{what} is, or holds, a folder that no verifier may read (your home folder, /tmp, /etc, ...)"),
                "keep the verifier and its files in a folder of their own, and start retune there",
            ));
        }
        let absolute = std::path::absolute(path).map_err(Error::io("find", path))?;
        // `..` cannot be a link's name.
        if absolute != real && absolute.components().all(|c| c != Component::ParentDir) {
            self.links.insert(absolute, real.clone());
        }
        self.found.push(real.clone());
        Ok(real)
    }

    fn is_too_much(&self, real: &Path) -> bool {
        NEVER.iter().any(|never| Path::new(never) == real)
            || self.home.as_ref().is_some_and(|home| home.starts_with(real))
            || Path::new(SCRATCH).starts_with(real)
            || real.starts_with(SCRATCH)
            || ["/proc", "/dev", "/sys"].iter().any(|own| real.starts_with(own))
    }

    fn is_secret(&self, real: &Path) -> bool {
        let within = self.home.as_ref().and_then(|home| real.strip_prefix(home).ok());
        within.is_some_and(|path| path.components().any(|c| SECRET.iter().any(|secret| c.as_os_str() == *secret)))
    }

    /// Each path once, and none that another shows already; links only where nothing visible is.
    fn settle(mut self) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
        self.found.sort();
        self.found.dedup();
        let home = self.home;
        // The home folder is emptied, though it may lie within a visible one: nothing reaches through it.
        let shows = |outer: &Path, inner: &Path| {
            let barred = home.as_ref().is_some_and(|home| home.starts_with(outer) && home != outer && inner.starts_with(home));
            inner.starts_with(outer) && !barred
        };
        let shown_by_another = |path: &PathBuf| self.found.iter().any(|outer| outer != path && shows(outer, path));
        let visible: Vec<PathBuf> = self.found.iter().filter(|path| !shown_by_another(path)).cloned().collect();
        let links = self.links.into_iter().filter(|(name, _)| !visible.iter().any(|outer| shows(outer, name))).collect();
        (visible, links)
    }
}
