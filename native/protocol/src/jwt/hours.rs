//! Checks from where and when a user may be connected.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::civil::{Date, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use super::claims::TimeRange;
use super::error::JwtError;

/// Whether an address is in one of the networks. If there are no networks, every address is
/// allowed. Text that is not a network contains no address.
#[must_use]
pub fn is_source_allowed<'a>(mut src: impl Iterator<Item = &'a str>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    let Some(first) = src.next() else {
        return true;
    };
    std::iter::once(first)
        .chain(src)
        .filter_map(|network| network.parse::<IpNet>().ok())
        .any(|network| network.contains(&address))
}

/// Whether a user may be connected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hours {
    /// There is no limit of time.
    Always,
    /// Yes, for this many milliseconds.
    For(i64),
    /// No.
    Closed,
}

/// Looks for the range that holds `now`, in milliseconds of Unix time. `offset` is for an empty
/// location: the seconds that the clock of the server is ahead of UTC.
#[must_use]
pub fn hours(times: &[TimeRange], location: &str, offset: i32, now: i64) -> Hours {
    if times.is_empty() {
        return Hours::Always;
    }
    let (Ok(zone), Ok(now)) = (
        time_zone(location, offset),
        Timestamp::from_millisecond(now),
    ) else {
        return Hours::Closed;
    };
    let now = now.to_zoned(zone);
    times
        .iter()
        .filter_map(|range| range.remaining(&now))
        .max()
        .map_or(Hours::Closed, Hours::For)
}

impl TimeRange {
    pub(super) fn parse(&self) -> Result<(Time, Time), JwtError> {
        let time = |text: &str| Time::strptime("%H:%M:%S", text).map_err(|_| JwtError::Times);
        Ok((time(&self.start)?, time(&self.end)?))
    }

    /// Milliseconds until the end of the range that began today or yesterday.
    fn remaining(&self, now: &Zoned) -> Option<i64> {
        let (start, end) = self.parse().ok()?;
        let today = now.date();
        [Some(today), today.yesterday().ok()]
            .into_iter()
            .flatten()
            .find_map(|day| {
                let last = if start > end {
                    day.tomorrow().ok()?
                } else {
                    day
                };
                let instant = |date: Date, time: Time| {
                    let zoned = date.to_datetime(time).to_zoned(now.time_zone().clone());
                    zoned.ok().map(|zoned| zoned.timestamp().as_millisecond())
                };
                let current = now.timestamp().as_millisecond();
                let left = instant(last, end)?.saturating_sub(current);
                (instant(day, start)? <= current && left > 0).then_some(left)
            })
    }
}

pub(super) fn time_zone(location: &str, offset: i32) -> Result<TimeZone, JwtError> {
    if location.is_empty() {
        Offset::from_seconds(offset)
            .map(Offset::to_time_zone)
            .map_err(|_| JwtError::Times)
    } else {
        TimeZone::get(location).map_err(|_| JwtError::Times)
    }
}
