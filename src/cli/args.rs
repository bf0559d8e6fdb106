//! Options that several commands share, each with its help in one place.

use std::path::{Path, PathBuf};

use super::progress;
use crate::base::Base;
use crate::config::Config;
use crate::deploy::llama_server::LlamaServer;
use crate::error::{Error, Result};
use crate::formats::rows::Wanted;
use crate::model::{Adapter, adapter_files};
use crate::pipeline::Reading;
use crate::pipeline::evaluate::Answering;
use crate::runtime::Registry;
use crate::runtime::ollama::Ollama;
use crate::text::render::Long;
use crate::text::template::Template;

/// Which base, and how it is prompted.
#[derive(clap::Args, Clone)]
pub struct BaseArgs {
    /// The model to start from: a Hugging Face folder, a GGUF file, the tag of a model that your Ollama holds, the id of a
    /// model on the Hugging Face hub (org/name or org/name@revision: fetched if it is not in the cache), or `demo`
    #[arg(long, value_name = "BASE")]
    pub base: String,
    /// How conversations become text: alpaca, chatml, plain, or a file with a Jinja template [default: the base's own]
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// A file whose text stands as the system message before every row
    #[arg(long, value_name = "FILE")]
    pub system: Option<PathBuf>,
}

impl BaseArgs {
    /// `quiet`: no progress where the base must be fetched.
    pub fn open(&self, quiet: bool) -> Result<Base> {
        open_base(&self.base, quiet)
    }

    pub fn system_text(&self) -> Result<Option<String>> {
        system_text(self.system.as_deref())
    }

    pub fn template(&self, base: &Base) -> Result<Template> {
        base.template(self.template.as_deref())
    }

    pub fn reading(&self, length: &LengthArgs) -> Result<Reading> {
        Ok(Reading {
            template: self.template.clone(),
            system: self.system_text()?,
            max_length: length.max_length,
            long: length.long.into(),
        })
    }
}

/// The text of a file, less the newlines at its end.
pub fn system_text(path: Option<&Path>) -> Result<Option<String>> {
    let read =
        |path: &Path| std::fs::read_to_string(path).map(|t| t.trim_end_matches('\n').to_owned()).map_err(Error::io("read", path));
    path.map(read).transpose()
}

/// The settings of a project; what a user should know of them is told.
pub fn config_in(root: &Path) -> Result<Config> {
    let loaded = Config::load(root)?;
    loaded.warnings.iter().for_each(|warning| eprintln!("note: {}: {warning}", Config::path_in(root).display()));
    Ok(loaded.config)
}

/// The beginning of the names of a project's models.
pub fn prefix_in(root: &Path, given: Option<&str>) -> Result<String> {
    given.map_or_else(|| Ok(config_in(root)?.auto_deploy.model_name_prefix), |given| Ok(given.to_owned()))
}

/// What serves the models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Ollama, at OLLAMA_HOST
    #[default]
    Ollama,
    /// llama.cpp's llama-server, at LLAMA_SERVER_HOST: one base in memory, an adapter a version
    LlamaServer,
}

impl Runtime {
    /// What answers as its models. Asks nothing yet.
    pub fn answering(self, root: &Path) -> Result<Box<dyn Answering>> {
        Ok(match self {
            Self::Ollama => Box::new(Ollama::from_env()?),
            Self::LlamaServer => Box::new(llama_server(root)?),
        })
    }

    /// Where its names are. Asks nothing yet.
    pub fn registry(self, root: &Path) -> Result<Box<dyn Registry>> {
        Ok(match self {
            Self::Ollama => Box::new(Ollama::from_env()?),
            Self::LlamaServer => Box::new(llama_server(root)?),
        })
    }
}

/// The registry in `root`, with notes on stderr.
pub fn llama_server(root: &Path) -> Result<LlamaServer> {
    LlamaServer::open(root, |text| eprintln!("note: {text}"))
}

/// Opens a base; where it must be fetched, that is seen on stderr unless `quiet`.
pub fn open_base(name: &str, quiet: bool) -> Result<Base> {
    let mut fetching = progress::Fetching::new(quiet);
    Base::open_with(name, &mut |event| fetching.on_event(event))
}

/// What to do with long rows.
#[derive(clap::Args, Clone)]
pub struct LengthArgs {
    /// Tokens of a row at most [default: 2048, or the model's context where that is less]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// What happens to longer rows: cut them at the end, drop them, or stop with an error
    #[arg(long, value_enum, default_value = "cut")]
    pub long: LongArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum LongArg {
    Cut,
    Drop,
    Error,
}

impl From<LongArg> for Long {
    fn from(arg: LongArg) -> Self {
        match arg {
            LongArg::Cut => Self::Cut,
            LongArg::Drop => Self::Drop,
            LongArg::Error => Self::Error,
        }
    }
}

/// What is learnt from rows, by its name.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MethodArg {
    Sft,
    Dpo,
    Orpo,
    Kto,
}

impl MethodArg {
    /// What the method wants of a row.
    pub fn wanted(self) -> Wanted {
        match self {
            Self::Sft => Wanted::GoodWork,
            Self::Dpo | Self::Orpo => Wanted::Pairs,
            Self::Kto => Wanted::Labelled,
        }
    }
}

/// The adapter that a command puts on the base.
#[derive(clap::Args, Clone)]
pub struct AdapterArgs {
    /// An adapter to put on the base: a PEFT folder (what `retune train` writes) or a GGUF adapter
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub adapter: Option<PathBuf>,
}

impl AdapterArgs {
    pub fn load(&self, base: &Base) -> Result<Option<Adapter>> {
        self.adapter.as_ref().map(|path| adapter_files::load(path, &base.decoder.config)).transpose()
    }
}
