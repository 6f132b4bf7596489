//! The configuration in force: takes changes of resources and of the identity, and publishes snapshots to the data plane and
//! names to the DNS server. What was good stays when a change is not.

use crate::dns::NameTable;
use crate::held::Held;
use arc_swap::ArcSwap;
use std::sync::Arc;
use tokio::sync::watch;
use weft_proto::type_url;
use weft_proxy_config::{ProxySnapshot, Secret, Update, Wanted};
use weft_sds::files::Ready;
use weft_sds::{FileSecret, SDS_CERTIFICATE, SDS_ROOTS, WorkloadSecrets};

/// The configuration in force. A clone shares it.
#[derive(Debug, Clone)]
pub struct Plane {
    /// Resources.
    pub held: Held,
    snapshot: Arc<ArcSwap<ProxySnapshot>>,
    version: watch::Sender<u64>,
    names: Arc<ArcSwap<NameTable>>,
    naming: Arc<Naming>,
}

/// From where names are looked up.
#[derive(Debug, Default)]
pub struct Naming {
    /// Namespace of the workload.
    pub namespace: String,
    /// Search domains of the pod.
    pub search: Vec<String>,
}

impl Plane {
    /// An empty configuration.
    pub fn new(naming: Naming) -> Self {
        Self {
            held: Held::default(),
            snapshot: Arc::default(),
            version: watch::Sender::new(0),
            names: Arc::default(),
            naming: Arc::new(naming),
        }
    }

    /// What the data plane reads.
    pub fn snapshot(&self) -> Arc<ArcSwap<ProxySnapshot>> {
        self.snapshot.clone()
    }

    /// The version of the snapshot, for waiting on.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What the DNS server reads.
    pub fn names(&self) -> Arc<ArcSwap<NameTable>> {
        self.names.clone()
    }

    /// Applies a change; refused resources (name, reason) leave what was there before.
    pub fn apply(&self, update: &Update, fixed: bool) -> Vec<(String, String)> {
        let applied = self.held.apply(update, fixed);
        for (name, reason) in &applied.refused {
            tracing::warn!(resource = name, reason, "a resource is refused; what was there before stays in force");
        }
        for error in &applied.errors {
            tracing::debug!(%error, "a resource is used with a change");
        }
        if update.type_url == type_url::NAME_TABLE {
            let table = self.held.builder().name_table();
            self.names.store(Arc::new(NameTable::new(&table, &self.naming.namespace, &self.naming.search)));
        }
        self.publish(applied.snapshot);
        applied.refused
    }

    /// Puts the workload's identity in, or takes it out when it has expired.
    pub fn set_identity(&self, secrets: Option<&WorkloadSecrets>) {
        let snapshot = match secrets {
            Some(secrets) => {
                let mut builder = self.held.builder();
                builder.set_secret(SDS_CERTIFICATE, Secret::Certificate(secrets.certificate.clone()));
                builder.set_secret(SDS_ROOTS, Secret::Validation(secrets.trust.clone()))
            }
            None => {
                let removals = vec![SDS_CERTIFICATE.to_owned(), SDS_ROOTS.to_owned()];
                let update = Update { type_url: type_url::SECRET.to_owned(), removals, ..Update::default() };
                self.held.builder().apply(&update).snapshot
            }
        };
        self.publish(snapshot);
    }

    /// What the configuration names that has to be subscribed to. The identity is the agent's own affair.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = self.held.builder().wanted();
        wanted.secrets.retain(|name| name != SDS_CERTIFICATE && name != SDS_ROOTS && !FileSecret::is_name(name));
        wanted
    }

    /// Secrets that the configuration names after files.
    pub fn file_secrets(&self) -> Vec<String> {
        let wanted = self.held.builder().wanted().secrets;
        wanted.into_iter().filter(|name| FileSecret::is_name(name)).collect()
    }

    /// Puts a secret in that was read from files.
    pub fn set_file_secret(&self, name: &str, secret: Ready) {
        let secret = match secret {
            Ready::Certificate(certificate) => Secret::Certificate(certificate),
            Ready::Roots(roots) => Secret::Validation(roots),
        };
        let snapshot = self.held.builder().set_secret(name, secret);
        self.publish(snapshot);
    }

    /// What the configuration names and has not got, the identity left out.
    pub fn missing(&self) -> Vec<String> {
        let own = [format!("secret {SDS_CERTIFICATE}"), format!("secret {SDS_ROOTS}")];
        let mut missing = self.held.builder().missing();
        missing.retain(|name| !own.contains(name));
        missing
    }

    fn publish(&self, snapshot: Arc<ProxySnapshot>) {
        let version = snapshot.version;
        self.snapshot.store(snapshot);
        self.version.send_replace(version);
    }
}
