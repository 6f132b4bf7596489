//! Rate limits: what of a request makes its descriptors, and buckets of tokens. Pure: the time is an argument, and a bucket
//! is one number that workers share.

use crate::{HeaderEdit, HeaderKey, HeaderMatcher, MetadataValue, QueryMatcher, RequestView, matching};
use http::StatusCode;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use weft_core::Strng;

/// Key and value of one entry of a descriptor.
pub type Entry = (Strng, String);

/// A rate limit of a route or virtual host: together its actions make one descriptor.
#[derive(Debug)]
pub struct RateLimit {
    /// Which filter it is for, where there are several.
    pub stage: u32,
    /// What the descriptor is made of; when one gives nothing there is no descriptor.
    pub actions: Vec<RateAction>,
}

/// One entry of a descriptor.
#[derive(Debug)]
pub enum RateAction {
    /// `destination_cluster`: the cluster that the route names.
    DestinationCluster,
    /// A header's value; key, and whether the entry alone is left out when there is no such header.
    RequestHeader(HeaderKey, Strng, bool),
    /// A query parameter's value; likewise.
    QueryParameter(Strng, Strng, bool),
    /// `remote_address`: the client.
    RemoteAddress,
    /// `masked_remote_address`: its network, by the length of IPv4's and IPv6's prefix.
    MaskedRemoteAddress(u8, u8),
    /// The same for all.
    Generic(Strng, Strng),
    /// Key and value, when all these headers match (`true`) or not all do (`false`).
    Headers(Strng, Strng, bool, Vec<HeaderMatcher>),
    /// Likewise for query parameters.
    Query(Strng, Strng, bool, Vec<QueryMatcher>),
    /// What a filter said: key, filter, keys inside, the value when it said nothing (empty: none), and whether the entry
    /// alone is left out then.
    Metadata(Strng, Strng, Vec<Strng>, Strng, bool),
}

/// What descriptors are made of.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The request.
    pub view: RequestView<'a>,
    /// Cluster that it would go to.
    pub cluster: Option<&'a str>,
    /// The client.
    pub client: IpAddr,
}

/// What one action gives.
enum Given {
    Entry(Entry),
    /// Nothing, and the descriptor does without.
    Skipped,
    /// Nothing, and so there is no descriptor.
    Nothing,
}

/// The descriptors of a request for filters of that stage.
pub fn descriptors<'l>(limits: impl Iterator<Item = &'l RateLimit>, stage: u32, asked: &Asked<'_>) -> Vec<Vec<Entry>> {
    limits.filter(|limit| limit.stage == stage).filter_map(|limit| limit.descriptor(asked)).collect()
}

impl RateLimit {
    fn descriptor(&self, asked: &Asked<'_>) -> Option<Vec<Entry>> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(asked) {
                Given::Entry(entry) => entries.push(entry),
                Given::Skipped => {}
                Given::Nothing => return None,
            }
        }
        (!entries.is_empty()).then_some(entries)
    }
}

impl RateAction {
    fn entry(&self, asked: &Asked<'_>) -> Given {
        let given = |key: &Strng, value: Option<String>, skip: bool| match value {
            Some(value) if !value.is_empty() => Given::Entry((key.clone(), value)),
            _ if skip => Given::Skipped,
            _ => Given::Nothing,
        };
        let plain = |key: &str, value: String| Given::Entry((key.into(), value));
        match self {
            RateAction::DestinationCluster => match asked.cluster {
                Some(cluster) => plain("destination_cluster", cluster.into()),
                None => Given::Nothing,
            },
            RateAction::RequestHeader(name, key, skip) => given(key, header(name, &asked.view), *skip),
            RateAction::QueryParameter(name, key, skip) => {
                let value = asked.view.query.and_then(|query| matching::query_value(query, name));
                given(key, value.map(str::to_string), *skip)
            }
            RateAction::RemoteAddress => plain("remote_address", asked.client.to_string()),
            RateAction::MaskedRemoteAddress(v4, v6) => plain("masked_remote_address", masked(asked.client, *v4, *v6)),
            RateAction::Generic(key, value) => given(key, Some(value.to_string()), false),
            RateAction::Headers(key, value, expect, headers) => {
                let all = headers.iter().all(|header| header.matches(&asked.view));
                given(key, (all == *expect).then(|| value.to_string()), false)
            }
            RateAction::Query(key, value, expect, parameters) => {
                let all = parameters.iter().all(|parameter| parameter.matches(asked.view.query));
                given(key, (all == *expect).then(|| value.to_string()), false)
            }
            RateAction::Metadata(key, filter, path, default, skip) => {
                let said = metadata(asked.view.metadata, filter, path);
                given(key, said.or_else(|| Some(default.to_string())), *skip)
            }
        }
    }
}

fn header(key: &HeaderKey, view: &RequestView<'_>) -> Option<String> {
    Some(match key {
        HeaderKey::Method => view.method.as_str().into(),
        HeaderKey::Authority => view.authority.into(),
        HeaderKey::Scheme => view.scheme.into(),
        HeaderKey::Path => match view.query {
            Some(query) => format!("{}?{query}", view.path),
            None => view.path.into(),
        },
        HeaderKey::Name(name) => String::from_utf8_lossy(view.headers.get(name)?.as_bytes()).into_owned(),
    })
}

