//! Proof that what is served is what was trained: the same greedy answers, token by token, and the same
//! log-probabilities; and that these are nearer to the adapter's than to the base's.

use std::fmt;

use crate::error::{Error, Result};
use crate::runtime::ollama::{Answer, Ollama, Options, ServedToken};

/// Tokens whose log-probabilities are this near may come in either order: sums run in another order on each side.
pub const TIE_LOGPROB: f64 = 0.1;
/// The base must be this many times farther from the adapter than the served model is.
const CLEARLY: f64 = 10.0;
/// How many alternatives are asked for.
const TOP: usize = 5;

/// One token of an answer of ours, and what else could have stood there.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnToken {
    /// The bytes that the token adds to the text.
    pub piece: Vec<u8>,
    pub logprob: f64,
    /// The log-probability of the same token after the same text under the base without the adapter, where known.
    pub base_logprob: Option<f64>,
    /// The most probable tokens here with their log-probabilities; `None` for one that ends the answer.
    pub top: Vec<(Option<Vec<u8>>, f64)>,
}

/// A greedy answer of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnAnswer {
    /// What a report calls it.
    pub name: String,
    /// The prompt as text; the served model's tokenizer adds a BOS where it has one, so none stands here.
    pub prompt: String,
    /// Number of tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// Without the token that ended it.
    pub tokens: Vec<OwnToken>,
    /// The end token, where one came; if not, the answer stopped at a limit.
    pub end: Option<OwnEnd>,
}

/// The end of an answer of ours, and what else could have stood there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnEnd {
    pub logprob: f64,
    /// As `OwnToken::top`.
    pub top: Vec<(Option<Vec<u8>>, f64)>,
}

/// Where the served answer leaves ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Index of the token.
    pub position: usize,
    /// `None`: the answer ends.
    pub ours: Option<String>,
    pub served: Option<String>,
    /// How much more probable the own token is than the other one, by whichever side knows both.
    pub gap: Option<f64>,
}

impl Divergence {
    /// Whether log-probabilities that may be `tolerance` apart explain it.
    pub fn is_tie(&self, tolerance: f64) -> bool {
        self.gap.is_some_and(|gap| gap.abs() <= tolerance.max(TIE_LOGPROB))
    }
}

/// One answer compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub name: String,
    /// Tokens of the same text, from the start.
    pub same_tokens: usize,
    /// Of the log-probabilities of these tokens.
    pub max_abs_difference: f64,
    /// Between our log-probabilities with and without the adapter, over the same tokens.
    pub adapter_effect: Option<f64>,
    /// Between the served log-probabilities and those of the base.
    pub from_base: Option<f64>,
    pub divergence: Option<Divergence>,
    /// The number of tokens of the prompt as it was served, where that is not ours.
    pub prompt_tokens: Option<usize>,
}

/// All answers compared, and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub model: String,
    pub answers: Vec<Compared>,
    pub max_abs_difference: f64,
    /// How far base and adapter are apart, where base log-probabilities were given.
    pub adapter_effect: Option<f64>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The trained model is what is served. `ties`: answers that part where two tokens are as good as equal.
    Same { ties: usize },
    /// It is not, and why.
    Different(String),
    /// The adapter changes too little for the difference to be told from rounding.
    CannotTell(String),
}

/// Has a registered model continue the prompts of our answers, raw and greedily, and compares. `tolerance`: how far
/// log-probabilities may be apart (the served file may be quantised otherwise than what was trained on).
pub fn compare_served(ollama: &Ollama, model: &str, answers: &[OwnAnswer], tolerance: f64) -> Result<Report> {
    compare_with(model, answers, tolerance, &mut |own, limit| {
        let options = Options { stop: Some(Vec::new()), ..Options::greedy(limit) };
        let served = ollama.generate(model, &own.prompt, &options, TOP)?;
        if served.tokens.is_empty() && served.eval_tokens.unwrap_or(0) > 1 {
            let version = ollama.version().unwrap_or_default();
            return Err(Error::unsupported(
                format!("Ollama {version} at {} gives no log-probabilities", ollama.address()),
                "update Ollama; until then compare answers by hand",
            ));
        }
        Ok(served)
    })
}

/// `compare_served` for any server: `ask` has it continue the prompt of an answer raw and greedily, by at most so many tokens.
pub fn compare_with(
    model: &str,
    answers: &[OwnAnswer],
    tolerance: f64,
    ask: &mut dyn FnMut(&OwnAnswer, usize) -> Result<Answer>,
) -> Result<Report> {
    if answers.iter().all(|answer| answer.tokens.is_empty()) {
        return Err(Error::data("no answers to compare with the served model", "generate some tokens for at least one prompt"));
    }
    let mut compared = Vec::new();
    for own in answers {
        // One more where our answer ended, to see the served one end, too.
        let served = ask(own, own.tokens.len() + usize::from(own.end.is_some()))?;
        compared.push(compare_answer(own, &served));
    }
    let max_abs_difference = compared.iter().map(|one| one.max_abs_difference).fold(0.0, f64::max);
    let adapter_effect = compared.iter().filter_map(|one| one.adapter_effect).reduce(f64::max);
    let verdict = judge(&compared, tolerance);
    Ok(Report { model: model.to_owned(), answers: compared, max_abs_difference, adapter_effect, verdict })
}

