//! Durations as the mesh's users write them: protobuf JSON (`0.5s`) and Go (`1h30m`, `250ms`).

use std::time::Duration;

/// The longest duration accepted: protobuf's own bound, 10 000 years.
const MAX_SECONDS: f64 = 315_576_000_000.0;

/// Reads a duration: one or more decimal numbers, each with a unit of `h`, `m`, `s`, `ms`, `us`, `µs` or `ns`.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write a number and a unit, such as 10s, 0.5s, 250ms or 1h30m");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.starts_with('-') {
        return Err(format!("{text:?} is negative; a duration must not be below 0s"));
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit_len] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number * factor;
        rest = &rest[unit_len..];
    }
    if !(0.0..=MAX_SECONDS).contains(&seconds) {
        return Err(format!("{text:?} is too long a duration; the limit is {MAX_SECONDS}s"));
    }
    // Rounded to nanoseconds: 0.3 s is not 299.999999 ms.
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// Writes a duration as protobuf JSON does: seconds with as many decimals as needed, and `s`.
pub fn format(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    if nanos == 0 {
        return format!("{}s", duration.as_secs());
    }
    let decimals = format!("{nanos:09}");
    format!("{}.{}s", duration.as_secs(), decimals.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (text, millis, back) in [
            ("10s", 10_000, "10s"),
            ("0.5s", 500, "0.5s"),
            ("250ms", 250, "0.25s"),
            ("1h30m", 5_400_000, "5400s"),
            ("3m", 180_000, "180s"),
            ("0", 0, "0s"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed, Duration::from_millis(millis), "{text}");
            assert_eq!(format(parsed), back);
        }
        for bad in ["", "10", "s", "-1s", "1x", "1.2.3s", "99999999999999999s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
