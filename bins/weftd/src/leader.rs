//! Which of several replicas writes to the API server: the one that holds the Lease. All of them serve proxies.

use crate::settings::Settings;
pub(crate) use weft_store::while_leader;
use weft_store::{ApiClient, Leadership, LeaseOptions};

/// Begins to compete for the Lease of this revision.
pub(crate) fn compete(client: &ApiClient, settings: &Settings) -> Leadership {
    Leadership::start(
        client,
        LeaseOptions {
            namespace: settings.namespace.clone(),
            name: lease_name(&settings.revision),
            identity: LeaseOptions::identity_of(&settings.pod_name),
            duration: settings.lease_duration,
        },
    )
}

fn lease_name(revision: &str) -> String {
    match revision {
        "" | "default" => "weftd-leader".into(),
        revision => format!("weftd-leader-{revision}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases() {
        assert_eq!((lease_name("").as_str(), lease_name("canary").as_str()), ("weftd-leader", "weftd-leader-canary"));
    }
}
