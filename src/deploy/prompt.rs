//! The prompt that is served must be, token for token, the one that was trained.
//!
//! Ollama renders by a Go template, its own guess for the model; the model's Jinja template may say more. Measured:
//! for SmolLM2, Ollama 0.17.4 and 0.34.1 both drop the default system text, 17 tokens where training rendered 38.
//! So the rendered text (`_debug_render_only`) and the number of tokens (`prompt_eval_count`) of some conversations are
//! compared, and SYSTEM or TEMPLATE is written until they are the same.

use std::fmt;

use serde_json::Value;

use super::go_template;
use super::modelfile::{From, ModelSpec};
use super::register::{Progress, create, served_digest, verify};
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::runtime::ollama::{Ollama, Probe};

/// A conversation, and what training rendered for it up to where the assistant begins to speak.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptProbe {
    /// What an error calls it: `row 12`, `a user's turn alone`.
    pub name: String,
    pub messages: Vec<Message>,
    pub tools: Option<Value>,
    /// With the BOS text, where the template writes one.
    pub text: String,
    /// With the BOS, where there is one.
    pub ids: Vec<u32>,
}

/// What may be tried to make the prompts the same.
#[derive(Clone, Debug, Default)]
pub struct Remedies {
    /// The system text that the model's Jinja template puts in by itself, where the caller knows it. It is found out
    /// from the prompts where this Ollama can render.
    pub default_system: Option<String>,
    /// Go templates to try: the twin of a built-in template.
    pub templates: Vec<String>,
    /// The text of the BOS token (`<s>`), where the model has one.
    pub bos: Option<String>,
}

/// One prompt that is served otherwise than it was trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub probe: String,
    pub what: Mismatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// From the first difference on, a little of each text, and where it is in the trained one.
    Text { at_byte: usize, served: String, trained: String },
    /// The texts are the same (or unknown), the numbers of tokens are not.
    Count { served: usize, trained: usize },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// What to register.
    pub spec: ModelSpec,
    /// What was changed, for people; `None` where nothing had to be.
    pub remedy: Option<String>,
    /// Whether this Ollama rendered the prompts; if not, only numbers of tokens were compared.
    pub rendered: bool,
    /// What is still different: empty where the prompts are the same.
    pub differences: Vec<Difference>,
    /// What did not work, one line each.
    pub notes: Vec<String>,
    /// Digest of the manifest of the model that all this was tried with.
    pub digest: String,
}

impl Settlement {
    pub fn is_exact(&self) -> bool {
        self.differences.is_empty()
    }

    /// An error where a prompt would be served otherwise than it was trained.
    pub fn require_exact(&self) -> Result<()> {
        let Some(first) = self.differences.first() else { return Ok(()) };
        let more = if self.differences.len() > 1 {
            format!(" (and {} more prompts)", self.differences.len() - 1)
        } else {
            String::new()
        };
        let tried = if self.notes.is_empty() { String::new() } else { format!("; tried: {}", self.notes.join("; ")) };
        Err(Error::unsupported(
            format!("Ollama would not prompt the model as it was trained: {first}{more}{tried}"),
            "train with --template chatml, alpaca or plain, which Ollama renders the same, or give a Go template in TEMPLATE",
        ))
    }
}

/// How many prompts are also counted in tokens where the texts could be compared: each costs an evaluation.
const COUNTED: usize = 2;
/// Stands for a system text when Ollama is asked how it renders one.
const SENTINEL: &str = "retune-system-text-7f3a";

/// Tries `spec` and then remedies under the name `scratch` (which is overwritten) until every prompt is the same.
/// `scratch` is left behind, so that the files stay in Ollama until the version is registered: delete it then.
/// The prompts must fit into the spec's `num_ctx`.
pub fn settle(
    ollama: &Ollama,
    scratch: &str,
    spec: &ModelSpec,
    probes: &[PromptProbe],
    remedies: &Remedies,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Settlement> {
    if probes.is_empty() {
        return Err(Error::data("no prompts to compare with what Ollama renders", "give at least one row of the training data"));
    }
    let served = served_digest(ollama, &spec.from)?;
    let mut attempt = |spec: &ModelSpec| -> Result<(Vec<Difference>, bool, String)> {
        create(ollama, spec, scratch, on_progress)?;
        let digest = verify(ollama, spec, &served, scratch)?;
        let (differences, rendered) = compare_prompts(ollama, scratch, probes)?;
        Ok((differences, rendered, digest))
    };
    let (differences, rendered, digest) = attempt(spec)?;
    let mut best = Settlement { spec: spec.clone(), remedy: None, rendered, differences, notes: Vec::new(), digest };
    if best.is_exact() {
        return Ok(best);
    }
    let (candidates, mut notes) = candidates(ollama, scratch, spec, probes, remedies, rendered)?;
    for Candidate { remedy, spec: candidate } in candidates {
        match attempt(&candidate) {
            Ok((differences, rendered, digest)) if differences.is_empty() => {
                return Ok(Settlement { spec: candidate, remedy: Some(remedy), rendered, differences, notes, digest });
            }
            Ok((differences, ..)) => notes.push(format!("{remedy}: {}", differences[0])),
            // A template that this Ollama cannot parse is no reason to give up.
            Err(error) => notes.push(format!("{remedy}: {error}")),
        }
    }
    best.notes = notes;
    Ok(best)
}

/// What `settle` would come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foresight {
    /// What is different as long as nothing is written; empty where nobody was asked, too.
    pub differences: Vec<Difference>,
    /// What would be written.
    pub remedy: Option<String>,
    /// The remedy was seen to give the trained prompts.
    pub proven: bool,
    /// Why something cannot be written, one line each.
    pub notes: Vec<String>,
}

