//! Deploying to real Ollamas of both kinds that are in use. Skipped, with a line that says so, where they are absent.

#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::path::{Path, PathBuf};
use std::process::Command;

use ollama_peer::{BOTH, Kind, Peer, data_file, peer_file};
use retune::deploy::{
    Deployment, From, ModelSpec, Number, OwnAnswer, OwnEnd, OwnToken, Parameters, Promote, PromptProbe, Remedies, Verdict,
    adapter_support, compare_served, deploy, register,
};
use retune::domain::Message;
use retune::formats::gguf::{GgmlType, Gguf, TensorSource, Value, Writer};
use retune::runtime::Registry as _;
use retune::runtime::ollama::store::Store;
use retune::runtime::ollama::{Answer, Blob, Ollama, Options, Probe};
use retune::text::render::Renderer;
use retune::text::template::{BUILT_IN, Template};
use retune::text::tokenizer::Tokenizer;

const STORIES: &str = "models/stories260K/stories260K-f32.gguf";
const SMOLLM2: &str = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

fn deployment(role: &str, spec: ModelSpec) -> Deployment {
    Deployment {
        prefix: "my-coder-tuned".to_owned(),
        role: role.to_owned(),
        spec,
        promote: Promote::IfFirst,
        number: Number::From(1),
    }
}

fn stories() -> Option<ModelSpec> {
    let blob = Blob::of(&data_file(STORIES)?).unwrap();
    Some(ModelSpec::merged(blob, Parameters { num_ctx: Some(512), ..Parameters::default() }))
}

/// A served answer as if it were ours.
fn as_own(prompt: &str, answer: &Answer, base: Option<&Answer>) -> OwnAnswer {
    let base_logprob = |i: usize, text: &str| {
        // The base's alternatives stand after the same text only as long as its answer is the same.
        let base = base?;
        let same = base.tokens.iter().zip(&answer.tokens).take(i).all(|(a, b)| a.text == b.text);
        base.tokens.get(i).filter(|_| same)?.top.iter().find(|(there, _)| there == text).map(|(_, logprob)| *logprob)
    };
    let tokens = answer.tokens.iter().enumerate().map(|(i, token)| OwnToken {
        piece: token.text.clone().into_bytes(),
        logprob: token.logprob,
        base_logprob: base_logprob(i, &token.text),
        top: token.top.iter().map(|(text, logprob)| (Some(text.clone().into_bytes()), *logprob)).collect(),
    });
    OwnAnswer {
        name: prompt.to_owned(),
        prompt: prompt.to_owned(),
        prompt_tokens: answer.prompt_tokens.unwrap(),
        tokens: tokens.collect(),
        end: (answer.done_reason == "stop").then(OwnEnd::default),
    }
}

#[test]
fn stories260k_is_registered_verified_and_promoted_and_tells_the_golden_story_on_both() {
    let (Some(spec), Some(golden)) = (stories(), data_file("models/stories260K/golden.json")) else { return };
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let story = golden["greedy_text"].as_str().unwrap().trim();
    let mut first: Option<OwnAnswer> = None;
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let mut sent = 0;
        let registered = register(&peer.ollama, &deployment("coder", spec.clone()), &mut |progress| {
            if let retune::deploy::Progress::Sending { sent_bytes, .. } = progress {
                sent = sent_bytes;
            }
        })
        .unwrap();
        let From::File(blob) = &spec.from else { unreachable!() };
        assert_eq!(sent, blob.size_bytes);
        assert_eq!((registered.name.as_str(), registered.promoted), ("my-coder-tuned-coder:v1", true));
        assert_eq!(peer.digest("my-coder-tuned-coder:latest"), registered.digest);

        // The store leads to the very bytes that were sent.
        let stored = Store::new([peer.models()]).resolve("My-Coder-Tuned-Coder").unwrap();
        assert_eq!(format!("{kind:?} {}", stored.model_digest), format!("{kind:?} {}", blob.digest));
        assert_eq!(stored.digest.trim_start_matches("sha256:"), registered.digest.trim_start_matches("sha256:"));
        assert_eq!(stored.params.unwrap()["top_k"], 40);
        assert_eq!(std::fs::read(&stored.model_blob).unwrap(), std::fs::read(&blob.path).unwrap());

        let prompt = "Once upon a time, there was a little girl named Lily.";
        let answer = peer.ollama.generate("my-coder-tuned-coder", prompt, &Options::greedy(60), 5).unwrap();
        assert_eq!(answer.prompt_tokens, Some(golden["ids"].as_array().unwrap().len()), "{kind:?}");
        let told = format!("{prompt}{}", answer.text);
        assert!(story.starts_with(told.trim()), "{kind:?} told {told:?}");
        assert_eq!(answer.tokens.len(), 60, "{kind:?}");

        // Two runtimes that share no code agree in the log-probabilities; against an answer of another prompt they do not.
        let own = as_own(prompt, &answer, None);
        let reference = first.get_or_insert(own);
        let report = compare_served(&peer.ollama, &registered.name, std::slice::from_ref(reference), 1e-2).unwrap();
        println!(
            "{kind:?}: log-probabilities at most {:.2e} apart over {} tokens",
            report.max_abs_difference, report.answers[0].same_tokens
        );
        assert_eq!(report.verdict, Verdict::Same { ties: 0 }, "{kind:?}");
        let wrong = OwnAnswer { prompt: "Tom had a red ball. One day, he went to the park".to_owned(), ..reference.clone() };
        let report = compare_served(&peer.ollama, &registered.name, &[wrong], 1e-2).unwrap();
        assert!(matches!(report.verdict, Verdict::Different(_)), "{kind:?}: {report:?}");
    }
}

