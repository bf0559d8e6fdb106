use proptest::prelude::*;

use super::*;

/// Ollama's parser (parser/parser.go, ParseFile), ported: commands with their values.
fn parse(text: &str) -> Option<Vec<(String, String)>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Nil,
        Name,
        Value,
        Parameter,
        Comment,
    }
    fn unquote(s: &str) -> Option<String> {
        for quote in ["\"\"\"", "\""] {
            if let Some(rest) = s.strip_prefix(quote) {
                return rest.strip_suffix(quote).map(str::to_owned);
            }
        }
        Some(s.to_owned())
    }
    let (mut commands, mut state, mut buffer, mut command) = (Vec::new(), State::Nil, String::new(), String::new());
    for c in text.chars() {
        let (space, newline) = (matches!(c, ' ' | '\t'), matches!(c, '\n' | '\r'));
        let (mut next, keep) = match state {
            State::Nil if c == '#' => (State::Comment, false),
            State::Nil if space || newline => (State::Nil, false),
            State::Nil => (State::Name, true),
            State::Name if c.is_ascii_alphabetic() => (State::Name, true),
            State::Name if space => (State::Value, false),
            State::Name => return None,
            State::Value if newline || space => (State::Nil, true),
            State::Value => (State::Value, true),
            State::Parameter if c.is_ascii_alphanumeric() || c == '_' => (State::Parameter, true),
            State::Parameter if space => (State::Value, false),
            State::Parameter => return None,
            State::Comment if newline => (State::Nil, false),
            State::Comment => (State::Comment, false),
        };
        if next != state {
            match state {
                State::Name if buffer.eq_ignore_ascii_case("parameter") => next = State::Parameter,
                State::Name => command = buffer.to_lowercase(),
                State::Parameter => command = buffer.clone(),
                State::Value => match unquote(buffer.trim()) {
                    Some(value) if !space => commands.push((command.clone(), value)),
                    _ => {
                        buffer.push(c);
                        continue;
                    }
                },
                State::Nil | State::Comment => {}
            }
            buffer.clear();
            state = next;
        }
        if keep && is_print(c) {
            buffer.push(c);
        }
    }
    if state == State::Value {
        commands.push((command, unquote(buffer.trim())?));
    }
    Some(commands)
}

/// What `ollama create -f` would send for these commands, with numbers as the API has them.
fn request_of(commands: &[(String, String)]) -> (CreateRequest, Vec<String>) {
    let mut request = CreateRequest { model: "m:v1".to_owned(), ..CreateRequest::default() };
    let mut files = Vec::new();
    for (name, value) in commands {
        match name.as_str() {
            "from" if value.starts_with('/') => files.push(value.clone()),
            "from" => request.from = Some(value.clone()),
            "adapter" => files.push(value.clone()),
            "template" => request.template = Some(value.clone()),
            "system" => request.system = Some(value.clone()),
            "stop" => {
                let stops = request.parameters.entry("stop").or_insert_with(|| json!([]));
                stops.as_array_mut().unwrap().push(json!(value));
            }
            _ => {
                request.parameters.insert(name.clone(), serde_json::from_str(value).unwrap());
            }
        }
    }
    (request, files)
}

fn blob(path: &str) -> Blob {
    Blob { path: path.into(), digest: format!("sha256:{}", "a".repeat(64)), size_bytes: 1 }
}

fn spec() -> ModelSpec {
    let mut parameters = Parameters { num_ctx: Some(2048), ..Parameters::default() };
    for stop in ["<|im_end|>", "\n### Instruction:\n", "say \"stop\"", " padded "] {
        parameters.add_stop(stop);
    }
    parameters.inherit(&json!({"stop": ["<|im_end|>", "</s>"], "temperature": 1.5, "num_keep": 4, "num_ctx": 9, "min_p": 0.05}));
    ModelSpec {
        from: From::File(blob("/models/with space/merged.gguf")),
        adapter: None,
        parameters,
        system: Some("You are \"brief\".\n\n  Say 'yes' or \"no\"".to_owned()),
        template: Some(
            "{{- range .Messages }}{{ \"<|im_start|>\" }}{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}\"quoted\"".to_owned(),
        ),
    }
}

