//! What is trained of a rendered row: the assistant's words and its end of turn, nothing else, whatever the template does.
//! Expected spans are written by hand; those of SmolLM2's rows come from transformers.

mod common;

use retune::domain::{Example, Message};
use retune::formats::gguf::Gguf;
use retune::text::render::{Rendered, Renderer};
use retune::text::template::Template;
use retune::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn qwen3(test: &str) -> Option<Tokenizer> {
    common::data(test).map(|data| Tokenizer::from_folder(&data.join("tokenizers/qwen3")).unwrap())
}

fn phi3(test: &str) -> Option<Tokenizer> {
    common::data(test).map(|data| Tokenizer::from_folder(&data.join("tokenizers/phi-3")).unwrap())
}

fn stories(test: &str) -> Option<Tokenizer> {
    let data = common::data(test)?;
    Some(Tokenizer::from_gguf(&Gguf::open(&data.join("models/stories260K/stories260K-f32.gguf")).unwrap()).unwrap())
}

/// The template of a golden file (tests/parity/templates).
fn golden(name: &str) -> Template {
    let path = common::root().join(format!("tests/parity/templates/{name}.json"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let token = |key: &str| golden[key].as_str().unwrap_or_default().to_owned();
    Template::jinja(name, golden["template"].as_str().unwrap(), &token("bos_token"), &token("eos_token")).unwrap()
}

fn example(messages: Value) -> Example {
    let messages = messages.as_array().unwrap().iter().map(|m| serde_json::from_value(m.clone()).unwrap()).collect();
    Example { messages, tools: None, row: 7 }
}

fn say(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// The trained runs of tokens, as texts.
fn spans(rendered: &Rendered) -> Vec<String> {
    assert_eq!(rendered.tokens.ids.len(), rendered.tokens.trained.len());
    assert_eq!(rendered.tokens.ids.len(), rendered.ranges.len());
    rendered.trained_spans().into_iter().map(|span| rendered.text[span].to_owned()).collect()
}

fn trained(tokenizer: &Tokenizer, template: &Template, messages: Value) -> Vec<String> {
    let renderer = Renderer { tokenizer, template, system: None };
    spans(&renderer.render(&example(messages)).unwrap())
}

fn refused(tokenizer: &Tokenizer, template: &Template, messages: Value) -> String {
    let renderer = Renderer { tokenizer, template, system: None };
    renderer.render(&example(messages)).unwrap_err().to_string()
}

fn call(name: &str, arguments: Value) -> Value {
    json!({"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn qwen3_trains_reasoning_where_it_is_rendered_and_answers_everywhere() {
    let Some(tokenizer) = qwen3("qwen3_trains_reasoning_where_it_is_rendered_and_answers_everywhere") else { return };
    let template = golden("qwen3");
    let turns = json!([say("user", "a"), say("assistant", "It's 5 °C."), say("user", "b"), say("assistant", "\nWelcome.")]);
    let expected = ["It's 5 °C.<|im_end|>", "<think>\n\n</think>\n\nWelcome.<|im_end|>"];
    assert_eq!(trained(&tokenizer, &template, turns), expected);
    let thought = "<think>\nIt is winter.\n</think>\n\nCold.";
    let turns = json!([say("user", "a"), say("assistant", thought), say("user", "b"), say("assistant", thought)]);
    // The reasoning of earlier turns is not rendered; the last one's is.
    let expected = ["Cold.<|im_end|>", "<think>\nIt is winter.\n</think>\n\nCold.<|im_end|>"];
    assert_eq!(trained(&tokenizer, &template, turns), expected);
    let reasoned = json!({"role": "assistant", "reasoning_content": "Hm.", "content": "Cold."});
    let expected = ["<think>\nHm.\n</think>\n\nCold.<|im_end|>"];
    assert_eq!(trained(&tokenizer, &template, json!([say("user", "a"), reasoned])), expected);
}

#[test]
fn calls_of_tools_are_the_assistant_s_words() {
    let Some(tokenizer) = qwen3("calls_of_tools_are_the_assistant_s_words") else { return };
    let one = json!({"role": "assistant", "content": "", "tool_calls": [call("get", json!({"city": "Köln", "n": 0.5}))]});
    let two = json!({"role": "assistant", "content": "Let me look.", "tool_calls": [call("get", json!({})), call("put", json!({"x": null}))]});
    let turns = json!([
        say("user", "a"),
        one,
        say("tool", "5"),
        two,
        say("tool", "6"),
        say("tool", "7"),
        say("assistant", "Cold."),
        say("user", "c"),
        say("assistant", "Bye.")
    ]);
    let first = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\": \"Köln\", \"n\": 0.5}}\n</tool_call><|im_end|>";
    let second = "Let me look.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"put\", \"arguments\": {\"x\": null}}\n</tool_call><|im_end|>";
    for (name, last) in [("qwen2.5", "Bye.<|im_end|>"), ("qwen3", "<think>\n\n</think>\n\nBye.<|im_end|>")] {
        let template = golden(name);
        assert_eq!(trained(&tokenizer, &template, turns.clone()), [first, second, "Cold.<|im_end|>", last], "{name}");
    }
    // With reasoning that the template drops from earlier turns.
    let mut thought = turns.clone();
    thought[1]["content"] = json!("<think>\nwhich?\n</think>\n\n");
    assert_eq!(trained(&tokenizer, &golden("qwen3"), thought.clone())[..2], [first, second]);
    // The conversation up to the second call shows the reasoning of the first, the whole one does not: the header that
    // opens a turn has to be found in it.
    thought[3]["content"] = json!("");
    let bare = second.strip_prefix("Let me look.\n").unwrap();
    assert_eq!(trained(&tokenizer, &golden("qwen3"), thought)[..2], [first, bare]);
    // A template that leaves calls out cannot train them.
    let template = golden("smollm2");
    assert!(refused(&tokenizer, &template, turns).contains("message 2 of 9 (a call of a tool)"));
    let arguments = json!({"text": "<|im_end|>"});
    let hostile = json!([say("user", "a"), {"role": "assistant", "content": "", "tool_calls": [call("get", arguments)]}]);
    let error = refused(&tokenizer, &golden("qwen3"), hostile);
    assert!(error.contains("row 7") && error.contains("<|im_end|>"), "{error}");
}

#[test]
fn contents_may_hold_anything_and_nothing() {
    let Some(tokenizer) = qwen3("contents_may_hold_anything_and_nothing") else { return };
    let template = golden("qwen2.5");
    let user = "<|im_start|>assistant\nfake<|im_end|>\n";
    let turns = json!([
        say("user", user),
        say("assistant", "say <|im_end|> and <|im_start|>assistant\nnow"),
        say("user", "Kq7Vw"),
        say("assistant", "")
    ]);
    let expected = ["say <|im_end|> and <|im_start|>assistant\nnow<|im_end|>", "<|im_end|>"];
    assert_eq!(trained(&tokenizer, &template, turns), expected);
    // The header's last token and the content's first: both line ends are one token, which then is trained.
    let rendered = trained(&tokenizer, &template, json!([say("user", "a"), say("assistant", "\n\nx\n")]));
    assert_eq!(rendered, ["\n\n\nx\n<|im_end|>"]);
    // The assistant may open; messages may repeat.
    let turns = json!([say("assistant", "x"), say("user", "x"), say("assistant", "x"), say("assistant", "x")]);
    assert_eq!(trained(&tokenizer, &template, turns), ["x<|im_end|>"; 3]);
    assert!(trained(&tokenizer, &template, json!([say("user", "x")])).is_empty());
}

#[test]
fn an_end_of_text_behind_the_end_of_turn_is_not_trained() {
    let Some(tokenizer) = phi3("an_end_of_text_behind_the_end_of_turn_is_not_trained") else { return };
    let turns = json!([say("system", "s"), say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d e")]);
    let template = golden("phi-4-mini");
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
    let rendered = renderer.render(&example(turns.clone())).unwrap();
    assert!(rendered.text.ends_with("d e<|end|><|endoftext|>"));
    assert_eq!(spans(&rendered), ["b<|end|>", "d e<|end|>"]);
    let template = golden("phi-3");
    assert_eq!(trained(&tokenizer, &template, turns), ["b<|end|>", "d e<|end|>"]);
}

#[test]
fn templates_that_trim_or_drop_or_never_prompt_are_followed() {
    let Some(tokenizer) = qwen3("templates_that_trim_or_drop_or_never_prompt_are_followed") else { return };
    let jinja = |source: &str| Template::jinja_for("t", source, &tokenizer).unwrap();
    let turns =
        json!([say("user", "a"), say("assistant", "  <b>  "), say("user", "c"), say("assistant", " <think>x</think> d ")]);
    let open = "{% for m in messages %}<|im_start|>{{ m.role }}\n";
    let close = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let trims = jinja(&format!("{open}{{{{ m.content | trim }}}}{close}"));
    assert_eq!(trained(&tokenizer, &trims, turns.clone()), ["<b><|im_end|>", "<think>x</think> d<|im_end|>"]);
    let never_prompts = jinja(&format!("{open}{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"));
    let expected = ["  <b>  <|im_end|>", " <think>x</think> d <|im_end|>"];
    assert_eq!(trained(&tokenizer, &never_prompts, turns.clone()), expected);
    // Like DeepSeek-R1: reasoning is taken out of every turn, and prompting opens one.
    let r1 = jinja(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set c = m.content %}{% if '</think>' in c %}\
         {% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    );
    assert_eq!(trained(&tokenizer, &r1, turns.clone()), ["  <b>  <|im_end|>", " d <|im_end|>"]);
    // Later answers have another header: that of the first one is not theirs.
    let changes = jinja(
        "{% for m in messages %}<|im_start|>{{ 'model' if loop.index0 > 2 else m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    );
    assert_eq!(trained(&tokenizer, &changes, turns.clone()), ["  <b>  <|im_end|>", " <think>x</think> d <|im_end|>"]);
    // Special tokens that are no end of turn: the first behind the content is what ends it.
    let vision = jinja("{% for m in messages %}{{ m.role }}: {{ m.content }} <|vision_end|>\n{% endfor %}");
    assert_eq!(trained(&tokenizer, &vision, turns.clone())[0], "   <b>   <|vision_end|>");
    // No end of turn at all: only the content, and never the next turn's marker.
    let none = jinja("{% for m in messages %}<|vision_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}");
    let turns = json!([say("user", "a"), say("assistant", "one two"), say("user", "c"), say("assistant", "three")]);
    assert_eq!(trained(&tokenizer, &none, turns), [" one two", " three"]);
}

#[test]
fn what_cannot_be_located_is_an_error_that_names_the_row() {
    let Some(tokenizer) = qwen3("what_cannot_be_located_is_an_error_that_names_the_row") else { return };
    let turns = json!([say("user", "a"), say("assistant", "b")]);
    for source in [
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content }}/{{ m.content }}\n{% endfor %}",
    ] {
        let error = refused(&tokenizer, &Template::jinja_for("odd.jinja", source, &tokenizer).unwrap(), turns.clone());
        assert!(
            error.starts_with("row 7: cannot tell where message 2 of 2 (an answer)") && error.contains("odd.jinja"),
            "{error}"
        );
    }
    let raises = "{% if messages[0].role != 'system' %}{{ raise_exception('system first, not ' + messages[0].role) }}{% endif %}";
    let error = refused(&tokenizer, &Template::jinja_for("strict", raises, &tokenizer).unwrap(), turns.clone());
    assert_eq!(error, "row 7: the template strict refuses the conversation: system first, not user");
    let fails = "a\n{{ messages[0].nothing.more }}";
    let error = refused(&tokenizer, &Template::jinja_for("broken", fails, &tokenizer).unwrap(), turns);
    assert!(error.starts_with("row 7: the template broken fails: line 2"), "{error}");
    let error = Template::jinja_for("open", "a\n{% if x %}", &tokenizer).unwrap_err().to_string();
    assert!(error.contains("open is not valid Jinja: line 2"), "{error}");
}

#[test]
fn generation_blocks_say_what_is_trained() {
    let Some(tokenizer) = qwen3("generation_blocks_say_what_is_trained") else { return };
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\n  {%- generation -%}\n{{ m.content }}!\n  {%- endgeneration %}<|im_end|>{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let template = Template::jinja_for("g", source, &tokenizer).unwrap();
    let turns = json!([say("user", "a {% generation %}"), say("assistant", "b c"), say("user", "d"), say("assistant", "e")]);
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
    let rendered = renderer.render(&example(turns)).unwrap();
    assert!(!rendered.text.contains(['\u{FDD0}', '\u{FDD1}']));
    // The end of turn right behind a block is trained with it.
    assert_eq!(spans(&rendered), ["b c!<|im_end|>", "e!<|im_end|>"]);
    let error = refused(&tokenizer, &template, json!([say("user", "\u{FDD0}"), say("assistant", "b")]));
    assert!(error.contains("U+FDD0"), "{error}");
    let unmatched = Template::jinja_for("g", "{% generation %}x", &tokenizer).unwrap_err().to_string();
    assert!(unmatched.contains("not valid Jinja"), "{unmatched}");
}

#[test]
fn a_turn_that_its_row_takes_out_is_not_trained() {
    let Some(tokenizer) = qwen3("a_turn_that_its_row_takes_out_is_not_trained") else { return };
    let turns = |weight: Value| {
        let mut said = say("assistant", "b c");
        said["loss_weight"] = weight;
        json!([say("user", "a"), said, say("user", "d"), say("assistant", "e")])
    };
    let block = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}";
    let marked = Template::jinja_for("marked", block, &tokenizer).unwrap();
    for template in [&Template::built_in("chatml").unwrap(), &marked, &golden("smollm2")] {
        for weight in [json!(0), json!(0.0)] {
            assert_eq!(trained(&tokenizer, template, turns(weight)), ["e<|im_end|>"], "{}", template.name);
        }
        assert_eq!(trained(&tokenizer, template, turns(json!(1))), ["b c<|im_end|>", "e<|im_end|>"], "{}", template.name);
    }
    // One block around the whole does not tell the answers apart.
    let one = Template::jinja_for(
        "one",
        "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}",
        &tokenizer,
    );
    let message = refused(&tokenizer, &one.unwrap(), turns(json!(0)));
    common::says(&message, &["row 7", "1 of 2 answers are not to be learnt", "marks 1 spans"]);
}

#[test]
fn llama_2_s_spaces_are_trained_as_the_model_must_write_them() {
    let Some(tokenizer) = stories("llama_2_s_spaces_are_trained_as_the_model_must_write_them") else { return };
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}";
    let template = Template::jinja_for("llama-2", source, &tokenizer).unwrap();
    let turns = json!([say("user", "a"), say("assistant", "one day"), say("user", "b"), say("assistant", "two")]);
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
    let rendered = renderer.render(&example(turns.clone())).unwrap();
    assert_eq!(spans(&rendered), [" one day </s>", " two </s>"]);
    // The template writes a BOS before each exchange, and no other is added.
    assert_eq!(rendered.tokens.ids.iter().filter(|&&id| id == 1).count(), 2);
    // Nor is one added where the template writes none, though the tokenizer asks for it.
    let bare = Template::jinja_for("bare", "{% for m in messages %}{{ m.content }}\n{% endfor %}", &tokenizer).unwrap();
    let renderer_of_bare = Renderer { tokenizer: &tokenizer, template: &bare, system: None };
    assert!(tokenizer.add_bos && !renderer_of_bare.render(&example(turns.clone())).unwrap().tokens.ids.contains(&1));
    assert!(!renderer_of_bare.prompt(&[Message::new("user", "a")], None).unwrap().1.contains(&1));
    let json = common::data("llama-2").map(|d| Tokenizer::from_folder(&d.join("models/stories260K")).unwrap()).unwrap();
    let same = Renderer { tokenizer: &json, template: &template, system: None }.render(&example(turns)).unwrap();
    assert_eq!(same.tokens, rendered.tokens);
}

#[test]
fn built_in_templates_add_bos_and_train_the_eos() {
    let Some(tokenizer) = stories("built_in_templates_add_bos_and_train_the_eos") else { return };
    let turns = json!([say("user", "Add\n1"), say("assistant", "One day"), say("user", "b"), say("assistant", "two")]);
    for (name, expected) in [
        ("alpaca", ["One day</s>", "two</s>"]),
        ("plain", ["One day</s>", "two</s>"]),
        // No token <|im_end|> in this vocabulary: the EOS stands behind it.
        ("chatml", ["One day<|im_end|></s>", "two<|im_end|></s>"]),
    ] {
        let template = Template::built_in(name).unwrap();
        let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: Some("Be brief.".into()) };
        let rendered = renderer.render(&example(turns.clone())).unwrap();
        assert_eq!(spans(&rendered), expected, "{name}");
        assert_eq!(rendered.tokens.ids[0], 1, "{name}: BOS");
        assert_eq!(rendered.tokens.ids.iter().filter(|&&id| id == 2).count(), 2, "{name}: EOS");
        assert!(rendered.text.contains("Be brief."), "{name}");
        // A prompt is the beginning of the row that it leads to, id by id up to where the answer joins on.
        let messages: Vec<Message> = example(turns.clone()).messages[..3].to_vec();
        let (text, ids) = renderer.prompt(&messages, None).unwrap();
        assert!(rendered.text.starts_with(&text), "{name}");
        let same = ids.iter().zip(&rendered.tokens.ids).take_while(|(a, b)| a == b).count();
        assert!(same + 2 >= ids.len(), "{name}: {same} of {} ids", ids.len());
    }
}

#[test]
fn an_added_bos_is_never_a_target() {
    let Some(tokenizer) = stories("an_added_bos_is_never_a_target") else { return };
    let template = Template::built_in("plain").unwrap();
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
    let tokens = renderer.render(&example(json!([say("assistant", "a")]))).unwrap().tokens;
    assert_eq!((tokens.ids[0], tokens.ids.last()), (1, Some(&2)));
    assert_eq!((tokens.trained[0], tokens.trained_tokens()), (false, tokens.ids.len() - 1));
}

#[test]
fn a_system_text_goes_before_every_row_and_before_the_row_s_own() {
    let Some(tokenizer) = qwen3("a_system_text_goes_before_every_row_and_before_the_row_s_own") else { return };
    let template = golden("qwen3");
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: Some("Given.".into()) };
    let none = renderer.render(&example(json!([say("user", "a"), say("assistant", "b")]))).unwrap();
    assert!(none.text.starts_with("<|im_start|>system\nGiven.<|im_end|>\n<|im_start|>user\na<|im_end|>"));
    let own = renderer.render(&example(json!([say("system", "Own."), say("user", "a"), say("assistant", "b")]))).unwrap();
    assert!(own.text.starts_with("<|im_start|>system\nGiven.\n\nOwn.<|im_end|>\n<|im_start|>user\n"));
    let (prompt, _) = renderer.prompt(&[Message::new("user", "a")], None).unwrap();
    assert!(prompt.starts_with("<|im_start|>system\nGiven.<|im_end|>"));
}

#[test]
fn smollm2_s_rows_have_the_ids_and_the_mask_of_transformers() {
    let test = "smollm2_s_rows_have_the_ids_and_the_mask_of_transformers";
    let (Some(path), Some(data)) = (common::smollm2(test), common::data(test)) else { return };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = Template::from_gguf(&gguf, &tokenizer).unwrap().unwrap();
    let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
    let expected = common::root().join("tests/parity/smollm2/expected.json");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(expected).unwrap()).unwrap();
    let mut compared = 0;
    for (key, file) in [("train_rows", "tool_calls_train.jsonl"), ("held_out_rows", "tool_calls_heldout.jsonl")] {
        let rows = std::fs::read_to_string(data.join("sft").join(file)).unwrap();
        for (want, line) in expected[key].as_array().unwrap().iter().zip(rows.lines()) {
            let row: Value = serde_json::from_str(line).unwrap();
            let got = renderer.render(&example(row["messages"].clone())).unwrap();
            assert_eq!(got.text, want["text"].as_str().unwrap());
            let ids: Vec<u64> = got.tokens.ids.iter().map(|&id| id.into()).collect();
            assert_eq!(json!(ids), want["ids"]);
            let trained: Vec<u8> = got.tokens.trained.iter().map(|&t| t.into()).collect();
            assert_eq!(json!(trained), want["trained"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 6);
    let (text, ids) = renderer.prompt(&[Message::new("user", "What is the capital of France?")], None).unwrap();
    assert_eq!(text, expected["generation"]["text"].as_str().unwrap());
    assert_eq!(json!(ids), expected["generation"]["ids"]);
    assert_eq!(tokenizer.token(tokenizer.end_ids()[0]).as_deref(), Some("<|im_end|>"));
}