/// `10.1.0.0/16`
fn masked(address: IpAddr, v4: u8, v6: u8) -> String {
    match address {
        IpAddr::V4(ip) => {
            let kept = u32::MAX.checked_shl(32 - u32::from(v4.min(32))).unwrap_or(0);
            format!("{}/{v4}", std::net::Ipv4Addr::from(u32::from(ip) & kept))
        }
        IpAddr::V6(ip) => {
            let kept = u128::MAX.checked_shl(128 - u32::from(v6.min(128))).unwrap_or(0);
            format!("{}/{v6}", std::net::Ipv6Addr::from(u128::from(ip) & kept))
        }
    }
}

fn metadata(all: &[(Strng, MetadataValue)], filter: &str, path: &[Strng]) -> Option<String> {
    let mut value = all.iter().find(|(name, _)| &**name == filter).map(|(_, value)| value)?;
    for key in path {
        let MetadataValue::Struct(fields) = value else { return None };
        value = fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)?;
    }
    match value {
        MetadataValue::String(text) => Some(text.to_string()),
        _ => None,
    }
}

/// What virtual hosts' rate limits do beside a route's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostLimits {
    /// They hold where the route has none.
    #[default]
    Override,
    /// They hold too.
    Include,
    /// They do not hold.
    Ignore,
}

/// Settings of the filter that asks a rate limit service, for a route.
#[derive(Debug, Default)]
pub struct RateLimitPerRoute {
    /// What the virtual host's limits do.
    pub host: HostLimits,
    /// In place of the route's own limits, when there are any.
    pub limits: Vec<RateLimit>,
    /// In place of the filter's domain, when it is not empty.
    pub domain: String,
}

/// A filter that limits by buckets of its own.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// Prefix of its counters.
    pub stat_prefix: Strng,
    /// Status of a refusal.
    pub status: StatusCode,
    /// The bucket of requests that match no descriptor; `None`: they pass.
    pub bucket: Option<Bucket>,
    /// Buckets of descriptors.
    pub descriptors: Vec<(Vec<(Strng, Strng)>, Bucket)>,
    /// Requests that match a descriptor take from the common bucket too.
    pub always_common: bool,
    /// Share of requests that is looked at, in parts per million.
    pub enabled: u32,
    /// Share of requests beyond the limit that is refused, in parts per million.
    pub enforced: u32,
    /// Changes to requests beyond the limit that are not refused.
    pub request_headers: HeaderEdit,
    /// Changes to refusals.
    pub response_headers: HeaderEdit,
    /// Which limits of routes it is for.
    pub stage: u32,
    /// What virtual hosts' limits do.
    pub host: HostLimits,
    /// In place of the route's limits, when there are any.
    pub limits: Vec<RateLimit>,
    /// gRPC calls are told `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`.
    pub exhausted: bool,
}

impl LocalRateLimit {
    /// A request with these descriptors may pass at `now`. As Envoy: it takes from every bucket that it matches, the slowest
    /// first, and then from the common one.
    pub fn passes(&self, descriptors: &[Vec<Entry>], now: u64) -> bool {
        let is = |own: &[(Strng, Strng)], entries: &[Entry]| {
            own.len() == entries.len() && own.iter().zip(entries).all(|(a, b)| a.0 == b.0 && *a.1 == *b.1)
        };
        let find = |entries: &Vec<Entry>| self.descriptors.iter().find(|(own, _)| is(own, entries));
        let mut matched: Vec<&Bucket> = descriptors.iter().filter_map(find).map(|(_, bucket)| bucket).collect();
        matched.sort_by_key(|bucket| std::cmp::Reverse(bucket.pace));
        if !matched.iter().all(|bucket| bucket.take(now)) {
            return false;
        }
        match &self.bucket {
            Some(common) if matched.is_empty() || self.always_common => common.take(now),
            _ => true,
        }
    }
}

/// A bucket of tokens that fills evenly. It is one number: the time at which it would have been empty. Workers share it
/// without a lock.
#[derive(Debug)]
pub struct Bucket {
    /// Time in which it fills from nothing, in nanoseconds.
    window: u64,
    /// Time in which one token comes, in nanoseconds.
    pace: u64,
    empty_at: AtomicU64,
}

impl Bucket {
    /// A full bucket of `most` tokens, into which `fill` tokens come each `interval` nanoseconds.
    pub fn new(most: u32, fill: u32, interval: u64) -> Self {
        let pace = (interval / u64::from(fill.max(1))).max(1);
        Self { window: pace.saturating_mul(most.into()), pace, empty_at: AtomicU64::new(0) }
    }

