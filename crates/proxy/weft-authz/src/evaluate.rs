//! Facts → decision. Allocates nothing, except where a repeated header is also judged joined.
//!
//! Conditions are judged *strictly* where holding lets a request through (ALLOW), *leniently* where holding denies it
//! (DENY), and a negation turns the one into the other. It matters where a fact has several values or none is known: a
//! repeated header holds strictly when every value holds, leniently when any does (or all of them joined); what cannot be
//! evaluated holds leniently and never strictly. Whichever value the endpoint takes, the policy has judged it. (Envoy 1.40
//! is content with any value, also in ALLOW: there `x: admin` before the `x: bob` that a proxy appends lets bob in.)

use crate::{
    Condition, Decision, Facts, HeaderTest, HeaderValueTest, Leaf, Matcher, PeerCertificate, Rbac, RequestFacts,
    RuleAction, RulePolicy, Rules,
};
use http::HeaderValue;
use smallvec::SmallVec;
use weft_core::Strng;
use weft_route::HeaderKey;

impl Rbac {
    /// Decides. Rules without a policy that matches: ALLOW denies, DENY and LOG let through.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let (allowed, policy) = match &self.rules {
            Some(rules) => rules.decide(facts),
            None => (true, None),
        };
        let shadow = self.shadow.as_ref().map(|rules| rules.decide(facts)).map(|(ok, name)| (ok, name.cloned()));
        Decision { allowed, policy: policy.cloned(), shadow }
    }
}

impl Rules {
    /// Let through? And the first policy that matched.
    pub(crate) fn decide(&self, facts: &Facts<'_>) -> (bool, Option<&Strng>) {
        match self.candidates(facts) {
            Some(numbers) => self.first_of(numbers.iter().filter_map(|n| self.policies.get(*n as usize)), facts),
            None => self.scan(facts),
        }
    }

    /// As [`Self::decide`], by asking every policy.
    pub(crate) fn scan(&self, facts: &Facts<'_>) -> (bool, Option<&Strng>) {
        self.first_of(self.policies.iter(), facts)
    }

    fn first_of<'p>(
        &self,
        mut policies: impl Iterator<Item = &'p RulePolicy>,
        facts: &Facts<'_>,
    ) -> (bool, Option<&'p Strng>) {
        let judge = if self.action == RuleAction::Allow { Judge::Strict } else { Judge::Lenient };
        let any = |list: &[Condition]| list.iter().any(|c| c.holds(facts, judge));
        let matched = policies.find(|p| any(&p.permissions) && any(&p.principals));
        let allowed = match self.action {
            RuleAction::Allow => matched.is_some(),
            RuleAction::Deny => matched.is_none(),
            RuleAction::Log => true,
        };
        (allowed, matched.map(|p| &p.name))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judge {
    Strict,
    Lenient,
}

impl Judge {
    fn turned(self) -> Self {
        match self {
            Judge::Strict => Judge::Lenient,
            Judge::Lenient => Judge::Strict,
        }
    }

    /// What an unknown fact counts as.
    fn unknown(self) -> bool {
        self == Judge::Lenient
    }
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>, judge: Judge) -> bool {
        match self {
            Condition::Any => true,
            Condition::And(list) => list.iter().all(|c| c.holds(facts, judge)),
            Condition::Or(list) => list.iter().any(|c| c.holds(facts, judge)),
            Condition::Not(inner) => !inner.holds(facts, judge.turned()),
            Condition::Leaf(leaf) => leaf.holds(facts, judge),
        }
    }
}