#[test]
fn a_failed_create_leaves_what_serves_and_a_second_run_uses_the_version_again() {
    let Some(spec) = stories() else { return };
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let first = register(&peer.ollama, &deployment("fixer", spec.clone()), &mut |_| ()).unwrap();
        let mut bad = deployment("fixer", ModelSpec { template: Some("{{ if }".to_owned()), ..spec.clone() });
        bad.promote = Promote::Yes;
        let error = register(&peer.ollama, &bad, &mut |_| ()).unwrap_err();
        println!("{kind:?} on a broken template: {error}");
        assert!(error.to_string().contains("did not create my-coder-tuned-fixer:v2"), "{kind:?}: {error}");
        assert_eq!(peer.digest("my-coder-tuned-fixer:latest"), first.digest, "{kind:?}");
        assert_eq!(peer.digest("my-coder-tuned-fixer:v1"), first.digest, "{kind:?}");
        assert_eq!(peer.digest("my-coder-tuned-fixer:v2"), "", "{kind:?}");

        // 0.17.4 would die of this file; it is never sent.
        let broken = peer.folder.path().join("broken.gguf");
        std::fs::write(&broken, b"GGUF\x03\x00\x00\x00 and then nothing that anybody could load").unwrap();
        let bad = deployment("fixer", ModelSpec::merged(Blob::of(&broken).unwrap(), Parameters::default()));
        let error = register(&peer.ollama, &bad, &mut |_| ()).unwrap_err();
        println!("{kind:?} on a broken file: {error}");
        assert!(error.to_string().contains("broken.gguf"), "{kind:?}: {error}");
        assert_eq!(peer.digest("my-coder-tuned-fixer:latest"), first.digest, "{kind:?}");

        let again = register(&peer.ollama, &deployment("fixer", spec.clone()), &mut |_| ()).unwrap();
        assert_eq!(
            (again.version, again.reused, again.promoted, again.digest),
            (1, true, true, first.digest.clone()),
            "{kind:?}"
        );
        let mut other = spec.clone();
        other.parameters.add_stop("The end");
        let second = register(&peer.ollama, &deployment("fixer", other), &mut |_| ()).unwrap();
        assert_eq!((second.version, second.reused, second.promoted), (2, false, false), "{kind:?}");
        assert_eq!(peer.digest("my-coder-tuned-fixer:latest"), first.digest, "{kind:?}: the champion stays");
    }
}