/// Foresees what `settle` would do, and changes nothing: a system text can be tried as a message of the conversation; that
/// a template does what it should is seen only when a model with it is there. `served`: a model that Ollama has, with the
/// base's own weights; without one, what is known of the prompts alone is told.
pub fn foresee(served: Option<(&Ollama, &str)>, probes: &[PromptProbe], remedies: &Remedies) -> Result<Foresight> {
    let mut foresight = Foresight::default();
    if let Some((ollama, model)) = served {
        foresight.differences = compare_prompts(ollama, model, probes)?.0;
        if foresight.differences.is_empty() {
            return Ok(foresight);
        }
        if let Some(system) = &remedies.default_system {
            let with: Vec<PromptProbe> = probes.iter().map(|probe| probe.with_system(system)).collect();
            if compare_prompts(ollama, model, &with)?.0.is_empty() {
                let remedy = Some(format!("SYSTEM {system:?}"));
                return Ok(Foresight { remedy, proven: true, ..foresight });
            }
        }
    }
    if !remedies.templates.is_empty() {
        foresight.remedy = Some("TEMPLATE, the twin of the trained template".to_owned());
        return Ok(foresight);
    }
    for bos in remedies.bos.iter().map(String::as_str).chain([""]) {
        match go_template::learn(probes, bos) {
            Ok(_) => {
                foresight.remedy = Some("TEMPLATE, a template learnt from the trained prompts".to_owned());
                foresight.notes.clear();
                return Ok(foresight);
            }
            Err(why) if !foresight.notes.contains(&why) => foresight.notes.push(why),
            Err(_) => {}
        }
    }
    Ok(foresight)
}

/// Compares what a registered model is prompted with; nothing is changed. `true`: texts were compared, too.
pub fn compare_prompts(ollama: &Ollama, model: &str, probes: &[PromptProbe]) -> Result<(Vec<Difference>, bool)> {
    let mut differences = Vec::new();
    let mut rendered = true;
    for probe in probes {
        let Some(text) = ollama.render_only(model, probe.as_request())? else {
            rendered = false;
            break;
        };
        if let Some(what) = text_mismatch(&text, &probe.text) {
            differences.push(Difference { probe: probe.name.clone(), what });
        }
    }
    if !differences.is_empty() {
        return Ok((differences, rendered));
    }
    // The shortest and the longest; all of them where their numbers of tokens are all that can be compared.
    let mut order: Vec<&PromptProbe> = probes.iter().collect();
    order.sort_by_key(|probe| probe.ids.len());
    if rendered && order.len() > COUNTED {
        order = vec![order[0], order[order.len() - 1]];
    }
    for probe in order {
        let served = ollama.prompt_eval_count(model, probe.as_request())?;
        if served != probe.ids.len() {
            let what = Mismatch::Count { served, trained: probe.ids.len() };
            differences.push(Difference { probe: probe.name.clone(), what });
        }
    }
    Ok((differences, rendered))
}

impl PromptProbe {
    fn as_request(&self) -> Probe<'_> {
        Probe { messages: &self.messages, tools: self.tools.as_ref() }
    }

    /// The same trained prompt for a conversation that says `system` itself: as Ollama puts SYSTEM before a conversation
    /// that has none.
    fn with_system(&self, system: &str) -> Self {
        let mut probe = self.clone();
        if !self.has_system() {
            probe.messages.insert(0, Message::new("system", system));
        }
        probe
    }

    fn has_system(&self) -> bool {
        self.messages.first().is_some_and(|message| message.role == "system")
    }
}

