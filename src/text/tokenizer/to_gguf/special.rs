//! Which tokens have a role, and which of them are put around a text, as gguf-py reads it out of a folder's files
//! (gguf/vocab.py, `SpecialVocab`): roles by tokenizer_config.json, then config.json; what is added by the post-processor of
//! tokenizer.json, then tokenizer_config.json.

use serde_json::{Map, Value as Json};

use super::super::folder::{Files, token_text};

const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Roles and what is added for them, in the order in which they were found.
#[derive(Debug, Default, PartialEq)]
pub struct Special {
    pub ids: Vec<(String, u32)>,
    pub add: Vec<(String, bool)>,
}

/// The end of the key of a role; `None` for one that GGUF has no key for.
pub fn id_key(role: &str) -> Option<&'static str> {
    Some(match role {
        "bos" => "bos_token_id",
        "eos" => "eos_token_id",
        "unk" => "unknown_token_id",
        // The format's own spelling.
        "sep" => "seperator_token_id",
        "pad" => "padding_token_id",
        "mask" => "mask_token_id",
        "eot" => "eot_token_id",
        "eom" => "eom_token_id",
        _ => return None,
    })
}

impl Special {
    /// `most`: ids from there on are left out.
    pub fn read(json: Option<&Json>, files: &Files, most: Option<usize>) -> Self {
        let mut reading =
            Reading { special: Self::default(), config: files.tokenizer.clone(), roles: ROLES.map(str::to_owned).to_vec() };
        if let Some(json) = json {
            reading.post_processor(json);
        }
        let added = json.and_then(|json| json["added_tokens"].as_array()).map_or(&[][..], Vec::as_slice);
        let Reading { mut special, config, roles } = reading;
        let set = |ids: &mut Vec<(String, u32)>, role: &str, id: Option<u64>| {
            let id = id.and_then(|id| u32::try_from(id).ok()).filter(|&id| most.is_none_or(|most| (id as usize) < most));
            if let Some(id) = id.filter(|_| !ids.iter().any(|(known, _)| known == role)) {
                ids.push((role.to_owned(), id));
            }
        };
        for role in &roles {
            if let Some(add) = config.get(&format!("add_{role}_token")).and_then(Json::as_bool)
                && !special.add.iter().any(|(known, _)| known == role)
            {
                special.add.push((role.clone(), add));
            }
            let Some(text) = config.get(&format!("{role}_token")).and_then(token_text) else { continue };
            let id = added.iter().find(|token| token["content"] == text.as_str()).and_then(|token| token["id"].as_u64());
            set(&mut special.ids, role, id);
        }
        for role in &roles {
            set(&mut special.ids, role, files.model.get(&format!("{role}_token_id")).and_then(Json::as_u64));
        }
        special
    }
}

struct Reading {
    special: Special,
    /// tokenizer_config.json, with what the post-processor tells beside it.
    config: Map<String, Json>,
    roles: Vec<String>,
}

impl Reading {
    /// What the config says of a role; `None` also for an empty text.
    fn token(&self, role: &str) -> Option<Json> {
        self.config.get(&format!("{role}_token")).filter(|token| !token.is_null() && token.as_str() != Some("")).cloned()
    }

    /// Only where there is a tokenizer_config.json at all.
    fn put(&mut self, role: &str, token: &Json) {
        if !self.config.is_empty() {
            self.config.insert(format!("{role}_token"), token.clone());
        }
    }

    fn add(&mut self, role: &str, add: bool) {
        match self.special.add.iter_mut().find(|(known, _)| known == role) {
            Some(known) => known.1 = add,
            None => self.special.add.push((role.to_owned(), add)),
        }
    }

