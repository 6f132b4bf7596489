//! Tokens of service accounts: random bearer strings, each known only to this table, which keeps to whom, for whom and until
//! when it was given. They end with their time, their account, and the pod that they are bound to.

use crate::status::ApiError;
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use weft_store::MemoryStore;

/// Tokens held at most.
const MAX_TOKENS: usize = 65_536;
/// Audiences of one token at most.
const MAX_AUDIENCES: usize = 16;
/// Shortest and longest life in seconds; what is asked for is brought into this range.
const LIFETIME: std::ops::RangeInclusive<i64> = 60..=86_400 * 2;

/// The pod that a token dies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPod {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Namespace of the account.
    pub namespace: String,
    /// Name of the account.
    pub account: String,
    /// Uid of the account.
    pub account_uid: String,
    /// Who may accept it.
    pub audiences: Vec<String>,
    /// Unix seconds of its end.
    pub expires: i64,
    /// The pod it dies with.
    pub pod: Option<BoundPod>,
}

/// Issued tokens.
pub struct TokenTable {
    tokens: Mutex<HashMap<String, Grant>>,
    /// Audience of tokens that name none: this API server.
    audience: String,
}

impl TokenTable {
    pub(crate) fn new(audience: &str) -> Self {
        Self { tokens: Mutex::default(), audience: audience.into() }
    }

    /// The API server's own audience.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Gives out a token for an account that exists, bound to a pod that exists and runs as that account. `seconds` is
    /// brought into 60 s … 48 h; no audiences mean the API server. Returns the token and its end in Unix seconds.
    ///
    /// # Errors
    /// When account or pod do not exist or do not belong together, or no more tokens can be held.
    pub fn issue(
        &self,
        store: &MemoryStore,
        (namespace, account): (&str, &str),
        audiences: &[String],
        seconds: i64,
        pod: Option<BoundPod>,
    ) -> Result<(String, i64), ApiError> {
        let holder = store.find("", "ServiceAccount", namespace, account).ok_or_else(|| {
            ApiError::bad_request(format!("serviceaccount {namespace}/{account} does not exist; create it first"))
        })?;
        if let Some(pod) = &pod {
            check_pod(store, namespace, account, pod)?;
        }
        if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|a| a.is_empty() || a.len() > 1024) {
            let message = format!("spec.audiences: at most {MAX_AUDIENCES}, none of them empty or over 1024 bytes");
            return Err(ApiError::bad_request(message));
        }
        let now = now();
        let expires = now + seconds.clamp(*LIFETIME.start(), *LIFETIME.end());
        let grant = Grant {
            namespace: namespace.into(),
            account: account.into(),
            account_uid: holder.metadata.uid.clone().unwrap_or_default(),
            audiences: if audiences.is_empty() { vec![self.audience.clone()] } else { audiences.to_vec() },
            expires,
            pod,
        };
        let token = random_token().map_err(|e| ApiError::internal(format!("no random numbers: {e}")))?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, g| g.expires > now);
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(ApiError::too_many_requests());
        }
        tokens.insert(token.clone(), grant);
        Ok((token, expires))
    }

    /// What a token stands for, when it is still good.
    ///
    /// # Errors
    /// The reason why it is not, in words that do not repeat the token.
    pub fn check(&self, store: &MemoryStore, token: &str) -> Result<Grant, String> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = tokens.get(token).cloned().ok_or("the token is not known to this server")?;
        let refused = refusal(store, &grant);
        if refused.is_some() {
            tokens.remove(token);
        }
        refused.map_or(Ok(grant), Err)
    }
}

fn refusal(store: &MemoryStore, grant: &Grant) -> Option<String> {
    if grant.expires <= now() {
        return Some("the token has expired".into());
    }
    let uid_of = |kind: &str, name: &str| {
        store.find("", kind, &grant.namespace, name).and_then(|o| o.metadata.uid.clone()).unwrap_or_default()
    };
    let place = &grant.namespace;
    if uid_of("ServiceAccount", &grant.account) != grant.account_uid {
        return Some(format!("serviceaccount {place}/{} of the token is gone", grant.account));
    }
    let pod = grant.pod.as_ref()?;
    (uid_of("Pod", &pod.name) != pod.uid).then(|| format!("pod {place}/{} of the token is gone", pod.name))
}

