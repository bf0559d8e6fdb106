//! report.html: what was trained and how the loss went, in one file that needs nothing else.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::metrics::{Line, StepLine};
use crate::error::Result;
use crate::formats::html::escape;
use crate::formats::{durable, html};

/// The file's name in the run's folder.
pub const FILE: &str = "report.html";

/// Writes the report of a run from its run.json and its metrics.
pub fn write(folder: &Path, run: &Value, lines: &[Line]) -> Result<()> {
    durable::write(&folder.join(FILE), render(run, lines).as_bytes())
}

/// A curve: its name, its class in the style sheet, and its points (step, value).
struct Curve {
    name: &'static str,
    class: &'static str,
    points: Vec<(f64, f64)>,
}

fn render(run: &Value, lines: &[Line]) -> String {
    let steps = || lines.iter().filter_map(|l| if let Line::Step(s) = l { Some(s) } else { None });
    let curve = |name, class, value: fn(&StepLine) -> f64| Curve {
        name,
        class,
        points: steps().map(|s| (s.step as f64, value(s))).collect(),
    };
    // A step without bad answers says nothing of them.
    let some = |name, class, value: fn(&StepLine) -> Option<f64>| Curve {
        name,
        class,
        points: steps().filter_map(|s| Some((s.step as f64, value(s)?))).collect(),
    };
    let evaluations: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|l| if let Line::Evaluation(e) = l { Some((e.step as f64, e.eval_loss)) } else { None })
        .collect();
    let right: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|l| if let Line::Evaluation(e) = l { Some((e.step as f64, e.rewards.reward_accuracy?)) } else { None })
        .collect();
    let loss = [curve("training", "a", |s| s.loss), Curve { name: "held out", class: "b", points: evaluations.clone() }];
    let tokens: usize = steps().map(|s| s.tokens).sum();
    let seconds: f64 = steps().map(|s| s.seconds).sum();
    let text = |pointer: &str| {
        run.pointer(pointer).map_or_else(String::new, |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    // A path says most by its last part; run.json has the whole.
    let short = |pointer: &str| text(pointer).rsplit('/').next().unwrap_or_default().to_owned();
    let mut adapter = format!("rank {}, alpha {}", text("/adapter/rank"), text("/adapter/alpha"));
    for (name, on) in [("rsLoRA", "/adapter/rslora"), ("DoRA", "/adapter/dora")] {
        if run.pointer(on).is_some_and(|v| v == true) {
            let _ = write!(adapter, ", {name}");
        }
    }
    if run.pointer("/settings/dropout").and_then(Value::as_f64).is_some_and(|rate| rate > 0.0) {
        let _ = write!(adapter, ", dropout {}", text("/settings/dropout"));
    }
    let right_in_steps = steps().any(|s| s.rewards.reward_accuracy.is_some());
    let mut facts = vec![
        ("base", format!("{} ({})", text("/base/name"), text("/base/weights"))),
        ("data", format!("{} ({} examples, {} held out)", text("/data/path"), text("/data/rows"), text("/data/held_out"))),
        (
            "method",
            text("/method") + &run.pointer("/beta").and_then(Value::as_f64).map_or_else(String::new, |b| format!(", beta {b}")),
        ),
        ("template", if text("/template") == text("/base/name") { "the base's own".to_owned() } else { short("/template") }),
        ("adapter", adapter),
        ("steps", steps().count().to_string()),
        ("speed", format!("{:.0} tokens/s, {:.0} s in steps", tokens as f64 / seconds.max(1e-9), seconds)),
    ];
    if let (Some(first), Some(last)) = (steps().next(), steps().next_back()) {
        facts.push(("training loss", format!("{:.4} at first, {:.4} at last", first.loss, last.loss)));
    }
    if let (Some(first), Some(best)) = (evaluations.first(), evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1))) {
        facts.push(("held-out loss", format!("{:.4} before, {:.4} at best (step {})", first.1, best.1, best.0)));
    }
    if let (Some(first), Some(last)) = (right.first(), right.last()) {
        facts.push(("held-out accuracy", format!("{:.2} before, {:.2} at last", first.1, last.1)));
    }
    let rows: String = facts.iter().fold(String::new(), |mut out, (name, value)| {
        let _ = write!(out, "<tr><th>{name}</th><td>{}</td></tr>", escape(value));
        out
    });
    let title = short("/base/name");
    let body = format!(
        "<h1>{title}</h1><table>{rows}</table>{loss}{accuracy}{rewards}{rate}{norm}<p class=\"small\">run {identity}</p>",
        title = escape(&title),
        loss = chart(if right_in_steps { "Loss" } else { "Loss over trained tokens" }, &loss),
        accuracy = chart(
            "Share of preferences that the model shares",
            &[some("training", "a", |s| s.rewards.reward_accuracy), Curve { name: "held out", class: "b", points: right }]
        ),
        rewards = chart(
            "Rewards",
            &[some("chosen", "a", |s| s.rewards.rewards_chosen), some("rejected", "b", |s| s.rewards.rewards_rejected)]
        ),
        rate = chart("Learning rate", &[curve("learning rate", "a", |s| s.learning_rate)]),
        norm = chart("Norm of the gradient, before clipping", &[curve("norm", "a", |s| s.grad_norm)]),
        identity = escape(&text("/identity")),
    );
    html::page(&title, CURVES, &body)
}

