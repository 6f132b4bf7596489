//! Which policies can match at all: found by principal, path, host or namespace instead of by asking each. What the index
//! leaves out cannot match; what it gives is still asked in full.
//!
//! A policy is filed under values one of which must be there for it to match, in the dimension where it shares its place with
//! the fewest others. A policy that asks for no such value is asked every time.

use crate::{Condition, Facts, HeaderValueTest, Leaf, Matcher, RulePolicy};
use smallvec::SmallVec;
use std::collections::HashMap;
use weft_route::HeaderKey;

/// Fewer policies than this are asked one by one.
const WORTH_IT: usize = 8;
/// Most values under which one policy is filed.
const MAX_KEYS: usize = 256;

/// A value, as bytes.
type Key = Box<[u8]>;
/// Values in one dimension.
type Keys = (Dimension, Vec<Key>);

/// What policies are filed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Dimension {
    /// The whole path.
    Path,
    /// A name of the client's certificate.
    Principal,
    /// Beginning of the path.
    PathPrefix,
    /// The host, in lower case.
    Host,
    /// `/ns/NAME/` in a name of the client's certificate.
    Namespace,
}

const DIMENSIONS: [Dimension; 5] =
    [Dimension::Path, Dimension::Principal, Dimension::PathPrefix, Dimension::Host, Dimension::Namespace];

/// The files. Numbers are places in the list of policies.
#[derive(Debug, Default)]
pub struct Index {
    files: HashMap<(Dimension, Key), Vec<u32>>,
    /// Lengths of path prefixes, each once.
    prefix_lengths: Vec<usize>,
    used: [bool; DIMENSIONS.len()],
    /// Policies that are in no file.
    rest: Vec<u32>,
    active: bool,
}

/// Numbers of policies, ascending.
pub(crate) type Candidates = SmallVec<[u32; 64]>;

impl Index {
    /// Files the policies.
    pub(crate) fn new(policies: &[RulePolicy]) -> Self {
        if policies.len() < WORTH_IT {
            return Self::default();
        }
        let choices: Vec<Vec<Keys>> = policies.iter().map(choices).collect();
        let mut shared: HashMap<(Dimension, &[u8]), usize> = HashMap::new();
        for (dimension, keys) in choices.iter().flatten() {
            for key in keys {
                *shared.entry((*dimension, &**key)).or_default() += 1;
            }
        }
        let crowd = |(dimension, keys): &&Keys| {
            keys.iter().map(|key| shared.get(&(*dimension, &**key)).copied().unwrap_or_default()).max()
        };
        let mut index = Self { active: true, ..Self::default() };
        for (number, choices) in (0u32..).zip(&choices) {
            match choices.iter().min_by_key(crowd) {
                None => index.rest.push(number),
                Some((dimension, keys)) => keys.iter().for_each(|key| index.file(*dimension, key.clone(), number)),
            }
        }
        index.prefix_lengths.sort_unstable();
        index.prefix_lengths.dedup();
        index
    }

    fn file(&mut self, dimension: Dimension, key: Key, number: u32) {
        if dimension == Dimension::PathPrefix {
            self.prefix_lengths.push(key.len());
        }
        self.used[dimension as usize] = true;
        let list = self.files.entry((dimension, key)).or_default();
        if list.last() != Some(&number) {
            list.push(number);
        }
    }

    /// Policies that can match; `None` = any can.
    pub(crate) fn candidates(&self, facts: &Facts<'_>) -> Option<Candidates> {
        // Of a connection alone nothing is known of paths and hosts, and what is not known may count as matching.
        let request = facts.request.as_ref().filter(|_| self.active)?;
        let mut out = Candidates::from_slice(&self.rest);
        let mut take = |dimension: Dimension, key: &[u8]| {
            if self.used[dimension as usize]
                && let Some(list) = self.files.get(&(dimension, Box::from(key)))
            {
                out.extend_from_slice(list);
            }
        };
        take(Dimension::Path, request.path.as_bytes());
        let path = request.path.as_bytes();
        for length in self.prefix_lengths.iter().take_while(|length| **length <= path.len()) {
            take(Dimension::PathPrefix, &path[..*length]);
        }
        for form in hosts(request.authority) {
            take(Dimension::Host, form.as_bytes());
            if form.bytes().any(|b| b.is_ascii_uppercase()) {
                take(Dimension::Host, form.to_ascii_lowercase().as_bytes());
            }
        }
        if let Some(certificate) = facts.certificate {
            let names = certificate.uris.iter().chain(&certificate.dns).map(|name| &**name);
            for name in names.chain(std::iter::once(certificate.subject.as_str())) {
                take(Dimension::Principal, name.as_bytes());
                for namespace in namespaces(name) {
                    take(Dimension::Namespace, namespace.as_bytes());
                }
            }
        }
        out.sort_unstable();
        out.dedup();
        Some(out)
    }
}

