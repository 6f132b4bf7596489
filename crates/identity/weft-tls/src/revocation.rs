//! Chains under revocation lists. Which list says something of a certificate is known by the issuer's name and proven by its
//! signature: two authorities of one name meet while one replaces the other. Every list of a name in the chain is looked at by
//! itself, so the work grows with their number, which [`TrustAnchors::with_crls`] bounds. Roots that publish no list revoke nothing by list.

use crate::TrustAnchors;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

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
        let is_subject = coverage == Coverage::Full || lists.iter().any(|list| self.is_concerned_by(list));
        if lists.is_empty() || !is_subject {
            return self.verify_under(&[], UnknownStatusPolicy::Allow, algorithms);
        }
        // Who is not to be believed anyway costs no more than that.
        self.verify_under(&[], UnknownStatusPolicy::Allow, algorithms)?;
        let (mut proven, mut others) = (Vec::new(), Vec::new());
        for list in lists.into_iter().filter(|list| self.is_concerned_by(list)) {
            match self.verify_under(&[list], UnknownStatusPolicy::Allow, algorithms) {
                Ok(()) => proven.push(list),
                // A list of the issuer itself says so; another one of its cannot take it back.
                Err(Error::CertRevoked) => return Err(Error::CertRevoked),
                // Of another key, or expired.
                Err(_) => others.push(list),
            }
        }
        // Of several lists of one name the first is looked at.
        proven.append(&mut others);
        self.verify_covered(&proven, algorithms)
    }

    /// Each certificate is covered by one of the lists. Without any none is.
    fn verify_covered(
        &self,
        lists: &[&CertRevocationList<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), Error> {
        match lists {
            [] => Err(Error::UnknownRevocationStatus),
            _ => self.verify_under(lists, UnknownStatusPolicy::Deny, algorithms),
        }
    }

    /// Without lists revocation is not looked at.
    fn verify_under(
        &self,
        lists: &[&CertRevocationList<'_>],
        unknown: UnknownStatusPolicy,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), Error> {
        let revocation = RevocationOptionsBuilder::new(lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(unknown)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let (intermediates, now) = (self.intermediates, self.now);
        self.leaf.verify_for_usage(algorithms, self.roots, intermediates, now, self.usage, revocation, None).map(|_| ())
    }

    /// Whether the issuer of one of these certificates has the name of the list's.
    fn is_concerned_by(&self, list: &CertRevocationList<'_>) -> bool {
        let of_intermediate = |der: &CertificateDer<'_>| match EndEntityCert::try_from(der) {
            Ok(certificate) => list.issuer() == certificate.issuer(),
            // No path leads over what cannot be read.
            Err(_) => false,
        };
        list.issuer() == self.leaf.issuer() || self.intermediates.iter().any(of_intermediate)
    }
}
