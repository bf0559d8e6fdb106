//! Redaction on real rows: what it changes of those that are to be left alone, and what it finds of all kinds that are planted.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use retune::redact::{Kind, Redactor};
use serde_json::Value;

/// Every row of the shared data that changes, and what in it: all of these hold an address, a number or a password that a person
/// could have written about himself. Any other row is a false alarm.
const TRUE_HITS: [(&str, usize, &[Kind]); 13] = [
    ("alpaca_en_demo.json", 66, &[Kind::Secret]), // a random password of 8 signs
    ("alpaca_en_demo.json", 92, &[Kind::Phone]),  // (555) 123-4567
    ("alpaca_en_demo.json", 358, &[Kind::Email]),
    ("alpaca_en_demo.json", 435, &[Kind::Email]),
    ("messages_demo.jsonl", 116, &[Kind::Secret]), // the same four rows as above
    ("messages_demo.jsonl", 142, &[Kind::Phone]),
    ("messages_demo.jsonl", 408, &[Kind::Email]),
    ("messages_demo.jsonl", 485, &[Kind::Email]),
    ("tool_use_demo.jsonl", 6, &[Kind::Email]),
    ("tool_use_demo.jsonl", 16, &[Kind::Ip]), // networks of companies, 8.8.8.0/24
    ("tool_use_demo.jsonl", 19, &[Kind::Ip]),
    ("tool_use_demo.jsonl", 28, &[Kind::Ip]),
    ("tool_use_demo.jsonl", 41, &[Kind::Email]),
];

/// The rows of a file: a JSON array, JSON lines, or one value.
fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    match serde_json::from_str(&text) {
        Ok(Value::Array(rows)) => rows,
        Ok(row) => vec![row],
        Err(_) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
    }
}

/// The texts of a row, wherever they stand.
fn texts<'v>(value: &'v Value, out: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, out)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, out)),
        _ => {}
    }
}

#[test]
fn of_13325_rows_none_is_changed_without_a_reason_and_none_a_second_time() {
    let Some(data) = common::data("false alarms of redaction") else { return };
    let redactor = Redactor::new(&[]).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(data.join("sft")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "jsonl"));
    files.sort();
    let (mut count, mut changed) = (0, Vec::new());
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        for (i, row) in rows(file).iter().enumerate() {
            count += 1;
            let redacted = redactor.pair().redact_json(row).unwrap();
            if redacted == *row {
                continue;
            }
            assert_eq!(redactor.pair().redact_json(&redacted).unwrap(), redacted, "{name} row {}", i + 1);
            let mut all = Vec::new();
            texts(row, &mut all);
            let found = redactor.pair().redact_all(&all).unwrap();
            let mut kinds: Vec<Kind> = found.iter().flat_map(|redacted| &redacted.found).map(|found| found.kind).collect();
            kinds.sort();
            kinds.dedup();
            changed.push((name.to_owned(), i + 1, kinds));
        }
    }
    let wanted: Vec<_> = TRUE_HITS.iter().map(|(name, row, kinds)| ((*name).to_owned(), *row, kinds.to_vec())).collect();
    assert_eq!(count, 13_325, "the data is not the one that this test knows");
    assert_eq!(changed, wanted);
}

/// Numbers that look random and are the same on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }

    /// Draws a form: `#` a digit, `x` hexadecimal, `a` a small letter, `A` a large one or 2 to 7, `*` a letter or digit, `~` also _ and -;
    /// `*{36}` 36 of them. Anything behind a backslash, and all else, is itself.
    fn draw(&mut self, form: &str) -> String {
        let (mut out, mut at) = (String::new(), form.chars().peekable());
        while let Some(c) = at.next() {
            let set = match c {
                '#' => "0123456789",
                'x' => "0123456789abcdef",
                'a' => "abcdefghijklmnopqrstuvwxyz",
                'A' => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
                '*' => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                '~' => "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-",
                '\\' => {
                    out.extend(at.next());
                    continue;
                }
                other => {
                    out.push(other);
                    continue;
                }
            };
            let count: String =
                if at.next_if_eq(&'{').is_some() { at.by_ref().take_while(|c| *c != '}').collect() } else { String::new() };
            (0..count.parse().unwrap_or(1)).for_each(|_| out.push(char::from(*self.pick(set.as_bytes()))));
        }
        out
    }
}