const CURVES: &str = ".grid{stroke:#ddd;stroke-width:1}.label{fill:#666;font-size:11px}\
path{fill:none;stroke-width:1.6}.a{stroke:#2563a8}.b{stroke:#c2571a}circle.b{fill:#c2571a}.key.a{fill:#2563a8;stroke:none}.key.b{fill:#c2571a;stroke:none}\
@media(prefers-color-scheme:dark){.grid{stroke:#333}.a{stroke:#6aa8e8}.key.a{fill:#6aa8e8}}";

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;

fn chart(title: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|c| &c.points).filter(|p| p.1.is_finite());
    let Some(first) = points().next() else { return String::new() };
    let (mut low, mut high, mut last_step) = (first.1, first.1, 1.0f64);
    for &(step, value) in points() {
        low = low.min(value);
        high = high.max(value);
        last_step = last_step.max(step);
    }
    if low > 0.0 && low < high / 3.0 {
        low = 0.0;
    }
    if high - low < 1e-12 {
        (low, high) = (low - 0.5, high + 0.5);
    }
    let x = |step: f64| LEFT + step / last_step * (WIDTH - LEFT - 10.0);
    let y = |value: f64| 10.0 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 10.0);
    let mut svg = format!("<h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    for n in 0..=4 {
        let value = low + (high - low) * f64::from(n) / 4.0;
        let at = y(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{WIDTH}\"/><text class=\"label\" x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            tick(value)
        );
    }
    let _ =
        write!(svg, "<text class=\"label\" x=\"{WIDTH}\" y=\"{:.0}\" text-anchor=\"end\">step {last_step}</text>", HEIGHT - 4.0);
    for (n, curve) in curves.iter().filter(|c| !c.points.is_empty()).enumerate() {
        let mut path = String::new();
        for (i, &(step, value)) in curve.points.iter().filter(|p| p.1.is_finite()).enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x(step), y(value));
        }
        let _ = write!(svg, "<path class=\"{}\" d=\"{path}\"/>", curve.class);
        if curve.points.len() <= 40 {
            for &(step, value) in curve.points.iter().filter(|p| p.1.is_finite()) {
                let _ = write!(
                    svg,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>step {step}: {value:.4}</title></circle>",
                    curve.class,
                    x(step),
                    y(value)
                );
            }
        }
        let _ = write!(
            svg,
            "<text class=\"label key {}\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            curve.class,
            LEFT + 10.0 + 90.0 * n as f64,
            HEIGHT - 6.0,
            curve.name
        );
    }
    svg.push_str("</svg>");
    svg
}

fn tick(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::metrics::{EvaluationLine, Rewards};

    #[test]
    fn the_report_shows_the_numbers_and_no_markup_from_outside() {
        let step = |step, loss| {
            Line::Step(StepLine {
                step,
                epoch: 0.1,
                loss,
                learning_rate: 1e-3,
                grad_norm: 2.0,
                trained_tokens: 10,
                tokens: 40,
                seconds: 0.5,
                rewards: Rewards::default(),
            })
        };
        let lines = [
            Line::Evaluation(EvaluationLine { step: 0, eval_loss: 3.06, rewards: Rewards::default() }),
            step(1, 3.0),
            step(2, f64::NAN),
            step(3, 1.25),
            Line::Evaluation(EvaluationLine { step: 3, eval_loss: 1.5, rewards: Rewards::default() }),
        ];
        let html = render(&json!({"base": {"name": "<b>&x", "weights": "Q4_1"}, "data": {"path": "a\"b", "rows": 7}}), &lines);
        assert!(html.contains("&lt;b&gt;&amp;x") && !html.contains("<b>"));
        assert!(html.contains("3.0000 at first, 1.2500 at last"));
        assert!(html.contains("3.0600 before, 1.5000 at best (step 3)"));
        assert!(html.contains("80 tokens/s"));
        assert!(!html.contains("NaN"), "a step without a finite loss leaves a gap, not a broken path");
        assert!(!html.contains("Rewards") && !html.contains("held-out accuracy"), "good work has no preferences");
    }

    #[test]
    fn preferences_are_shown_with_their_accuracy() {
        let rewards = Rewards {
            rewards_chosen: Some(0.5),
            rewards_rejected: Some(-0.25),
            reward_accuracy: Some(0.875),
            margin: Some(0.75),
        };
        let lines = [Line::Evaluation(EvaluationLine { step: 2, eval_loss: 0.4, rewards })];
        let read: Line = serde_json::from_str(&serde_json::to_string(&lines[0]).unwrap()).unwrap();
        assert_eq!(read, lines[0]);
        let html = render(&json!({"method": "dpo", "beta": 0.1}), &lines);
        assert!(html.contains("dpo, beta 0.1") && html.contains("0.88 at last"), "{html}");
    }
}
