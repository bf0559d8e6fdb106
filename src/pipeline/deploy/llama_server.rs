//! From an adapter to one that llama-server has beside its base: a version in `.agent/llama-server`, proven by a server that
//! runs, or by one that is started for it.

use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    ANSWER_TOKENS, DeployRequest, Mode, Proven, TOP, fine_enough, gguf_adapter, own_answers, probes, promote_as_asked,
    served_parameters, tolerance,
};
use crate::base::{Base, hex};
use crate::deploy::llama_server::LlamaServer;
use crate::deploy::shelf::{FileEntry, Manifest};
use crate::deploy::{self, OwnAnswer, Promote, PromptProbe, Registered, Verdict};
use crate::error::{Error, Result};
use crate::export::merge::MergeType;
use crate::formats::durable;
use crate::formats::gguf::Gguf;
use crate::model::{Adapter, adapter_files};
use crate::pipeline::champion::hold;
use crate::pipeline::convert::{as_gguf, stored_as};
use crate::runtime::Registry as _;
use crate::runtime::llama_server::{Completion, Llama, Process, find_program};
use crate::runtime::ollama::{Answer, Blob, ServedToken};
use crate::store::Store;
use crate::text::render::Renderer;
use crate::text::template::Template;
use crate::text::tokenizer::Tokenizer;

/// What became of it.
#[derive(Clone, Debug)]
pub struct Deployed {
    pub registered: Registered,
    /// What starts the server.
    pub script: PathBuf,
    /// The text that requests have to bring as system message, because training had it.
    pub system: Option<String>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// `by`: the server that was asked, for people.
    Proven { by: String, compared: Box<deploy::Report> },
    /// No server was there to prove it: what to run later.
    Later { why: String, commands: Vec<String> },
}

