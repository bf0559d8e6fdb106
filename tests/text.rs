//! Tokenizers, templates and masks against what the references give: transformers, tokenizers, jinja2 and llama.cpp
//! (tests/parity, written by scripts/parity), and llama.cpp's own golden ids.

mod common;

use std::path::Path;

use retune::domain::Message;
use retune::formats::gguf::Gguf;
use retune::text::template::Template;
use retune::text::tokenizer::Tokenizer;
use serde_json::Value;

fn golden(folder: &str, name: &str) -> Value {
    let path = common::root().join("tests/parity").join(folder).join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn from_gguf(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Holds a tokenizer to every case: ids, BOS, decoding, and that ranges lie in order on characters' bytes.
fn hold_to(tokenizer: &Tokenizer, golden: &Value, gguf: bool) {
    let name = golden["name"].as_str().unwrap();
    let mut differing: Vec<(&str, &Value)> = vec![];
    if gguf {
        differing.extend(golden["gguf_cases"].as_array().unwrap().iter().map(|c| (c["text"].as_str().unwrap(), &c["ids"])));
    }
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let other = differing.iter().find(|(t, _)| *t == text).map(|(_, ids)| *ids);
        let (got, ranges) = tokenizer.encode_with_offsets(text, false).unwrap();
        assert_eq!(got, ids(other.unwrap_or(&case["ids"])), "{name}: {text:?}");
        compared += 1;
        assert_eq!(ranges.len(), got.len());
        let mut covered = 0;
        for (range, id) in ranges.iter().zip(&got) {
            assert!(range.start <= range.end && range.end <= text.len(), "{name}: {text:?} {range:?}");
            assert!(range.start <= covered.max(range.start) && range.end >= covered, "{name}: {text:?} {range:?} of {id}");
            covered = range.end;
        }
        if other.is_none() {
            // Where the text has a BOS of its own the libraries put a second one in front; we never do.
            let has_bos = tokenizer.bos.is_some() && got.first().copied() == tokenizer.bos;
            let with_bos = if has_bos { &case["ids"] } else { &case["with_special"] };
            // Phi-3's GGUF asks for a BOS, its tokenizer.json does not.
            if !(gguf && name == "phi-3") {
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids(with_bos), "{name}: {text:?} with BOS");
            }
            assert_eq!(tokenizer.decode(&got, false).unwrap(), case["decoded"].as_str().unwrap(), "{name}: {text:?} decoded");
        }
    }
    assert!(compared >= 30, "{name}: {compared} cases");
}

#[test]
fn json_tokenizers_give_the_ids_of_transformers() {
    let Some(data) = common::data("json_tokenizers_give_the_ids_of_transformers") else { return };
    for (name, folder) in [("stories260K", "models/stories260K"), ("phi-3", "tokenizers/phi-3"), ("qwen3", "tokenizers/qwen3")] {
        hold_to(&Tokenizer::from_folder(&data.join(folder)).unwrap(), &golden("tokenizers", name), false);
    }
}

#[test]
fn gguf_tokenizers_give_the_ids_of_llama_cpp() {
    let Some(data) = common::data("gguf_tokenizers_give_the_ids_of_llama_cpp") else { return };
    for (name, file) in [
        ("stories260K", "models/stories260K/stories260K-f32.gguf"),
        ("phi-3", "gguf_vocab/ggml-vocab-phi-3.gguf"),
        ("gpt-2", "gguf_vocab/ggml-vocab-gpt-2.gguf"),
        ("starcoder", "gguf_vocab/ggml-vocab-starcoder.gguf"),
    ] {
        hold_to(&from_gguf(&data.join(file)), &golden("tokenizers", name), true);
    }
}

#[test]
fn the_tokenizer_of_smollm2_gives_the_ids_of_transformers() {
    let Some(path) = common::smollm2("the_tokenizer_of_smollm2_gives_the_ids_of_transformers") else { return };
    hold_to(&from_gguf(&path), &golden("tokenizers", "smollm2"), true);
}