#[test]
fn the_modelfile_through_ollamas_own_command_makes_the_same_model_as_the_request() {
    let Some(mut spec) = stories() else { return };
    spec.system = Some("You are \"brief\".\n\n  Say 'yes' or \"no\"".to_owned());
    spec.template = Some("{{- range .Messages }}{{ \"<|\" }}{{ .Role }}\n{{ .Content }}\n{{ end }}\"quoted\"".to_owned());
    for stop in ["<|im_end|>", "\n### Instruction:\n", "say \"stop\"", " padded "] {
        spec.parameters.add_stop(stop);
    }
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let file = peer.folder.path().join("Modelfile.coder");
        spec.write_modelfile(&file, "by-hand:v1").unwrap();
        peer.cli(&["create", "by-hand:v1", "-f", file.to_str().unwrap()]);
        let registered = register(&peer.ollama, &deployment("coder", spec.clone()), &mut |_| ()).unwrap();
        let [by_hand, by_request] = ["by-hand:v1", &registered.name].map(|name| peer.ollama.show(name).unwrap().unwrap());
        assert_eq!(by_hand.model_blobs(), by_request.model_blobs(), "{kind:?}");
        assert_eq!((&by_hand.system, &by_hand.template), (&by_request.system, &by_request.template), "{kind:?}");
        assert_eq!(Some(&by_hand.system), spec.system.as_ref());
        assert_eq!(Some(&by_hand.template), spec.template.as_ref());
        let sorted = |shown: &retune::runtime::ollama::Shown| {
            let mut lines: Vec<String> = shown.parameters_text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&by_hand), sorted(&by_request), "{kind:?}");
    }
}

/// The trained prompts of a template, with their numbers of tokens counted on the raw text by the served tokenizer.
fn probes(ollama: &Ollama, model: &str, render: impl Fn(&[Message]) -> String) -> Vec<PromptProbe> {
    let talks: [&[(&str, &str)]; 3] = [
        &[("user", "Who are you?")],
        &[("system", "Answer with one word."), ("user", "Name a colour, please.")],
        &[("user", "What is two plus two?"), ("assistant", "Four."), ("user", "And three plus three?")],
    ];
    let probe = |talk: &&[(&str, &str)]| {
        let messages: Vec<Message> = talk.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let text = render(&messages);
        let count = ollama.generate(model, &text, &Options::greedy(1), 0).unwrap().prompt_tokens.unwrap();
        PromptProbe { name: format!("'{}'", talk[0].1), messages, tools: None, text, ids: vec![0; count] }
    };
    talks.iter().map(probe).collect()
}

fn chatml(messages: &[Message]) -> String {
    let mut text = String::new();
    if messages[0].role != "system" {
        // SmolLM2's Jinja template puts this in.
        text.push_str("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n");
    }
    for message in messages {
        text.push_str(&format!("<|im_start|>{}\n{}<|im_end|>\n", message.role, message.content));
    }
    text + "<|im_start|>assistant\n"
}

fn strange(messages: &[Message]) -> String {
    let turn = |message: &Message| match message.role.as_str() {
        "system" => format!("[[{}]]\n\n", message.content),
        "user" => format!("### \"Instruction\":\n{}\n\n", message.content),
        _ => format!("### Response:\n{}\u{2581}<|im_end|>\n", message.content),
    };
    messages.iter().map(turn).collect::<String>() + "### Response:\n"
}

