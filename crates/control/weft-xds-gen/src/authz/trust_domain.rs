//! Trust domain aliases: principals written for one trust domain of the mesh hold for all of them. And other meshes, whose
//! identities may connect: what a policy says without a trust domain is said of the own mesh.

use weft_model::MeshSnapshot;

/// The mesh's trust domain and its aliases, and those of other meshes that it has the roots of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrustDomains {
    own: Vec<String>,
    others: Vec<String>,
}

impl TrustDomains {
    /// Those of the mesh config.
    pub fn of(snapshot: &MeshSnapshot) -> Self {
        let others = snapshot.mesh.ca_certificates.iter().flat_map(|data| &data.trust_domains);
        Self::new(&snapshot.settings.trust_domain, &snapshot.mesh.trust_domain_aliases, others)
    }

    /// `domain` first, then its aliases, each once; of `others` those that are not the mesh's own.
    fn new<'a>(domain: &str, aliases: &[String], others: impl IntoIterator<Item = &'a String>) -> Self {
        let mut own = vec![domain.to_string()];
        aliases.iter().for_each(|alias| push(&mut own, alias.clone()));
        let mut foreign = Vec::new();
        others.into_iter().filter(|other| !own.contains(other)).for_each(|other| push(&mut foreign, other.clone()));
        Self { own, others: foreign }
    }

    /// Trust domains whose identities may connect, the mesh's own first. What the others may do is for policies to say, which
    /// never take them for ours.
    pub fn believed(&self) -> Vec<String> {
        [self.own.as_slice(), &self.others].concat()
    }

    /// The mesh's own, when others may connect as well; `None` when every caller is of the own mesh.
    pub fn own_among_others(&self) -> Option<&[String]> {
        (!self.others.is_empty()).then_some(&self.own)
    }

    /// `principals`, with those of a trust domain of the mesh written out for each of its names. `cluster.local` stands
    /// for the mesh's own domain whatever that is called.
    pub fn expand_principals(&self, principals: &[String]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for principal in principals {
            match self.domain_of(principal) {
                Some((domain, rest)) => {
                    for mine in &self.own {
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
            if self.own.contains(domain) {
                self.own.iter().for_each(|mine| push(&mut all, mine.clone()));
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
        // Unless a partner is called so.
        let default = weft_core::well_known::DEFAULT_TRUST_DOMAIN;
        let is_default = domain == default && !self.others.iter().any(|other| other == default);
        let known = is_default || self.own.iter().any(|mine| mine == domain || wildcard_match(mine, domain));
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
        let domains = TrustDomains::new("td1", &["td2".into(), "td1".into()], []);
        let expand = |p: &str| domains.expand_principals(&[p.to_string()]);
        assert_eq!(expand("td1/ns/a/sa/b"), ["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        assert_eq!(expand("cluster.local/ns/a/sa/b"), ["td1/ns/a/sa/b", "td2/ns/a/sa/b"]);
        for as_it_is in ["other/ns/a/sa/b", "*", "*/ns/a/sa/b", "td1/ns/a", "*-suffix"] {
            assert_eq!(expand(as_it_is), [as_it_is]);
        }
        assert_eq!(domains.expand_domains(&["td2".into(), "x".into()]), ["td1", "td2", "x"]);
    }

    #[test]
    fn class_impersonation_a_partner_called_cluster_local_is_not_taken_for_us() {
        let partner = ["cluster.local".to_string()];
        let principal = ["cluster.local/ns/x/sa/y".to_string()];
        let joined = TrustDomains::new("own", &[], &partner);
        assert_eq!(joined.expand_principals(&principal), principal);
        // Called so ourselves, we are meant.
        let ours = TrustDomains::new("own", &partner, &partner);
        assert_eq!(ours.expand_principals(&principal), ["own/ns/x/sa/y", &principal[0]]);
    }

    #[test]
    fn others_are_those_that_are_not_the_meshs_own() {
        let others = ["td2".to_string(), "partner".into(), "partner".into()];
        let alone = TrustDomains::new("td1", &["td2".into()], &others[..1]);
        assert_eq!((alone.own_among_others(), alone.believed().join(" ").as_str()), (None, "td1 td2"));
        let joined = TrustDomains::new("td1", &["td2".into()], &others);
        assert_eq!(joined.own_among_others().map(<[String]>::len), Some(2));
        assert_eq!(joined.believed().join(" "), "td1 td2 partner");
    }
}
