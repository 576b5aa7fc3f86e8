//! Numbers with units, short enough for a table and never ambiguous: binary sizes say KiB, MiB, GiB.

/// `823 B`, `12.3 MiB`, `212 GiB`: three digits are enough to choose by.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = 0;
    loop {
        value /= 1024.0;
        // 1023.96 would print as 1024.0.
        if value < 1000.0 || unit + 1 == UNITS.len() {
            break;
        }
        unit += 1;
    }
    if value < 100.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// `48 213 442 560`: exact, and still countable.
pub(crate) fn exact(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `0.42 s`, `1 min 05 s`.
pub(crate) fn seconds(ns: u64) -> String {
    let s = ns as f64 / 1e9;
    if s < 0.0995 {
        format!("{:.1} ms", s * 1e3)
    } else if s < 60.0 {
        format!("{s:.2} s")
    } else {
        format!("{} min {:02} s", s as u64 / 60, s as u64 % 60)
    }
}

/// Events per second; a dash where nothing was measured.
pub(crate) fn rate(events: u64, ns: u64) -> String {
    if events == 0 || ns == 0 {
        return "–".into();
    }
    let rate = events as f64 * 1e9 / ns as f64;
    if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") }
}

/// `71.3 %` of a share between 0 and 1.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1023), "1.0 MiB");
        assert_eq!(bytes(212_902_871_040), "198 GiB");
        assert_eq!(exact(48_213_442_560), "48 213 442 560");
        assert_eq!(exact(12), "12");
        assert_eq!(exact(1000), "1 000");
    }

    #[test]
    fn times_and_rates() {
        assert_eq!(seconds(1_500_000), "1.5 ms");
        assert_eq!(seconds(2_345_000_000), "2.35 s");
        assert_eq!(seconds(65_000_000_000), "1 min 05 s");
        assert_eq!(rate(0, 5), "–");
        assert_eq!(rate(256, 2_000_000_000), "128");
        assert_eq!(rate(7, 2_000_000_000), "3.50");
        assert_eq!(percent(0.7131), "71.3 %");
    }
}