#[test]
fn smollm2_is_prompted_as_it_was_trained_by_a_system_text_or_a_learnt_template() {
    let Some(path) = peer_file(SMOLLM2) else { return };
    let spec = ModelSpec::merged(Blob::of(&path).unwrap(), Parameters { num_ctx: Some(2048), ..Parameters::default() });
    let mut first: Option<OwnAnswer> = None;
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        register(&peer.ollama, &deployment("plain", spec.clone()), &mut |_| ()).unwrap();
        let go = |role: &str, probes: &[PromptProbe], remedies: &Remedies| {
            deploy(&peer.ollama, &deployment(role, spec.clone()), probes, remedies, true, &mut |_| ())
        };

        let trained = probes(&peer.ollama, "my-coder-tuned-plain", chatml);
        let plain = trained[0].ids.len();
        let bare = peer.ollama.chat(
            "my-coder-tuned-plain",
            Probe { messages: &trained[0].messages, tools: None },
            &Options::greedy(1),
            0,
        );
        println!("{kind:?}: {plain} tokens trained, {:?} as Ollama renders it by itself", bare.unwrap().prompt_tokens);
        let (registered, settlement) = go("coder", &trained, &Remedies::default()).unwrap();
        println!("{kind:?}: {:?}, rendered {}", settlement.remedy, settlement.rendered);
        assert_eq!(
            settlement.spec.system.as_deref(),
            Some("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
            "{kind:?}: {settlement:?}"
        );
        assert_eq!((settlement.spec.template.as_ref(), settlement.rendered), (None, true), "{kind:?}");
        let request = Probe { messages: &trained[0].messages, tools: None };
        assert_eq!(peer.ollama.prompt_eval_count(&registered.name, request).unwrap(), plain, "{kind:?}");
        assert_eq!(
            peer.ollama.render_only(&registered.name, request).unwrap().as_deref(),
            Some(trained[0].text.as_str()),
            "{kind:?}"
        );
        assert_eq!(peer.digest("my-coder-tuned-coder:trial"), "", "{kind:?}: the trial is gone");
        let again = go("coder", &trained, &Remedies::default()).unwrap().0;
        assert_eq!((again.version, again.reused, &again.digest), (1, true, &registered.digest), "{kind:?}");

        // An answer that ends by itself ends on both, and its end is compared, too.
        let answer = peer.ollama.generate(&registered.name, &trained[1].text, &Options::greedy(40), 5).unwrap();
        assert_eq!(answer.done_reason, "stop", "{kind:?}: {}", answer.text);
        let reference = first.get_or_insert_with(|| as_own(&trained[1].text, &answer, None));
        let report = compare_served(&peer.ollama, &registered.name, std::slice::from_ref(reference), 0.5).unwrap();
        println!("{kind:?} answers {:?}, {:.3} apart in log-probability", answer.text, report.max_abs_difference);
        assert!(matches!(report.verdict, Verdict::Same { .. }), "{kind:?}: {report:?}");
        let mut cut = reference.clone();
        cut.tokens.pop();
        let report = compare_served(&peer.ollama, &registered.name, &[cut], 0.5).unwrap();
        let divergence = report.answers[0].divergence.as_ref().map(|divergence| divergence.ours.clone());
        assert_eq!(divergence, Some(None), "{kind:?}: ours ends, theirs goes on: {report:?}");

        let trained = probes(&peer.ollama, "my-coder-tuned-plain", strange);
        let (registered, settlement) = go("fixer", &trained, &Remedies::default()).unwrap();
        println!("{kind:?}: {:?}", settlement.remedy);
        assert!(settlement.spec.template.is_some() && settlement.is_exact(), "{kind:?}: {settlement:?}");
        for probe in &trained {
            let request = Probe { messages: &probe.messages, tools: None };
            assert_eq!(
                peer.ollama.render_only(&registered.name, request).unwrap().as_deref(),
                Some(probe.text.as_str()),
                "{kind:?}"
            );
        }

        // What depends on more than the roles cannot be learnt: an error that says which prompt differs and where.
        let mut impossible = trained.clone();
        impossible[2].text.insert_str(0, "3 turns follow\n");
        let error = go("judge", &impossible, &Remedies::default()).unwrap_err();
        println!("{kind:?}: {error}");
        assert!(
            error
                .to_string()
                .contains("would not prompt the model as it was trained: the prompt of 'Who are you?' differs from byte"),
            "{error}"
        );
        assert_eq!(peer.digest("my-coder-tuned-judge:v1"), "", "{kind:?}: nothing is registered");
    }
}

/// A LoRA of rank 2 on every query projection of stories260K, in llama.cpp's format: small numbers, none zero.
fn write_adapter(path: &Path) -> Blob {
    let text = |s: &str| Value::String(s.as_bytes().to_vec());
    let metadata = vec![
        ("general.architecture".to_owned(), text("llama")),
        ("general.type".to_owned(), text("adapter")),
        ("adapter.type".to_owned(), text("lora")),
        ("adapter.lora.alpha".to_owned(), Value::F32(4.0)),
    ];
    let mut tensors = Vec::new();
    for block in 0..5 {
        for (part, shape) in [("a", vec![2, 64]), ("b", vec![64, 2])] {
            let bytes: Vec<u8> = (0..128).flat_map(|i| (0.3 * f32::sin((i * 7 + block * 3 + 1) as f32)).to_le_bytes()).collect();
            let name = format!("blk.{block}.attn_q.weight.lora_{part}");
            tensors.push(TensorSource::new(name, shape, GgmlType::F32, move || Ok(bytes.into())));
        }
    }
    Writer { version: 3, alignment: 32, metadata, header_padding: None }.write(path, tensors).unwrap();
    Blob::of(path).unwrap()
}