    /// Takes a token at `now`: nanoseconds of a clock that stands far above any bucket's window. False when there is none.
    pub fn take(&self, now: u64) -> bool {
        let mut empty_at = self.empty_at.load(Relaxed);
        loop {
            // More than a full bucket there never is.
            let next = empty_at.max(now.saturating_sub(self.window)).saturating_add(self.pace);
            if next > now {
                return false;
            }
            match self.empty_at.compare_exchange_weak(empty_at, next, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(other) => empty_at = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, Method};

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1 << 62;

    #[test]
    fn buckets_fill_evenly() {
        let bucket = Bucket::new(4, 2, SECOND);
        assert_eq!((0..9).filter(|_| bucket.take(NOW)).count(), 4, "full at first");
        assert!(!bucket.take(NOW + SECOND / 2 - 1));
        assert!(bucket.take(NOW + SECOND / 2) && !bucket.take(NOW + SECOND / 2));
        assert_eq!((0..9).filter(|_| bucket.take(NOW + 100 * SECOND)).count(), 4, "never more than full");
    }

    fn asked<'a>(headers: &'a HeaderMap, metadata: &'a [(Strng, MetadataValue)]) -> Asked<'a> {
        let view = RequestView {
            method: &Method::GET,
            authority: "a.example",
            path: "/p",
            query: Some("q=1"),
            scheme: "http",
            headers,
            metadata,
        };
        Asked { view, cluster: Some("c"), client: "10.1.2.3".parse().unwrap() }
    }

    #[test]
    fn actions_make_descriptors() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("u"));
        let said = MetadataValue::Struct(vec![("sub".into(), MetadataValue::String("me".into()))]);
        let metadata = [("jwt".into(), said)];
        let asked = asked(&headers, &metadata);
        let name = |name: &'static str| HeaderKey::Name(http::HeaderName::from_static(name));
        let user = HeaderMatcher {
            key: name("x-user"),
            test: crate::HeaderTest::Present(true),
            invert: false,
            missing_as_empty: false,
        };
        use RateAction::*;
        for (actions, want) in [
            (vec![DestinationCluster], Some(vec![("destination_cluster", "c")])),
            (vec![RequestHeader(name("x-user"), "user".into(), false)], Some(vec![("user", "u")])),
            (vec![RequestHeader(name("x-no"), "user".into(), false), RemoteAddress], None),
            (
                vec![RequestHeader(name("x-no"), "user".into(), true), RemoteAddress],
                Some(vec![("remote_address", "10.1.2.3")]),
            ),
            (vec![RequestHeader(HeaderKey::Path, "path".into(), false)], Some(vec![("path", "/p?q=1")])),
            (vec![QueryParameter("q".into(), "q".into(), false)], Some(vec![("q", "1")])),
            (vec![MaskedRemoteAddress(16, 128)], Some(vec![("masked_remote_address", "10.1.0.0/16")])),
            (vec![Generic("generic_key".into(), "v".into())], Some(vec![("generic_key", "v")])),
            (
                vec![Headers("header_match".into(), "y".into(), true, vec![user.clone()])],
                Some(vec![("header_match", "y")]),
            ),
            (vec![Headers("header_match".into(), "y".into(), false, vec![user])], None),
            (
                vec![Metadata("sub".into(), "jwt".into(), vec!["sub".into()], "".into(), false)],
                Some(vec![("sub", "me")]),
            ),
            (
                vec![Metadata("sub".into(), "jwt".into(), vec!["no".into()], "d".into(), false)],
                Some(vec![("sub", "d")]),
            ),
            (vec![Metadata("sub".into(), "jwt".into(), vec!["no".into()], "".into(), false)], None),
        ] {
            let limit = RateLimit { stage: 0, actions };
            let made = limit.descriptor(&asked);
            let want =
                want.map(|list| list.into_iter().map(|(k, v)| (Strng::from(k), v.to_string())).collect::<Vec<_>>());
            assert_eq!(made, want, "{limit:?}");
        }
        let of_stage = RateLimit { stage: 1, actions: vec![RemoteAddress] };
        assert!(descriptors([&of_stage].into_iter(), 0, &asked).is_empty());
        assert_eq!(descriptors([&of_stage].into_iter(), 1, &asked).len(), 1);
    }

    #[test]
    fn descriptors_have_buckets_of_their_own() {
        let limit = |always_common| LocalRateLimit {
            stat_prefix: "".into(),
            status: StatusCode::TOO_MANY_REQUESTS,
            bucket: Some(Bucket::new(3, 1, SECOND)),
            descriptors: vec![(vec![("k".into(), "v".into())], Bucket::new(2, 1, SECOND))],
            always_common,
            enabled: 1,
            enforced: 1,
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
            stage: 0,
            host: HostLimits::Override,
            limits: Vec::new(),
            exhausted: false,
        };
        let listed = [vec![(Strng::from("k"), "v".to_string())]];
        let other = [vec![(Strng::from("k"), "w".to_string())]];
        for (always, of_other) in [(true, 1), (false, 3)] {
            let limit = limit(always);
            assert_eq!((0..9).filter(|_| limit.passes(&listed, NOW)).count(), 2);
            assert_eq!((0..9).filter(|_| limit.passes(&other, NOW)).count(), of_other, "{always}");
        }
    }
}