fn check_pod(store: &MemoryStore, namespace: &str, account: &str, bound: &BoundPod) -> Result<(), ApiError> {
    let wrong = |why: &str| Err(ApiError::bad_request(format!("pod {namespace}/{}: {why}", bound.name)));
    let Some(pod) = store.find("", "Pod", namespace, &bound.name) else { return wrong("does not exist") };
    if pod.metadata.uid.as_deref() != Some(bound.uid.as_str()) {
        return wrong("has another uid than spec.boundObjectRef.uid says");
    }
    let runs_as = pod.spec().get("serviceAccountName").and_then(|v| v.as_str()).unwrap_or("default");
    if runs_as == account { Ok(()) } else { wrong("runs as another service account") }
}

/// Unix seconds.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// 256 bits from the kernel, printable.
fn random_token() -> std::io::Result<String> {
    use base64::Engine;
    let mut bytes = [0_u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("weft-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_k8s_api::Object;
    use weft_store::memory::key;
    use weft_store::{DeleteOptions, StoreOptions};

    fn object(value: serde_json::Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn store() -> MemoryStore {
        let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "n"}});
        store.create(object(account)).unwrap();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"},
            "spec": {"serviceAccountName": "a"},
        });
        store.create(object(pod)).unwrap();
        store
    }

    #[test]
    fn tokens_die_with_account_and_pod() {
        let (store, table) = (store(), TokenTable::new("api"));
        let uid = store.find("", "Pod", "n", "p").unwrap().metadata.uid.clone().unwrap();
        let pod = BoundPod { name: "p".into(), uid };
        let (bound, _) = table.issue(&store, ("n", "a"), &["istio-ca".into()], 3600, Some(pod.clone())).unwrap();
        let (free, expires) = table.issue(&store, ("n", "a"), &[], 1, None).unwrap();
        assert!(free.len() > 40 && free != bound && expires >= now() + 59, "the shortest life is a minute");
        assert_eq!(table.check(&store, &bound).unwrap().audiences, ["istio-ca"]);
        assert_eq!(table.check(&store, &free).unwrap().audiences, ["api"]);
        assert!(table.check(&store, "weft-guess").unwrap_err().contains("not known"));
        store.delete(&key("", "Pod", "n", "p"), &DeleteOptions::default()).unwrap();
        assert!(table.check(&store, &bound).unwrap_err().contains("pod n/p"));
        assert!(table.check(&store, &free).is_ok());
        store.delete(&key("", "ServiceAccount", "n", "a"), &DeleteOptions::default()).unwrap();
        assert!(table.check(&store, &free).unwrap_err().contains("serviceaccount n/a"));
        assert!(table.issue(&store, ("n", "a"), &[], 3600, None).is_err());
    }

    #[test]
    fn tokens_end() {
        let (store, table) = (store(), TokenTable::new("api"));
        let (token, _) = table.issue(&store, ("n", "a"), &[], 3600, None).unwrap();
        table.tokens.lock().unwrap().get_mut(&token).unwrap().expires = now() - 1;
        assert_eq!(table.check(&store, &token).unwrap_err(), "the token has expired");
        assert!(table.check(&store, &token).unwrap_err().contains("not known"), "and is forgotten");
    }

    #[test]
    fn pods_that_do_not_fit() {
        let (store, table) = (store(), TokenTable::new("api"));
        for (name, uid) in [("q", "1"), ("p", "1")] {
            let pod = BoundPod { name: name.into(), uid: uid.into() };
            assert!(table.issue(&store, ("n", "a"), &[], 3600, Some(pod)).is_err(), "{name} {uid}");
        }
        let other = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "b", "namespace": "n"}});
        store.create(object(other)).unwrap();
        let uid = store.find("", "Pod", "n", "p").unwrap().metadata.uid.clone().unwrap();
        let error = table.issue(&store, ("n", "b"), &[], 3600, Some(BoundPod { name: "p".into(), uid })).unwrap_err();
        assert!(error.message.contains("another service account"), "{}", error.message);
    }
}