#[test]
fn an_adapter_is_served_by_the_one_and_refused_by_the_other_and_both_are_remembered() {
    let Some(spec) = stories() else { return };
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let adapter = write_adapter(&peer.folder.path().join("adapter.gguf"));
        let base = register(&peer.ollama, &deployment("base", spec.clone()), &mut |_| ()).unwrap();
        let memory = peer.folder.path().join(".agent/ollama-capabilities.json");
        let support = adapter_support(&peer.ollama, &From::Model(base.name.clone()), &adapter, &memory).unwrap();
        println!("{kind:?} {}: adapters {} {}", support.version, support.accepted, support.said);
        assert_eq!((support.accepted, support.remembered), (kind == Kind::Adapter, false), "{support:?}");
        assert_eq!(support.said.contains("LoRA adapters are no longer supported"), kind == Kind::Current);
        assert!(
            adapter_support(&peer.ollama, &From::Model("not-asked-for-any-more".to_owned()), &adapter, &memory)
                .unwrap()
                .remembered
        );
        assert_eq!(peer.digest("retune-trial:adapter"), "", "the trial is gone");
        if kind == Kind::Current {
            continue;
        }

        let parameters = spec.parameters.clone();
        let adapted = ModelSpec::adapted(From::Model(base.name.clone()), adapter.clone(), parameters);
        let tuned = register(&peer.ollama, &deployment("coder", adapted.clone()), &mut |_| ()).unwrap();
        let shown = peer.ollama.show(&tuned.name).unwrap().unwrap();
        assert_eq!(shown.adapter_blobs(), std::slice::from_ref(&adapter.digest));
        assert!(register(&peer.ollama, &deployment("coder", adapted.clone()), &mut |_| ()).unwrap().reused);
        let file = peer.folder.path().join("Modelfile.coder");
        adapted.write_modelfile(&file, "by-hand:v1").unwrap();
        peer.cli(&["create", "by-hand:v1", "-f", file.to_str().unwrap()]);
        assert_eq!(peer.ollama.show("by-hand:v1").unwrap().unwrap().adapter_blobs(), std::slice::from_ref(&adapter.digest));
        assert!(Store::new([peer.models()]).resolve(&tuned.name).unwrap().has_adapter());

        // The adapter is on: the tuned model is itself, and it is not the base.
        let prompt = "Once upon a time";
        let [plain, with] =
            [&base.name, &tuned.name].map(|name| peer.ollama.generate(name, prompt, &Options::greedy(12), 20).unwrap());
        let own = as_own(prompt, &with, Some(&plain));
        let same = compare_served(&peer.ollama, &tuned.name, std::slice::from_ref(&own), 1e-3).unwrap();
        println!("served and trained {:.2e} apart, base and adapter {:?}", same.max_abs_difference, same.adapter_effect);
        assert_eq!(same.verdict, Verdict::Same { ties: 0 }, "{same:?}");
        assert!(same.adapter_effect.unwrap() > 0.1, "{same:?}");
        let other = compare_served(&peer.ollama, &base.name, &[own], 1e-3).unwrap();
        assert!(matches!(other.verdict, Verdict::Different(_)), "{other:?}");
    }
}

/// Runs `register_and_promote_for_the_kill_test` in a process of its own; whether it ended well.
fn register_in_child(peer: &Peer, model: &Path, kill_at: u32, log: &Path) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "register_and_promote_for_the_kill_test", "--nocapture"]);
    command.env("KILL_TEST_HOST", &peer.host).env("KILL_TEST_MODEL", model);
    command.env("RETUNE_FAULT_LOG", log).env("RETUNE_FAULT_AT", kill_at.to_string());
    command.output().unwrap().status.success()
}