/// Compares one answer of ours with a served one.
pub fn compare_answer(own: &OwnAnswer, served: &Answer) -> Compared {
    let same_tokens =
        own.tokens.iter().zip(&served.tokens).take_while(|(ours, theirs)| is_same(&ours.piece, &theirs.text)).count();
    let pairs = || own.tokens.iter().zip(&served.tokens).take(same_tokens);
    let largest = |differences: Vec<f64>| differences.into_iter().map(f64::abs).reduce(f64::max);
    // NaN (a served token without its log-probability) must not pass as small.
    let differences =
        pairs().map(|(ours, theirs)| ours.logprob - theirs.logprob).map(|d| if d.is_nan() { f64::INFINITY } else { d });
    let ends_alike = own.end.is_none() || served.tokens.len() == same_tokens && served.done_reason == "stop";
    let agree = same_tokens == own.tokens.len() && ends_alike;
    Compared {
        name: own.name.clone(),
        same_tokens,
        max_abs_difference: largest(differences.collect()).unwrap_or(0.0),
        adapter_effect: largest(pairs().filter_map(|(ours, _)| Some(ours.logprob - ours.base_logprob?)).collect()),
        from_base: largest(pairs().filter_map(|(ours, theirs)| Some(theirs.logprob - ours.base_logprob?)).collect()),
        divergence: (!agree).then(|| diverge(own, served, same_tokens)),
        prompt_tokens: served.prompt_tokens.filter(|&count| count != own.prompt_tokens),
    }
}

fn diverge(own: &OwnAnswer, served: &Answer, position: usize) -> Divergence {
    let (ours, theirs) = (own.tokens.get(position), served.tokens.get(position));
    // Our side knows the end of an answer as a token; Ollama shows none.
    let step = ours.map(|ours| (ours.logprob, &ours.top)).or(own.end.as_ref().map(|end| (end.logprob, &end.top)));
    let by_us = step.and_then(|(logprob, top)| {
        let other = top.iter().find(|(piece, _)| match (piece, theirs) {
            (Some(piece), Some(theirs)) => is_same(piece, &theirs.text),
            (None, None) => true,
            _ => false,
        })?;
        Some(logprob - other.1)
    });
    let by_them = || {
        let (ours, theirs) = (ours?, theirs?);
        let other = theirs.top.iter().find(|(text, _)| is_same(&ours.piece, text))?;
        Some(other.1 - theirs.logprob)
    };
    let text = |token: &ServedToken| token.text.clone();
    Divergence {
        position,
        ours: ours.map(|ours| String::from_utf8_lossy(&ours.piece).into_owned()),
        served: theirs.map(text),
        gap: by_us.or_else(by_them),
    }
}

/// A piece of a character cannot stand in JSON: Ollama has U+FFFD there, as a lossy reading of the piece has.
fn is_same(piece: &[u8], text: &str) -> bool {
    piece == text.as_bytes() || String::from_utf8_lossy(piece) == text
}

fn judge(answers: &[Compared], tolerance: f64) -> Verdict {
    if let Some(one) = answers.iter().find(|one| one.prompt_tokens.is_some()) {
        let served = one.prompt_tokens.unwrap_or_default();
        return Verdict::Different(format!(
            "the prompt of {} has {served} tokens where it is served, which is not what was trained",
            one.name
        ));
    }
    let parted = |one: &&Compared| one.divergence.as_ref().is_some_and(|divergence| !divergence.is_tie(tolerance));
    if let Some(one) = answers.iter().find(parted)
        && let Some(divergence) = &one.divergence
    {
        return Verdict::Different(format!("{}: {divergence}", one.name));
    }
    if let Some(one) = answers.iter().find(|one| one.max_abs_difference > tolerance) {
        return Verdict::Different(format!(
            "{}: log-probabilities are up to {:.4} apart, expected at most {tolerance}",
            one.name, one.max_abs_difference
        ));
    }
    let apart = answers.iter().map(|one| one.max_abs_difference).fold(0.0, f64::max);
    let same: usize = answers.iter().map(|one| one.same_tokens).sum();
    if same == 0 {
        return Verdict::CannotTell("every answer parts at its first token, at a tie; there is nothing to compare".to_owned());
    }
    let effect = answers.iter().filter_map(|one| one.adapter_effect).reduce(f64::max);
    let from_base = answers.iter().filter_map(|one| one.from_base).reduce(f64::max);
    if let (Some(effect), Some(from_base)) = (effect, from_base)
        && (effect < CLEARLY * apart.max(f64::EPSILON) || from_base < apart)
    {
        return Verdict::CannotTell(format!(
            "base and adapter are at most {effect:.4} apart in log-probability, served and trained {apart:.4}: too near to tell which is served"
        ));
    }
    Verdict::Same { ties: answers.iter().filter(|one| one.divergence.is_some()).count() }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = |token: &Option<String>| token.as_ref().map_or("the end".to_owned(), |text| format!("{text:?}"));
        write!(f, "token {} is {} where it is served, {} as trained", self.position + 1, token(&self.served), token(&self.ours))?;
        match self.gap {
            Some(gap) => write!(f, " ({gap:.3} apart in log-probability)"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
