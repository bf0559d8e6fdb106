//! Where the demo plays: its data on disk, a registry that is a folder, and the store; with the steps that each arm is made of.
//!
//! Everything goes through the files and functions that a user's own work goes through: training, the judge, the history of the alias.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::task::Item;
use crate::base::{Base, DEMO, hex};
use crate::deploy::shelf::{FileEntry, Manifest, Shelf};
use crate::error::{Error, Result};
use crate::evaluate::verdict::Rules;
use crate::formats::durable;
use crate::model::{AdapterSpec, Module, adapter_files};
use crate::pipeline::champion::Champion;
use crate::pipeline::evaluate::{Answered, EvaluateRequest, Evaluated, InProcess, Side, evaluate};
use crate::pipeline::{self, GGUF_ADAPTER_FILE, Reading, TrainRequest};
use crate::runtime::Registry as _;
use crate::store::{NewAdapter, NewDeployment};
use crate::text::template::Template;
use crate::train::{Progress, TrainSettings};

const PREFIX: &str = "retune-demo";
const ROLE: &str = "tools";
/// In a folder that the demo may empty.
const MARK: &str = "made-by-retune-demo";

/// The demo's own little project.
pub struct Stage<'a> {
    pub base: &'a Base,
    pub template: &'a Template,
    pub shelf: Shelf,
    root: PathBuf,
    /// The held-out work, and the old skills that must be kept.
    held_out: PathBuf,
    skills: PathBuf,
    answered: Answered,
}

/// How an arm is trained.
pub struct Lesson<'a> {
    pub name: &'a str,
    pub rows: &'a [Item],
    pub steps: u64,
    pub rank: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    /// An adapter to go on from.
    pub init: Option<&'a Path>,
    pub seed: u64,
}

impl<'a> Stage<'a> {
    /// Sets up `folder`; what an earlier demo left there goes.
    pub fn new(folder: &Path, base: &'a Base, template: &'a Template, held_out: &[Item], skills: &[Item]) -> Result<Self> {
        let (mark, root) = (folder.join(MARK), folder.join("project"));
        if mark.is_file() && root.is_dir() {
            std::fs::remove_dir_all(&root).map_err(Error::io("empty", &root))?;
        } else if root.exists() {
            return Err(Error::file(
                &root,
                "was not made by a demo, and the demo would empty it",
                "give another folder with --out",
            ));
        }
        std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        durable::write(&mark, b"retune demo makes the folder project anew each time\n")?;
        let stage = Self {
            base,
            template,
            shelf: Shelf::new(root.join("registry")),
            held_out: root.join("held_out.jsonl"),
            // A suite is told by its file's name.
            skills: root.join("old_skills.jsonl"),
            root,
            answered: Answered::default(),
        };
        write_rows(&stage.held_out, held_out)?;
        write_rows(&stage.skills, skills)?;
        Ok(stage)
    }

    /// The folder that holds `.agent`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Trains an adapter; gives its folder.
    pub fn train(&self, lesson: &Lesson, progress: &mut dyn Progress, note: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let data = self.root.join(format!("{}.jsonl", lesson.name));
        write_rows(&data, lesson.rows)?;
        let request = TrainRequest {
            data,
            eval_data: None,
            eval_share: 0.0,
            out: self.root.join(lesson.name),
            reading: Reading::default(),
            adapter: AdapterSpec {
                rank: lesson.rank,
                alpha: 2.0 * lesson.rank as f32,
                rslora: false,
                dora: false,
                targets: Module::ALL.to_vec(),
            },
            init_adapter: lesson.init.map(Path::to_owned),
            settings: TrainSettings {
                max_steps: Some(lesson.steps),
                batch_size: lesson.batch_size,
                grad_accum: 1,
                learning_rate: lesson.learning_rate,
                seed: lesson.seed,
                ..TrainSettings::default()
            },
            memory_budget: None,
            save_every: 100,
            resume: false,
            overwrite: true,
        };
        pipeline::train(self.base, &request, progress, &AtomicBool::new(false), note)?;
        Ok(request.out)
    }