#[test]
fn register_and_promote_for_the_kill_test() {
    let (Ok(host), Ok(model)) = (std::env::var("KILL_TEST_HOST"), std::env::var("KILL_TEST_MODEL")) else { return };
    let ollama = Ollama::new(retune::runtime::ollama::Address::parse(&host).unwrap(), None);
    let mut deployment = deployment("coder", ModelSpec::merged(Blob::of(Path::new(&model)).unwrap(), Parameters::default()));
    deployment.promote = Promote::Yes;
    register(&ollama, &deployment, &mut |_| ()).unwrap();
}

#[test]
fn a_kill_between_any_two_calls_leaves_nothing_that_points_at_nothing_and_the_next_run_finishes() {
    let Some(spec) = stories() else { return };
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let old = register(&peer.ollama, &deployment("coder", spec.clone()), &mut |_| ()).unwrap();
        // Another file, so that it has to be sent: the same model with something behind its last tensor.
        let new = peer.folder.path().join("new.gguf");
        let mut bytes = std::fs::read(data_file(STORIES).unwrap()).unwrap();
        bytes.extend([0; 32]);
        std::fs::write(&new, bytes).unwrap();
        let prompt = "Once upon a time";
        let log: PathBuf = peer.folder.path().join("faults");
        let mut killed = 0;
        loop {
            let _ = std::fs::remove_file(&log);
            // First at the push; then always one call farther than the run before, which the first call of a run repeats.
            let done = register_in_child(&peer, &new, if killed == 0 { 1 } else { 2 }, &log);
            let latest = peer.digest("my-coder-tuned-coder:latest");
            // Whatever is listed can be shown, and what the alias names can be served.
            for tag in peer.ollama.tags().unwrap() {
                assert!(peer.ollama.show(&tag.name).unwrap().is_some(), "{kind:?}: {}", tag.name);
            }
            assert!(!peer.ollama.generate("my-coder-tuned-coder", prompt, &Options::greedy(2), 0).unwrap().text.is_empty());
            if done {
                assert_eq!(latest, peer.digest("my-coder-tuned-coder:v2"), "{kind:?}");
                break;
            }
            assert_eq!(latest, old.digest, "{kind:?}: killed at {}", std::fs::read_to_string(&log).unwrap());
            killed += 1;
            assert!(killed < 20, "{kind:?}: it never finishes");
        }
        let points = std::fs::read_to_string(&log).unwrap();
        println!("{kind:?}: killed {killed} times; the last run passed\n{points}");
        assert!(killed == 3, "{kind:?}: push, create and copy are points: {points}");
        assert_eq!(peer.digest("my-coder-tuned-coder:v3"), "", "{kind:?}: no version was made twice");
    }
}

#[test]
fn a_base_without_a_template_is_served_by_the_twin_of_the_built_in_one_token_for_token() {
    let (Some(spec), Some(path)) = (stories(), data_file(STORIES)) else { return };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let talks: [&[(&str, &str)]; 3] = [
        &[("user", "Tell me of Lily.")],
        &[("system", "Be brief."), ("user", "Tell me of Tom and his ball.")],
        &[("user", "Who is Lily?"), ("assistant", "A little girl."), ("user", "And Tom?")],
    ];
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        for name in BUILT_IN {
            let template = Template::built_in(name).unwrap();
            let renderer = Renderer { tokenizer: &tokenizer, template: &template, system: None };
            let probes = talks.map(|talk| {
                let messages: Vec<Message> = talk.iter().map(|(role, content)| Message::new(*role, *content)).collect();
                let (text, ids) = renderer.prompt(&messages, None).unwrap();
                PromptProbe { name: format!("{:?} under {name}", talk[0].1), messages, tools: None, text, ids }
            });
            let remedies = Remedies { templates: vec![template.ollama_twin(&tokenizer).unwrap()], ..Remedies::default() };
            let (registered, settlement) =
                deploy(&peer.ollama, &deployment(name, spec.clone()), &probes, &remedies, true, &mut |_| ()).unwrap();
            println!("{kind:?} {name}: {:?}, {} and more tokens", settlement.remedy, probes[0].ids.len());
            for probe in &probes {
                let request = Probe { messages: &probe.messages, tools: None };
                let served = peer.ollama.prompt_eval_count(&registered.name, request).unwrap();
                assert_eq!(served, probe.ids.len(), "{kind:?}: {}", probe.name);
            }
        }
    }
}