/// Registers a version, proves it, and moves the alias as asked. `program` names a llama-server to start where none runs that
/// has the version.
pub fn deploy(
    base: &Base,
    template: &Template,
    request: &DeployRequest,
    registry: &LlamaServer,
    program: Option<&Path>,
    note: &mut dyn FnMut(&str),
) -> Result<Deployed> {
    let adapter = adapter_files::load(&request.adapter, &base.decoder.config)?;
    if adapter.spec.dora || request.mode == Mode::Merged {
        let what =
            if adapter.spec.dora { "a DoRA adapter, whose magnitudes a GGUF adapter cannot say," } else { "a merged model" };
        return Err(Error::unsupported(
            format!("llama-server puts adapters on one base in memory: {what} is not for it"),
            "deploy it to Ollama (--runtime ollama), which serves it merged",
        ));
    }
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: request.system.clone() };
    let probes = probes(&renderer, request.data.as_deref(), base)?;
    let program = find_program(program)?;
    // Two at once would give one number twice.
    let _turn = hold(&request.root.join(".agent/deploy.lock"), "another retune is deploying: waiting for it", note)?;

    let bases = request.root.join(".agent/bases");
    let gguf = as_gguf(base, request.merge_type.unwrap_or_else(|| fine_enough(base)).of_base(), &bases, note)?;
    let gguf = stored_as(base, &gguf, request.merge_type.unwrap_or(MergeType::Keep), &bases, note)?;
    let manifest = Manifest {
        base: base_file(&gguf, &bases)?,
        adapter: Some(registry.keep_adapter(&gguf_adapter(base, &adapter, &request.adapter)?)?),
        system: request.system.clone(),
        template: Some(template.jinja_twin(&base.tokenizer)),
        parameters: served_parameters(base, request)?.to_json(),
    };
    let alias = deploy::alias_name(&request.prefix, &request.role)?;
    let mut store = Store::open(&request.root)?;
    let first_version = store.next_version(&registry.id(), alias.to_string().trim_end_matches(":latest"))?;
    let change = |act: &dyn Fn() -> Result<Registered>, note: &mut dyn FnMut(&str)| {
        // The scripts are written from all names: another process that moves one would write an older state.
        let _lock = hold(&request.root.join(".agent/alias.lock"), "another retune is moving an alias: waiting for it", note)?;
        act()
    };
    let mut registered = change(&|| registry.register(&alias, &manifest, first_version), note)?;
    let script = registry.script_of(&manifest);
    let done = |registered: Registered, outcome| Deployed {
        registered,
        script: script.clone(),
        system: request.system.clone(),
        outcome,
    };

    let running = registry.loaded(registry.llama(), &manifest)?;
    let proof = Proof {
        base,
        adapter: &adapter,
        renderer: &renderer,
        probes: &probes,
        name: &registered.name,
        tolerance: tolerance(&gguf),
    };
    let proven = match (running, &program) {
        (Some(id), _) => proof.by(registry.llama(), id),
        (None, Some(program)) => start_and_prove(registry, &manifest, &script, program, &proof),
        (None, None) => {
            let why = format!(
                "no llama-server was there to prove {}: none that has it answers at {}, and none is on the PATH",
                registered.name,
                registry.llama().address()
            );
            let mut commands = vec![
                script.display().to_string(),
                "retune deploy --runtime llama-server ... (the same command again)".to_owned(),
            ];
            if request.promote == Promote::No {
                commands.push(format!("retune promote --runtime llama-server v{}", registered.version));
            }
            return Ok(done(registered, Outcome::Later { why, commands }));
        }
    };
    let (by, compared) = match proven {
        Ok(proven) => proven,
        Err(error) => {
            // An adapter that cannot be loaded would keep the server from starting with the others.
            let serves = registry.tag(&alias.to_string())?.is_some_and(|tag| tag.digest == registered.digest);
            if !registered.reused && !serves {
                change(&|| registry.delete(&registered.name).map(|_| registered.clone()), note)?;
            }
            return Err(error);
        }
    };
    let proven = Proven {
        registered: &registered,
        registry,
        mode: "adapter",
        recipe: json!({
            "base": base.name, "template": template.name, "system": request.system, "mode": Mode::Adapter,
            "type": request.merge_type.map(|t| t.to_string()), "parameters": manifest.parameters, "data": request.data,
        }),
    };
    proven.record(&mut store, base, &adapter, request)?;
    drop(store);
    registered.promoted = promote_as_asked(registry, request, &registered, note)?;
    Ok(done(registered, Outcome::Proven { by, compared: Box::new(compared) }))
}

/// The base as a file; the one in the binary is written out under its digest first.
fn base_file(gguf: &Gguf, bases: &Path) -> Result<FileEntry> {
    let path = if gguf.path.is_file() {
        std::path::absolute(&gguf.path).map_err(Error::io("find", &gguf.path))?
    } else {
        let digest: String = hex(&Sha256::digest(gguf.bytes())).chars().take(16).collect();
        let path = std::path::absolute(bases.join(format!("base-{digest}.gguf"))).map_err(Error::io("find", bases))?;
        if !path.is_file() {
            std::fs::create_dir_all(bases).map_err(Error::io("create", bases))?;
            durable::write(&path, gguf.bytes())?;
        }
        path
    };
    let Blob { path, digest, size_bytes } = Blob::of(&path)?;
    Ok(FileEntry { path, digest, size_bytes })
}

fn start_and_prove(
    registry: &LlamaServer,
    manifest: &Manifest,
    script: &Path,
    program: &Path,
    proof: &Proof,
) -> Result<(String, deploy::Report)> {
    let tokens = proof.probes.iter().map(|probe| probe.ids.len()).max().unwrap_or(0) + ANSWER_TOKENS + 1;
    // Little memory beside the base: one request at a time, and no more context than it takes.
    let more = ["--parallel", "1", "--ctx-size", &tokens.next_multiple_of(256).to_string()].map(str::to_owned);
    let log = script.with_file_name("proof.log");
    let process = Process::start(script, program, &more, &log)?;
    let id = registry.loaded(&process.llama, manifest)?.ok_or_else(|| {
        Error::server(
            format!(
                "{} was started with {}, and does not have its adapter, base and template",
                program.display(),
                script.display()
            ),
            format!("{} has what it says; update llama-server, or name another with --server-bin", log.display()),
        )
    })?;
    let (_, compared) = proof.by(&process.llama, id)?;
    drop(process);
    // Of use only where it went wrong.
    let _ = std::fs::remove_file(&log);
    Ok((program.display().to_string(), compared))
}