/// Keys of vendors, by their forms. No key stands here: each is drawn when the test runs.
const VENDORS: [(&str, &str); 30] = [
    ("AWS", r"\AKI\AA{16}"),
    ("GitHub", "ghp_*{36}"),
    ("GitHub, fine-grained", r"github_p\at_*{82}"),
    ("GitLab", r"glp\at-*{20}"),
    ("Slack", r"\xo\xb-#{12}-#{12}-*{24}"),
    ("Stripe", "sk_live_*{24}"),
    ("OpenAI", r"sk-proj-*{74}T3BlbkFJ*{74}"),
    ("Anthropic", r"sk-\ant-\api03-~{93}\A\A"),
    ("Google", r"\AIz\a~{35}"),
    ("SendGrid", "SG.*{22}.*{43}"),
    ("npm", "npm_*{36}"),
    ("PyPI", r"pypi-\AgEIcHlw\aS5vcmc~{60}"),
    ("Hugging Face", "hf_a{34}"),
    ("DigitalOcean", "dop_v1_x{64}"),
    ("Shopify", r"shp\at_x{32}"),
    ("Databricks", r"d\apix{32}"),
    ("Docker Hub", r"dckr_p\at_~{27}"),
    ("Doppler", r"dp.pt.*{43}"),
    ("Linear", r"lin_\api_*{40}"),
    ("Postman", r"PM\AK-x{24}-x{34}"),
    ("Pulumi", "pul-x{40}"),
    ("RubyGems", "rubygems_x{48}"),
    ("Grafana", r"gls\a_*{32}_x{8}"),
    ("Vault", "hvs.~{95}"),
    ("xAI", r"\x\ai-*{80}"),
    ("Groq", "gsk_*{52}"),
    ("Replicate", "r8_*{37}"),
    ("Sentry", "sntryu_x{64}"),
    ("Figma", "figd_~{40}"),
    ("Perplexity", r"ppl\x-*{48}"),
];

/// What a secret may stand behind, and what follows it.
const NAMED: [(&str, &str); 12] = [
    ("password = \"", "\""),
    ("DB_PASSWORD=", "\n"),
    ("\"api_key\": \"", "\""),
    ("secret_key: ", "\n"),
    ("token='", "'"),
    ("client_secret := \"", "\""),
    ("access_token: ", ","),
    ("AUTH_TOKEN = '", "'"),
    ("--api-key ", "\n"),
    ("<password>", "</password>"),
    ("The token is ", "."),
    ("?access_token=", "&page=2"),
];

/// One thing to plant: its kind, what is private, and what stands before and behind it.
struct Planted {
    kind: Kind,
    group: String,
    value: String,
    before: String,
    after: String,
}

fn plant(kind: Kind, group: &str, value: String, (before, after): (&str, &str)) -> Planted {
    Planted { kind, group: group.to_owned(), value, before: before.to_owned(), after: after.to_owned() }
}

fn emails(dice: &mut Dice) -> Vec<Planted> {
    let forms = [
        "aaaa.aaaaaa@aaaaaaa.com",
        "a{9}##@aaaaa.org",
        "aaa+aaaa@mail.a{8}.co.uk",
        "aaa_aaaa@a{6}-aaa.de",
        "a{5}'aaaa@a{7}.io",
        "A{3}.a{6}@a{9}.museum",
    ];
    let around = [(" ", " "), ("<", ">"), ("\"", "\""), (" ", ", "), ("mailto:", "?"), ("email=", "\n"), ("(", ")")];
    let mut out = Vec::new();
    for _ in 0..50 {
        out.extend(forms.map(|form| plant(Kind::Email, "e-mail", dice.draw(form), *dice.pick(&around))));
    }
    out
}

