//! report.html of an evaluation: the verdict, its numbers, the intervals drawn, the guards, and the answers that were won and lost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::statistics::is_right;
use super::verdict::Judgement;
use crate::domain::{Comparison, Estimate, Guard, Paired, Primary, Standing};
use crate::error::Result;
use crate::formats::html::escape;
use crate::formats::{durable, html};

/// The file's usual name.
pub const FILE: &str = "report.html";
/// Examples of each kind on the page.
const MOST_EXAMPLES: usize = 40;
/// Characters of each text on the page.
const MOST_CHARS: usize = 2_000;

/// What an item asked, and the answer that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub request: String,
    pub expected: String,
}

/// What a report is made of.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The candidate's name.
    pub candidate: &'a str,
    /// The champion's.
    pub champion: &'a str,
    pub judgement: &'a Judgement,
    pub work: &'a Comparison,
    /// By the item's digest; an item without a text is shown by its digest.
    pub shown: &'a BTreeMap<String, Shown>,
}

/// Writes the page; whoever reads it sees the whole old one or the whole new one.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    durable::write(path, render(report)?.as_bytes())
}

fn render(report: &Report) -> Result<String> {
    let judgement = report.judgement;
    let verdict = judgement.verdict.name();
    let estimates: Vec<(String, &Estimate)> = [(name_of(judgement.primary.measure).to_owned(), &judgement.primary)]
        .into_iter()
        .chain(judgement.others.iter().map(|estimate| (name_of(estimate.measure).to_owned(), estimate)))
        .chain(judgement.guards.iter().filter_map(|guarded| match &guarded.guard {
            Guard::Suite { name, estimate, .. } => Some((name.clone(), estimate)),
            _ => None,
        }))
        .collect();
    let mut body = format!(
        "<h1>{} <span class=\"badge {verdict}\">{verdict}</span></h1><p class=\"small\">judged against {}</p><p>{}</p>",
        escape(report.candidate),
        escape(report.champion),
        escape(&judgement.explanation)
    );
    body += &numbers(&estimates);
    let (losses, shares): (Vec<_>, Vec<_>) = estimates.into_iter().partition(|(_, e)| e.measure == Primary::Loss);
    body += &intervals("Share of right answers: the difference, in points", &shares);
    body += &intervals("Loss: what was gained, in nats a token", &losses);
    body += &guards(judgement);
    body += &examples(report)?;
    Ok(html::page(&format!("{} {verdict}", report.candidate), STYLE, &body))
}

fn name_of(measure: Primary) -> &'static str {
    match measure {
        Primary::Verified => "right by the verifier",
        Primary::Judged => "preferred by the judge",
        Primary::Exact => "right by the text",
        Primary::Loss => "loss",
    }
}

fn numbers(estimates: &[(String, &Estimate)]) -> String {
    let mut rows = String::new();
    for (name, e) in estimates {
        let value = |v: f64| if e.measure == Primary::Loss { format!("{v:.3}") } else { format!("{:.1}%", 100.0 * v) };
        let interval = e
            .interval
            .as_ref()
            .map_or_else(|| "none".to_owned(), |i| format!("{} to {}", e.measure.signed(i.low), e.measure.signed(i.high)));
        let smallest = e
            .smallest_effect
            .map_or_else(|| "not known".to_owned(), |effect| e.measure.signed(effect).trim_start_matches('+').to_owned());
        let items = format!("{} in {} {}", e.items, e.groups, if e.groups == 1 { "group" } else { "groups" });
        let _ = write!(rows, "<tr><th scope=\"row\">{}</th>", escape(name));
        for (label, value) in [
            ("candidate", value(e.candidate)),
            ("champion", value(e.champion)),
            ("difference", e.measure.signed(e.point)),
            ("interval", interval),
            ("could show", smallest),
            ("items", items),
        ] {
            let _ = write!(rows, "<td data-label=\"{label}\">{value}</td>");
        }
        rows.push_str("</tr>");
    }
    let confidence = estimates.iter().find_map(|(_, e)| e.interval.as_ref()).map_or(String::new(), |i| {
        format!(" The interval holds the true difference in {} of 100 evaluations.", (1000.0 * i.confidence).round() / 10.0)
    });
    format!(
        "<h2>Numbers</h2><table class=\"cards\"><thead><tr><th></th><th>candidate</th><th>champion</th><th>difference</th><th>interval</th><th>could show</th><th>items</th></tr></thead><tbody>{rows}</tbody></table>\
         <p class=\"small\">Differences are in points, of losses in nats a token; more is better.{confidence} \"Could show\" is the smallest true difference that so many items show in 8 of 10 evaluations.</p>"
    )
}