/// llama.cpp's own vocabulary tests: texts in `.inp`, ids in `.out`, a line each.
#[test]
fn llama_cpp_s_golden_texts_have_its_golden_ids() {
    let Some(data) = common::data("llama_cpp_s_golden_texts_have_its_golden_ids") else { return };
    for name in ["gpt-2", "starcoder", "phi-3"] {
        let file = |ending: &str| data.join(format!("gguf_vocab/ggml-vocab-{name}.gguf{ending}"));
        let tokenizer = from_gguf(&file(""));
        let texts = std::fs::read_to_string(file(".inp")).unwrap();
        let expected = std::fs::read_to_string(file(".out")).unwrap();
        let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        assert!(expected.len() >= 40 && texts.len() == expected.len(), "{name}: {} texts, {} lines", texts.len(), expected.len());
        for (text, line) in texts.iter().zip(expected) {
            let ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn stories260k_reads_its_golden_prompt_and_text_from_both_files() {
    let Some(data) = common::data("stories260k_reads_its_golden_prompt_and_text_from_both_files") else { return };
    let folder = data.join("models/stories260K");
    let json = Tokenizer::from_folder(&folder).unwrap();
    let gguf = from_gguf(&folder.join("stories260K-f32.gguf"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
    let stories = std::fs::read_to_string(data.join("sft/children_stories.jsonl")).unwrap();
    for tokenizer in [&json, &gguf] {
        assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (Some(1), Some(2), true));
        assert_eq!((tokenizer.vocab_size(), tokenizer.end_ids()), (512, &[2][..]));
        assert_eq!(tokenizer.encode(golden["prompt"].as_str().unwrap(), true).unwrap(), ids(&golden["ids"]));
        let greedy = ids(&golden["greedy_from_bos_200"]);
        assert_eq!(tokenizer.decode(&greedy, true).unwrap().trim_start(), golden["greedy_text"].as_str().unwrap());
        // A BOS that the text has already is not put there twice.
        assert_eq!(tokenizer.encode("<s>Once", true).unwrap(), tokenizer.encode("Once", true).unwrap());
    }
    for line in stories.lines().take(200) {
        let (from_json, ranges) = json.encode_with_offsets(line, false).unwrap();
        let (from_gguf, gguf_ranges) = gguf.encode_with_offsets(line, false).unwrap();
        assert_eq!(from_json, from_gguf, "{line}");
        // Every byte belongs to exactly one token.
        assert_eq!(gguf_ranges.iter().map(|r| &line[r.clone()]).collect::<String>(), line);
        assert_eq!(ranges.last().map(|r| r.end), Some(line.len()));
    }
}

#[test]
fn bytes_of_a_character_in_several_tokens_are_told_apart() {
    let Some(data) = common::data("bytes_of_a_character_in_several_tokens_are_told_apart") else { return };
    for file in ["models/stories260K/stories260K-f32.gguf", "gguf_vocab/ggml-vocab-gpt-2.gguf"] {
        let tokenizer = from_gguf(&data.join(file));
        let text = "a 漢🦙 b";
        let (_, ranges) = tokenizer.encode_with_offsets(text, false).unwrap();
        let bytes: Vec<u8> = ranges.iter().flat_map(|r| text.as_bytes()[r.clone()].to_vec()).collect();
        assert_eq!(bytes, text.as_bytes(), "{file}: {ranges:?}");
        assert!(ranges.iter().any(|r| !text.is_char_boundary(r.end)), "{file}: {ranges:?}");
    }
}

fn messages(value: &Value) -> Vec<Message> {
    value.as_array().unwrap().iter().map(|m| serde_json::from_value(m.clone()).unwrap()).collect()
}

/// Cases that a row of ours cannot be: a content that is missing or null reaches us as empty; variables of the caller.
fn is_ours(case: &Value) -> bool {
    let text = |m: &Value| m["content"].is_string();
    case.get("extra").is_none() && case["messages"].as_array().unwrap().iter().all(text)
}

#[test]
fn real_templates_render_what_transformers_renders() {
    let mut compared = 0;
    for name in ["smollm2", "phi-3", "phi-4-mini", "qwen2.5", "qwen3"] {
        let golden = golden("templates", name);
        let token = |key: &str| golden[key].as_str().unwrap_or_default().to_owned();
        let template =
            Template::jinja(name, golden["template"].as_str().unwrap(), &token("bos_token"), &token("eos_token")).unwrap();
        for case in golden["cases"].as_array().unwrap().iter().filter(|c| is_ours(c)) {
            let result = template.render(
                &messages(&case["messages"]),
                case.get("tools"),
                case["add_generation_prompt"].as_bool().unwrap(),
            );
            match (&result, case["text"].as_str()) {
                (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}: {}", case["name"]),
                (Err(_), None) => {}
                _ => panic!("{name}: {}: got {result:?}, expected {case}", case["name"]),
            }
            compared += 1;
        }
    }
    assert!(compared >= 140, "{compared}");
}

#[test]
fn every_construct_of_jinja_renders_as_in_python() {
    let golden = golden("templates", "synthetic");
    let mut wrong = vec![];
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let rendered = Template::jinja(name, case["template"].as_str().unwrap(), "<s>", "</s>")
            .and_then(|t| t.render(&messages(&case["messages"]), None, false));
        let agrees = match (&rendered, case["text"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !agrees {
            wrong.push(format!("{name}\n     got {rendered:?}\nexpected {:?}{:?}", case["text"], case["error"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
