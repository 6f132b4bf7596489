//! URI templates (`/a/*/b`, `/a/**`, `/a/{name}/b`, `/a/{name=x/*}`) as regular expressions.
//!
//! `*` and `{name}` stand for one or more characters other than `/`; `**` stands for any text, also none. A `*` in a
//! request's path is a character like any other: a matcher that leaves it out of `*` lets such paths slip past a DENY rule.

use std::collections::BTreeSet;

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 1024;

/// The pattern of a regular expression (to be anchored by the caller) that matches what the template matches.
///
/// # Errors
/// A sentence that says what is wrong with the template.
pub fn template_regex(template: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("{template:?} is not a path template: {why}"));
    if !template.starts_with('/') {
        return wrong("it must begin with /");
    }
    if template.len() > MAX_TEMPLATE {
        return wrong("it is too long");
    }
    let mut out = String::with_capacity(template.len() * 2);
    let mut names = BTreeSet::new();
    let mut rest = template;
    let mut any_text = false;
    while let Some(c) = rest.chars().next() {
        let operator = matches!(c, '*' | '{');
        if operator && any_text {
            return wrong("nothing but text may follow **");
        }
        rest = match c {
            '*' => glob(rest, &mut out, &mut any_text),
            '{' => {
                let Some(end) = rest.find('}') else { return wrong("{ has no }") };
                if let Err(why) = variable(&rest[1..end], &mut names, &mut out, &mut any_text) {
                    return wrong(why);
                }
                &rest[end + 1..]
            }
            '}' => return wrong("} has no {"),
            '?' | '#' => return wrong("it must not hold ? or #"),
            _ => {
                out.push_str(&regex::escape(&rest[..c.len_utf8()]));
                &rest[c.len_utf8()..]
            }
        };
    }
    Ok(out)
}

fn glob<'t>(rest: &'t str, out: &mut String, any_text: &mut bool) -> &'t str {
    if let Some(after) = rest.strip_prefix("**") {
        out.push_str("(?s:.*)");
        *any_text = true;
        return after;
    }
    out.push_str("[^/]+");
    &rest[1..]
}

/// The inside of braces: `name`, `name=segments`, or Istio's `*` and `**`.
fn variable<'t>(
    inside: &'t str,
    names: &mut BTreeSet<&'t str>,
    out: &mut String,
    any_text: &mut bool,
) -> Result<(), &'static str> {
    let (name, pattern) = inside.split_once('=').unwrap_or((inside, "*"));
    if matches!(inside, "*" | "**") {
        glob(inside, out, any_text);
        return Ok(());
    }
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err("a variable's name is made of letters, digits and _");
    }
    if !names.insert(name) {
        return Err("a variable occurs twice");
    }
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        if c == '{' || (*any_text && c == '*') {
            return Err("a variable holds text, * and, last, **");
        }
        if c == '*' {
            rest = glob(rest, out, any_text);
        } else {
            out.push_str(&regex::escape(&rest[..c.len_utf8()]));
            rest = &rest[c.len_utf8()..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    #[test]
    fn matches() {
        let mut pool = Pool::default();
        for (template, path, want) in [
            ("/path/template/*", "/path/template/a", true),
            ("/path/template/*", "/path/template/a/b", false),
            ("/path/template/*", "/path/template/", false),
            ("/path/template/*", "/path/template/*", true),
            ("/path/template/*", "/path/template/a*b", true),
            ("/path/template/*", "/path/template/a%20b", true),
            ("/**/path/template", "/x/y/path/template", true),
            ("/**/path/template", "/path/template", false),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c*", true),
            ("/a/**", "/ab", false),
            ("/a/{name}/b", "/a/x/b", true),
            ("/a/{name}/b", "/a/x/y/b", false),
            ("/a/{name=x/*}/b", "/a/x/1/b", true),
            ("/a/{name=x/*}/b", "/a/y/1/b", false),
            ("/a/{*}/{**}", "/a/b/c/d", true),
            ("/a.b/*", "/aXb/c", false),
            ("/v/*.ts", "/v/1.ts", true),
        ] {
            let regex = pool.whole(&template_regex(template).unwrap()).unwrap();
            assert_eq!(regex.is_match(path.as_bytes()), want, "{template} {path}");
        }
        for bad in ["", "a", "/{", "/}", "/{a}/{a}", "/**/*", "/{a=**}/{b}", "/?x", "/{a-b}", "/{=x}"] {
            assert!(template_regex(bad).is_err(), "{bad}");
        }
    }
}
