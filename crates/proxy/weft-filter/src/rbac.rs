//! The authorization filter: asks `weft_authz` and says the answer in the client's protocol. The decision itself is that
//! crate's.

use weft_authz::{Decision, Facts, Rbac};
use weft_codec::{LocalReply, Reason};

/// What the filter found.
#[derive(Debug)]
pub struct Checked {
    /// The reply, when the request is denied.
    pub denied: Option<LocalReply>,
    /// What the shadow rules would have done: allowed?
    pub shadow: Option<bool>,
}

/// Asks the filter about a request.
pub fn check(rbac: &Rbac, facts: &Facts<'_>) -> Checked {
    let decision = rbac.decide(facts);
    let shadow = decision.shadow.as_ref().map(|(allowed, _)| *allowed);
    let denied = (!decision.allowed).then(|| LocalReply::new(Reason::AccessDenied).with_details(details(&decision)));
    Checked { denied, shadow }
}

/// `rbac_access_denied_matched_policy[NAME]`; `none` when no policy of an ALLOW matched.
pub fn details(decision: &Decision) -> String {
    let policy = decision.policy.as_deref().unwrap_or("none");
    // A details word has no spaces, so that logs can be split.
    format!("rbac_access_denied_matched_policy[{}]", policy.replace(' ', "_"))
}
