//! What each setting may be.

use std::path::Path;

use super::Config;
use crate::error::{Error, Result};

impl Config {
    /// The first setting that is out of bounds is an error that names it, its value and what it may be.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let wrong = |name: &str, found: &dyn std::fmt::Display, expected: &str| {
            Error::file(
                path,
                format!("{name} is {found}, expected {expected}"),
                "mend the value; docs/config.md says what each setting may be",
            )
        };
        let weights = &self.reward_weights;
        for (name, weight) in
            [("compile", weights.compile), ("tests", weights.tests), ("errors", weights.errors), ("human", weights.human)]
        {
            if !(0.0..=1e6).contains(&weight) {
                return Err(wrong(&format!("rewardWeights.{name}"), &weight, "a number from 0 on"));
            }
        }
        if weights.compile + weights.tests + weights.errors + weights.human <= 0.0 {
            return Err(wrong("the sum of rewardWeights", &0, "one of them above 0"));
        }
        if !(weights.half_errors > 0.0 && weights.half_errors.is_finite()) {
            return Err(wrong("rewardWeights.halfErrors", &weights.half_errors, "a number above 0"));
        }
        for (name, share) in [
            ("promptBandit.epsilon", self.prompt_bandit.epsilon),
            ("modelRouter.epsilon", self.model_router.epsilon),
            ("modelRouter.targetQuality", self.model_router.target_quality),
            ("autoExport.minReward", self.auto_export.min_reward),
            ("autoDeploy.topP", self.auto_deploy.top_p),
            ("driftDetection.minPerformanceDrop", self.drift_detection.min_performance_drop),
            ("memory.reuseAbove", self.memory.reuse_above),
            ("memory.localAbove", self.memory.local_above),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(wrong(name, &share, "0 to 1"));
            }
        }
        for (name, share, most) in [
            ("evaluation.heldOutShare", self.evaluation.held_out_share, 0.9),
            ("evaluation.confidence", self.evaluation.confidence, 1.0),
        ] {
            if !(share > 0.0 && share < most) {
                return Err(wrong(name, &share, &format!("more than 0 and less than {most}")));
            }
        }
        for (name, count) in [
            ("autoExport.maxExamples", self.auto_export.max_examples),
            ("autoTrain.minExamples", self.auto_train.min_examples),
            ("autoTrain.loraRank", self.auto_train.lora_rank),
            ("autoTrain.epochs", self.auto_train.epochs),
            ("autoTrain.batchSize", self.auto_train.batch_size),
            ("autoTrain.gradAccum", self.auto_train.grad_accum),
            ("driftDetection.evaluationRuns", self.drift_detection.evaluation_runs),
            ("evaluation.minItems", self.evaluation.min_items),
            ("feedback.readyAt", self.feedback.ready_at),
            ("memory.topK", self.memory.top_k),
        ] {
            if count == 0 {
                return Err(wrong(name, &count, "1 or more"));
            }
        }
        if self.evaluation.max_items < self.evaluation.min_items {
            let least = format!("at least minItems ({})", self.evaluation.min_items);
            return Err(wrong("evaluation.maxItems", &self.evaluation.max_items, &least));
        }
        if self.feedback.optimal_at < self.feedback.ready_at {
            let least = format!("at least readyAt ({})", self.feedback.ready_at);
            return Err(wrong("feedback.optimalAt", &self.feedback.optimal_at, &least));
        }
        if !(0.0..=100.0).contains(&self.feedback.approval_threshold) {
            return Err(wrong("feedback.approvalThreshold", &self.feedback.approval_threshold, "a percentage, 0 to 100"));
        }
        if self.feedback.analyse_every_minutes == 0 {
            return Err(wrong("feedback.analyseEveryMinutes", &0, "1 or more"));
        }
        let positive =
            [("autoTrain.loraAlpha", self.auto_train.lora_alpha), ("autoTrain.learningRate", self.auto_train.learning_rate)];
        for (name, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(wrong(name, &value, "a number above 0"));
            }
        }
        for (name, value) in [
            ("modelRouter.maxCostPerMillionTokens", self.model_router.max_cost_per_million_tokens),
            ("autoDeploy.temperature", self.auto_deploy.temperature),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(wrong(name, &value, "a number from 0 on"));
            }
        }
        self.check_texts(path)
    }

    fn check_texts(&self, path: &Path) -> Result<()> {
        let wrong = |name: &str, found: &str, expected: &str| {
            Error::file(
                path,
                format!("{name} is '{found}', expected {expected}"),
                "mend the value; docs/config.md says what each setting may be",
            )
        };
        for (name, text) in [
            ("autoTrain.baseModel", &self.auto_train.base_model),
            ("autoDeploy.modelNamePrefix", &self.auto_deploy.model_name_prefix),
            ("memory.embedder", &self.memory.embedder),
        ] {
            if text.trim().is_empty() {
                return Err(wrong(name, text, "a name"));
            }
        }
        if let Some(url) = &self.alerts.webhook
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            // Such addresses carry a secret: it is not shown.
            return Err(wrong("alerts.webhook", "...", "an address that begins with https://"));
        }
        for (name, time) in [("windows.start", &self.windows.start), ("windows.end", &self.windows.end)] {
            if let Some(time) = time
                && minutes(time).is_none()
            {
                return Err(wrong(name, time, "a time of day such as 22:00"));
            }
        }
        if self.windows.start.is_some() != self.windows.end.is_some() {
            return Err(wrong("windows", "half set", "both start and end, or neither"));
        }
        if self.prompt_bandit.variants.is_empty() {
            return Err(wrong("promptBandit.variants", "[]", "one variant or more"));
        }
        Ok(())
    }
}

/// Minutes since midnight of `HH:MM`.
fn minutes(time: &str) -> Option<u32> {
    let (hours, minutes) = time.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u32>().ok()).flatten();
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then_some(60 * hours + minutes)
}

impl super::Windows {
    /// Whether a cycle may begin by itself at `minute` of the day; with no window, always.
    pub fn is_open(&self, minute: u32) -> bool {
        let end = |time: &Option<String>| time.as_deref().and_then(minutes);
        match (end(&self.start), end(&self.end)) {
            (Some(start), Some(end)) if start <= end => (start..end).contains(&minute),
            (Some(start), Some(end)) => minute >= start || minute < end,
            _ => true,
        }
    }
}
