use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};

use super::vendor::{Rule, vendor};

/// Values of a pattern, always the same ones. What only looks at its surroundings (`\b`, `$`) is left out; the tests give the
/// surroundings.
struct Drawer(u64);

impl Drawer {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn draw(&mut self, hir: &Hir, out: &mut Vec<u8>) {
        match hir.kind() {
            HirKind::Look(Look::WordAscii) if out.last().is_some_and(u8::is_ascii_alphanumeric) => out.push(b' '),
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => out.extend_from_slice(&literal.0),
            HirKind::Class(class) => out.push(self.one_of(class)),
            HirKind::Repetition(repetition) => {
                // Gaps stay short; what has no end, and thus may be the key itself, becomes long.
                let few = repetition.min + if repetition.max.is_none() { 24 } else { 4 };
                let most = repetition.max.unwrap_or(few).min(few);
                let count = repetition.min as usize + self.below((most - repetition.min) as usize + 1);
                (0..count).for_each(|_| self.draw(&repetition.sub, out));
            }
            HirKind::Capture(capture) => self.draw(&capture.sub, out),
            HirKind::Concat(parts) => parts.iter().for_each(|part| self.draw(part, out)),
            HirKind::Alternation(parts) => {
                let part = self.below(parts.len());
                self.draw(&parts[part], out);
            }
        }
    }

    fn one_of(&mut self, class: &Class) -> u8 {
        let is_in = |byte: u8| match class {
            Class::Bytes(class) => class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&byte)),
            Class::Unicode(class) => class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&char::from(byte))),
        };
        let mut bytes: Vec<u8> = (b'!'..=b'~').filter(|byte| is_in(*byte)).collect();
        if bytes.len() > 62 {
            // `.` and `[^x]`: letters and digits do, and end nothing too early.
            bytes.retain(u8::is_ascii_alphanumeric);
        }
        if bytes.is_empty() {
            bytes.extend((0..=127).filter(|byte| is_in(*byte)).take(1));
        }
        bytes[self.below(bytes.len())]
    }
}

fn drawn(rule: &Rule, count: usize) -> Vec<String> {
    let hir = ParserBuilder::new().unicode(false).utf8(false).build().parse(rule.pattern.source()).unwrap();
    let mut drawer = Drawer(7);
    let mut draw = || {
        let mut out = Vec::new();
        drawer.draw(&hir, &mut out);
        String::from_utf8(out).unwrap()
    };
    (0..count).map(|_| draw()).collect()
}

fn is_found(rule: &Rule, text: &str) -> bool {
    let mut hits = Vec::new();
    vendor().unwrap().find(text.as_bytes(), &mut hits).unwrap();
    hits.iter().any(|hit| hit.rule == rule.id)
}

/// The value, a line below the word that its rule waits for.
fn planted(rule: &Rule, value: &str) -> String {
    format!("{}\n {value} ", rule.keywords[0])
}

#[test]
fn every_rule_finds_what_its_own_pattern_says() {
    let rules = &vendor().unwrap().rules;
    let count = |rule: &Rule| drawn(rule, 16).iter().filter(|value| is_found(rule, &planted(rule, value))).count();
    let found: Vec<(&str, usize)> = rules.iter().map(|rule| (rule.id.as_str(), count(rule))).collect();
    // A value that is drawn may be too regular, or what its rule leaves out: short ones, and empty templates.
    let rare: Vec<_> = found.iter().filter(|(_, n)| *n < 10).collect();
    assert_eq!(rare, [&("kubernetes-secret-yaml", 6), &("sidekiq-sensitive-url", 7)]);
    assert_eq!(found.iter().map(|(_, n)| n).sum::<usize>(), 6814, "of {}", 16 * rules.len());
}

#[test]
fn every_pattern_of_the_rule_set_compiles() {
    let rules = &vendor().unwrap().rules;
    assert_eq!(rules.len(), 429);
    let bad: Vec<String> =
        rules.iter().flat_map(|rule| rule.patterns().filter_map(|p| p.get().err())).map(|e| e.to_string()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn a_form_without_entropy_or_without_its_vendor_is_no_key() {
    let rule = |id: &str| vendor().unwrap().rules.iter().find(|rule| rule.id == id).unwrap();
    assert!(is_found(rule("github-pat"), &format!("{}{}", "gh", "p_x9K2mQ7vL4pR8wZ3tB6nJ1hF5dS0aG9cY2u7")));
    assert!(!is_found(rule("github-pat"), &format!("gh{}{}", "p_", "ab".repeat(18))));
    let hex = "3f9a1c7e5b2d8064f1e3a7c95b0d2864";
    assert!(is_found(rule("twilio-api-key"), &format!("Twilio {}{hex}", "SK")));
    assert!(!is_found(rule("twilio-api-key"), &format!("{}{hex}", "SK")));
    // Upstream ends a key with a quote, a space or a semicolon; a sentence ends it, too.
    for end in [",", ".", ")", "\n", "\"", "</b>"] {
        assert!(
            is_found(rule("sentry-user-token"), &format!("it is {}{hex}{}{end}", "sntryu_", "8e1d4b7a20c95f3681d7e4a0b9c2f536")),
            "{end:?}"
        );
    }
}
