//! Trust domain aliases: principals written for one trust domain of the mesh hold for all of them.

/// The mesh's trust domain and its aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustDomains(Vec<String>);

impl TrustDomains {
    /// `domain` first, then its aliases, each once.
    pub fn new(domain: &str, aliases: &[String]) -> Self {
        let mut all = vec![domain.to_string()];
        for alias in aliases {
            if !all.contains(alias) {
                all.push(alias.clone());
            }
        }
        Self(all)
    }

    /// All names, the mesh's own first.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// `principals`, with those of a trust domain of the mesh written out for each of its names. `cluster.local` stands
    /// for the mesh's own domain whatever that is called.
    pub fn expand_principals(&self, principals: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for principal in principals {
            match self.domain_of(principal) {
                Some((domain, rest)) => {
                    for mine in &self.0 {
                        push(
                            &mut all,
                            if suffix_match(mine, domain) { principal.clone() } else { format!("{mine}/{rest}") },
                        );
                    }
                }
                None => push(&mut all, principal.clone()),
            }
        }
        all
    }

    /// `domains`, with any name of the mesh's trust domain written out as all of its names.
    pub fn expand_domains(&self, domains: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for domain in domains {
            if self.0.contains(domain) {
                self.0.iter().for_each(|mine| push(&mut all, mine.clone()));
            } else {
                push(&mut all, domain.clone());
            }
        }
        all
    }

    /// Trust domain and rest of a principal `<domain>/ns/<ns>/sa/<sa>`, when the domain is one of the mesh's.
    fn domain_of<'a>(&self, principal: &'a str) -> Option<(&'a str, &'a str)> {
        let (domain, rest) = principal.split_once('/')?;
        if rest.split('/').count() != 4 || domain == "*" {
            return None;
        }
        let known = domain == weft_core::well_known::DEFAULT_TRUST_DOMAIN
            || self.0.iter().any(|mine| mine == domain || wildcard_match(mine, domain));
        known.then_some((domain, rest))
    }
}

fn push(all: &mut Vec<String>, value: String) {
    if !all.contains(&value) {
        all.push(value);
    }
}

/// `pattern` is `*suffix` or `prefix*` and covers `text`.
fn wildcard_match(text: &str, pattern: &str) -> bool {
    suffix_match(text, pattern) || pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix))
}

fn suffix_match(text: &str, pattern: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|suffix| text.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_hold_for_all_aliases() {
        let domains = TrustDomains::new("td1", &["td2".into(), "td1".into()]);
        let expand = |p: &str| domains.expand_principals(&[p.to_string()]);
        assert_eq!(expand("td1/ns/a/sa/b"), ["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        assert_eq!(expand("cluster.local/ns/a/sa/b"), ["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        for as_it_is in ["other/ns/a/sa/b", "*", "*/ns/a/sa/b", "td1/ns/a", "*-suffix"] {
            assert_eq!(expand(as_it_is), [as_it_is]);
        }
        assert_eq!(domains.expand_domains(&["td2".into(), "x".into()]), ["td1", "td2", "x"]);
    }
}
