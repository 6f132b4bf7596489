//! What is known of a client's connection.

use std::net::SocketAddr;
use std::sync::Arc;
use weft_cluster::{OwnPools, Source};
use weft_codec::io::IoMeter;
use weft_core::Strng;
use weft_proxy_config::TrafficDirection;
use weft_tls::TlsFacts;

/// A client's connection, from accept to close.
#[derive(Debug)]
pub(crate) struct Downstream {
    /// Number in this worker.
    pub id: u64,
    /// Who connected: the address of the packets.
    pub peer: SocketAddr,
    /// Who connected, as a PROXY header says; else `peer`.
    pub source: SocketAddr,
    /// Where it wanted to go: before redirection, or as a PROXY header says.
    pub destination: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// Server name asked for, lower case.
    pub server_name: Option<Strng>,
    /// TLS, when this proxy ended it.
    pub tls: Option<TlsFacts>,
    /// What authorization sees of the client's certificate.
    pub certificate: Option<weft_authz::PeerCertificate>,
    /// URI name of the certificate that this proxy showed.
    pub local_uri: Option<Strng>,
    /// Where endpoints are called from on its behalf, when not from this machine's address.
    pub from: Option<Source>,
    /// Connections to endpoints that serve this one alone.
    pub own: OwnPools,
    /// Side of the workload.
    pub direction: TrafficDirection,
    /// Name of the filter chain.
    pub chain: Strng,
    /// Bytes that passed.
    pub meter: Arc<IoMeter>,
}

impl Downstream {
    /// Notes the outcome of a handshake.
    pub fn secured(&mut self, facts: TlsFacts, local_uri: Option<Strng>) {
        if let Some(name) = &facts.server_name {
            self.server_name = Some(Strng::from(name.to_ascii_lowercase()));
        }
        self.certificate = facts.peer.as_ref().map(|peer| weft_authz::PeerCertificate {
            uris: peer.uris.clone(),
            dns: peer.dns.clone(),
            subject: peer.subject.clone(),
        });
        self.tls = Some(facts);
        self.local_uri = local_uri;
    }

    /// The client showed a verified certificate.
    pub fn is_mutual_tls(&self) -> bool {
        self.certificate.is_some()
    }

    /// First URI name of the client's certificate.
    pub fn peer_uri(&self) -> Option<&str> {
        self.certificate.as_ref()?.uris.first().map(|uri| &**uri)
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}
