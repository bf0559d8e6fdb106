use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind};

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
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => out.extend_from_slice(&literal.0),
            HirKind::Class(class) => out.push(self.one_of(class)),
            HirKind::Repetition(repetition) => {
                let few = repetition.min + if repetition.min < 8 { 4 } else { 0 };
                let most = repetition.max.unwrap_or(few).min(few).max(repetition.min);
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

#[test]
fn probe() {
    let mut all = 0;
    for rule in &vendor().unwrap().rules {
        let values = drawn(rule, 16);
        let found = values.iter().filter(|value| is_found(rule, &format!(" {value} "))).count();
        all += found;
        if found < 12 {
            println!("{} {found} of {} {}", rule.id, values.len(), rule.pattern.source());
            println!("     {:?}", values.iter().take(2).collect::<Vec<_>>());
        }
    }
    println!("{all} of {}", 16 * 430);
}

#[test]
fn every_pattern_of_the_rule_set_compiles() {
    let vendor = vendor().unwrap();
    assert_eq!(vendor.rules.len(), 430);
    let bad: Vec<String> = vendor.rules.iter().flat_map(|rule| rule.patterns().filter_map(|p| p.get().err())).map(|e| e.to_string()).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
