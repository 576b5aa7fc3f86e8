//! The functions that transformers adds to Jinja, and its own `tojson`.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

use super::json::{self, Style};

/// The template called `raise_exception`; carried as the source of an engine error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(pub(super) String);

/// `raise_exception(message)`: the template refuses to render.
pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()).with_source(Refusal(message.to_owned())))
}

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`: what Python's `json.dumps`
/// writes with these arguments. The engine's own filter escapes `<`, `&` and `'` for HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(spaces(&indent)?),
        }),
    };
    let item_separator = if indent.is_some() { "," } else { ", " };
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators are a pair of strings")),
        None => (item_separator.into(), ": ".into()),
    };
    let style = Style {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from(json::dumps(&json, &style)))
}

fn spaces(indent: &Value) -> Result<usize, Error> {
    usize::try_from(indent.clone())
        .ok()
        .filter(|spaces| *spaces <= 64)
        .ok_or_else(|| invalid("indent is a string or a number up to 64"))
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// `strftime_now(format)`: the date and time in UTC, since the local time zone is not known without the C library.
/// An unknown directive is an error rather than a wrong prompt.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let time = seconds % 86_400;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let weekday = (days + 4) as usize % 7;
    let day_of_year = days - days_to(year, 1, 1) + 1;
    let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut directive = chars.next();
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let number = |value: u64, width: usize| match bare {
            true => value.to_string(),
            false => format!("{value:0width$}"),
        };
        out.push_str(&match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('A') => DAYS[weekday].into(),
            Some('a') => DAYS[weekday][..3].into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            _ => return Err(invalid("strftime_now: unknown directive in the format")),
        });
    }
    Ok(out)
}

/// The Gregorian date of a day counted from 1970-01-01: year, month, day.
fn civil(days: u64) -> (u64, u64, u64) {
    // No clock is set past the year 9999.
    let days = days.min(2_932_896);
    let mut year = 1970 + days / 366;
    while days_to(year + 1, 1, 1) <= days {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days_to(year, *month, 1) <= days).unwrap_or(1);
    (year, month, days - days_to(year, month, 1) + 1)
}

/// Days from 1970-01-01 to a date not before it.
fn days_to(year: u64, month: u64, day: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let in_year = BEFORE[month as usize - 1] + u64::from(is_leap && month > 2) + day - 1;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969) + in_year
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at =
            |seconds| strftime("%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %-d %-m %I%p %e %F %T %Z %z %%", seconds);
        assert_eq!(
            at(0).unwrap(),
            "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 1 1 12AM  1 1970-01-01 00:00:00 UTC +0000 %"
        );
        assert_eq!(
            at(1_709_210_096).unwrap(),
            "2024-02-29 12:34:56 Thu Thursday Feb February 060 24 29 2 12PM 29 2024-02-29 12:34:56 UTC +0000 %"
        );
        assert_eq!(strftime("%d %b %Y", 4_102_444_799).unwrap(), "31 Dec 2099");
        assert_eq!(strftime("%F", 951_782_400).unwrap(), "2000-02-29");
        assert!(strftime("%F", u64::MAX).is_ok());
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err() && strftime("%-", 0).is_err());
    }
}