/// What is to be shown of a version.
struct Proof<'a> {
    base: &'a Base,
    adapter: &'a Adapter,
    renderer: &'a Renderer<'a>,
    probes: &'a [PromptProbe],
    name: &'a str,
    tolerance: f64,
}

impl Proof<'_> {
    /// Prompts token for token as they were trained, answers as the trained model gives them. `id`: the adapter's at that server.
    fn by(&self, llama: &Llama, id: u32) -> Result<(String, deploy::Report)> {
        for probe in self.probes {
            let prompt = llama.apply_template(&self.renderer.with_system(&probe.messages), probe.tools.as_ref())?;
            let served = llama.tokenize(&prompt)?;
            if served != probe.ids {
                return Err(self.not_prompted(probe, &prompt, &served));
            }
        }
        let own = own_answers(self.base, self.adapter, self.probes)?;
        let ids = |own: &OwnAnswer| self.probes.iter().find(|probe| probe.name == own.name).map_or(&[][..], |probe| &probe.ids);
        let compared = deploy::compare_with(self.name, &own, self.tolerance, &mut |own, limit| {
            Ok(answer(&self.base.tokenizer, llama.complete(ids(own), limit, TOP, id)?))
        })?;
        match &compared.verdict {
            Verdict::Different(why) => Err(Error::server(
                format!("llama-server at {} does not answer as {} was trained: {why}", llama.address(), self.name),
                "the alias was not moved, what served before still serves; try --type f16",
            )),
            Verdict::Same { .. } | Verdict::CannotTell(_) => Ok((format!("llama-server at {}", llama.address()), compared)),
        }
    }

    fn not_prompted(&self, probe: &PromptProbe, prompt: &str, served: &[u32]) -> Error {
        let same = served.iter().zip(&probe.ids).take_while(|(one, other)| one == other).count();
        let show = |ids: &[u32]| {
            let bytes: Vec<u8> =
                ids.iter().skip(same).take(8).flat_map(|&id| self.base.tokenizer.piece(id).unwrap_or_default()).collect();
            format!("{:?}", String::from_utf8_lossy(&bytes))
        };
        Error::unsupported(
            format!(
                "llama-server would not prompt {} as it was trained: the prompt of {} differs from token {} on: \
                 served {} ({} tokens), trained {} ({} tokens){}",
                self.name,
                probe.name,
                same + 1,
                show(served),
                served.len(),
                show(&probe.ids),
                probe.ids.len(),
                if prompt == probe.text { "; the texts are the same" } else { "" }
            ),
            "train with a template that llama-server renders the same (--template chatml, alpaca or plain), or deploy to Ollama",
        )
    }
}

/// A completion with its tokens as text, as Ollama gives them.
fn answer(tokenizer: &Tokenizer, completion: Completion) -> Answer {
    let text = |id: u32| String::from_utf8_lossy(&tokenizer.piece(id).unwrap_or_default()).into_owned();
    let tokens: Vec<ServedToken> = completion
        .tokens
        .iter()
        .map(|token| ServedToken {
            text: text(token.id),
            logprob: token.logprob,
            top: token.top.iter().map(|&(id, logprob)| (text(id), logprob)).collect(),
        })
        .collect();
    Answer {
        text: tokens.iter().map(|token| token.text.as_str()).collect(),
        eval_tokens: Some(tokens.len()),
        tokens,
        done_reason: if completion.ended { "stop" } else { "length" }.to_owned(),
        prompt_tokens: Some(completion.prompt_tokens),
        done: true,
        ..Answer::default()
    }
}
