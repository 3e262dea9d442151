//! When a device may fetch and when it may activate: windows of local time, a pause by the fleet's
//! operators, and a lock that the application on the gateway holds. Pure: `now` and the offset from UTC are
//! arguments.

use std::fmt;
use std::str::FromStr;

use farlight_wire::Millis;
use serde::{Deserialize, Serialize};

const MINUTES_A_DAY: u16 = 24 * 60;
const MINUTES_A_WEEK: u32 = 7 * MINUTES_A_DAY as u32;
/// Unix time began on a Thursday; Monday is day 0 here.
const EPOCH_WEEKDAY: u64 = 3;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Longest lock that one request can take: an application that is gone must not hold updates for ever.
pub const MAX_LOCK: Millis = Millis::from_secs(24 * 60 * 60);
/// Longest pause that one command can order.
pub const MAX_PAUSE: Millis = Millis::from_secs(31 * 24 * 60 * 60);

/// Why an activation waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The operators paused updates until then.
    Paused(Millis),
    /// The application holds the update lock until then.
    Locked {
        /// Who, as it named itself.
        holder: String,
        /// Until when at most.
        until: Millis,
    },
    /// No activation window is open.
    OutsideWindow,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(until) => write!(f, "updates are paused until {} ms", until.0),
            Self::Locked { holder, until } => {
                write!(f, "{holder} holds the update lock until {} ms", until.0)
            }
            Self::OutsideWindow => f.write_str("no activation window is open"),
        }
    }
}

/// A window of local time that repeats every week: `mon-fri 22:00-04:00`, `sat 00:00-24:00`, `01:00-05:00`
/// (every day). One that ends before it begins goes on into the next day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    days: [bool; 7],
    from: u16,
    to: u16,
    text: String,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no window; write for example `mon-fri 22:00-04:00` or `01:00-05:00`")]
pub struct WindowError(String);

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let wrong = || WindowError(text.chars().take(80).collect());
        let (days, times) = match text.trim().rsplit_once(' ') {
            Some((days, times)) => (parse_days(days).ok_or_else(wrong)?, times),
            None => ([true; 7], text.trim()),
        };
        let (from, to) = times.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (parse_time(from).ok_or_else(wrong)?, parse_time(to).ok_or_else(wrong)?);
        if from == to || from == MINUTES_A_DAY {
            return Err(wrong());
        }
        Ok(Self { days, from, to, text: text.trim().to_owned() })
    }
}

impl TryFrom<String> for Window {
    type Error = WindowError;

    fn try_from(text: String) -> Result<Self, WindowError> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.text
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let index = |name: &str| DAYS.iter().position(|day| *day == name.trim());
    let mut days = [false; 7];
    for part in text.to_ascii_lowercase().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (index(first)?, index(last)?);
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

fn parse_time(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let time = hours * 60 + minutes;
    (minutes < 60 && time <= MINUTES_A_DAY).then_some(time)
}

impl Window {
    /// Whether the window is open at `now` where local time is `offset_minutes` ahead of UTC.
    pub fn is_open(&self, now: Millis, offset_minutes: i32) -> bool {
        let minute = (now.0 / 60_000).saturating_add_signed(i64::from(offset_minutes));
        let minute = minute.saturating_add(EPOCH_WEEKDAY * u64::from(MINUTES_A_DAY));
        let minute = (minute % u64::from(MINUTES_A_WEEK)) as u32;
        let day = (minute / u32::from(MINUTES_A_DAY)) as usize;
        let time = (minute % u32::from(MINUTES_A_DAY)) as u16;
        if self.from < self.to {
            return self.days[day] && (self.from..self.to).contains(&time);
        }
        let yesterday = (day + 6) % 7;
        (self.days[day] && time >= self.from) || (self.days[yesterday] && time < self.to)
    }
}

/// Whether any window is open; without windows it is always time.
pub fn is_open(windows: &[Window], now: Millis, offset_minutes: i32) -> bool {
    windows.is_empty() || windows.iter().any(|window| window.is_open(now, offset_minutes))
}

/// What holds an activation at `now`, if anything. What is longest binding comes first.
pub fn hold(
    paused_until: Millis,
    lock: Option<(&str, Millis)>,
    windows: &[Window],
    now: Millis,
    offset_minutes: i32,
) -> Option<Hold> {
    if paused_until > now {
        return Some(Hold::Paused(paused_until));
    }
    if let Some((holder, until)) = lock.filter(|(_, until)| *until > now) {
        return Some(Hold::Locked { holder: holder.to_owned(), until });
    }
    (!is_open(windows, now, offset_minutes)).then_some(Hold::OutsideWindow)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Monday, 2024-01-01 00:00 UTC.
    const MONDAY: u64 = 1_704_067_200_000;

    fn at(day: u64, hour: u64, minute: u64) -> Millis {
        Millis(MONDAY + ((day * 24 + hour) * 60 + minute) * 60_000)
    }

    #[test]
    fn windows_open_and_close_in_local_time() {
        let night: Window = "mon-fri 22:00-04:00".parse().unwrap();
        for (day, hour, minute, offset, open) in [
            (0, 22, 0, 0, true),
            (0, 21, 59, 0, false),
            (1, 3, 59, 0, true),
            (1, 4, 0, 0, false),
            (5, 3, 0, 0, true),   // Friday's window goes on into Saturday.
            (5, 23, 0, 0, false), // Saturday has none.
            (0, 3, 0, 0, false),  // Sunday had none.
            (0, 20, 0, 120, true),
            (1, 0, 30, -300, false),
        ] {
            assert_eq!(
                night.is_open(at(day, hour, minute), offset),
                open,
                "{day} {hour}:{minute} {offset:+}"
            );
        }
        let weekend: Window = "Sat,Sun 00:00-24:00".parse().unwrap();
        assert!(weekend.is_open(at(6, 23, 59), 0) && !weekend.is_open(at(7, 0, 0), 0));
        let wrapped: Window = "sat-mon 10:00-11:00".parse().unwrap();
        assert!(wrapped.is_open(at(0, 10, 0), 0) && !wrapped.is_open(at(1, 10, 0), 0));
        let daily: Window = "01:00-05:00".parse().unwrap();
        assert!((0..7).all(|day| daily.is_open(at(day, 2, 0), 0)));
        // A clock that was never set does not break anything.
        assert!(!daily.is_open(Millis(0), -720));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "mon",
            "25:00-26:00",
            "1:00-2:00",
            "foo 01:00-02:00",
            "01:00",
            "01:00-01:00",
            "24:00-01:00",
            "01:60-02:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        assert_eq!("mon 01:00-02:00".parse::<Window>().unwrap().to_string(), "mon 01:00-02:00");
    }

    #[test]
    fn pause_goes_before_lock_and_lock_before_windows() {
        let windows = ["01:00-02:00".parse().unwrap()];
        let now = at(0, 12, 0);
        let later = now.plus(Millis(1));
        assert_eq!(hold(later, Some(("app", later)), &windows, now, 0), Some(Hold::Paused(later)));
        let locked = Hold::Locked { holder: "app".into(), until: later };
        assert_eq!(hold(Millis(0), Some(("app", later)), &windows, now, 0), Some(locked));
        assert_eq!(hold(now, Some(("app", now)), &windows, now, 0), Some(Hold::OutsideWindow));
        assert_eq!(hold(now, None, &[], now, 0), None);
    }
}
