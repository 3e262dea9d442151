//! TUF's one time format, `YYYY-MM-DDTHH:MM:SSZ`, to and from [`Millis`] since the Unix epoch.

use farlight_wire::Millis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The latest second the format can write: the end of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

/// Writes a stamp in whole seconds; a fraction is cut off, and years end at 9999.
pub fn format(at: Millis) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(LAST_SECOND).min(LAST_SECOND);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Reads a stamp. Only the exact form `YYYY-MM-DDTHH:MM:SSZ` from 1970 on is one.
pub fn parse(text: &str) -> Option<Millis> {
    if text.len() != 20 || !text.ends_with('Z') || text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(Millis::from_secs(u64::try_from(at.unix_timestamp()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_round_trip() {
        for text in ["1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "9999-12-31T23:59:59Z"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(format(Millis(u64::MAX)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "2024-02-30T00:00:00Z",
            "2024-02-01T00:00:00",
            "2024-02-01T00:00:00+00:00",
            "2024-02-01 00:00:00Z",
            "2024-02-01t00:00:00Z",
            "2024-02-01T00:00:00.0Z",
            "1969-12-31T23:59:59Z",
            "2024-02-01T24:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