/// The forms of an authority that a rule may mean: as sent, without port, without trailing dot.
pub(crate) fn hosts(authority: &str) -> SmallVec<[&str; 3]> {
    let host = weft_route::normalize::without_port(authority);
    let bare = host.strip_suffix('.').unwrap_or(host);
    let mut forms = SmallVec::from_slice(&[authority, host, bare]);
    forms.dedup();
    forms
}

/// All `/ns/NAME/` of a name, also those that share a slash: `/ns/ns/sa/` holds `/ns/ns/` and `/ns/sa/`, as the expression of a
/// policy sees it.
fn namespaces(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').filter_map(|(at, _)| {
        let rest = name[at..].strip_prefix("/ns/")?;
        rest.find('/').map(|end| &name[at..=at + "/ns/".len() + end])
    })
}

/// The dimensions that a policy can be filed in, with its values there.
fn choices(policy: &RulePolicy) -> Vec<Keys> {
    let of = |dimension| {
        let keys = any_of(&policy.permissions, dimension).or_else(|| any_of(&policy.principals, dimension))?;
        (keys.len() <= MAX_KEYS).then_some((dimension, keys))
    };
    DIMENSIONS.into_iter().filter_map(of).collect()
}

/// Values one of which must be there when any of these holds.
fn any_of(list: &[Condition], dimension: Dimension) -> Option<Vec<Key>> {
    let all: Option<Vec<_>> = list.iter().map(|one| needed(one, dimension)).collect();
    all.map(|lists| lists.into_iter().flatten().collect())
}

/// Values one of which must be there when this holds, however it is judged.
fn needed(condition: &Condition, dimension: Dimension) -> Option<Vec<Key>> {
    match condition {
        Condition::And(list) => list.iter().filter_map(|one| needed(one, dimension)).min_by_key(|keys| keys.len()),
        Condition::Or(list) => any_of(list, dimension),
        Condition::Leaf(leaf) => of_leaf(leaf, dimension).map(|key| vec![key]),
        Condition::Any | Condition::Not(_) => None,
    }
}

fn of_leaf(leaf: &Leaf, dimension: Dimension) -> Option<Key> {
    let text = |text: &str| Box::from(text.as_bytes());
    match (dimension, leaf) {
        (Dimension::Path, Leaf::Path(Matcher::Exact(path))) => Some(text(path)),
        (Dimension::PathPrefix, Leaf::Path(Matcher::Prefix(prefix))) => Some(text(prefix)),
        (
            Dimension::Principal,
            Leaf::Principal(Some(Matcher::Exact(name))) | Leaf::FilterState(_, Matcher::Exact(name)),
        ) => Some(text(name)),
        (
            Dimension::Namespace,
            Leaf::Principal(Some(Matcher::Contains(part))) | Leaf::FilterState(_, Matcher::Contains(part)),
        ) => {
            let name = part.strip_prefix("/ns/")?.strip_suffix('/')?;
            (!name.is_empty() && !name.contains('/')).then(|| text(part))
        }
        (Dimension::Host, Leaf::Header(test)) if test.key == HeaderKey::Authority && !test.invert => {
            match &test.test {
                HeaderValueTest::Value(Matcher::Exact(host)) => Some(text(host)),
                HeaderValueTest::Value(Matcher::IgnoreCase(inner)) => match &**inner {
                    // Looked for in lower case too.
                    Matcher::Exact(host) => Some(text(&host.to_ascii_lowercase())),
                    _ => None,
                },
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