    /// Registers the base, which serves at first.
    pub fn register_base(&self) -> Result<()> {
        let name = format!("{PREFIX}-{ROLE}:base");
        self.shelf.put(&name, &self.manifest(None)?)?;
        self.champion()?.promote(&name, "the first champion is the base").map(drop)
    }

    /// Registers an adapter as a version beside what serves; gives its name.
    pub fn register(&self, adapter: &Path) -> Result<String> {
        let mut champion = self.champion()?;
        let (server, model) = (self.shelf.id(), format!("{PREFIX}-{ROLE}"));
        let version = champion.store().next_version(&server, &model)?;
        let name = format!("{model}:v{version}");
        let digest = self.shelf.put(&name, &self.manifest(Some(adapter))?)?;
        let loaded = adapter_files::load(&adapter.join(GGUF_ADAPTER_FILE), &self.base.decoder.config)?;
        champion.store().record_deployment(
            &NewDeployment {
                server: &server,
                model: &model,
                version,
                digest: &digest,
                mode: "adapter",
                size_bytes: self.shelf.tag(&name)?.map_or(0, |tag| tag.size),
                recipe: &json!({ "base": self.base.name, "template": self.template.name }),
            },
            &NewAdapter {
                role: ROLE,
                digest: &pipeline::adapter_digest(&loaded),
                path: &adapter.to_string_lossy(),
                base_name: &self.base.name,
                base_digest: &self.base.digest()?,
                run: None,
            },
        )?;
        Ok(name)
    }

    /// Who serves, and who moves the alias.
    pub fn champion(&self) -> Result<Champion<'_>> {
        Champion::open(&self.shelf, &self.root, PREFIX, ROLE, &mut |_| ())
    }

    /// What the alias stands for, as its manifest says.
    pub fn served(&self) -> Result<Side> {
        let alias = format!("{PREFIX}-{ROLE}:latest");
        let manifest = self.shelf.get(&alias)?.ok_or_else(|| Error::data(format!("nothing serves as {alias}"), "report this"))?;
        Ok(manifest.adapter.map_or(Side::Base, |adapter| Side::Adapter(adapter.path)))
    }

    /// Judges a side against another one on the held-out work and the old skills.
    pub fn judge(&mut self, candidate: Side, champion: Side, seed: u64) -> Result<Evaluated> {
        let mut rules = Rules::default();
        rules.bootstrap.seed = seed;
        let request = EvaluateRequest {
            role: ROLE.to_owned(),
            data: self.held_out.clone(),
            guards: vec![self.skills.clone()],
            group_by: None,
            max_tokens: 96,
            verifier: None,
            judge: None,
            rules,
            root: self.root.clone(),
            report: None,
        };
        let reading = Reading::default();
        let mut sides = InProcess::open(self.base, self.template, &reading, [&candidate, &champion], &mut self.answered)?;
        evaluate(&mut sides, &request, &AtomicBool::new(false), &mut |_| (), &mut |_| ())
    }

    fn manifest(&self, adapter: Option<&Path>) -> Result<Manifest> {
        let adapter = adapter.map(|folder| {
            let path = folder.join(GGUF_ADAPTER_FILE);
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            Ok(FileEntry { path, digest: sha256(&bytes), size_bytes: bytes.len() as u64 })
        });
        Ok(Manifest {
            // Part of the binary: it has no path of its own.
            base: FileEntry { path: DEMO.into(), digest: self.base.digest()?, size_bytes: 0 },
            adapter: adapter.transpose()?,
            system: None,
            template: Some(self.template.jinja_twin(&self.base.tokenizer)),
            parameters: serde_json::Map::new(),
        })
    }
}

/// The GGUF adapter of a run: what is served is what is judged.
pub fn side(adapter: &Path) -> Side {
    Side::Adapter(adapter.join(GGUF_ADAPTER_FILE))
}

fn write_rows(path: &Path, rows: &[Item]) -> Result<()> {
    durable::write_with(path, |out| {
        for item in rows {
            let line = json!({"instruction": item.request, "input": "", "output": item.answer});
            writeln!(out, "{line}").map_err(Error::io("write", path))?;
        }
        Ok(())
    })
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex(&sha2::Sha256::digest(bytes)))
}
