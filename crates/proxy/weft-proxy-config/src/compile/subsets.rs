//! Subsets of a cluster's endpoints (`lb_subset_config`).

use super::Ctx;
use crate::{SubsetFallback, SubsetSelector, Subsets};
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use weft_proto::envoy::config::cluster::v3::cluster::lb_subset_config as proto;
use weft_route::error::Path;
use weft_route::refuse_set;

impl Ctx<'_> {
    pub(super) fn subsets(&mut self, message: &LbSubsetConfig, path: &Path<'_>) -> Option<Arc<Subsets>> {
        let path = path.field("lb_subset_config");
        let LbSubsetConfig {
            fallback_policy,
            default_subset,
            subset_selectors,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy
        );
        // Without selectors Envoy makes no subsets.
        if subset_selectors.is_empty() {
            return None;
        }
        let fallback = match proto::LbSubsetFallbackPolicy::try_from(fallback_policy.to_owned()) {
            Ok(policy) => fallback_of(policy),
            Err(_) => {
                self.c
                    .errors
                    .refuse(&path.field("fallback_policy"), "must be NO_FALLBACK, ANY_ENDPOINT or DEFAULT_SUBSET");
                SubsetFallback::None
            }
        };
        let default = default_subset.as_ref().map(|labels| self.subset_labels(labels, &path.field("default_subset")));
        let selectors = subset_selectors.iter().enumerate();
        let selectors = selectors.map(|(i, s)| self.subset_selector(s, &path.item("subset_selectors", i))).collect();
        Some(Arc::new(Subsets { fallback, default: default.unwrap_or_default(), selectors }))
    }

    fn subset_labels(&mut self, labels: &prost_types::Struct, path: &Path<'_>) -> Vec<(Strng, Strng)> {
        let mut list = Vec::with_capacity(labels.fields.len());
        for (name, value) in &labels.fields {
            match &value.kind {
                Some(prost_types::value::Kind::StringValue(text)) => {
                    list.push((self.c.pool.text(name), self.c.pool.text(text)));
                }
                _ => self.c.errors.refuse(&path.field(name), "must be a string"),
            }
        }
        list.sort();
        list
    }

    fn subset_selector(&mut self, message: &proto::LbSubsetSelector, path: &Path<'_>) -> SubsetSelector {
        use proto::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Policy;
        let proto::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = message;
        refuse_set!(self.c.errors, path, single_host_per_subset);
        let mut names = |list: &[String]| {
            let mut names: Vec<Strng> = list.iter().map(|key| self.c.pool.text(key)).collect();
            names.sort();
            names.dedup();
            names
        };
        let (keys, fewer) = (names(keys), names(fallback_keys_subset));
        let fallback = match Policy::try_from(*fallback_policy) {
            Ok(Policy::NotDefined) => None,
            Ok(Policy::NoFallback) => Some(SubsetFallback::None),
            Ok(Policy::AnyEndpoint) => Some(SubsetFallback::Any),
            Ok(Policy::DefaultSubset) => Some(SubsetFallback::Default),
            Ok(Policy::KeysSubset) => {
                if fewer.is_empty() || fewer.len() >= keys.len() || !fewer.iter().all(|key| keys.contains(key)) {
                    self.c.errors.refuse(&path.field("fallback_keys_subset"), "must be some of the keys, not all");
                }
                Some(SubsetFallback::Keys(fewer))
            }
            Err(_) => {
                self.c.errors.refuse(&path.field("fallback_policy"), "is not a policy");
                Some(SubsetFallback::None)
            }
        };
        SubsetSelector { keys, fallback }
    }
}

fn fallback_of(policy: proto::LbSubsetFallbackPolicy) -> SubsetFallback {
    match policy {
        proto::LbSubsetFallbackPolicy::NoFallback => SubsetFallback::None,
        proto::LbSubsetFallbackPolicy::AnyEndpoint => SubsetFallback::Any,
        proto::LbSubsetFallbackPolicy::DefaultSubset => SubsetFallback::Default,
    }
}
