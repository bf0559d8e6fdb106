//! The built-in templates, for bases that have none of their own, and their twins in Ollama's template language.

use std::ops::Range;

use super::{Given, Rendering};
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// `### Instruction:` and `### Response:` (tatsu-lab/stanford_alpaca, without its opening sentence).
    Alpaca,
    /// `<|im_start|>role` and `<|im_end|>`, with no system text that nobody asked for.
    Chatml,
    /// The prompt and the answer, nothing between.
    Plain,
}

impl BuiltIn {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "alpaca" => Some(Self::Alpaca),
            "chatml" => Some(Self::Chatml),
            "plain" => Some(Self::Plain),
            _ => None,
        }
    }

    /// What ends the assistant's turn: the EOS, or `<|im_end|>`. A vocabulary that does not have `<|im_end|>` as one token
    /// gets its EOS behind it, or generation would not know where to stop.
    pub fn end(self, tokenizer: &Tokenizer) -> String {
        match self {
            Self::Alpaca | Self::Plain => tokenizer.eos_text(),
            Self::Chatml if tokenizer.id("<|im_end|>").is_some() => "<|im_end|>".to_owned(),
            Self::Chatml => format!("<|im_end|>{}", tokenizer.eos_text()),
        }
    }

    /// The text, and the assistant's contents with their ends as spans. Errors: a role or a tool call that the template has
    /// no words for.
    pub fn render(self, messages: &[Message], given: &Given, add_generation_prompt: bool) -> Result<Rendering> {
        let mut out = Out::default();
        if given.tools.is_some_and(|tools| tools.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(self.cannot("list tools"));
        }
        let last = messages.len().saturating_sub(1);
        for (i, message) in messages.iter().enumerate() {
            if calls_tools(message) {
                return Err(self.cannot("say tool calls"));
            }
            let content = message.content.as_str();
            let (before, after) = match (self, message.role.as_str()) {
                (Self::Alpaca | Self::Plain, "system") => (String::new(), "\n\n"),
                (Self::Alpaca, "user") => ("### Instruction:\n".to_owned(), "\n\n"),
                (Self::Alpaca, "assistant") => ("### Response:\n".to_owned(), "\n\n"),
                (Self::Plain, "user" | "assistant") => (String::new(), ""),
                (Self::Chatml, "system" | "user" | "assistant") => (format!("<|im_start|>{}\n", message.role), "\n"),
                (_, role) => return Err(self.cannot(&format!("say a turn of the role {role:?}"))),
            };
            out.text.push_str(&before);
            let start = out.text.len();
            out.text.push_str(content);
            if message.role == "assistant" {
                out.text.push_str(given.end);
                out.spans.push(start..out.text.len());
            } else if self == Self::Chatml {
                out.text.push_str("<|im_end|>");
            }
            // Alpaca puts its blank line between turns, not behind the last answer.
            let closes = self == Self::Alpaca && message.role == "assistant" && i == last && !add_generation_prompt;
            if !closes {
                out.text.push_str(after);
            }
        }
        if add_generation_prompt {
            out.text.push_str(match self {
                Self::Alpaca => "### Response:\n",
                Self::Chatml => "<|im_start|>assistant\n",
                Self::Plain => "",
            });
        }
        Ok(Rendering { text: out.text, spans: Some(out.spans) })
    }

    /// Ollama runs it once for each exchange and stops at `.Response` where the model is to speak (ollama, docs/template.md).
    pub fn ollama_twin(self, end: &str) -> String {
        match self {
            Self::Alpaca => format!(
                "{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{{{{ if .Prompt }}}}### Instruction:\n{{{{ .Prompt }}}}\n\n\
                 {{{{ end }}}}### Response:\n{{{{ .Response }}}}{end}\n\n"
            ),
            Self::Chatml => format!(
                "{{{{ if .System }}}}<|im_start|>system\n{{{{ .System }}}}<|im_end|>\n{{{{ end }}}}{{{{ if .Prompt }}}}\
                 <|im_start|>user\n{{{{ .Prompt }}}}<|im_end|>\n{{{{ end }}}}<|im_start|>assistant\n{{{{ .Response }}}}{end}\n"
            ),
            Self::Plain => {
                format!("{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{{{{ .Prompt }}}}{{{{ .Response }}}}{end}")
            }
        }
    }

    /// The same in Jinja, for servers that take that. On one line: whether line ends behind tags count is not the same everywhere.
    pub fn jinja_twin(self, end: &str) -> String {
        let content = "message['content']";
        let end = jinja_text(end);
        let turns = match self {
            Self::Alpaca => format!(
                "{{% if message['role'] == 'system' %}}{{{{ {content} + '\\n\\n' }}}}\
                 {{% elif message['role'] == 'user' %}}{{{{ '### Instruction:\\n' + {content} + '\\n\\n' }}}}\
                 {{% elif message['role'] == 'assistant' %}}{{{{ '### Response:\\n' + {content} + {end} }}}}\
                 {{% if not loop.last or add_generation_prompt %}}{{{{ '\\n\\n' }}}}{{% endif %}}"
            ),
            Self::Chatml => format!(
                "{{% if message['role'] == 'assistant' %}}{{{{ '<|im_start|>assistant\\n' + {content} + {end} + '\\n' }}}}\
                 {{% elif message['role'] == 'user' or message['role'] == 'system' %}}\
                 {{{{ '<|im_start|>' + message['role'] + '\\n' + {content} + '<|im_end|>\\n' }}}}"
            ),
            Self::Plain => format!(
                "{{% if message['role'] == 'system' %}}{{{{ {content} + '\\n\\n' }}}}\
                 {{% elif message['role'] == 'user' %}}{{{{ {content} }}}}\
                 {{% elif message['role'] == 'assistant' %}}{{{{ {content} + {end} }}}}"
            ),
        };
        let speaks = match self {
            Self::Alpaca => "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
            Self::Chatml => "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
            Self::Plain => "",
        };
        format!(
            "{{% for message in messages %}}{turns}{{% else %}}{{{{ raise_exception('this template cannot say such a turn') }}}}\
             {{% endif %}}{{% endfor %}}{speaks}"
        )
    }

    fn cannot(self, what: &str) -> Error {
        let name = format!("{self:?}").to_lowercase();
        Error::data(
            format!("the built-in template {name} cannot {what}"),
            "use the model's own template (leave --template away), or give a Jinja template with --template FILE",
        )
    }
}

