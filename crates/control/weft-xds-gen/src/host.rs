//! Hosts that two lists of patterns have in common.

use weft_model::hosts::covers;

/// Of each pair of patterns of `a` and `b` that overlap, the narrower one. In the order of `a`, each once.
pub(crate) fn intersection<A: AsRef<str>, B: AsRef<str>>(a: &[A], b: &[B]) -> Vec<String> {
    let mut common: Vec<String> = Vec::new();
    for x in a.iter().map(AsRef::as_ref) {
        for y in b.iter().map(AsRef::as_ref) {
            let narrower = if covers(y, x) {
                x
            } else if covers(x, y) {
                y
            } else {
                continue;
            };
            if !common.iter().any(|c| c == narrower) {
                common.push(narrower.to_string());
            }
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_is_taken() {
        for (a, b, want) in [
            (&["*"][..], &["a.com", "b.com"][..], &["a.com", "b.com"][..]),
            (&["*.com"], &["a.com", "b.org"], &["a.com"]),
            (&["a.com"], &["*.com", "*"], &["a.com"]),
            (&["a.com"], &["b.com"], &[]),
        ] {
            assert_eq!(intersection(a, b), want);
        }
    }
}
