//! Names of models: `[host/][namespace/]model[:tag]`. Source of the rules: ollama, types/model/name.go.

use std::fmt;

use crate::error::{Error, Result};

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// A complete, valid name. Every part is safe to be a part of a path: no separator, no leading dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    pub host: String,
    pub namespace: String,
    pub model: String,
    pub tag: String,
}

impl ModelName {
    /// Missing parts become Ollama's defaults: registry.ollama.ai, library, latest.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let after_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (path, tag) = match after_scheme.rsplit_once(':') {
            // A colon before a slash belongs to the host's port.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (after_scheme, TAG),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => (HOST, NAMESPACE, model),
            [namespace, model] => (HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(wrong(text, "it has more than three parts")),
        };
        for (part, what, extra, longest) in
            [(host, "host", ".:", 350), (namespace, "namespace", "", 80), (model, "model", ".", 80), (tag, "tag", ".", 80)]
        {
            let first = part.bytes().next().ok_or_else(|| wrong(text, &format!("its {what} is empty")))?;
            let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || extra.as_bytes().contains(&b);
            if !(first.is_ascii_alphanumeric() || first == b'_') || !part.bytes().all(valid) || part.len() > longest {
                return Err(wrong(text, &format!("its {what} '{part}' is not allowed")));
            }
        }
        Ok(Self { host: host.to_owned(), namespace: namespace.to_owned(), model: model.to_owned(), tag: tag.to_owned() })
    }

    /// The same model under another tag.
    pub fn with_tag(&self, tag: impl Into<String>) -> Self {
        Self { tag: tag.into(), ..self.clone() }
    }

    /// N where the tag is `vN`, N from 1.
    pub fn version(&self) -> Option<u64> {
        let digits = self.tag.strip_prefix(['v', 'V'])?;
        if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok()
    }

    /// Ollama treats names that differ in case only as one.
    pub fn same(&self, other: &Self) -> bool {
        self.same_model(other) && self.tag.eq_ignore_ascii_case(&other.tag)
    }

    /// `same`, whatever the tags.
    pub fn same_model(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host)
            && self.namespace.eq_ignore_ascii_case(&other.namespace)
            && self.model.eq_ignore_ascii_case(&other.model)
    }

    /// The parts in the order of the store's folders.
    pub fn parts(&self) -> [&str; 4] {
        [&self.host, &self.namespace, &self.model, &self.tag]
    }
}

/// The shortest form, as Ollama lists it: defaults left out, the tag always there.
impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.host.eq_ignore_ascii_case(HOST) {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if !self.namespace.eq_ignore_ascii_case(NAMESPACE) {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

fn wrong(text: &str, why: &str) -> Error {
    Error::usage(
        format!("'{text}' is no name of an Ollama model: {why}"),
        "write model, model:tag, user/model:tag or host/user/model:tag, with letters, digits, '.', '_' and '-'",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_shown_shortest() {
        for (text, parts, shown) in [
            ("smollm2", ["registry.ollama.ai", "library", "smollm2", "latest"], "smollm2:latest"),
            ("smollm2:135m", ["registry.ollama.ai", "library", "smollm2", "135m"], "smollm2:135m"),
            ("User/Model:Tag", ["registry.ollama.ai", "User", "Model", "Tag"], "User/Model:Tag"),
            ("hf.co/ns/model.gguf:Q4_0", ["hf.co", "ns", "model.gguf", "Q4_0"], "hf.co/ns/model.gguf:Q4_0"),
            ("localhost:5000/ns/m", ["localhost:5000", "ns", "m", "latest"], "localhost:5000/ns/m:latest"),
            ("https://registry.ollama.ai/library/m", ["registry.ollama.ai", "library", "m", "latest"], "m:latest"),
        ] {
            let name = ModelName::parse(text).unwrap();
            assert_eq!(name.parts(), parts, "{text}");
            assert_eq!(name.to_string(), shown);
        }
    }

    #[test]
    fn names_that_leave_the_store_or_have_holes_are_refused() {
        for text in [
            "",
            "..",
            "../../etc/passwd",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a:",
            ":b",
            "a/b/c/d",
            "m:..",
            "m:a b",
            "m\0",
            ".m",
            &"x".repeat(81),
        ] {
            assert_eq!(ModelName::parse(text).unwrap_err().exit_code(), 2, "{text:?}");
        }
    }

    #[test]
    fn only_v_and_a_number_from_one_is_a_version() {
        for (tag, version) in [
            ("v7", Some(7)),
            ("V12", Some(12)),
            ("v0", None),
            ("v07", None),
            ("v", None),
            ("v7b", None),
            ("7", None),
            ("latest", None),
        ] {
            assert_eq!(ModelName::parse(&format!("m:{tag}")).unwrap().version(), version, "{tag}");
        }
    }
}
