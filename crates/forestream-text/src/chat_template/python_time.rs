//! `strftime_now` as Hugging Face's templates know it, in UTC.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a time with the directives of Python's `strftime` that templates use.
pub(super) fn format(format: &str, time: SystemTime) -> Result<String, Error> {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let date = Date::from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month, weekday) = (MONTHS[date.month as usize - 1], WEEKDAYS[date.weekday as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let written = match characters.next() {
            Some('Y') => write!(text, "{}", date.year),
            Some('y') => write!(text, "{:02}", date.year % 100),
            Some('m') => write!(text, "{:02}", date.month),
            Some('d') => write!(text, "{:02}", date.day),
            Some('j') => write!(text, "{:03}", date.day_of_year),
            Some('B') => write!(text, "{month}"),
            Some('b') => write!(text, "{}", &month[..3]),
            Some('A') => write!(text, "{weekday}"),
            Some('a') => write!(text, "{}", &weekday[..3]),
            Some('H') => write!(text, "{hour:02}"),
            Some('I') => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some('M') => write!(text, "{minute:02}"),
            Some('S') => write!(text, "{second:02}"),
            Some('p') => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('%') => write!(text, "%"),
            other => {
                let directive: String = other.into_iter().collect();
                let message = format!("strftime_now: directive `%{directive}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        written.expect("writing to a string cannot fail");
    }
    Ok(text)
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
    weekday: u64,
}

impl Date {
    /// The Gregorian date of a number of days since 1970-01-01, a Thursday.
    fn from_days(days: u64) -> Self {
        let weekday = (days + 4) % 7;
        let mut year = 1970;
        let mut left = days;
        while left >= year_len(year) {
            left -= year_len(year);
            year += 1;
        }
        let day_of_year = left + 1;
        let mut month = 1;
        while left >= month_len(year, month) {
            left -= month_len(year, month);
            month += 1;
        }
        Self { year, month, day: left + 1, day_of_year, weekday }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_len(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_len(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_python() {
        // datetime.fromtimestamp(seconds, UTC).strftime(format) in Python 3.11.
        let cases = [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%A %d %B %Y, day %j", "Tuesday 29 February 2000, day 060"),
            (1_795_411_425, "%Y-%m-%d %H:%M:%S %p %I %a %y %%", "2026-11-23 05:23:45 AM 05 Mon 26 %"),
            (4_107_542_399, "%Y-%m-%d %I %p", "2100-02-28 11 PM"),
        ];
        for (seconds, directives, expected) in cases {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(format(directives, time).unwrap(), expected);
        }
        let message = format("%Q", UNIX_EPOCH).unwrap_err().to_string();
        assert!(message.contains("`%Q`"), "{message}");
    }
}
