//! An API server for the installer's tests, in this process. It has no controllers: nothing becomes ready.

use super::apply::send;
use super::cluster::{OWNER, OWNER_NAMESPACE, Owner, REVISION};
use super::operator::{self, KIND, Operator};
use super::settings::Settings;
use super::webhooks::DEFAULT_VALIDATOR;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use weft_apiserver::admission::{Admission, AdmissionRequest, Denial, Operation};
use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
use weft_k8s_api::Object;
use weft_store::client::{ListOptions, WriteOptions};
use weft_store::{ApiClient, MemoryStore};

const TOKEN: &str = "test-admin-token-0123456789";
/// Name of objects that never change once they are made.
pub const STUCK: &str = "stuck";

struct Unchanging;

impl Admission for Unchanging {
    fn admit<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<Vec<String>, Denial>> {
        let refused = request.operation == Operation::Update && object.name() == STUCK;
        async move { if refused { Err(Denial::Forbidden("it never changes".into())) } else { Ok(Vec::new()) } }.boxed()
    }
}

/// The server; it ends with the test's runtime.
pub struct Server {
    pub client: ApiClient,
}

impl Server {
    /// With the kind IstioOperator, and namespaces `istio-system` and `mesh2`.
    pub async fn start() -> Self {
        let options = ApiServerOptions {
            admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
            admission: vec![Arc::new(Unchanging)],
            namespaces: ["default", "istio-system", "mesh2"].map(String::from).to_vec(),
            ..ApiServerOptions::default()
        };
        let server = ApiServer::new(MemoryStore::new(), options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        let server = Self { client: ApiClient::connect(&url, Some(TOKEN)).unwrap() };
        server.create(operator::definition()).await;
        let start = Instant::now();
        while let Err(error) = server.client.list(&KIND, None, &ListOptions::default()).await {
            assert!(start.elapsed() < Duration::from_secs(20), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// Creates an object.
    pub async fn create(&self, value: Value) -> Object {
        let object: Object = serde_json::from_value(value).unwrap();
        let key = object.key();
        self.client.create(&object, &WriteOptions::default()).await.unwrap_or_else(|e| panic!("{key}: {e}")).object
    }

    /// Creates an IstioOperator as a user writes it.
    pub async fn request(&self, namespace: &str, name: &str, spec: Value, finalizers: &[&str]) {
        let value = json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": spec,
                           "metadata": {"name": name, "namespace": namespace, "finalizers": finalizers}});
        let object: Object = serde_json::from_value(value).unwrap();
        self.client.server_side_apply(&KIND, &object, "user", false).await.unwrap();
    }

    /// Creates a ConfigMap that belongs to an owner of the revision `default`: name and namespace, none for nobody.
    pub async fn owned(&self, namespace: &str, name: &str, owner: Option<(&str, &str)>) {
        let mut labels = json!({REVISION: "default", "app.kubernetes.io/part-of": "weft"});
        if let Some((owner, owner_namespace)) = owner {
            labels[OWNER] = owner.into();
            labels[OWNER_NAMESPACE] = owner_namespace.into();
            labels["operator.istio.io/managed"] = "Reconcile".into();
        }
        let metadata = json!({"name": name, "namespace": namespace, "labels": labels});
        self.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})).await;
    }

    /// Creates the webhook configurations of a control plane in a namespace, as the installer makes them for an owner there.
    pub async fn webhooks(&self, namespace: &str, owner: &str) {
        let mut operator = Operator::merge(&[], &[format!("namespace={namespace}")], None).unwrap();
        operator.name = owner.into();
        let settings = Settings::new(&operator).unwrap();
        let owner = Owner::new(&operator, &settings);
        for object in super::objects(&settings).unwrap() {
            if object["kind"].as_str().unwrap().ends_with("WebhookConfiguration") {
                send(&self.client, &owner.mark(object, "Pilot").unwrap(), false).await.unwrap();
            }
        }
    }

    /// How many validators there are, and the namespace that the one of what names no revision leads to.
    pub async fn validators(&self) -> (usize, Option<String>) {
        let kind =
            weft_k8s_api::kinds::by_kind("admissionregistration.k8s.io", "ValidatingWebhookConfiguration").unwrap();
        let all = self.client.list(kind, None, &ListOptions::default()).await.unwrap().items;
        let default = all.iter().find(|object| object.name() == DEFAULT_VALIDATOR);
        let leads = |object: &Object| object.body["webhooks"][0]["clientConfig"]["service"]["namespace"].to_string();
        (all.len(), default.map(leads).map(|text| text.trim_matches('"').to_string()))
    }

    /// Names of the ConfigMaps that are there, with their namespaces, but for those that every namespace has.
    pub async fn names(&self) -> Vec<String> {
        let kind = weft_k8s_api::kinds::by_kind("", "ConfigMap").unwrap();
        let all = self.client.list(kind, None, &ListOptions::default()).await.unwrap().items;
        let own = all.iter().filter(|object| object.name() != "kube-root-ca.crt");
        own.map(|object| format!("{}/{}", object.namespace(), object.name())).collect()
    }
}
