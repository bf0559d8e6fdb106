//! Moments, as milliseconds since 1970 and as RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `2026-11-21T17:30:00Z`, with any offset; `None`: it is no such text.
pub fn parse_ms(text: &str) -> Option<i64> {
    let moment = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok()
}

/// As RFC 3339 in UTC, to the second.
pub fn to_rfc3339(ms: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_with_their_offset_and_written_in_utc() {
        assert_eq!(parse_ms("1970-01-01T00:00:01.5Z"), Some(1500));
        assert_eq!(parse_ms("2026-11-21T18:30:00+01:00").map(to_rfc3339), Some("2026-11-21T17:30:00Z".to_owned()));
        assert_eq!(parse_ms("2026-11-21"), None);
        assert_eq!(parse_ms(&to_rfc3339(now_ms())), Some(now_ms() / 1000 * 1000));
    }
}
