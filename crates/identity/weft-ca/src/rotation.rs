//! Replacing an authority without a gap, as changes to the data of its Secret. Pure: who trusts what by now is found out by
//! the caller, and decides when the next step may be taken.
//!
//! | step | signs | trusted | taken when |
//! |---|---|---|---|
//! | [`announce`] | old | old, new | at once |
//! | [`switch`] | new | new, old | every workload trusts both |
//! | [`finish`] | new | new | no workload shows a certificate of the old any more |
//!
//! A new intermediate under a root that is trusted already needs no more than all of it in one; with lists, [`announce`] comes
//! first and by itself, until every workload has those of both.
//!
//! # Revocation lists
//! A workload that has lists refuses a chain that they do not cover (an Envoy any chain). So from the announcement to the end the
//! lists of both authorities are given, merged; an authority without lists cannot follow one that has them, and lists that come
//! with the new authority alone are given when the rotation is finished, when nothing of the old one is shown any more. Lists
//! that the user changes meanwhile stay as they are.

use crate::material::{CA_CERT, CA_CRL, CA_KEY, CERT_CHAIN, ROOT_CERT};
use crate::{CaMaterial, MaterialError};
use std::collections::BTreeMap;
use weft_tls::{TlsError, pem};

/// The data of a Secret, decoded.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// The authority that is going to sign, under the usual keys with this in front.
const NEXT: &str = "next-";
/// Roots that are trusted until the rotation is finished.
const OLD_ROOTS: &str = "old-root-cert.pem";
/// Revocation lists of the authority that signed before.
const OLD_LISTS: &str = "old-ca-crl.pem";

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// None is under way.
    Steady,
    /// The new root is announced, the old authority still signs.
    Announced,
    /// The new authority signs, the old root is still trusted.
    Switched,
}

impl Phase {
    /// The word for users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Announced => "announced: both roots are trusted, the old authority signs",
            Self::Switched => "switched: the new authority signs, both roots are trusted",
        }
    }
}

/// Why a step cannot be taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RotationError {
    /// The Secret or the new authority lacks something.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// A certificate cannot be read.
    #[error("{0}")]
    Certificate(String),
    /// The lists of one authority do not fit the other.
    #[error("{0}")]
    Lists(&'static str),
    /// The step is out of order.
    #[error("{step} is not what comes next: the rotation is {}", .phase.as_str())]
    Order {
        /// The step.
        step: &'static str,
        /// Where the rotation stands.
        phase: Phase,
    },
}

