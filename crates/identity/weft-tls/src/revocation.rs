//! Chains under revocation lists. Which list says something of a certificate is known by the issuer's name and proven by its
//! signature; roots that publish no list revoke nothing by list.

use crate::TrustAnchors;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder,
};

/// Most ways to pair issuers of one name with lists of that name. Two authorities of one name meet while one replaces the other.
const MAX_WAYS: usize = 16;

/// Which certificates must be covered by a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// All of a chain in which some issuer has a list. Another mesh, whose authority gives us none, is not refused for it; and
    /// a chain to a root with a list cannot evade it, for it holds a certificate that the root issued.
    OfTheirOwn,
    /// All, whoever issued them: what Envoy demands.
    Full,
}

/// A chain to be checked.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub leaf: &'a EndEntityCert<'a>,
    pub intermediates: &'a [CertificateDer<'a>],
    pub roots: &'a [TrustAnchor<'a>],
    pub now: UnixTime,
    pub usage: KeyUsage,
}

impl Chain<'_> {
    /// Checks signatures, validity, purpose and, under the lists of `anchors`, revocation.
    ///
    /// # Errors
    /// Why not to believe it.
    pub fn verify(
        &self,
        anchors: &TrustAnchors,
        coverage: Coverage,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), Error> {
        let lists: Vec<&CertRevocationList<'_>> = anchors.crls().iter().map(AsRef::as_ref).collect();
        if lists.is_empty() || (coverage == Coverage::OfTheirOwn && !self.concerned_by(&lists)) {
            return self.verify_under(&[], algorithms);
        }
        let mut first = None;
        let mut good = false;
        for order in orders(&lists) {
            match self.verify_under(&order, algorithms) {
                Ok(()) => good = true,
                // A list of the issuer itself says so; another one of its cannot take it back.
                Err(Error::CertRevoked) => return Err(Error::CertRevoked),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        match (good, first) {
            (false, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn verify_under(
        &self,
        lists: &[&CertRevocationList<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), Error> {
        let revocation = RevocationOptionsBuilder::new(lists).ok().map(|builder| {
            builder.with_depth(RevocationCheckDepth::Chain).with_expiration_policy(ExpirationPolicy::Enforce).build()
        });
        let (intermediates, now) = (self.intermediates, self.now);
        self.leaf.verify_for_usage(algorithms, self.roots, intermediates, now, self.usage, revocation, None).map(|_| ())
    }

    /// Whether the issuer of one of these certificates has a list.
    fn concerned_by(&self, lists: &[&CertRevocationList<'_>]) -> bool {
        let covered = |issuer: &[u8]| lists.iter().any(|list| list.issuer() == issuer);
        let of_intermediate = |der: &CertificateDer<'_>| match EndEntityCert::try_from(der) {
            Ok(certificate) => covered(certificate.issuer()),
            // No path leads over what cannot be read.
            Err(_) => false,
        };
        covered(self.leaf.issuer()) || self.intermediates.iter().any(of_intermediate)
    }
}

/// The lists in orders in which each list of an issuer's name comes first once: of several of one name only the first is looked
/// at, and it may be of another key.
fn orders<'a, 'l>(lists: &[&'a CertRevocationList<'l>]) -> Vec<Vec<&'a CertRevocationList<'l>>> {
    let mut names: Vec<&[u8]> = lists.iter().map(|list| list.issuer()).collect();
    names.sort_unstable();
    names.dedup();
    let mut out = vec![Vec::new()];
    for name in names {
        let of_name: Vec<_> = lists.iter().copied().filter(|list| list.issuer() == name).collect();
        let mut next = Vec::new();
        for before in &out {
            for turn in 0..of_name.len() {
                let mut one: Vec<_> = before.clone();
                one.extend(of_name[turn..].iter().chain(&of_name[..turn]).copied());
                next.push(one);
            }
        }
        next.truncate(MAX_WAYS);
        out = next;
    }
    out
}