fn phones(dice: &mut Dice) -> Vec<Planted> {
    let text = std::fs::read_to_string(common::root().join("tests/parity/redaction/phones.tsv")).unwrap();
    let around = [(" ", " "), ("\"", "\""), ("(", ")"), (": ", ", "), (" ", ".")];
    let told = [("Phone: ", " "), ("tel. ", "\n"), ("\"phone\": \"", "\""), ("call me at ", "."), ("mobile number ", ", ")];
    let mut out = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [_, _, abroad, home] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        out.push(plant(Kind::Phone, "phone, from abroad", abroad.to_owned(), *dice.pick(&around)));
        let short = abroad.replace(|c: char| !c.is_ascii_digit() && c != '+', "");
        out.push(plant(Kind::Phone, "phone, E.164", short, *dice.pick(&around)));
        // Short ones are numbers like any other.
        if home.chars().filter(char::is_ascii_digit).count() >= 7 {
            out.push(plant(Kind::Phone, "phone, at home behind a word", home.to_owned(), *dice.pick(&told)));
        }
        if ["US", "CA", "GB", "FR", "DE", "AU", "JP", "BR"].iter().any(|region| line.starts_with(region)) {
            out.push(plant(Kind::Phone, "phone, at home by itself", home.to_owned(), *dice.pick(&around)));
        }
    }
    out
}

fn addresses(dice: &mut Dice) -> Vec<Planted> {
    let around = [(" ", " "), ("\"", "\""), ("http://", ":8080/x"), ("@", "\n"), (" ", "/24 "), ("(", ")")];
    let mut out = Vec::new();
    for _ in 0..200 {
        let first = 1 + dice.below(126);
        let four = format!("{first}.{}.{}.{}", dice.below(256), dice.below(256), dice.below(256));
        out.push(plant(Kind::Ip, "IPv4", four, *dice.pick(&around)));
        let form = *dice.pick(&[
            "2xxx:xxxx:xxxx:xxxx:xxxx:xxxx:xxxx:xxxx",
            "2xxx:xx::xxxx",
            "fe80::xxxx:xxff:fexx:xxxx",
            "fd00:xxxx::1",
            "2001:db8:xx::xx:1",
        ]);
        out.push(plant(Kind::Ip, "IPv6", dice.draw(form), *dice.pick(&[(" ", " "), ("[", "]:443"), ("\"", "\""), (" ", ", ")])));
    }
    out
}

