use super::*;
use crate::domain::{Answer, ItemResult};
use crate::evaluate::verdict::{Evidence, Rules, Served, Suite, judge};

/// 120 items: `won`, then `lost`, then 40 right on both sides, the rest wrong; the first ones answer hostile texts.
fn work(won: usize, lost: usize) -> Comparison {
    let side = |is_candidate: bool| {
        let result = |i: usize| {
            let exact = if is_candidate { i < won } else { (won..won + lost).contains(&i) };
            let exact = exact || (won + lost..won + lost + 40).contains(&i);
            let text = match i {
                0 => "<script>alert('x')</script>\"'&".to_owned(),
                1 => String::new(),
                2 => "\u{202e}turned".to_owned(),
                3 => "long ".repeat(1_000),
                _ if exact => format!("{{\"tool\": \"get_weather\", \"arguments\": {{\"city\": \"Town {i}\"}}}}"),
                _ => format!("I would call the weather tool for Town {i}, please wait."),
            };
            let loss = if is_candidate { 4.0 + 0.1 * (i % 5) as f64 } else { 5.0 };
            let answer = Some(Answer { text, exact, verified: None, judged: None });
            ItemResult { item: format!("{i:03}"), group: format!("{}", i / 2), loss_sum: loss, trained_tokens: 12, answer }
        };
        (0..120).map(result).collect()
    };
    Comparison::pair(side(true), side(false)).unwrap()
}

fn page(won: usize, lost: usize, suite: (usize, usize)) -> (Judgement, String) {
    let comparison = work(won, lost);
    let suites = [Suite { name: "general <ability>".into(), comparison: work(suite.0, suite.1) }];
    let served = |speed| Served { tokens_per_second: Some(speed), memory_bytes: Some(900 << 20) };
    let evidence = Evidence { work: &comparison, suites: &suites, candidate: served(41.0), champion: served(44.0) };
    let judgement = judge(&evidence, Primary::of(&comparison), &Rules::default()).unwrap();
    let shown = (0..100).map(|i| {
        let shown = Shown {
            request: format!("What is the weather in Town {i}? <img src=x onerror=alert(1)>"),
            expected: format!("{{\"tool\": \"get_weather\", \"arguments\": {{\"city\": \"Town {i}\"}}}}"),
        };
        (format!("{i:03}"), shown)
    });
    let report = Report {
        candidate: "my-coder-tuned-<v7>",
        champion: "my-coder-tuned-v6",
        judgement: &judgement,
        work: &comparison,
        shown: &shown.collect(),
    };
    let html = render(&report).unwrap();
    if let Ok(folder) = std::env::var("RETUNE_REPORTS") {
        write(&Path::new(&folder).join(format!("{won}-{lost}.html")), &report).unwrap();
    }
    (judgement, html)
}

#[test]
fn the_page_shows_the_verdict_the_numbers_the_guards_and_the_answers() {
    let (judgement, html) = page(45, 6, (4, 5));
    assert_eq!(judgement.verdict.name(), "promote", "{}", judgement.explanation);
    assert!(html.contains("<span class=\"badge promote\">promote</span></h1>"));
    assert!(html.contains(&escape(&judgement.explanation)));
    assert!(html.contains(
        "<td data-label=\"candidate\">70.8%</td><td data-label=\"champion\">38.3%</td><td data-label=\"difference\">+32.5</td>"
    ));
    assert!(html.contains("<td data-label=\"items\">120 in 60 groups</td>"));
    assert!(html.contains("Lost: right before, wrong now (6)") && html.contains("Won: wrong before, right now (45)"));
    assert_eq!(html.matches("<div class=\"text\"").count(), 4 * (6 + 40), "at most 40 of a kind");
    assert!(html.contains("and 5 more"));
    assert_eq!(html.matches("<circle class=\"above\"").count(), 2, "right by the text, and the loss; the suite spans 0");
    assert_eq!(html.matches(">held</span>").count(), 4);
    assert!(html.contains("speed: 41.0 tokens/s where the champion has 44.0 (93%)"));
}

#[test]
fn a_rejection_shows_what_fell() {
    let (judgement, html) = page(6, 45, (0, 25));
    assert_eq!(judgement.verdict.name(), "reject");
    assert!(html.contains("<span class=\"badge reject\">reject</span></h1>") && html.contains(">fell</span>"));
    assert_eq!(html.matches("<circle class=\"below\"").count(), 2, "right by the text, and the suite");
    let (judgement, html) = page(4, 4, (0, 0));
    assert_eq!(judgement.verdict.name(), "inconclusive");
    assert!(html.contains("badge inconclusive\">inconclusive") && html.contains("circle class=\"spans\""));
}

#[test]
fn hostile_answers_stay_text() {
    let (_, html) = page(45, 6, (4, 5));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&#39;&amp;"));
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;") && html.contains("my-coder-tuned-&lt;v7&gt;"));
    assert!(html.contains("general &lt;ability&gt;"));
    for markup in ["<script", "<img", "<v7", "<ability", "http://", "https://", "url(", "@import", "src="] {
        assert!(!html.replace("img src=x", "").contains(markup), "{markup}");
    }
    assert!(html.contains("<div class=\"text\" dir=\"auto\">\u{202e}turned</div>"));
    assert!(html.contains("<i>empty</i>") && html.contains("\u{2026} (3000 more characters)"));
}

#[test]
fn the_file_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let comparison = work(45, 6);
    let evidence = Evidence { work: &comparison, suites: &[], candidate: Served::default(), champion: Served::default() };
    let judgement = judge(&evidence, Primary::Exact, &Rules::default()).unwrap();
    let shown = BTreeMap::new();
    let report = Report { candidate: "a", champion: "b", judgement: &judgement, work: &comparison, shown: &shown };
    let path = scratch.path().join(FILE);
    write(&path, &report).unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), render(&report).unwrap());
}