    fn post_processor(&mut self, json: &Json) {
        for (role, other) in [("bos", "cls"), ("eos", "sep")] {
            if let (None, Some(token)) = (self.token(role), self.token(other)) {
                self.put(role, &token);
            }
        }
        let outer = &json["post_processor"];
        let steps = outer["processors"].as_array().map_or(std::slice::from_ref(outer), Vec::as_slice);
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => {
                    for role in ["bos", "eos"] {
                        if !self.special.add.iter().any(|(known, _)| known == role) {
                            self.add(role, false);
                        }
                    }
                }
                Some("TemplateProcessing") => self.template(step),
                _ => {}
            }
        }
    }

    /// `[bos] A [eos]` and `[bos] A [sep] [eos] B [eos]`.
    fn template(&mut self, step: &Json) {
        let items = |key: &str| step[key].as_array().map_or(&[][..], Vec::as_slice);
        let special = |item: Option<&Json>| item.map(|item| item["SpecialToken"]["id"].clone()).filter(Json::is_string);
        let (single, pair) = (items("single"), items("pair"));
        let is = |token: &Option<Json>, text: &Json| token.as_ref() == Some(text);
        let no_config = self.config.is_empty();
        let (mut first, mut last) = (None, None);
        let (mut eos, sep) = (self.token("eos"), self.token("sep"));
        if single.len() > 1 {
            first = special(single.first());
            if let Some(first) = &first {
                let (mut bos, mut cls) = (self.token("bos"), self.token("cls"));
                if no_config {
                    bos = Some(first.clone());
                } else if !is(&bos, first) && !is(&cls, first) {
                    for (role, token) in [("bos", &mut bos), ("cls", &mut cls)] {
                        if token.is_none() {
                            self.put(role, first);
                            *token = Some(first.clone());
                        }
                    }
                }
                self.add("bos", is(&bos, first) || is(&cls, first));
            }
            last = special(single.last());
            if let Some(last) = &last {
                if no_config {
                    eos = Some(last.clone());
                } else if !is(&eos, last) {
                    // The config's own end is kept as one of the other ends.
                    if let Some(role) = ["eot", "eom"].into_iter().find(|role| !self.roles.iter().any(|known| known == role)) {
                        self.roles.push(role.to_owned());
                        self.put(role, &eos.clone().unwrap_or(Json::Null));
                    }
                    self.put("eos", last);
                    eos = Some(last.clone());
                }
                self.add("eos", is(&eos, last));
            }
        }
        let starts = usize::from(first.is_some() && special(pair.first()) == first);
        let ends = usize::from(last.is_some() && special(pair.last()) == last);
        let Some([a, middle @ .., b]) = pair.get(starts..pair.len().saturating_sub(ends)) else { return };
        if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" || middle.is_empty() {
            return;
        }
        let separates = |item: &Json| special(Some(item)).is_some_and(|token| is(&sep, &token) || is(&eos, &token));
        let add = (separates(&middle[0]) && last.is_none()) || (middle.len() == 2 && separates(&middle[1]));
        self.add("sep", add);
        if add && sep.is_none() {
            self.put("sep", &eos.unwrap_or(Json::Null));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Json, files: &[(&str, Json)]) -> Special {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        Special::read(Some(json), &Files::read(folder.path()).unwrap(), None)
    }

    fn names(of: &[(&str, u32)]) -> Vec<(String, u32)> {
        of.iter().map(|(role, id)| ((*role).to_owned(), *id)).collect()
    }

    /// Llama 3: `<|begin_of_text|>` by the template, the ends as a list that names no single one in config.json.
    #[test]
    fn a_template_adds_its_bos_and_the_config_names_the_end() {
        let token = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}}));
        let tokenizer = json!({
            "added_tokens": [{"id": 7, "content": "<bos>"}, {"id": 8, "content": "<end>"}],
            "post_processor": {"type": "Sequence", "processors": [
                {"type": "ByteLevel"},
                {"type": "TemplateProcessing", "single": [token("<bos>"), a], "pair": [token("<bos>"), a, token("<bos>"), b]}
            ]}
        });
        let config = json!({"bos_token": "<bos>", "eos_token": {"content": "<end>"}});
        let found = read(&tokenizer, &[("tokenizer_config.json", config), ("config.json", json!({"eos_token_id": [1, 2]}))]);
        assert_eq!(found.ids, names(&[("bos", 7), ("eos", 8)]));
        let expected = [("bos", true), ("eos", false), ("sep", false)];
        assert_eq!(found.add, expected.map(|(role, add)| (role.to_owned(), add)));
    }

    #[test]
    fn numbers_of_the_models_config_stand_in_where_no_name_leads_to_an_id() {
        let config = json!({"bos_token": null, "eos_token": "<gone>", "add_bos_token": false});
        let model = json!({"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": null});
        let found = read(&json!({"added_tokens": []}), &[("tokenizer_config.json", config), ("config.json", model)]);
        assert_eq!(found, Special { ids: names(&[("bos", 3), ("eos", 4)]), add: vec![("bos".to_owned(), false)] });
    }

    /// An end that the template puts behind a text becomes EOS, and the config's own one the end of a turn.
    #[test]
    fn another_end_in_the_template_keeps_the_configs_end_as_end_of_turn() {
        let token = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let a = json!({"Sequence": {"id": "A", "type_id": 0}});
        let tokenizer = json!({
            "added_tokens": [{"id": 1, "content": "</s>"}, {"id": 2, "content": "<turn>"}],
            "post_processor": {"type": "TemplateProcessing", "single": [a, token("</s>")], "pair": []}
        });
        let found = read(&tokenizer, &[("tokenizer_config.json", json!({"eos_token": "<turn>"}))]);
        assert_eq!(found.ids, names(&[("eos", 1), ("eot", 2)]));
        assert_eq!(found.add, [("eos".to_owned(), true)]);
    }
}
