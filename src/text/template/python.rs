//! What Python does that templates rely on: `json.dumps`, the spelling of floats, `strftime`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// The arguments of `json.dumps` that transformers' `tojson` passes on.
#[derive(Clone, Debug)]
pub struct Dumps {
    pub ascii: bool,
    /// What one level is indented by; `None`: all on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Default for Dumps {
    fn default() -> Self {
        Self { ascii: false, indent: None, item_separator: ", ".into(), key_separator: ": ".into(), sort_keys: false }
    }
}

impl Dumps {
    /// `json.dumps(value, ...)`: keys in their order, `", "` and `": "` between, nothing of HTML escaped.
    pub fn dumps(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => out.push_str(&float_repr(float)),
                _ => out.push_str(&number.to_string()),
            },
            Value::String(text) => self.write_string(text, out),
            Value::Array(list) if list.is_empty() => out.push_str("[]"),
            Value::Array(list) => {
                out.push('[');
                for (i, item) in list.iter().enumerate() {
                    self.separate(i, depth + 1, out);
                    self.write(item, depth + 1, out);
                }
                self.close(depth, out);
                out.push(']');
            }
            Value::Object(map) if map.is_empty() => out.push_str("{}"),
            Value::Object(map) => {
                out.push('{');
                for (i, (key, item)) in self.entries(map).into_iter().enumerate() {
                    self.separate(i, depth + 1, out);
                    self.write_string(key, out);
                    out.push_str(&self.key_separator);
                    self.write(item, depth + 1, out);
                }
                self.close(depth, out);
                out.push('}');
            }
        }
    }

    fn entries<'a>(&self, map: &'a Map<String, Value>) -> Vec<(&'a String, &'a Value)> {
        let mut entries: Vec<_> = map.iter().collect();
        if self.sort_keys {
            entries.sort_by_key(|(key, _)| *key);
        }
        entries
    }

    fn separate(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item_separator);
        }
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn close(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ascii && u32::from(c) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `repr(float)`: the shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.
pub fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() };
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let scientific = format!("{value:e}");
        // Rust writes 1e-5 where Python writes 1e-05.
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `datetime.strftime` for what templates ask: dates and times. The clock is UTC's, so that a rendering is the same on
/// every machine. `None` for a directive that is not known.
pub fn strftime(format: &str, now: SystemTime) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next()?;
        let bare = directive == '-';
        if bare {
            directive = characters.next()?;
        }
        let number = |n: u64, width: usize| if bare { n.to_string() } else { format!("{n:0width$}") };
        match directive {
            'Y' => out.push_str(&number(year, 4)),
            'y' => out.push_str(&number(year % 100, 2)),
            'm' => out.push_str(&number(month, 2)),
            'd' => out.push_str(&number(day, 2)),
            'e' => out.push_str(&if bare { day.to_string() } else { format!("{day:>2}") }),
            'j' => out.push_str(&number(day_of_year, 3)),
            'H' => out.push_str(&number(hour, 2)),
            'I' => out.push_str(&number((hour + 11) % 12 + 1, 2)),
            'M' => out.push_str(&number(minute, 2)),
            'S' => out.push_str(&number(second, 2)),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'B' => out.push_str(month_name),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'A' => out.push_str(day_name),
            'a' => out.push_str(&day_name[..3]),
            'F' => out.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            'T' => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            'Z' => out.push_str("UTC"),
            'z' => out.push_str("+0000"),
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

/// Year, month and day (from 1) and the day of the year of a day since 1970-01-01.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let before: u64 =
        (1..month).map(|m| [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][m as usize - 1]).sum();
    (year, month, day, before + day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        // Each pair is what `repr` of CPython 3.11 gives.
        let pairs = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9007199254740993.0, "9007199254740992.0"),
            (-0.0, "-0.0"),
            (1e100, "1e+100"),
        ];
        for (value, expected) in pairs {
            assert_eq!(float_repr(value), expected);
        }
    }

    #[test]
    fn json_is_dumped_as_python_dumps_it() {
        let value: Value =
            serde_json::from_str(r#"{"b":[1,2.50,"é<&>'\u0001\n/"],"a":{},"c":[],"d":{"x":null,"y":true}}"#).unwrap();
        assert_eq!(
            Dumps::default().dumps(&value),
            r#"{"b": [1, 2.5, "é<&>'\u0001\n/"], "a": {}, "c": [], "d": {"x": null, "y": true}}"#
        );
        let indented =
            Dumps { indent: Some("  ".into()), item_separator: ",".into(), sort_keys: true, ascii: true, ..Dumps::default() };
        let expected = "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2.5,\n    \"\\u00e9<&>'\\u0001\\n/\"\n  ],\n  \"c\": [],\n  \"d\": {\n    \"x\": null,\n    \"y\": true\n  }\n}";
        assert_eq!(indented.dumps(&value), expected);
        assert_eq!(Dumps { ascii: true, ..Dumps::default() }.dumps(&Value::String("🦙".into())), r#""\ud83e\udd99""#);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // date -u -d @1732181130
        assert_eq!(
            strftime("%A %a %d %B %b %Y %H:%M:%S %j %p %I %%", at(1_732_181_130)).unwrap(),
            "Thursday Thu 21 November Nov 2024 09:25:30 326 AM 09 %"
        );
        assert_eq!(strftime("%-d.%-m.%y|%e|%F %T", at(951_782_400)).unwrap(), "29.2.00|29|2000-02-29 00:00:00");
        assert_eq!(strftime("%A %j %I %p", at(1_767_225_599)).unwrap(), "Wednesday 365 11 PM"); // 2025-12-31
        assert_eq!(strftime("%Q", at(0)), None);
    }
}