impl Leaf {
    fn holds(&self, facts: &Facts<'_>, judge: Judge) -> bool {
        match self {
            Leaf::DestinationIp(net) => net.contains(&facts.destination.ip().to_canonical()),
            Leaf::DestinationPort(port) => facts.destination.port() == *port,
            Leaf::DestinationPortRange(start, end) => {
                let port = facts.destination.port();
                // u16::MAX as the end stands for 65536.
                *start <= port && (port < *end || *end == u16::MAX)
            }
            // A connection without SNI has the empty name, as in Envoy.
            Leaf::ServerName(matcher) => matcher.matches(facts.server_name.unwrap_or_default().as_bytes()),
            Leaf::Principal(matcher) => facts.certificate.is_some_and(|c| principal(c, matcher.as_ref())),
            Leaf::DirectRemoteIp(net) => net.contains(&facts.peer.ip().to_canonical()),
            Leaf::RemoteIp(net) => net.contains(&facts.remote.ip().to_canonical()),
            Leaf::Header(test) => match &facts.request {
                Some(request) => header(test, request, judge),
                None => judge.unknown(),
            },
            Leaf::Path(matcher) => match &facts.request {
                Some(request) => matcher.matches(request.path.as_bytes()),
                None => judge.unknown(),
            },
            Leaf::PathTemplate(regex) => match &facts.request {
                Some(request) => regex.is_match(request.path.as_bytes()),
                None => judge.unknown(),
            },
            Leaf::Metadata(matcher) => matcher.matches(facts.metadata),
            Leaf::FilterState(_, matcher) => {
                facts.certificate.is_some_and(|c| c.uris.iter().any(|uri| matcher.matches(uri.as_bytes())))
            }
            Leaf::Unsupported(_) => judge.unknown(),
        }
    }
}

/// URI SANs, then DNS SANs, then the subject; any verified certificate when there is no matcher. An empty subject is no
/// name: a workload is not identified by having none.
fn principal(certificate: &PeerCertificate, matcher: Option<&Matcher>) -> bool {
    let Some(matcher) = matcher else { return true };
    let any = |names: &[Strng]| names.iter().any(|name| matcher.matches(name.as_bytes()));
    any(&certificate.uris)
        || any(&certificate.dns)
        || (!certificate.subject.is_empty() && matcher.matches(certificate.subject.as_bytes()))
}

fn header(test: &HeaderTest, request: &RequestFacts<'_>, judge: Judge) -> bool {
    let one = |value: &str| test.judge(Some(value.as_bytes()));
    let name = match &test.key {
        HeaderKey::Name(name) => name,
        HeaderKey::Method => return one(request.method),
        HeaderKey::Path => return one(request.path_and_query),
        HeaderKey::Scheme => return one(request.scheme),
        HeaderKey::Authority => return authority(test, request.authority, judge),
    };
    let values = request.headers.get_all(name);
    let mut each = values.iter().map(HeaderValue::as_bytes);
    match (each.next(), each.next()) {
        (None, _) => test.judge(None),
        (Some(only), None) => test.judge(Some(only)),
        (Some(_), Some(_)) => {
            let mut all = values.iter().map(HeaderValue::as_bytes);
            match judge {
                Judge::Strict => all.all(|value| test.judge(Some(value))),
                Judge::Lenient => all.any(|value| test.judge(Some(value))) || test.judge(Some(&joined(values))),
            }
        }
    }
}

fn joined(values: http::header::GetAll<'_, HeaderValue>) -> SmallVec<[u8; 256]> {
    let mut out = SmallVec::new();
    for value in values {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(value.as_bytes());
    }
    out
}

/// The authority stands for one host however it is written: with or without the port, with or without a trailing dot. A
/// rule holds leniently when it holds for any of these forms; strictly only for the one that was sent.
fn authority(test: &HeaderTest, authority: &str, judge: Judge) -> bool {
    let sent = test.judge(Some(authority.as_bytes()));
    if judge == Judge::Strict || sent {
        return sent;
    }
    crate::index::hosts(authority).iter().skip(1).any(|form| test.judge(Some(form.as_bytes())))
}

impl HeaderTest {
    /// A missing header fails every test of its value, inverted or not, unless missing counts as empty.
    fn judge(&self, value: Option<&[u8]>) -> bool {
        let value = if value.is_none() && self.missing_as_empty { Some(b"".as_slice()) } else { value };
        let held = match (&self.test, value) {
            (HeaderValueTest::Present(wanted), value) => value.is_some() == *wanted,
            (_, None) => return false,
            (HeaderValueTest::Value(matcher), Some(value)) => matcher.matches(value),
            (HeaderValueTest::Range(start, end), Some(value)) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        };
        held != self.invert
    }
}

#[cfg(test)]
mod tests;
