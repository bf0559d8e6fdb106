use std::path::Path;

use serde_json::json;

use super::*;

fn parse(text: &str) -> crate::error::Result<Loaded> {
    Config::parse(text, Path::new("learning-config.json"))
}

fn refusal(text: &str) -> String {
    let error = parse(text).unwrap_err();
    format!("{error} | {}", error.hint().unwrap_or_default())
}

#[test]
fn the_defaults_are_those_of_the_documented_table() {
    let found: serde_json::Value = serde_json::from_str(&Config::default().to_text()).unwrap();
    let mut expected = json!({
        "enabled": true,
        "rewardWeights": {"compile": 0.25, "tests": 0.25, "errors": 0.25, "human": 0.25},
        "promptBandit": {"policy": "thompson", "epsilon": 0.1, "variants": ["default", "detailed", "concise"]},
        "modelRouter": {"epsilon": 0.1, "maxCostPerMillionTokens": 2.0, "targetQuality": 0.7},
        "autoExport": {"enabled": true, "minRuns": 100, "minReward": 0.7, "maxExamples": 1000},
        "autoTrain": {
            "enabled": true, "minExamples": 500, "minNew": 100, "baseModel": "qwen2.5-coder:7b", "loraRank": 16, "loraAlpha": 32.0,
            "epochs": 3, "batchSize": 2, "gradAccum": 4, "learningRate": 2e-4
        },
        "autoDeploy": {"enabled": true, "modelNamePrefix": "my-coder-tuned", "temperature": 0.2, "topP": 0.9, "topK": 40},
        "driftDetection": {"enabled": true, "minPerformanceDrop": 0.05, "evaluationRuns": 20},
        "evaluation": {"heldOutShare": 0.1, "minItems": 50, "maxItems": 500, "confidence": 0.95},
        "feedback": {"readyAt": 500, "optimalAt": 1000, "approvalThreshold": 85.0, "analyseEveryMinutes": 30},
        "web": {"domains": Config::default().web.domains, "cacheDays": 7},
        "memory": {"embedder": "nomic-embed-text", "reuseAbove": 0.8, "localAbove": 0.85, "topK": 3},
        "redaction": {"extraPatterns": []},
        "alerts": {"webhook": null, "command": null},
        "windows": {"start": null, "end": null}
    });
    assert_eq!(found, expected);
    assert!(Config::default().web.domains.len() >= 30);
    // What was written is read back, also with one setting changed.
    assert_eq!(parse(&Config::default().to_text()).unwrap().config, Config::default());
    expected["rewardWeights"]["halfErrors"] = json!(3.0);
    assert_eq!(parse(&expected.to_string()).unwrap().config.reward_weights.half_errors, 3.0);
}

#[test]
fn what_a_file_leaves_out_has_its_default() {
    let loaded = parse("\u{feff}{\"autoTrain\": {\"loraRank\": 8}}").unwrap();
    assert_eq!(loaded.config.auto_train.lora_rank, 8);
    assert_eq!(loaded.config.auto_train.lora_alpha, 32.0);
    assert!(loaded.config.enabled);
    assert_eq!(parse("{}").unwrap(), Loaded { config: Config::default(), warnings: Vec::new() });
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    assert!(refusal(r#"{"autotrain": {}}"#).contains("unknown setting 'autotrain' | did you mean 'autoTrain'?"));
    assert!(refusal(r#"{"autoTrain": {"lora_rnak": 8}}"#).contains("'autoTrain.lora_rnak' | did you mean 'autoTrain.loraRank'?"));
    assert!(refusal(r#"{"alerts": {"webhok": "x"}}"#).contains("did you mean 'alerts.webhook'?"));
}

#[test]
fn an_old_price_is_understood_and_told() {
    let loaded = parse(r#"{"modelRouter": {"maxCostPerToken": 0.000003}}"#).unwrap();
    assert_eq!(loaded.config.model_router.max_cost_per_million_tokens, 3.0);
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].contains("understood as maxCostPerMillionTokens 3 (US dollars)"), "{:?}", loaded.warnings);
    assert!(refusal(r#"{"modelRouter": {"maxCostPerToken": 1, "maxCostPerMillionTokens": 2}}"#).contains("keep the second"));
    assert!(refusal(r#"{"modelRouter": {"maxCostPerToken": "cheap"}}"#).contains("expected a number"));
}

#[test]
fn what_is_out_of_bounds_is_named_with_what_it_may_be() {
    for (text, says) in [
        (r#"{"autoTrain": {"loraRank": 0}}"#, "autoTrain.loraRank is 0, expected 1 or more"),
        (r#"{"autoTrain": {"learningRate": 0}}"#, "autoTrain.learningRate is 0, expected a number above 0"),
        (r#"{"autoExport": {"minReward": 1.5}}"#, "autoExport.minReward is 1.5, expected 0 to 1"),
        (r#"{"evaluation": {"confidence": 1}}"#, "evaluation.confidence is 1, expected more than 0 and less than 1"),
        (r#"{"evaluation": {"maxItems": 10}}"#, "evaluation.maxItems is 10, expected at least minItems (50)"),
        (r#"{"rewardWeights": {"compile": -1}}"#, "rewardWeights.compile is -1, expected a number from 0 on"),
        (r#"{"rewardWeights": {"compile":0,"tests":0,"errors":0,"human":0}}"#, "expected one of them above 0"),
        (r#"{"windows": {"start": "25:00", "end": "06:00"}}"#, "windows.start is '25:00', expected a time of day"),
        (r#"{"windows": {"start": "22:00"}}"#, "both start and end"),
        (r#"{"promptBandit": {"policy": "greedy"}}"#, "promptBandit: unknown variant `greedy`"),
        (r#"{"autoTrain": {"epochs": "three"}}"#, "autoTrain: invalid type"),
        (r#"{"autoTrain": 3}"#, "autoTrain: invalid type"),
        ("[]", "holds no object of settings"),
        ("{", "is no JSON"),
    ] {
        assert!(refusal(text).contains(says), "{text}: {}", refusal(text));
    }
    let secret = refusal(r#"{"alerts": {"webhook": "hooks.example/SECRET"}}"#);
    assert!(secret.contains("https://") && !secret.contains("SECRET"), "{secret}");
}

#[test]
fn a_window_may_span_midnight() {
    let window = |start: &str, end: &str| Windows { start: Some(start.into()), end: Some(end.into()) };
    let open = |w: &Windows| [0, 359, 360, 720, 1319, 1320, 1439].map(|minute| w.is_open(minute));
    assert_eq!(open(&window("22:00", "06:00")), [true, true, false, false, false, true, true]);
    assert_eq!(open(&window("06:00", "22:00")), [false, false, true, true, true, false, false]);
    assert_eq!(open(&Windows::default()), [true; 7]);
}