impl From<TlsError> for RotationError {
    fn from(error: TlsError) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// Where the Secret's rotation stands.
pub fn phase(data: &SecretData) -> Phase {
    match (data.contains_key(&format!("{NEXT}{CA_CERT}")), data.contains_key(OLD_ROOTS)) {
        (true, _) => Phase::Announced,
        (false, true) => Phase::Switched,
        (false, false) => Phase::Steady,
    }
}

/// True when what `next` signs is trusted already under the roots of `data`: only an intermediate changes.
///
/// # Errors
/// When a certificate cannot be read.
pub fn same_root(data: &SecretData, next: &CaMaterial) -> Result<bool, RotationError> {
    let now = CaMaterial::from_secret(data)?;
    let trusted = pem::certificates("root-cert.pem", now.root_cert.as_bytes())?;
    let wanted = pem::certificates("root-cert.pem", next.root_cert.as_bytes())?;
    Ok(wanted.iter().all(|root| trusted.contains(root)))
}

/// Both roots are trusted from now on, the old authority goes on signing, and the new one is kept beside it.
///
/// # Errors
/// When a rotation is under way, or a certificate cannot be read.
pub fn announce(data: &SecretData, next: &CaMaterial) -> Result<SecretData, RotationError> {
    expect(data, Phase::Steady, "announcing a root")?;
    let now = CaMaterial::from_secret(data)?;
    let roots = pem::merge("root-cert.pem", &[&now.root_cert, &next.root_cert])?;
    let mut out = data.clone();
    match (now.crl.is_empty(), next.crl.is_empty()) {
        (true, true) => {}
        (false, true) => {
            return Err(RotationError::Lists(
                "the authority in force has revocation lists (ca-crl.pem) and the new one has none: workloads would refuse what it \
             signs; give lists of it, empty ones if nothing is revoked (--from-dir with ca-crl.pem), or take ca-crl.pem out of \
             the Secret first",
            ));
        }
        (true, false) if same_root(data, next)? => {
            return Err(RotationError::Lists(
                "the new intermediate has revocation lists (ca-crl.pem) and the authority in force has none: workloads would refuse \
             what it has signed; give it lists first",
            ));
        }
        (true, false) => {}
        (false, false) => {
            out.insert(CA_CRL.into(), pem::merge_lists(&[&now.crl, &next.crl])?.into_bytes());
            out.insert(OLD_LISTS.into(), now.crl.clone().into_bytes());
        }
    }
    out.insert(ROOT_CERT.into(), roots.into_bytes());
    out.entry(CERT_CHAIN.into()).or_default();
    out.insert(OLD_ROOTS.into(), now.root_cert.into_bytes());
    for (key, value) in full(next) {
        out.insert(format!("{NEXT}{key}"), value);
    }
    Ok(out)
}

/// The announced authority signs from now on; both roots stay trusted, the new one first.
///
/// # Errors
/// When nothing is announced, or a certificate cannot be read.
pub fn switch(data: &SecretData) -> Result<SecretData, RotationError> {
    expect(data, Phase::Announced, "switching")?;
    let mut out = data.clone();
    // Lists stay: those of both, or none.
    for key in [CA_CERT, CA_KEY, ROOT_CERT, CERT_CHAIN] {
        if let Some(value) = out.remove(&format!("{NEXT}{key}")) {
            out.insert(key.into(), value);
        }
    }
    let new = CaMaterial::from_secret(&out)?;
    let old = text(data, OLD_ROOTS);
    out.insert(ROOT_CERT.into(), pem::merge("root-cert.pem", &[&new.root_cert, &old])?.into_bytes());
    Ok(out)
}

/// The old root is trusted no longer.
///
/// # Errors
/// When the new authority does not sign yet, or a certificate cannot be read.
pub fn finish(data: &SecretData) -> Result<SecretData, RotationError> {
    expect(data, Phase::Switched, "dropping the old root")?;
    let now = CaMaterial::from_secret(data)?;
    let old = pem::certificates("old-root-cert.pem", text(data, OLD_ROOTS).as_bytes())?;
    let mut kept = pem::certificates("root-cert.pem", now.root_cert.as_bytes())?;
    kept.retain(|root| !old.contains(root));
    let mut out = data.clone();
    out.remove(OLD_ROOTS);
    let unchanged = lists_as_announced(data)?;
    let (next, old) = (out.remove(&format!("{NEXT}{CA_CRL}")), out.remove(OLD_LISTS));
    // Where the root stays, certificates of the old intermediate are shown until they end, and need its list.
    if let Some(lists) = next.filter(|_| unchanged && (!kept.is_empty() || old.is_none())) {
        out.insert(CA_CRL.into(), lists);
    }
    // Old and new share the root: an intermediate was replaced, and nothing is to be dropped.
    if !kept.is_empty() {
        out.insert(ROOT_CERT.into(), pem::encode_chain(&kept).into_bytes());
    }
    Ok(out)
}

/// Takes an announcement back: the old authority goes on as if nothing had been said.
///
/// # Errors
/// When nothing is announced.
pub fn cancel(data: &SecretData) -> Result<SecretData, RotationError> {
    expect(data, Phase::Announced, "cancelling")?;
    let mut out = data.clone();
    let unchanged = lists_as_announced(data)?;
    out.retain(|key, _| !key.starts_with(NEXT));
    if let Some(lists) = out.remove(OLD_LISTS).filter(|_| unchanged) {
        out.insert(CA_CRL.into(), lists);
    }
    if let Some(old) = out.remove(OLD_ROOTS) {
        out.insert(ROOT_CERT.into(), old);
    }
    Ok(out)
}

/// Whether the lists in force are those that the announcement put there; if not, the user has changed them since.
fn lists_as_announced(data: &SecretData) -> Result<bool, RotationError> {
    let (old, next) = (text(data, OLD_LISTS), text(data, &format!("{NEXT}{CA_CRL}")));
    let merged = if old.is_empty() { String::new() } else { pem::merge_lists(&[&old, &next])? };
    Ok(text(data, CA_CRL).trim() == merged.trim())
}

fn expect(data: &SecretData, wanted: Phase, step: &'static str) -> Result<(), RotationError> {
    let phase = phase(data);
    if phase == wanted { Ok(()) } else { Err(RotationError::Order { step, phase }) }
}

fn text(data: &SecretData, key: &str) -> String {
    data.get(key).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

/// All keys, also those that a self-signed authority leaves out.
fn full(material: &CaMaterial) -> SecretData {
    let mut data = material.to_secret();
    data.entry(ROOT_CERT.into()).or_insert_with(|| material.root_cert.clone().into_bytes());
    data.entry(CERT_CHAIN.into()).or_default();
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, CaPolicy};
    use std::time::{Duration, SystemTime};
    use weft_identity::{SpiffeId, TrustDomain};
    use weft_tls::{KeyKind, San, TrustAnchors, generate_key_and_csr};

    fn authority() -> Authority {
        Authority::self_signed(domain(), CaPolicy::default(), SystemTime::now()).unwrap()
    }

    fn domain() -> TrustDomain {
        TrustDomain::new("td").unwrap()
    }

    fn load(data: &SecretData) -> Authority {
        let material = CaMaterial::from_secret(data).unwrap();
        Authority::from_material(material, domain(), CaPolicy::default(), SystemTime::now()).unwrap()
    }

    /// Who signs, and how many roots are trusted, the first of which must be the signer's.
    fn state(data: &SecretData, old: &Authority) -> (bool, usize, bool) {
        let now = load(data);
        let roots = now.roots().certificates();
        let signer_first = TrustAnchors::from_pem(pem::encode_chain(&roots[..1]).as_bytes()).unwrap();
        let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap();
        let csr = generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(id.to_string())]).unwrap().csr_pem;
        let leaf = now.sign(&id, &[], csr.as_bytes(), Duration::ZERO, SystemTime::now()).unwrap().chain[0].clone();
        let leaf = pem::certificates("leaf", leaf.as_bytes()).unwrap();
        let by_old = old.roots().verify_chain(&leaf, SystemTime::now()).is_ok();
        (by_old, roots.len(), signer_first.verify_chain(&leaf, SystemTime::now()).is_ok())
    }

    #[test]
    fn old_both_new() {
        let (old, new) = (authority(), authority());
        let data = old.material().to_secret();
        assert_eq!((phase(&data), state(&data, &old)), (Phase::Steady, (true, 1, true)));
        assert!(!same_root(&data, new.material()).unwrap());
        let announced = announce(&data, new.material()).unwrap();
        assert_eq!((phase(&announced), state(&announced, &old)), (Phase::Announced, (true, 2, true)));
        assert_eq!(phase(&cancel(&announced).unwrap()), Phase::Steady);
        assert_eq!(state(&cancel(&announced).unwrap(), &old), (true, 1, true));
        let switched = switch(&announced).unwrap();
        assert_eq!((phase(&switched), state(&switched, &old)), (Phase::Switched, (false, 2, true)));
        let finished = finish(&switched).unwrap();
        assert_eq!((phase(&finished), state(&finished, &old)), (Phase::Steady, (false, 1, true)));
        assert_eq!(load(&finished).root_pem().trim(), new.root_pem().trim());
        assert!(!finished.keys().any(|key| key.starts_with(NEXT) || key == OLD_ROOTS));
        // And once more.
        let third = authority();
        let again = finish(&switch(&announce(&finished, third.material()).unwrap()).unwrap()).unwrap();
        assert_eq!(state(&again, &new), (false, 1, true));
    }

    fn list(authority: &Authority) -> String {
        let material = authority.material();
        let issuer = weft_tls::Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let now = SystemTime::now();
        issuer.revocation_list(&[], now - Duration::from_secs(60), now + Duration::from_secs(600)).unwrap()
    }

    fn with_list(authority: Authority) -> Authority {
        let lists = list(&authority);
        authority.with_lists(lists).unwrap()
    }

    /// How many lists are in force, and whether they cover what is signed now and what the old one has signed.
    fn lists(data: &SecretData, old: &Authority) -> (usize, bool, bool) {
        let now = load(data);
        let crl = &now.material().crl;
        let count = if crl.is_empty() { 0 } else { pem::revocation_lists(crl.as_bytes()).unwrap().len() };
        let roots = now.roots().clone();
        let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap();
        let csr = generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(id.to_string())]).unwrap().csr_pem;
        let leaf = old.sign(&id, &[], csr.as_bytes(), Duration::ZERO, SystemTime::now()).unwrap().chain[0].clone();
        let leaf = pem::certificates("leaf", leaf.as_bytes()).unwrap();
        let anchors = if count == 0 { Ok(roots) } else { roots.with_crls(crl.as_bytes()) };
        let of_old = anchors.unwrap().verify_unrevoked(&leaf, SystemTime::now()).is_ok();
        (count, now.check_lists(SystemTime::now()).is_ok(), of_old)
    }

    #[test]
    fn revocation_lists_cover_both_until_the_end() {
        let (old, new) = (with_list(authority()), with_list(authority()));
        let data = old.material().to_secret();
        assert_eq!(lists(&data, &old), (1, true, true));
        let announced = announce(&data, new.material()).unwrap();
        assert_eq!(lists(&announced, &old), (2, true, true));
        assert_eq!(cancel(&announced).unwrap().get(CA_CRL), data.get(CA_CRL));
        let switched = switch(&announced).unwrap();
        assert_eq!(lists(&switched, &old), (2, true, true));
        let finished = finish(&switched).unwrap();
        assert_eq!(lists(&finished, &old), (1, true, false));
        assert_eq!(finished[CA_CRL], new.material().crl.as_bytes());
        let left: Vec<_> = finished.keys().filter(|key| key.starts_with(NEXT) || key.starts_with("old-")).collect();
        assert!(left.is_empty(), "{left:?}");
        // Lists that the user changes under way stay.
        let mut changed = switched.clone();
        let fresh = format!("{}{}", list(&old), list(&new));
        changed.insert(CA_CRL.into(), fresh.clone().into_bytes());
        assert_eq!(finish(&changed).unwrap()[CA_CRL], fresh.as_bytes());
    }

    #[test]
    fn lists_of_one_authority_alone() {
        // Those of the new one come when nothing of the old one is shown any more.
        let (old, new) = (authority(), with_list(authority()));
        let announced = announce(&old.material().to_secret(), new.material()).unwrap();
        let switched = switch(&announced).unwrap();
        assert_eq!((lists(&announced, &old), lists(&switched, &old)), ((0, true, true), (0, true, true)));
        assert_eq!(lists(&finish(&switched).unwrap(), &old).0, 1);
        assert!(!cancel(&announced).unwrap().contains_key(CA_CRL));
        // Nobody would believe what one without lists signs.
        let error = announce(&new.material().to_secret(), old.material()).unwrap_err().to_string();
        assert!(error.contains("the new one has none"), "{error}");
    }

    #[test]
    fn lists_that_cover_nothing_are_found() {
        let (ours, other) = (authority(), authority());
        let now = SystemTime::now();
        let material = ours.material().clone();
        let issuer = weft_tls::Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let hour = Duration::from_secs(3600);
        let expired = issuer.revocation_list(&[], now - 2 * hour, now - hour).unwrap();
        for lists in [expired, list(&other)] {
            let held = CaMaterial { crl: lists, ..material.clone() };
            let held = Authority::from_material(held, domain(), CaPolicy::default(), now).unwrap();
            let error = held.check_lists(now).unwrap_err().to_string();
            assert!(error.contains("no workload would be believed"), "{error}");
        }
        let good = ours.with_lists(issuer.revocation_list(&[], now, now + hour).unwrap()).unwrap();
        good.check_lists(now).unwrap();
        let until = good.lists_until().unwrap().duration_since(now).unwrap();
        assert!(until > hour - Duration::from_secs(2) && until <= hour, "{until:?}");
    }

    #[test]
    fn steps_out_of_order_are_refused() {
        let (old, new) = (authority(), authority());
        let data = old.material().to_secret();
        let announced = announce(&data, new.material()).unwrap();
        for (result, says) in [
            (switch(&data), "switching is not what comes next"),
            (finish(&data), "dropping the old root is not"),
            (finish(&announced), "dropping the old root is not"),
            (cancel(&data), "cancelling is not"),
            (announce(&announced, new.material()), "announcing a root is not"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