fn credentials(dice: &mut Dice) -> Vec<Planted> {
    let mut out = Vec::new();
    for (vendor, form) in VENDORS {
        for around in
            [(" ", " "), ("\"", "\""), ("=", "\n"), (" ", ", "), ("(", ")"), (": ", ".\n"), ("`", "`"), ("Bearer ", "\n")]
        {
            out.push(plant(Kind::ApiKey, vendor, dice.draw(form), around));
        }
    }
    for i in 0..100 {
        let lines: Vec<String> = (0..6 + i % 20).map(|_| dice.draw("*{64}")).collect();
        let name = *dice.pick(&["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED ", "DSA "]);
        let end = *dice.pick(&["\n", "\\n", "\r\n"]);
        let key = format!("-----BEGIN {name}PRIVATE KEY-----{end}{}{end}-----END {name}PRIVATE KEY-----", lines.join(end));
        out.push(plant(Kind::PrivateKey, "private key", key, *dice.pick(&[("\n", "\n"), ("\"", "\""), (" ", " ")])));
        let jwt = dice.draw("eyJ*{30}.eyJ*{60}.~{43}");
        out.push(plant(Kind::Jwt, "JWT", jwt, *dice.pick(&[(" ", " "), ("\"", "\""), ("Bearer ", "\n"), ("token=", "&")])));
        let scheme = *dice.pick(&["https", "postgres", "mongodb+srv", "redis", "amqp", "ftp"]);
        let form = *dice.pick(&["a{8}", "*{16}", "a{4}##!", "****%40***"]);
        let password = dice.draw(form);
        out.push(plant(
            Kind::Secret,
            "password in a URL",
            password,
            (&format!("{scheme}://{}:", dice.draw("a{6}#")), "@db.corp.com/x"),
        ));
        let name = dice.draw("a{8}#");
        let folder = *dice.pick(&["/home/", "/Users/", r"C:\Users\", r"C:\\Users\\", "/mnt/c/Users/", "file:///home/"]);
        out.push(plant(
            Kind::User,
            "home folder",
            name,
            (&format!(" {folder}"), *dice.pick(&["/src", "/.ssh/id", "\\x", " ", "\n"])),
        ));
    }
    for length in 32..=64 {
        for form in ["x", "*", "~"] {
            for _ in 0..4 {
                let (value, around) = (dice.draw(&format!("{form}{{{length}}}")), *dice.pick(&NAMED));
                out.push(plant(Kind::Secret, "random secret behind a name", value, around));
            }
        }
    }
    out
}

/// Where whole words begin.
fn places(text: &str) -> Vec<usize> {
    let mut places: Vec<usize> = text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(i, _)| i).collect();
    places.push(text.len());
    places
}

#[test]
fn what_is_planted_in_code_and_prose_is_found() {
    let Some(data) = common::data("recall of redaction") else { return };
    let carriers: Vec<String> =
        ["humanevalpack_python.jsonl", "humanevalpack_js.jsonl", "humanevalpack_rust.jsonl", "alpaca_en_demo.json"]
            .iter()
            .flat_map(|file| rows(&data.join("sft").join(file)))
            .map(|row| {
                let mut all = Vec::new();
                texts(&row, &mut all);
                all.join("\n")
            })
            .collect();
    let redactor = Redactor::new(&[]).unwrap();
    let mut dice = Dice(42);
    let mut all = emails(&mut dice);
    all.extend(phones(&mut dice));
    all.extend(addresses(&mut dice));
    all.extend(credentials(&mut dice));
    let mut recall: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut missed = Vec::new();
    for Planted { kind, group, value, before, after } in all {
        let carrier = dice.pick(&carriers);
        let at = *dice.pick(&places(carrier));
        let text = format!("{} {before}{value}{after} {}", &carrier[..at], &carrier[at..]);
        let start = at + 1 + before.len();
        let found = redactor.pair().redact(&text).unwrap().found;
        // Found is what is covered whole; a secret may be named by its vendor.
        let hit = found.iter().find(|found| found.start <= start && found.end >= start + value.len());
        let right = hit.is_some_and(|hit| hit.kind == kind || (kind == Kind::Secret && hit.kind == Kind::ApiKey));
        let entry = recall.entry(group.clone()).or_default();
        entry.0 += usize::from(right);
        entry.1 += 1;
        if !right {
            missed.push(format!("{group}: {before}{value}{after}  found {:?}", hit.map(|hit| (hit.kind, &hit.rule))));
        }
    }
    let vendors: usize = VENDORS.iter().filter_map(|(vendor, _)| recall.remove(*vendor)).map(|(found, _)| found).sum();
    assert_eq!(vendors, 30 * 8, "{missed:#?}");
    let recall: Vec<_> = recall.iter().map(|(group, (found, all))| (group.as_str(), *found, *all)).collect();
    let wanted = [
        ("IPv4", 200, 200),
        ("IPv6", 200, 200),
        ("JWT", 100, 100),
        ("e-mail", 300, 300),
        ("home folder", 100, 100),
        ("password in a URL", 100, 100),
        ("phone, E.164", 489, 489),
        ("phone, at home behind a word", 457, 457),
        ("phone, at home by itself", 16, 16),
        ("phone, from abroad", 489, 489),
        ("private key", 100, 100),
        ("random secret behind a name", 396, 396),
    ];
    assert_eq!(recall, wanted, "{missed:#?}");
}