/// A string as Jinja reads it back.
fn jinja_text(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
    format!("'{escaped}'")
}

#[derive(Default)]
struct Out {
    text: String,
    spans: Vec<Range<usize>>,
}

/// Whether a turn calls tools (an empty list calls none).
pub fn calls_tools(message: &Message) -> bool {
    match message.extra.get("tool_calls") {
        None | Some(serde_json::Value::Null) => false,
        Some(serde_json::Value::Array(calls)) => !calls.is_empty(),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn render(name: &str, turns: &[(&str, &str)], prompt: bool) -> (String, Vec<String>) {
        let messages: Vec<Message> = turns.iter().map(|&(role, content)| Message::new(role, content)).collect();
        let given = Given { tools: None, end: "</s>", now: SystemTime::UNIX_EPOCH };
        let rendering = BuiltIn::named(name).unwrap().render(&messages, &given, prompt).unwrap();
        let spans = rendering.spans.unwrap().into_iter().map(|span| rendering.text[span].to_owned()).collect();
        (rendering.text, spans)
    }

    #[test]
    fn alpaca_is_written_as_its_contract_says() {
        let (text, spans) = render("alpaca", &[("user", "Add\n1 2"), ("assistant", "3")], false);
        assert_eq!(text, "### Instruction:\nAdd\n1 2\n\n### Response:\n3</s>");
        assert_eq!(spans, ["3</s>"]);
        let turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")];
        let (text, spans) = render("alpaca", &turns, true);
        assert_eq!(text, "Be brief.\n\n### Instruction:\na\n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\n");
        assert_eq!(spans, ["b</s>"]);
    }

    #[test]
    fn chatml_and_plain_are_written_as_their_contracts_say() {
        let turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")];
        let (text, spans) = render("plain", &turns, true);
        assert_eq!((text.as_str(), spans), ("S\n\nab</s>c", vec!["b</s>".to_owned()]));
        let (text, spans) = render("chatml", &turns, true);
        assert_eq!(
            text,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb</s>\n\
             <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(spans, ["b</s>"]);
    }

    /// What Ollama does with such a template (server/prompt.go, template/template.go `Execute`): one run an exchange, the
    /// last one cut at `.Response`. Only the parts of Go's language that the twins use.
    fn ollama(twin: &str, exchanges: &[(&str, &str, &str)]) -> String {
        let mut text = String::new();
        for (i, (system, prompt, response)) in exchanges.iter().enumerate() {
            let twin = if i + 1 == exchanges.len() { twin.split("{{ .Response }}").next().unwrap() } else { twin };
            let mut rest = twin.to_owned();
            for (name, value) in [("System", system), ("Prompt", prompt)] {
                if let Some((before, tail)) = rest.clone().split_once(&format!("{{{{ if .{name} }}}}")) {
                    let (body, after) = tail.split_once("{{ end }}").unwrap();
                    rest = format!("{before}{}{after}", if value.is_empty() { "" } else { body });
                }
            }
            let filled = rest.replace("{{ .System }}", system).replace("{{ .Prompt }}", prompt);
            text.push_str(&filled.replace("{{ .Response }}", response));
        }
        text
    }

    #[test]
    fn what_ollama_renders_from_the_twin_is_what_was_trained() {
        for name in super::super::BUILT_IN {
            let twin = BuiltIn::named(name).unwrap().ollama_twin("</s>");
            for system in ["", "Be brief."] {
                let mut turns = vec![("user", "a"), ("assistant", "b"), ("user", "c")];
                if !system.is_empty() {
                    turns.insert(0, ("system", system));
                }
                let expected = render(name, &turns, true).0;
                assert_eq!(ollama(&twin, &[(system, "a", "b"), ("", "c", "")]), expected, "{name}, system {system:?}");
            }
        }
    }

    #[test]
    fn the_jinja_twin_renders_what_was_trained() {
        use super::super::Jinja;
        let turns = [("system", "Be {{ brief }}."), ("user", "a\n'b'"), ("assistant", "c"), ("user", "d")];
        for name in super::super::BUILT_IN {
            for end in ["</s>", "<|im_end|></s>", "it's\\n\nover"] {
                let built_in = BuiltIn::named(name).unwrap();
                let twin = Jinja::new(name, &built_in.jinja_twin(end), Vec::new()).unwrap();
                for (from, to, prompt) in [(0, 4, true), (1, 4, true), (0, 3, false), (1, 2, true), (0, 3, true)] {
                    let messages: Vec<Message> = turns[from..to].iter().map(|&(role, text)| Message::new(role, text)).collect();
                    let given = Given { tools: None, end, now: SystemTime::UNIX_EPOCH };
                    let [ours, theirs] = [built_in.render(&messages, &given, prompt), twin.render(&messages, &given, prompt)];
                    assert_eq!(ours.unwrap().text, theirs.unwrap().text, "{name}, turns {from} to {to}");
                }
                let tool = [Message::new("tool", "42")];
                assert!(twin.render(&tool, &Given { tools: None, end, now: SystemTime::UNIX_EPOCH }, false).is_err());
            }
        }
    }

    #[test]
    fn what_a_built_in_template_has_no_words_for_is_an_error() {
        let given = Given { tools: None, end: "</s>", now: SystemTime::UNIX_EPOCH };
        let tool = [Message::new("tool", "42")];
        let error = BuiltIn::Alpaca.render(&tool, &given, false).unwrap_err().to_string();
        assert!(error.contains("alpaca cannot say a turn of the role \"tool\""), "{error}");
        let mut call = Message::new("assistant", "");
        call.extra.insert("tool_calls".into(), serde_json::json!([{"function": {"name": "f", "arguments": {}}}]));
        assert!(BuiltIn::Plain.render(&[call], &given, false).unwrap_err().to_string().contains("tool calls"));
        let tools = serde_json::json!([{"name": "f"}]);
        let with_tools = Given { tools: Some(&tools), ..given };
        assert!(BuiltIn::Chatml.render(&[], &with_tools, false).unwrap_err().to_string().contains("list tools"));
    }
}