/// A spec to try, and what it changes, for people.
struct Candidate {
    remedy: String,
    spec: ModelSpec,
}

/// What to try, in order; and why something is not tried.
fn candidates(
    ollama: &Ollama,
    scratch: &str,
    spec: &ModelSpec,
    probes: &[PromptProbe],
    remedies: &Remedies,
    rendered: bool,
) -> Result<(Vec<Candidate>, Vec<String>)> {
    let mut notes = Vec::new();
    let system = match probes.iter().find(|probe| !probe.has_system()).filter(|_| rendered) {
        Some(probe) => find_system(ollama, scratch, probe)?.or_else(|| remedies.default_system.clone()),
        None => remedies.default_system.clone(),
    };
    let mut all: Vec<Candidate> = Vec::new();
    // `spec` itself was tried before, and two ways can lead to one candidate.
    let mut try_spec = |remedy: String, candidate: ModelSpec| {
        if candidate != *spec && all.iter().all(|other| other.spec != candidate) {
            all.push(Candidate { remedy, spec: candidate });
        }
    };
    if let Some(system) = system.as_ref().filter(|system| spec.system.as_ref() != Some(*system)) {
        try_spec(format!("SYSTEM {system:?}"), ModelSpec { system: Some(system.clone()), ..spec.clone() });
    }
    // A text that the base's Modelfile brought and training did not render.
    if spec.system.is_some() && matches!(spec.from, From::File(_)) {
        try_spec("no SYSTEM".to_owned(), ModelSpec { system: None, ..spec.clone() });
    }
    let mut templates: Vec<(&str, String)> =
        remedies.templates.iter().map(|template| ("the twin of the trained template", template.clone())).collect();
    for bos in remedies.bos.iter().map(String::as_str).chain([""]) {
        match go_template::learn(probes, bos) {
            Ok(template) => templates.push(("a template learnt from the trained prompts", template)),
            Err(why) if !notes.contains(&why) => notes.push(why),
            Err(_) => {}
        }
    }
    for (what, template) in templates {
        let with = |system: Option<String>| ModelSpec { template: Some(template.clone()), system, ..spec.clone() };
        try_spec(format!("TEMPLATE, {what}"), with(None));
        if let Some(system) = &system {
            try_spec(format!("TEMPLATE, {what}, and SYSTEM {system:?}"), with(Some(system.clone())));
        }
    }
    Ok((all, notes))
}

/// The system text that stands in a trained prompt whose conversation has none: Ollama renders the conversation with a
/// system text of ours, and what stands at its place in the trained prompt is the text.
fn find_system(ollama: &Ollama, model: &str, probe: &PromptProbe) -> Result<Option<String>> {
    let mut messages = vec![Message::new("system", SENTINEL)];
    messages.extend(probe.messages.iter().cloned());
    let request = Probe { messages: &messages, tools: probe.tools.as_ref() };
    let Some(served) = ollama.render_only(model, request)? else { return Ok(None) };
    let Some((before, after)) = served.split_once(SENTINEL) else { return Ok(None) };
    // The trained text may begin with a BOS that Ollama's tokenizer adds.
    let Some((_, rest)) = probe.text.split_once(before).filter(|(bos, _)| bos.len() < 32) else { return Ok(None) };
    Ok(rest.strip_suffix(after).filter(|system| !system.is_empty()).map(str::to_owned))
}

