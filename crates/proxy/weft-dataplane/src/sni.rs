//! What server names decide on the way of a TCP connection: which host it goes to, which name TLS to the endpoint asks for,
//! and whether a second name inside the first TLS is the same one. The last two are the filters `forward_downstream_sni` and
//! `sni_verifier`, which Istio's build of Envoy had up to 1.18 (github.com/istio/proxy, `src/envoy/tcp`).

use crate::chain::ChainRuntime;
use crate::downstream::Downstream;
use crate::worker::Worker;
use bytes::{Bytes, BytesMut};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use weft_cluster::{Host, LiveCluster, UpstreamError};
use weft_codec::{Io, Reason};
use weft_proxy_config::NetworkFilter;
use weft_tls::{PeekedHello, peek_client_hello};

/// Bytes looked at for the name inside: the longest sane ClientHello.
const MAX_HELLO: usize = 16 * 1024;
/// How long a client may take to say it; as long as for the first bytes of any connection.
const HELLO_LIMIT: Duration = Duration::from_secs(15);

fn find<T>(chain: &ChainRuntime, wanted: impl Fn(&NetworkFilter) -> Option<T>) -> Option<T> {
    chain.chain.filters.iter().find_map(wanted)
}

/// The port on which connections go to the endpoint that the server name resolves to.
pub(crate) fn forward(chain: &ChainRuntime) -> Option<u16> {
    find(chain, |filter| match filter {
        NetworkFilter::SniForward(port) => Some(*port),
        _ => None,
    })
}

/// The host that the server name resolves to.
pub(crate) async fn named_host(
    worker: &Rc<Worker>,
    cluster: &Rc<LiveCluster>,
    downstream: &Downstream,
    port: u16,
) -> Result<Rc<Host>, UpstreamError> {
    let name = downstream.server_name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| UpstreamError::unsent(Reason::NoHealthyUpstream).with_detail("no server name"))?;
    cluster.resolve(worker.clusters.resolver(), name, port).await
}

/// The name that TLS to the endpoint asks for instead of the cluster's own; only a filter makes it the client's.
pub(crate) fn upstream<'a>(chain: &ChainRuntime, downstream: &'a Downstream) -> Option<&'a str> {
    find(chain, |filter| matches!(filter, NetworkFilter::ForwardSni).then_some(()))?;
    downstream.server_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the connection's own TLS asks for the name of the TLS around it, where a filter wants that. Bytes read meanwhile
/// are put back.
///
/// # Errors
/// The details word of the log when the names differ or there is none, within [`HELLO_LIMIT`] and [`MAX_HELLO`].
pub(crate) async fn verified(
    worker: &Rc<Worker>,
    chain: &ChainRuntime,
    io: &mut Io,
    downstream: &Downstream,
) -> Result<(), &'static str> {
    if find(chain, |filter| matches!(filter, NetworkFilter::VerifySni).then_some(())).is_none() {
        return Ok(());
    }
    let inner = tokio::time::timeout(HELLO_LIMIT, inner_name(io)).await.unwrap_or(Err("sni_verifier_timeout"));
    let counted = |name: &'static str| worker.shard.counter(name, &[]).inc();
    match inner {
        Ok(inner) => {
            counted("envoy_sni_verifier_inner_sni_found");
            if downstream.server_name.as_deref().is_some_and(|outer| outer.eq_ignore_ascii_case(&inner)) {
                return Ok(());
            }
            counted("envoy_sni_verifier_snis_do_not_match");
            Err("sni_verifier_snis_do_not_match")
        }
        Err(details) => {
            counted("envoy_sni_verifier_inner_sni_not_found");
            Err(details)
        }
    }
}

/// The server name of the ClientHello that the stream begins with, which stays to be read.
async fn inner_name(io: &mut Io) -> Result<String, &'static str> {
    let mut seen = BytesMut::with_capacity(2048);
    let found = loop {
        match peek_client_hello(&seen) {
            PeekedHello::Incomplete if seen.len() < MAX_HELLO => {}
            PeekedHello::Hello(hello) => break hello.sni.ok_or("sni_verifier_inner_sni_not_found"),
            PeekedHello::Incomplete => break Err("sni_verifier_client_hello_too_large"),
            PeekedHello::NotTls | PeekedHello::Malformed(_) => break Err("sni_verifier_tls_not_found"),
        }
        match io.read_buf(&mut seen).await {
            Ok(n) if n > 0 => {}
            _ => break Err("sni_verifier_tls_not_found"),
        }
    };
    io.unread(Bytes::from(seen));
    found
}
