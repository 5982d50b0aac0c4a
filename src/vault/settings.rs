//! Settings of a mount (`-o name=value`) and their defaults.

use super::error::{Error, Result};
use super::extents::UNIT;
use crate::keys::Residency;
use crate::store::SEGMENT_LIMIT;
use std::time::Duration;

/// How a vault behaves while it is open.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long answered operations are gathered before they are stored: what a killed daemon loses. Longer makes fewer
    /// and cheaper batches: one of 30 creates costs a quarter less for each than one of 10.
    pub gather: Duration,
    /// How old an operation may be that power loss takes.
    pub commit_interval: Duration,
    /// Every close is an fsync.
    pub sync_on_close: bool,
    pub keep_versions: usize,
    pub tombstone_retention: Duration,
    pub tombstone_min_age: Duration,
    pub tombstones_per_name: usize,
    /// How often the reaper looks for what is over, and stores times of access.
    pub reap_interval: Duration,
    /// How long an operation waits for the token.
    pub key_timeout: Duration,
    /// Unwrapped keys in memory.
    pub key_cache: usize,
    pub key_cache_soft: Duration,
    pub key_cache_hard: Duration,
    /// How old KEKs become before they are rotated.
    pub key_rotation: Duration,
    /// Organizations that nobody uses for this long are locked.
    pub lock_idle: Option<Duration>,
    /// Decoded records in memory.
    pub record_cache: usize,
    /// Bytes in one segment file, a multiple of 4 KiB.
    pub segment_size: u64,
    /// Names in the audit log, beside ids.
    pub audit_names: bool,
    /// Where the API puts objects whose key context names no organization.
    pub default_organization: Option<String>,
    /// The API makes an organization that a key context names and the vault has not.
    pub just_in_time: bool,
    /// Where the KEKs of new organizations live; as `init` was told if `None`.
    pub residency: Option<Residency>,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Settings {
            gather: Duration::from_millis(10),
            commit_interval: Duration::from_secs(1),
            sync_on_close: false,
            keep_versions: 10,
            tombstone_retention: Duration::from_secs(30 * DAY),
            tombstone_min_age: Duration::from_secs(3600),
            tombstones_per_name: 3,
            reap_interval: Duration::from_secs(10),
            key_timeout: Duration::from_secs(5),
            key_cache: 10_000,
            key_cache_soft: Duration::from_secs(5 * 60),
            key_cache_hard: Duration::from_secs(15 * 60),
            key_rotation: Duration::from_secs(30 * DAY),
            lock_idle: None,
            record_cache: 200_000,
            segment_size: SEGMENT_LIMIT,
            audit_names: false,
            default_organization: None,
            just_in_time: false,
            residency: None,
        }
    }
}

impl Settings {
    /// Changes one setting; an unknown name or an unreadable value is an error that names it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = |what: &str| Error::Setting(format!("mount option {name}={value}: expected {what}"));
        let number = || value.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| wrong("a number above 0"));
        let duration = || parse_duration(value).ok_or_else(|| wrong("a duration, as in 500ms, 5s, 10m, 1h, 30d"));
        match name {
            "gather" => self.gather = duration()?,
            "commit_interval" => self.commit_interval = duration()?,
            "durability" => {
                self.sync_on_close = match value {
                    "close" => true,
                    "fsync" => false,
                    _ => return Err(wrong("close or fsync")),
                }
            }
            "keep_versions" => self.keep_versions = number()?,
            "tombstone_retention" => self.tombstone_retention = duration()?,
            "tombstone_min_age" => self.tombstone_min_age = duration()?,
            "tombstones_per_name" => self.tombstones_per_name = number()?,
            "reap_interval" => self.reap_interval = duration()?,
            "key_timeout" => self.key_timeout = duration()?,
            "key_cache" => self.key_cache = number()?,
            "key_cache_soft" => self.key_cache_soft = duration()?,
            "key_cache_hard" => self.key_cache_hard = duration()?,
            "key_rotation" => self.key_rotation = duration()?,
            "lock_idle" => self.lock_idle = if value == "never" { None } else { Some(duration()?) },
            "record_cache" => self.record_cache = number()?,
            "segment_size" => {
                let whole = parse_size(value).filter(|size| *size > 0 && size % UNIT == 0);
                self.segment_size = whole.ok_or_else(|| wrong("a multiple of 4K, as in 64M, 1G"))?;
            }
            "audit_names" => {
                self.audit_names = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(wrong("yes or no")),
                }
            }
            "default_organization" => self.default_organization = Some(value.to_owned()),
            "organizations" => {
                self.just_in_time = match value {
                    "just-in-time" => true,
                    "explicit" => false,
                    _ => return Err(wrong("just-in-time or explicit")),
                }
            }
            "residency" => {
                let chosen = Residency::parse(value, None).map_err(|_| wrong("token or wrapped"))?;
                self.residency = Some(chosen).filter(|chosen| !matches!(chosen, Residency::External(_)));
                self.residency.as_ref().ok_or_else(|| wrong("token or wrapped"))?;
            }
            _ => return Err(Error::Setting(format!("there is no mount option {name}"))),
        }
        Ok(())
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `500ms`, `5s`, `10m`, `1h`, `30d`; a number alone is seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().ok()?;
    let millis: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [("5", 5), ("5s", 5), ("2m", 120), ("1h", 3600), ("30d", 2_592_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)));
        }
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "s", "5x", "-1s", "1.5h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("4096", 4096), ("64K", 64 << 10), ("3M", 3 << 20), ("1G", 1 << 30)] {
            assert_eq!(parse_size(text), Some(bytes));
        }
        for text in ["", "K", "1k", "-1", "99999999999G"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert!(Settings::default().set("segment_size", "5000").is_err());
    }

    #[test]
    fn unknown_settings_are_named() {
        let error = Settings::default().set("keep_version", "3").unwrap_err().to_string();
        assert!(error.contains("keep_version"), "{error}");
    }
}
