//! How numbers are told to people.

use std::fmt::Arguments;
use std::io::Write;
use std::time::Duration;

/// `println!` that does not panic when nobody reads any more, as in `fastcache-ctl state … | head`.
macro_rules! say {
    ($($what:tt)*) => { $crate::output::line(format_args!($($what)*)) };
}
pub(crate) use say;

/// See [`say`].
pub fn line(what: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let told = writeln!(out, "{what}").and_then(|()| out.flush());
    if let Err(error) = told {
        // a supervisor goes on, whoever reads
        tracing::debug!(%error, "standard output is closed");
    }
}

/// Bytes with a unit: `12 B`, `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut unit = 0;
    let mut tenths = u128::from(n) * 10 / 1024;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A part of a whole: `12 %`, `99.7 %`; `-` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    match tenths {
        0 if part > 0 => "<0.1 %".to_owned(),
        t if t % 10 == 0 => format!("{} %", t / 10),
        t => format!("{}.{} %", t / 10, t % 10),
    }
}

/// A duration in its two largest units: `3 d 4 h`, `2 min 5 s`, `0.4 s`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..10 => format!("{:.1} s", d.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

/// Seconds as JSON tells them; what is no duration is none.
pub fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (n, text) in table {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(percent(0, 0), "-");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(1, 100_000), "<0.1 %");
        assert_eq!(percent(5, 5), "100 %");
        assert_eq!(duration(Duration::from_millis(400)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(duration(Duration::from_secs(90_000)), "1 d 1 h");
        assert_eq!(seconds(-1.0), Duration::ZERO);
        assert_eq!(seconds(f64::NAN), Duration::ZERO);
    }
}