const WIDTH: f64 = 400.0;
const ROW: f64 = 44.0;

/// The intervals on one scale, zero in the middle.
fn intervals(title: &str, estimates: &[(String, &Estimate)]) -> String {
    if estimates.is_empty() {
        return String::new();
    }
    let ends = estimates.iter().flat_map(|(_, e)| [Some(e.point), e.interval.map(|i| i.low), e.interval.map(|i| i.high)]);
    let reach = ends.flatten().map(f64::abs).fold(0.0, f64::max);
    let reach = if reach > 0.0 { 1.1 * reach } else { 1.0 };
    let x = |value: f64| WIDTH / 2.0 * (1.0 + value / reach);
    let height = ROW * estimates.len() as f64 + 20.0;
    let mut svg = format!(
        "<h2>{title}</h2><svg class=\"intervals\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><path class=\"zero\" d=\"M{z} 4V{bottom}\"/>",
        z = WIDTH / 2.0,
        bottom = height - 18.0
    );
    for (row, (name, e)) in estimates.iter().enumerate() {
        let top = ROW * row as f64;
        let side = match &e.interval {
            Some(i) if i.low > 0.0 => "above",
            Some(i) if i.high < 0.0 => "below",
            _ => "spans",
        };
        let _ = write!(svg, "<text x=\"0\" y=\"{:.0}\">{}</text>", top + 14.0, escape(&cut(name, 30)));
        let _ = write!(
            svg,
            "<text x=\"{WIDTH}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            top + 14.0,
            escape(&e.measure.signed(e.point))
        );
        let y = top + 28.0;
        if let Some(i) = &e.interval {
            let (low, high) = (x(i.low), x(i.high));
            let _ = write!(
                svg,
                "<path class=\"{side}\" d=\"M{low:.1} {y:.0}H{high:.1}M{low:.1} {a:.0}V{b:.0}M{high:.1} {a:.0}V{b:.0}\"/>",
                a = y - 5.0,
                b = y + 5.0
            );
        }
        let _ = write!(
            svg,
            "<circle class=\"{side}\" cx=\"{:.1}\" cy=\"{y:.0}\" r=\"4.5\"><title>{}</title></circle>",
            x(e.point),
            escape(&e.to_string())
        );
    }
    let y = height - 4.0;
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"0\" y=\"{y:.0}\">worse</text><text class=\"axis\" x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"middle\">0</text>\
         <text class=\"axis\" x=\"{WIDTH}\" y=\"{y:.0}\" text-anchor=\"end\">better</text></svg>",
        WIDTH / 2.0
    );
    svg
}

fn guards(judgement: &Judgement) -> String {
    let mut rows = String::new();
    for guarded in &judgement.guards {
        let (class, standing) = match guarded.standing {
            Standing::Held => ("promote", "held"),
            Standing::InDoubt => ("inconclusive", "in doubt"),
            Standing::Fell => ("reject", "fell"),
        };
        let _ = write!(
            rows,
            "<tr><td><span class=\"badge {class}\">{standing}</span></td><td>{}</td></tr>",
            escape(&guarded.to_string())
        );
    }
    if rows.is_empty() { String::new() } else { format!("<h2>Guards</h2><table class=\"guards\">{rows}</table>") }
}

/// The items that one side alone has right, lost ones first: they are what a reader wants to see before he believes a promotion.
fn examples(report: &Report) -> Result<String> {
    let measure = report.judgement.primary.measure;
    if measure == Primary::Loss {
        return Ok(String::new());
    }
    let (mut lost, mut won) = (Vec::new(), Vec::new());
    for pair in report.work.pairs() {
        match (is_right(pair.candidate(), measure)?, is_right(pair.champion(), measure)?) {
            (true, false) => won.push(pair),
            (false, true) => lost.push(pair),
            _ => {}
        }
    }
    let (less, more) = match measure {
        Primary::Judged => ("Lost: the judge prefers the champion's answer", "Won: the judge prefers the candidate's answer"),
        _ => ("Lost: right before, wrong now", "Won: wrong before, right now"),
    };
    Ok(table_of(less, &lost, report) + &table_of(more, &won, report))
}

