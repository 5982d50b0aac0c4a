//! Time stamps: nanoseconds since 1970, before it and after 2038 too.

use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::macros::format_description;

/// Seconds since 1970 (negative before it) and nanoseconds, as in `struct timespec`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

impl Time {
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// `2026-11-23T16:41:00.123456Z`, RFC 3339 with microseconds.
    pub fn rfc3339(self) -> String {
        let micros = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        self.format(&micros)
    }

    /// RFC 3339, a date alone, or what JavaScript's `Date.toString()` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let javascript = format_description!(
            "[weekday repr:short] [month repr:short] [day] [year] [hour]:[minute]:[second] GMT[offset_hour sign:mandatory][offset_minute]"
        );
        let plain = text.split(" (").next().unwrap_or_default();
        let date = || time::Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
        let at = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
            .or_else(|_| OffsetDateTime::parse(plain, &javascript))
            .ok()
            .or_else(|| Some(date()?.midnight().assume_utc()))?;
        Some(Time { seconds: at.unix_timestamp(), nanos: at.nanosecond() })
    }

    /// `20261123T164100Z`, as in the names of tombstones.
    pub fn compact(self) -> String {
        self.format(&format_description!("[year][month][day]T[hour][minute][second]Z"))
    }

    /// Time passed since then; zero if it lies ahead.
    pub fn age(self) -> Duration {
        SystemTime::now().duration_since(self.into()).unwrap_or_default()
    }

    fn format(self, description: &impl time::formatting::Formattable) -> String {
        OffsetDateTime::from_unix_timestamp(self.seconds)
            .map(|t| t + Duration::from_nanos(self.nanos.into()))
            .ok()
            .and_then(|t| t.format(description).ok())
            // Only years beyond 9999 have no such form.
            .unwrap_or_else(|| format!("{}.{:09}", self.seconds, self.nanos))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        let nanos = self.nanos + duration.subsec_nanos();
        let seconds = self.seconds.saturating_add(duration.as_secs() as i64 + i64::from(nanos / 1_000_000_000));
        Time { seconds, nanos: nanos % 1_000_000_000 }
    }
}

impl From<SystemTime> for Time {
    fn from(at: SystemTime) -> Self {
        match at.duration_since(UNIX_EPOCH) {
            Ok(after) => Time { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Time { seconds: -(before.as_secs() as i64), nanos: 0 },
                    part => Time { seconds: -(before.as_secs() as i64) - 1, nanos: 1_000_000_000 - part },
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(at: Time) -> Self {
        let part = Duration::from_nanos(at.nanos.into());
        match u64::try_from(at.seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + part,
            Err(_) => UNIX_EPOCH - Duration::from_secs(at.seconds.unsigned_abs()) + part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_clients_write_them() {
        let expected = Some(Time { seconds: 1_704_067_200, nanos: 0 });
        for text in [
            "2024-01-01T00:00:00Z",
            "2024-01-01T00:00:00.000Z",
            "2024-01-01T01:00:00+01:00",
            "2024-01-01",
            "Mon Jan 01 2024 00:00:00 GMT+0000 (Coordinated Universal Time)",
            "Mon Jan 01 2024 02:00:00 GMT+0200",
        ] {
            assert_eq!(Time::parse(text), expected, "{text}");
        }
        for text in ["", "yesterday", "2024-13-01", "1704067200"] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
    }

    #[test]
    fn times_before_1970_and_after_2038_survive() {
        for (seconds, nanos) in [(-1, 999_999_999), (-1, 0), (0, 0), (1 << 33, 7), (-(1 << 33), 5)] {
            let time = Time { seconds, nanos };
            assert_eq!(Time::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn forms() {
        let time = Time { seconds: 1_795_452_060, nanos: 123_456_789 };
        assert_eq!(time.rfc3339(), "2026-11-23T16:41:00.123456Z");
        assert_eq!(time.compact(), "20261123T164100Z");
        assert_eq!((time + Duration::from_nanos(900_000_000)).nanos, 23_456_789);
    }
}