/// `None` where both are the same, or the same but for a BOS at the start of the trained text, which Ollama's tokenizer
/// adds (whether it does is seen in the numbers of tokens).
fn text_mismatch(served: &str, trained: &str) -> Option<Mismatch> {
    if served == trained || trained.strip_suffix(served).is_some_and(is_bos) {
        return None;
    }
    let same = served.bytes().zip(trained.bytes()).take_while(|(a, b)| a == b).count();
    let excerpt = |text: &str| -> String {
        let start = (0..=same.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text[start..].chars().take(60).collect()
    };
    Some(Mismatch::Text { at_byte: same, served: excerpt(served), trained: excerpt(trained) })
}

/// Whether a text looks like one special token: `<s>`, `<bos>`, `<|begin_of_text|>`.
fn is_bos(text: &str) -> bool {
    text.starts_with('<')
        && text.ends_with('>')
        && text.matches('<').count() == 1
        && text.len() <= 32
        && !text.contains(char::is_whitespace)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Mismatch::Text { at_byte, served, trained } => {
                write!(f, "the prompt of {} differs from byte {at_byte} on: served {served:?}, trained {trained:?}", self.probe)
            }
            Mismatch::Count { served, trained } => {
                write!(f, "the prompt of {} has {served} tokens where it is served, {trained} where it was trained", self.probe)?;
                if *served == trained + 1 {
                    f.write_str(" (a second BOS? the template writes one and the tokenizer adds one)")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bos_in_front_is_no_difference_in_the_text_and_anything_else_is() {
        assert_eq!(text_mismatch("a", "a"), None);
        assert_eq!(text_mismatch("<|im_start|>user", "<|begin_of_text|><|im_start|>user"), None);
        let text = |at_byte, served: &str, trained: &str| {
            Some(Mismatch::Text { at_byte, served: served.to_owned(), trained: trained.to_owned() })
        };
        assert_eq!(text_mismatch("<u>hé", "<u>hè"), text(5, "é", "è"));
        assert_eq!(text_mismatch("x", "<s><s>x"), text(0, "x", "<s><s>x"));
        assert_eq!(text_mismatch("<u>x", "<s>Be good<u>x"), text(1, "u>x", "s>Be good<u>x"));
        assert_eq!(text_mismatch("abc", "ab"), text(2, "c", ""));
    }

    #[test]
    fn a_difference_says_which_prompt_where_and_both_texts() {
        let what = Mismatch::Text { at_byte: 12, served: "user".to_owned(), trained: "system\nBe".to_owned() };
        let difference = Difference { probe: "row 3".to_owned(), what };
        assert_eq!(difference.to_string(), r#"the prompt of row 3 differs from byte 12 on: served "user", trained "system\nBe""#);
        let difference = Difference { probe: "row 3".to_owned(), what: Mismatch::Count { served: 39, trained: 38 } };
        assert!(difference.to_string().contains("39 tokens where it is served, 38 where it was trained (a second BOS?"));
    }

    use crate::runtime::ollama::scripted::{Say, Scripted, Seen};
    use serde_json::json;

    /// An Ollama that cannot render only, and counts `plain` tokens, with a system text `with_system`.
    fn counting(plain: usize, with_system: usize) -> Scripted {
        let mut created = json!(null);
        Scripted::start(move |seen: &Seen| match seen.line.as_str() {
            "POST /api/create" => {
                created = seen.json();
                Say::Lines(vec![json!({"status": "success"})])
            }
            "POST /api/show" => {
                let blob = created["files"]["model.gguf"].as_str().unwrap().replace(':', "-");
                let parameters: Vec<String> =
                    created["parameters"].as_object().unwrap().iter().map(|(name, value)| format!("{name}  {value}")).collect();
                let system = created["system"].as_str().unwrap_or_default();
                Say::Json(
                    200,
                    json!({"modelfile": format!("FROM /m/{blob}"), "system": system, "parameters": parameters.join("\n")}),
                )
            }
            "GET /api/tags" => Say::Json(200, json!({"models": [{"name": "m:trial", "digest": "d"}]})),
            "POST /api/chat" => {
                let count = if created["system"].is_string() { with_system } else { plain };
                Say::Lines(vec![json!({"message": {"content": "x"}, "done": true, "prompt_eval_count": count})])
            }
            _ => Say::Text(200, ""),
        })
    }

    fn settled(server: &Scripted, default_system: Option<&str>) -> Settlement {
        let blob =
            crate::runtime::ollama::Blob { path: "/m".into(), digest: format!("sha256:{}", "a".repeat(64)), size_bytes: 1 };
        let spec = ModelSpec::merged(blob, super::super::Parameters::default());
        let probe = PromptProbe {
            name: "row 1".to_owned(),
            messages: vec![Message::new("user", "Hi")],
            tools: None,
            text: "trained".to_owned(),
            ids: vec![0; 38],
        };
        let remedies = Remedies { default_system: default_system.map(str::to_owned), ..Remedies::default() };
        settle(&server.ollama, "m:trial", &spec, &[probe], &remedies, &mut |_| ()).unwrap()
    }

    #[test]
    fn where_ollama_cannot_render_the_numbers_of_tokens_decide() {
        let settlement = settled(&counting(38, 60), None);
        assert!(settlement.is_exact() && !settlement.rendered && settlement.remedy.is_none());

        let settlement = settled(&counting(17, 38), Some("Be good."));
        assert_eq!(settlement.spec.system.as_deref(), Some("Be good."));
        assert!(settlement.is_exact() && settlement.remedy.is_some());

        let settlement = settled(&counting(17, 39), Some("Be good."));
        assert_eq!(settlement.spec.system, None, "a remedy that does not help is not kept");
        let error = settlement.require_exact().unwrap_err().to_string();
        assert!(error.contains("the prompt of row 1 has 17 tokens where it is served, 38 where it was trained"), "{error}");
        assert!(error.contains("SYSTEM \"Be good.\": the prompt of row 1 has 39 tokens"), "{error}");
    }
}