fn table_of(title: &str, pairs: &[&Paired], report: &Report) -> String {
    let mut out = format!("<h2>{title} ({})</h2>", pairs.len());
    if pairs.is_empty() {
        return out + "<p class=\"small\">none</p>";
    }
    out += "<table class=\"cards examples\"><thead><tr><th>request</th><th>expected</th><th>champion</th><th>candidate</th></tr></thead><tbody>";
    for pair in pairs.iter().take(MOST_EXAMPLES) {
        let shown = report.shown.get(pair.item());
        let answer = |result: &crate::domain::ItemResult| result.answer.as_ref().map(|a| a.text.clone()).unwrap_or_default();
        out += "<tr>";
        for (label, text) in [
            ("request", shown.map_or_else(|| format!("item {}", pair.item()), |s| s.request.clone())),
            ("expected", shown.map_or_else(String::new, |s| s.expected.clone())),
            ("champion", answer(pair.champion())),
            ("candidate", answer(pair.candidate())),
        ] {
            let text = if text.trim().is_empty() { "<i>empty</i>".to_owned() } else { escape(&cut(&text, MOST_CHARS)) };
            // A text that turns the direction of writing turns its own only.
            let _ = write!(out, "<td data-label=\"{label}\"><div class=\"text\" dir=\"auto\">{text}</div></td>");
        }
        out += "</tr>";
    }
    out += "</tbody></table>";
    if pairs.len() > MOST_EXAMPLES {
        let _ = write!(out, "<p class=\"small\">and {} more</p>", pairs.len() - MOST_EXAMPLES);
    }
    out
}

/// The beginning of a text, and how much more there is.
fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most).collect();
    if most < 100 { format!("{start}\u{2026}") } else { format!("{start}\u{2026} ({} more characters)", count - most) }
}

const STYLE: &str = "h1{overflow-wrap:anywhere}.badge{display:inline-block;padding:0 .5em;border-radius:.4em;font-size:.8em;font-weight:600;white-space:nowrap}\
.badge.promote{background:#d8f0de;color:#135c2b}.badge.reject{background:#fbdcd6;color:#8c2110}.badge.inconclusive{background:#f3e8c4;color:#665000}\
.cards{width:100%}.cards td,.cards th{padding:.25rem .8rem .25rem 0;border-top:1px solid #e4e4e4;text-align:left}.cards thead th{border:0}\
.guards td{padding-right:.8rem;padding-block:.2rem}.guards .badge{min-width:4.2em;text-align:center}\
.examples{table-layout:fixed}.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;font:12px/1.45 ui-monospace,monospace;max-height:20rem;overflow:auto}\
.intervals{max-width:34rem;display:block}.intervals text{font-size:13px;fill:currentColor}.intervals .axis{font-size:11px;fill:#777}\
.intervals path{fill:none;stroke-width:2.2;stroke-linecap:round}.intervals .zero{stroke:#bbb;stroke-width:1;stroke-dasharray:3 3}\
path.above{stroke:#1f8a46}circle.above{fill:#1f8a46}path.below{stroke:#c03a22}circle.below{fill:#c03a22}path.spans{stroke:#96761a}circle.spans{fill:#96761a}\
@media(max-width:40rem){.cards,.cards tbody,.cards tr,.cards td,.cards tbody th{display:block}.cards thead{display:none}.cards tr{border-top:1px solid #ccc;padding:.5rem 0}\
.cards td,.cards tbody th{border:0;padding:.1rem 0}.cards tbody th{color:inherit;font-weight:600}.cards td::before{content:attr(data-label);color:#777;font-size:12px;display:inline-block;min-width:6.5rem}.examples td::before{display:block}}\
@media(prefers-color-scheme:dark){.badge.promote{background:#173d24;color:#9be0b0}.badge.reject{background:#4a1b12;color:#f6ac9c}.badge.inconclusive{background:#413610;color:#e8d68e}\
.cards td,.cards th{border-color:#33363c}.cards tr{border-color:#444}.intervals .axis{fill:#999}.intervals .zero{stroke:#555}\
path.above{stroke:#54c47c}circle.above{fill:#54c47c}path.below{stroke:#ef7058}circle.below{fill:#ef7058}path.spans{stroke:#d1ab45}circle.spans{fill:#d1ab45}}";

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
