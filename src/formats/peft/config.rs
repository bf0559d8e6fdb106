//! `adapter_config.json` (peft 0.21, tuners/lora/config.py).

use serde_json::{Map, Value, json};

use super::PeftConfig;

/// What is wrong, and the next step.
pub(super) struct Problem {
    pub message: String,
    pub hint: String,
}

/// `target_modules` of the file.
pub(super) enum Targets {
    List(Vec<String>),
    /// A regular expression, or "all-linear".
    Pattern,
}

/// Settings that change what the adapter computes, in ways that we do not follow. Null, false, empty: not set.
const CHANGES_THE_RESULT: [&str; 17] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "loftq_config",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    // Of AdaLoRA and X-LoRA, that share the file.
    "xlora_depth",
    "target_r",
];

/// Ways to start that leave the base as it is; the others (pissa, olora, corda, loftq, lora_ga) change its weights, so
/// that the adapter fits only the changed base.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

pub(super) fn parse(text: &[u8]) -> Result<(PeftConfig, Targets), Problem> {
    let wrong =
        |message: String| Problem { message, hint: "retune reads LoRA adapters as PEFT saves them: save it again".to_owned() };
    let unsupported =
        |message: String| Problem { message, hint: "train the adapter again without it, or merge it with PEFT".to_owned() };
    let row: Map<String, Value> = serde_json::from_slice(text).map_err(|e| wrong(format!("is no JSON object: {e}")))?;
    let get = |key: &str| row.get(key).filter(|value| !value.is_null());

    match get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => return Err(unsupported(format!("has the peft_type {other}, expected LORA"))),
        None => return Err(wrong("has no peft_type, expected LORA".to_owned())),
    }
    for key in CHANGES_THE_RESULT {
        if get(key).is_some_and(is_set) {
            return Err(unsupported(format!("sets {key} to {}, which retune does not follow", row[key])));
        }
    }
    if let Some(bias) = get("bias")
        && bias != "none"
    {
        return Err(unsupported(format!("has bias {bias}, expected \"none\"")));
    }
    match get("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(start)) if HARMLESS_STARTS.contains(&start.as_str()) => {}
        Some(start) => {
            return Err(Problem {
                message: format!(
                    "has init_lora_weights {start}, which changes the base's weights: the adapter does not fit the base as it is"
                ),
                hint: "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA".to_owned(),
            });
        }
    }
    let number = |key: &str| match get(key) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(format!("has {key} {value}, expected a number"))),
    };
    let flag = |key: &str| match get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| wrong(format!("has {key} {value}, expected true or false"))),
    };
    // PEFT's own defaults, for files that leave them out.
    let rank = number("r")?.unwrap_or(8.0);
    if rank < 1.0 || rank.fract() != 0.0 || rank > 65536.0 {
        return Err(wrong(format!("has r {rank}, expected a whole number from 1")));
    }
    let alpha = number("lora_alpha")?.unwrap_or(8.0) as f32;
    if !alpha.is_finite() {
        return Err(wrong(format!("has lora_alpha {alpha}, expected a finite number")));
    }
    let targets = match get("target_modules") {
        None | Some(Value::String(_)) => Targets::Pattern,
        Some(Value::Array(items)) => {
            let names: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            Targets::List(names.ok_or_else(|| wrong(format!("has target_modules {items:?}, expected names")))?)
        }
        Some(other) => return Err(wrong(format!("has target_modules {other}, expected names or a pattern"))),
    };
    let config = PeftConfig {
        rank: rank as usize,
        alpha,
        rslora: flag("use_rslora")?,
        dora: flag("use_dora")?,
        dropout: number("lora_dropout")?.unwrap_or(0.0) as f32,
        target_modules: Vec::new(),
        base_model: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
    };
    Ok((config, targets))
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

/// The file's text. PEFT writes all its settings, sorted; these are the ones that every PEFT since 0.9 knows, because an
/// older one refuses or warns of keys that are new to it.
pub(super) fn render(config: &PeftConfig) -> String {
    let number = |x: f32| -> Value {
        // As Python prints it: 16 and not 16.0 for what is declared an int, .05 and not .05000000074505806.
        let shortest: f64 = x.to_string().parse().unwrap_or(x.into());
        if shortest.fract() == 0.0 && shortest.abs() < 1e15 { json!(shortest as i64) } else { json!(shortest) }
    };
    let dropout: f64 = config.dropout.to_string().parse().unwrap_or(config.dropout.into());
    let fields = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(config.alpha),
        "lora_dropout": dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": config.target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": config.dora,
        "use_rslora": config.rslora
    });
    // The alternate form of a Value's Display is indented by two, as PEFT's own file is.
    format!("{fields:#}\n")
}
