//! An Ollama TEMPLATE (Go text/template) learnt from prompts that training rendered.
//!
//! It works for templates whose text between two turns depends on the roles of these turns alone, as ChatML, Llama 3,
//! Gemma, Zephyr and their kin have it, default system text included. What it renders is checked against the prompts
//! by whoever uses it; a wrong guess is never served.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::prompt::PromptProbe;

/// (role before, or "" at the start; role) -> the text between their contents.
type Turns = BTreeMap<(String, String), String>;

const ROLES: [&str; 3] = ["system", "user", "assistant"];
/// Without these a template would render some conversations wrong that nobody has looked at.
const NEEDED: [(&str, &str); 5] =
    [("", "system"), ("", "user"), ("system", "user"), ("user", "assistant"), ("assistant", "user")];

/// The template, or why there is none. `bos`: a text at the start of the prompts that the served model's tokenizer puts
/// there by itself, and that the template therefore leaves out.
pub(super) fn learn(probes: &[PromptProbe], bos: &str) -> Result<String, String> {
    let mut turns = Turns::new();
    let mut ending: Option<&str> = None;
    for probe in probes.iter().filter(|probe| is_plain(probe)) {
        let text = probe.text.strip_prefix(bos).unwrap_or(&probe.text);
        let mut rest = text;
        let mut before = "";
        for message in &probe.messages {
            // Some templates trim what they are given; then the template's Go twin would have to, too.
            let at = rest
                .find(&message.content)
                .ok_or_else(|| format!("the {} of {} is not in its prompt as it is", message.role, probe.name))?;
            let between = rest[..at].to_owned();
            let known = turns.entry((before.to_owned(), message.role.clone())).or_insert_with(|| between.clone());
            if *known != between {
                return Err(format!("what stands before the {} of {} depends on more than the roles", message.role, probe.name));
            }
            rest = &rest[at + message.content.len()..];
            before = &message.role;
        }
        if before != "user" {
            continue;
        }
        if *ending.get_or_insert(rest) != rest {
            return Err(format!("what stands at the end of {} depends on more than the roles", probe.name));
        }
    }
    let ending = ending.ok_or("no plain prompt ends on a user's turn")?;
    if let Some((before, role)) =
        NEEDED.iter().find(|(before, role)| !turns.contains_key(&((*before).to_owned(), (*role).to_owned())))
    {
        let place = if before.is_empty() { "at the start".to_owned() } else { format!("after the {before}'s") };
        return Err(format!("no prompt shows a {role}'s turn {place}"));
    }
    Ok(write(&turns, ending))
}

/// Whether only texts of known roles are in it, none empty (an empty text is found everywhere).
fn is_plain(probe: &PromptProbe) -> bool {
    let plain = |message: &crate::domain::Message| {
        ROLES.contains(&message.role.as_str()) && !message.content.is_empty() && !message.extra.contains_key("tool_calls")
    };
    probe.tools.is_none() && probe.messages.iter().all(plain)
}

fn write(turns: &Turns, ending: &str) -> String {
    let mut template = "{{- $before := \"\" }}{{- range .Messages }}".to_owned();
    let befores: Vec<&str> = std::iter::once("").chain(ROLES).filter(|before| turns.keys().any(|(b, _)| b == before)).collect();
    for (i, before) in befores.iter().enumerate() {
        let _ = write!(template, "{{{{- {}if eq $before {} }}}}", if i > 0 { "else " } else { "" }, go_string(before));
        for (j, ((_, role), text)) in turns.iter().filter(|((b, _), _)| b == before).enumerate() {
            let branch = if j > 0 { "else " } else { "" };
            let _ = write!(template, "{{{{- {branch}if eq .Role {} }}}}{{{{ {} }}}}", go_string(role), go_string(text));
        }
        template.push_str("{{- end }}");
    }
    template.push_str("{{- end }}{{ .Content }}{{- $before = .Role }}{{- end }}");
    let _ = write!(template, "{{{{ {} }}}}", go_string(ending));
    template
}

/// A Go string constant. JSON's escapes are Go's, too.
fn go_string(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    fn chatml(messages: &[(&str, &str)], default_system: &str) -> PromptProbe {
        let mut text = String::new();
        if messages[0].0 != "system" {
            text.push_str(default_system);
        }
        for (role, content) in messages {
            let _ = write!(text, "<|im_start|>{role}\n{content}<|im_end|>\n");
        }
        text.push_str("<|im_start|>assistant\n");
        let messages = messages.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        PromptProbe { name: "row".to_owned(), messages, tools: None, text, ids: Vec::new() }
    }

    fn probes() -> Vec<PromptProbe> {
        let default = "<|im_start|>system\nBe \"good\".<|im_end|>\n";
        vec![
            chatml(&[("user", "first question")], default),
            chatml(&[("system", "rules"), ("user", "second question")], default),
            chatml(&[("user", "one"), ("assistant", "two"), ("user", "three")], default),
        ]
    }

    #[test]
    fn a_chatml_template_with_a_default_system_text_is_learnt() {
        let template = learn(&probes(), "").unwrap();
        assert!(template.contains(r#"{{ "<|im_start|>system\nBe \"good\".<|im_end|>\n<|im_start|>user\n" }}"#), "{template}");
        assert!(template.ends_with(r#"{{ "<|im_end|>\n<|im_start|>assistant\n" }}"#), "{template}");
        assert_eq!(template.matches("{{ .Content }}").count(), 1);
    }

    #[test]
    fn a_turn_that_no_prompt_shows_is_named() {
        let error = learn(&probes()[..2], "").unwrap_err();
        assert_eq!(error, "no prompt shows a assistant's turn after the user's");
    }

    #[test]
    fn a_template_that_looks_at_more_than_roles_is_refused() {
        let mut all = probes();
        all.push(chatml(&[("user", "other")], "<|im_start|>system\nToday is Monday.<|im_end|>\n"));
        assert!(learn(&all, "").unwrap_err().contains("depends on more than the roles"));
    }

    #[test]
    fn a_bos_that_the_tokenizer_adds_is_left_out() {
        let mut all = probes();
        all.iter_mut().for_each(|probe| probe.text.insert_str(0, "<s>"));
        assert_eq!(learn(&all, "<s>").unwrap(), learn(&probes(), "").unwrap());
        assert!(learn(&all, "").unwrap().contains(r#"{{ "<s><|im_start|>"#));
    }
}
