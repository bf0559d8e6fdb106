//! From an exported adapter or merged model to a model that Ollama serves: described, prompted as it was trained,
//! registered under a version, verified, compared with what was trained.

mod adapters;
mod compare;
mod go_template;
pub mod llama_server;
mod modelfile;
mod prompt;
mod register;
pub mod shelf;

pub use adapters::{AdapterSupport, adapter_support, remembered_support};
pub use compare::{
    Compared, Divergence, OwnAnswer, OwnEnd, OwnToken, Report, TIE_LOGPROB, Verdict, compare_answer, compare_served, compare_with,
};
pub use modelfile::{From, ModelSpec, Parameters, later_commands};
pub use prompt::{Difference, Foresight, Mismatch, PromptProbe, Remedies, Settlement, compare_prompts, foresee, settle};
pub use register::{Deployment, Number, Progress, Promote, Registered, alias_name, move_alias, promote, register};

use crate::error::{Error, Result};
use crate::runtime::Registry;
use crate::runtime::ollama::Ollama;

/// The tag under which prompts are tried before there is a version.
const SCRATCH_TAG: &str = "trial";

/// All of it: settles the prompts on a trial model, registers a version made of what was settled, looks at its prompts
/// once more, and only then moves the alias as asked. With `exact`, a prompt that stays different is an error, and
/// nothing is registered; without, it is in the settlement.
pub fn deploy(
    ollama: &Ollama,
    deployment: &Deployment,
    probes: &[PromptProbe],
    remedies: &Remedies,
    exact: bool,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(Registered, Settlement)> {
    let alias = alias_name(&deployment.prefix, &deployment.role)?;
    let scratch = alias.with_tag(SCRATCH_TAG).to_string();
    let result = deploy_by(ollama, deployment, &scratch, probes, remedies, exact, on_progress);
    // After the version has the files, too; a leftover of a killed run is overwritten by the next.
    let _ = ollama.delete(&scratch);
    result
}

fn deploy_by(
    ollama: &Ollama,
    deployment: &Deployment,
    scratch: &str,
    probes: &[PromptProbe],
    remedies: &Remedies,
    exact: bool,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<(Registered, Settlement)> {
    let settlement = settle(ollama, scratch, &deployment.spec, probes, remedies, on_progress)?;
    if exact {
        settlement.require_exact()?;
    }
    let settled = Deployment { spec: settlement.spec.clone(), promote: Promote::No, ..deployment.clone() };
    let mut registered = register::register_like(ollama, &settled, Some(&settlement.digest), on_progress)?;
    let (differences, _) = compare_prompts(ollama, &registered.name, probes)?;
    if differences != settlement.differences {
        let difference = differences.first().map_or_else(|| "nothing any more".to_owned(), ToString::to_string);
        return Err(Error::server(
            format!("{} is not prompted as the trial before it, though it is made of the same: {difference}", registered.name),
            "was Ollama updated or restarted with other settings meanwhile? run the same command again",
        ));
    }
    registered.promoted = register::promote(ollama, &settled, deployment.promote, &registered.name)?;
    Ok((registered, settlement))
}
