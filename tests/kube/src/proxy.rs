//! A proxy as far as the control plane is concerned: a pod's identity and a delta ADS stream.

use crate::cluster::Cluster;
use crate::{LIMIT, Weftd, eventually};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use weft_proto::envoy::config::core::v3::address::Address;
use weft_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::{type_url, unpack};
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};

/// A stream to a control plane, and what it has brought.
pub struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// Addresses by cluster name.
    pub endpoints: BTreeMap<String, BTreeSet<String>>,
    /// Names of the clusters.
    pub clusters: BTreeSet<String>,
    /// The virtual hosts by name, as text: the strings of a message are in its bytes as they are.
    pub routes: BTreeMap<String, String>,
}

/// The mesh's root as weftd publishes it in a namespace.
///
/// # Errors
/// When it does not come in time.
pub async fn root(cluster: &Cluster, namespace: &str) -> Result<String> {
    eventually("the root certificate", async || {
        let map = cluster.get("configmaps", namespace, "istio-ca-root-cert").await?;
        let pem = map.body.get("data").and_then(|d| d.get("root-cert.pem")).and_then(|v| v.as_str());
        pem.map(str::to_string).context("no root-cert.pem")
    })
    .await
}

/// A connection to weftd, which shows a certificate under `root`.
///
/// # Errors
/// When it does not answer, or shows another one.
pub async fn channel(port: u16, root: &str) -> Result<Channel> {
    let anchors = TrustAnchors::from_pem(root.as_bytes())?;
    let context = ClientContext::build(ClientParams {
        sni: Some("istiod.istio-system.svc".into()),
        alpn: vec![b"h2".to_vec()],
        ..ClientParams::new(ServerVerification::WebPki { anchors, san: None })
    })?;
    let connect = tower::service_fn(move |_: http::Uri| {
        let context = context.clone();
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            let connected = context.connect(stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connected.stream))
        }
    });
    Ok(Endpoint::from_static("http://istiod.istio-system.svc:15012").connect_with_connector(connect).await?)
}

impl Proxy {
    /// Connects as the proxy of a pod of the account `default`, and asks for clusters, endpoints and routes.
    ///
    /// # Errors
    /// When weftd does not accept it.
    pub async fn connect(cluster: &Cluster, weftd: &Weftd, namespace: &str, pod: &str, ip: &str) -> Result<Self> {
        let root = root(cluster, namespace).await?;
        let token = cluster.token(namespace, "default", &["istio-ca"]).await?;
        let channel = channel(weftd.secure, &root).await?;
        let (requests, receiver) = mpsc::channel(64);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let node = serde_json::json!({
            "id": format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            "metadata": {"NAMESPACE": namespace, "WEFT": "1"},
        });
        let first = DeltaDiscoveryRequest {
            node: Some(weft_proto::json::from_json(&node)?),
            type_url: type_url::CLUSTER.into(),
            ..Default::default()
        };
        requests.send(first).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(256 << 20);
        let responses = tokio::time::timeout(LIMIT, client.delta_aggregated_resources(request)).await??.into_inner();
        let mut proxy = Self {
            requests,
            responses,
            endpoints: BTreeMap::new(),
            clusters: BTreeSet::new(),
            routes: BTreeMap::new(),
        };
        proxy.subscribe(type_url::VIRTUAL_HOST, &["80/*"]).await?;
        Ok(proxy)
    }

    async fn subscribe(&mut self, type_url: &str, names: &[&str]) -> Result<()> {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        Ok(self.requests.send(request).await?)
    }

    /// Takes what comes until `done` says that it is all; fails with what it said last when nothing more comes.
    ///
    /// # Errors
    /// The reason, or the end of the stream.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let Err(reason) = done(self) else { return Ok(()) };
            match tokio::time::timeout_at(end, self.responses.message()).await {
                Ok(Ok(Some(response))) => self.take(response).await?,
                Ok(Ok(None)) => bail!("{what}: the stream ended"),
                Ok(Err(status)) => bail!("{what}: {status}"),
                Err(_) => return Err(reason.context(format!("{what}: not within {LIMIT:?}"))),
            }
        }
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<()> {
        let mut subscribe = Vec::new();
        for name in &response.removed_resources {
            self.clusters.remove(name);
            self.routes.remove(name);
        }
        for resource in &response.resources {
            let Some(any) = resource.resource.as_ref() else { continue };
            if response.type_url == type_url::CLUSTER {
                let new = self.clusters.insert(resource.name.clone());
                // Only those that have endpoints by EDS; asking for others brings nothing.
                if new && resource.name.starts_with("outbound|") {
                    subscribe.push(resource.name.clone());
                }
            } else if response.type_url == type_url::ENDPOINT {
                let assignment: ClusterLoadAssignment = unpack(any)?;
                self.endpoints.insert(resource.name.clone(), addresses(&assignment));
            } else {
                self.routes.insert(resource.name.clone(), String::from_utf8_lossy(&any.value).into_owned());
            }
        }
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(answer).await?;
        if !subscribe.is_empty() {
            let names: Vec<&str> = subscribe.iter().map(String::as_str).collect();
            self.subscribe(type_url::ENDPOINT, &names).await?;
        }
        Ok(())
    }

    /// Waits until a cluster has exactly these endpoints.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn has_endpoints(&mut self, cluster: &str, wanted: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
        self.until(cluster, |proxy| {
            let held = proxy.endpoints.get(cluster);
            ensure!(held == Some(&wanted), "{cluster} has {held:?}, wanted {wanted:?}");
            Ok(())
        })
        .await
    }
}

/// The addresses of a load assignment.
fn addresses(assignment: &ClusterLoadAssignment) -> BTreeSet<String> {
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let socket = |endpoint: &LbEndpoint| match endpoint.host_identifier.as_ref()? {
        HostIdentifier::Endpoint(endpoint) => match endpoint.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => Some(socket.address.clone()),
            _ => None,
        },
        HostIdentifier::EndpointName(_) => None,
    };
    endpoints.filter_map(socket).collect()
}
