//! Subsets of a cluster's endpoints: which one a request's labels choose, by the selectors and fallbacks of the
//! configuration. Subsets are made when they are first asked for, and anew when endpoints change.

use crate::hosts::HostSet;
use std::cell::RefCell;
use std::rc::Rc;
use weft_core::Strng;
use weft_proxy_config::{SubsetFallback, Subsets};

/// Labels that make a subset, sorted.
type Labels = Vec<(Strng, Strng)>;

/// Most subsets kept; more are made for each request.
const MAX_KEPT: usize = 1024;
/// How often fewer keys may be tried.
const MAX_STEPS: usize = 8;

/// The subsets of one state of a cluster's endpoints.
#[derive(Debug, Default)]
pub(crate) struct SubsetCache(RefCell<Vec<(Labels, Rc<HostSet>)>>);

impl SubsetCache {
    /// Forgets them: the endpoints are others.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// Health changed.
    pub fn invalidate(&self) {
        self.0.borrow().iter().for_each(|(_, set)| set.invalidate());
    }

    /// The endpoints for a request with these labels; `None`: no endpoint may be used.
    pub fn choose(&self, config: &Subsets, all: &Rc<HostSet>, labels: &[(Strng, Strng)]) -> Option<Rc<HostSet>> {
        let mut wanted = labels.to_vec();
        wanted.sort();
        for _ in 0..MAX_STEPS {
            let keys = || wanted.iter().map(|(key, _)| key);
            let selector = config.selectors.iter().find(|s| !wanted.is_empty() && s.keys.iter().eq(keys()));
            if selector.is_some() {
                let set = self.of(all, &wanted);
                if !set.all.is_empty() {
                    return Some(set);
                }
            }
            match selector.and_then(|s| s.fallback.as_ref()).unwrap_or(&config.fallback) {
                SubsetFallback::None => return None,
                SubsetFallback::Any => return Some(all.clone()),
                SubsetFallback::Default => {
                    let set = self.of(all, &config.default);
                    return (!set.all.is_empty()).then_some(set);
                }
                SubsetFallback::Keys(fewer) => wanted.retain(|(key, _)| fewer.contains(key)),
            }
        }
        None
    }

    fn of(&self, all: &Rc<HostSet>, labels: &[(Strng, Strng)]) -> Rc<HostSet> {
        if labels.is_empty() {
            return all.clone();
        }
        if let Some((_, known)) = self.0.borrow().iter().find(|(of, _)| of == labels) {
            return known.clone();
        }
        let made = Rc::new(all.filtered(|host| {
            let metadata = host.metadata.borrow();
            labels.iter().all(|label| metadata.labels.contains(label))
        }));
        let mut kept = self.0.borrow_mut();
        if kept.len() < MAX_KEPT {
            kept.push((labels.to_vec(), made.clone()));
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_proxy_config::{
        Endpoint, EndpointAddress, EndpointHealth, EndpointMetadata, EndpointSet, LocalityEndpoints, SubsetSelector,
    };

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(key, value)| (Strng::from(*key), Strng::from(*value))).collect()
    }

    fn endpoint(port: u16, of: &[(&str, &str)]) -> Endpoint {
        let metadata = EndpointMetadata { labels: labels(of), ..Default::default() };
        Endpoint {
            address: EndpointAddress::Ip(([10, 0, 0, 1], port).into()),
            weight: 1,
            health: EndpointHealth::Healthy,
            hostname: None,
            check: Default::default(),
            metadata: Arc::new(metadata),
        }
    }

    #[test]
    fn labels_choose_and_fallbacks_stand_in() {
        let endpoints = vec![
            endpoint(1, &[("stage", "prod"), ("version", "1")]),
            endpoint(2, &[("stage", "prod"), ("version", "2")]),
            endpoint(3, &[("stage", "dev"), ("version", "1")]),
        ];
        let locality = LocalityEndpoints { locality: "l".into(), priority: 0, weight: 0, endpoints };
        let endpoints = EndpointSet { localities: vec![locality], drop: 0, overprovisioning: 140 };
        let all = Rc::new(HostSet::build(&endpoints, &HostSet::default(), &|a| vec![a.clone()]));
        let selector = |keys: &[&str], fallback| SubsetSelector {
            keys: keys.iter().map(|key| Strng::from(*key)).collect(),
            fallback,
        };
        let config = |fallback| Subsets {
            fallback,
            default: labels(&[("stage", "dev")]),
            selectors: vec![
                selector(&["stage", "version"], Some(SubsetFallback::Keys(vec!["stage".into()]))),
                selector(&["stage"], None),
                selector(&["version"], Some(SubsetFallback::None)),
            ],
        };
        use SubsetFallback::{Any, Default, None as Nothing};
        for (fallback, asked, want) in [
            (Nothing, &[("stage", "prod"), ("version", "2")][..], Some(&[2][..])),
            (Nothing, &[("version", "1"), ("stage", "prod")], Some(&[1])),
            (Nothing, &[("stage", "prod"), ("version", "9")], Some(&[1, 2])),
            (Nothing, &[("stage", "no"), ("version", "9")], None),
            (Default, &[("stage", "no"), ("version", "9")], Some(&[3])),
            (Any, &[("stage", "no")], Some(&[1, 2, 3])),
            (Any, &[("version", "9")], None),
            (Any, &[("other", "x")], Some(&[1, 2, 3])),
            (Default, &[], Some(&[3])),
            (Nothing, &[], None),
        ] {
            let cache = SubsetCache::default();
            let chosen = cache.choose(&config(fallback.clone()), &all, &labels(asked));
            let ports = chosen.map(|set| set.all.iter().filter_map(|h| h.ip().map(|ip| ip.port())).collect::<Vec<_>>());
            assert_eq!(ports.as_deref(), want, "{fallback:?} {asked:?}");
        }
    }
}