#[test]
fn the_modelfile_and_the_create_request_say_the_same() {
    let mut adapted = spec();
    adapted.from = From::Model("smollm2:135m".to_owned());
    adapted.adapter = Some(blob("/models/adapter.gguf"));
    for (spec, files) in [
        (spec(), vec!["/models/with space/merged.gguf"]),
        (adapted, vec!["/models/adapter.gguf"]),
        (ModelSpec::merged(blob("/m.gguf"), Parameters::default()), vec!["/m.gguf"]),
    ] {
        let text = spec.modelfile("m:v1").unwrap();
        let (read, read_files) = request_of(&parse(&text).unwrap_or_else(|| panic!("Ollama would refuse:\n{text}")));
        assert_eq!(read_files, files);
        let said = spec.create_request("m:v1");
        // The files went their own way; 1 and 1.0 are one number.
        let parameters = |request: &CreateRequest| -> Map<String, Value> {
            let float = |value: &Value| value.as_f64().map_or_else(|| value.clone(), |number| json!(number));
            request.parameters.iter().map(|(name, value)| (name.clone(), float(value))).collect()
        };
        let bare = |request: &CreateRequest| CreateRequest {
            parameters: parameters(request),
            files: BTreeMap::new(),
            adapters: BTreeMap::new(),
            ..request.clone()
        };
        assert_eq!(bare(&read), bare(&said), "{text}");
        assert_eq!(said.files.len() + said.adapters.len(), spec.blobs().count());
    }
}

#[test]
fn the_parameters_are_those_of_the_spec_and_a_base_adds_to_them() {
    assert_eq!(
        Value::Object(Parameters::default().to_json()),
        json!({"temperature": 0.2, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0})
    );
    let parameters = spec().parameters.to_json();
    assert_eq!(parameters["temperature"], 0.2);
    assert_eq!(parameters["num_ctx"], 2048);
    assert_eq!((&parameters["num_keep"], &parameters["min_p"]), (&json!(4), &json!(0.05)));
    assert_eq!(parameters["stop"], json!(["<|im_end|>", "\n### Instruction:\n", "say \"stop\"", " padded ", "</s>"]));
}

#[test]
fn a_text_that_no_modelfile_can_say_is_an_error_and_not_another_text() {
    for (text, part) in [
        ("a\"\"\"\nb", "three quotes"),
        ("\"\"\"  \nx", "three quotes"),
        ("zero\u{200b}width", "U+200B"),
        ("no\u{a0}break", "U+00A0"),
        ("\u{1b}[1m", "U+001B"),
    ] {
        let spec = ModelSpec { system: Some(text.to_owned()), ..spec() };
        let error = spec.modelfile("m:v1").unwrap_err();
        assert!(error.to_string().contains(part), "{text:?}: {error}");
        assert_eq!(spec.create_request("m:v1").system.as_deref(), Some(text), "the API can say it");
    }
}

#[test]
fn a_template_with_a_wrong_slot_names_line_and_slots() {
    let error = spec().fill("FROM {{from}}\nSYSTEM {{sytem}}\n", "m:v1").unwrap_err();
    assert!(error.to_string().contains("line 2") && error.to_string().contains("'sytem'"), "{error}");
    assert!(error.hint().unwrap().contains("system, temperature"), "{error:?}");
    assert!(spec().fill("FROM {{from\n", "m:v1").unwrap_err().to_string().contains("line 1"));
}

#[test]
fn the_later_commands_can_be_pasted_into_a_shell() {
    assert_eq!(
        later_commands(
            Path::new("/my dir/.agent/Modelfile.coder"),
            "my-coder-tuned-coder:v1",
            "my-coder-tuned-coder:latest",
            true
        ),
        [
            "ollama serve",
            "ollama create my-coder-tuned-coder:v1 -f '/my dir/.agent/Modelfile.coder'",
            "ollama cp my-coder-tuned-coder:v1 my-coder-tuned-coder:latest"
        ]
    );
    assert_eq!(later_commands(Path::new(".agent/Modelfile.judge"), "a:v1", "a:latest", false).len(), 2);
}

proptest! {
    #[test]
    fn whatever_text_is_quoted_is_read_back_byte_for_byte(text in "[ -~\\n\\t\"éß漢]{1,24}") {
        if let Ok(value) = quoted("SYSTEM", &text) {
            let commands = parse(&format!("SYSTEM {value}\nFROM x\n")).expect("a Modelfile that Ollama takes");
            prop_assert_eq!(commands, vec![("system".to_owned(), text), ("from".to_owned(), "x".to_owned())]);
        } else {
            prop_assert!(text.contains("\"\"\""));
        }
    }
}

#[test]
fn parameters_that_were_written_down_are_read_back() {
    let mut parameters = Parameters { temperature: 0.35, top_p: 0.5, top_k: 7, repeat_penalty: 1.25, ..Parameters::default() };
    assert_eq!(Parameters::from_json(&parameters.to_json()), parameters);
    parameters.num_ctx = Some(4096);
    parameters.add_stop("<|im_end|>");
    parameters.add_stop("</s>");
    parameters.inherit(&json!({"num_keep": 4, "min_p": 0.05, "penalize_newline": false}));
    assert_eq!(Parameters::from_json(&parameters.to_json()), parameters);
}
