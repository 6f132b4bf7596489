//! Cluster DNS: names of Services and pods, as the Kubernetes DNS specification has them, and of hosts outside that the lab
//! has pods for. Any other name does not exist.

use super::view::ServiceView;
use super::{DNS_SERVICE, DOMAIN, NetworkError};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

/// Seconds that a resolver may keep an answer, positive or not: endpoints change often in a lab.
const TTL: u32 = 5;
/// Largest answer over UDP where the client names no size of its own (RFC 1035 section 4.2.1).
const UDP_SIZE: u16 = 512;
/// Largest answer over UDP at all.
const UDP_SIZE_MAX: u16 = 1232;
/// TCP clients at once; further ones wait.
const TCP_CLIENTS: usize = 64;
/// A TCP client that sends nothing for so long is dropped.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Aliases followed in one answer.
const ALIAS_DEPTH: usize = 8;

/// The names of the cluster.
#[derive(Debug, Default)]
pub struct Zone {
    names: HashMap<String, Vec<Answer>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Address(IpAddr),
    Alias(String),
    Service { port: u16, target: String },
}

impl Zone {
    /// Builds the names of all services, and those of hosts outside, of which one may begin with `*.`.
    pub fn build(services: &[ServiceView], outside: &BTreeMap<String, Vec<IpAddr>>) -> Self {
        let mut zone = Self::default();
        for (name, addresses) in outside {
            zone.names.insert(name.clone(), addresses.iter().copied().map(Answer::Address).collect());
        }
        for service in services {
            zone.add(service);
        }
        zone
    }

    fn add(&mut self, service: &ServiceView) {
        let name = format!("{}.{}.svc.{DOMAIN}", service.name, service.namespace).to_ascii_lowercase();
        if let Some(external) = &service.external_name {
            let external = external.trim_end_matches('.').to_ascii_lowercase();
            self.names.entry(name).or_default().push(Answer::Alias(external));
            return;
        }
        // Even without endpoints the name exists: asked for, it has no addresses, which is another answer than "no such name".
        let addresses = self.names.entry(name.clone()).or_default();
        let mut targets = Vec::new();
        if !service.addresses.is_empty() {
            addresses.extend(service.addresses.iter().copied().map(Answer::Address));
            targets.push(name.clone());
        } else {
            addresses.extend(service.endpoints.iter().map(|endpoint| Answer::Address(endpoint.address)));
            for endpoint in &service.endpoints {
                let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address));
                let host = format!("{host}.{name}").to_ascii_lowercase();
                self.names.entry(host.clone()).or_default().push(Answer::Address(endpoint.address));
                if !targets.contains(&host) {
                    targets.push(host);
                }
            }
        }
        for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
            let Some(transport) = port.transport else { continue };
            let transport = format!("{transport:?}").to_ascii_lowercase();
            let records = self.names.entry(format!("_{}._{transport}.{name}", port.name)).or_default();
            records.extend(targets.iter().map(|target| Answer::Service { port: port.port, target: target.clone() }));
        }
    }

    /// Answers one question: the records, or the reason why there are none.
    fn answer(&self, name: &str, kind: RecordType) -> Result<Vec<Record>, ResponseCode> {
        let mut records = Vec::new();
        let mut asked = name.trim_end_matches('.').to_ascii_lowercase();
        for _ in 0..ALIAS_DEPTH {
            let known = match (self.find(&asked), pod_address(&asked)) {
                (Some(known), _) => known.clone(),
                (None, Some(address)) => vec![Answer::Address(address)],
                // An alias to a name of the outside is still an answer; the name itself cannot be resolved further here.
                (None, None) if !records.is_empty() => return Ok(records),
                (None, None) => return Err(self.absent(&asked)),
            };
            let owner = name_of(&asked)?;
            if let [Answer::Alias(target)] = known.as_slice() {
                records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(name_of(target)?))));
                if kind == RecordType::CNAME {
                    return Ok(records);
                }
                asked = target.clone();
                continue;
            }
            for answer in known {
                records.extend(record(&owner, &answer, kind)?);
            }
            return Ok(records);
        }
        Err(ResponseCode::ServFail)
    }

    /// What is known of a name, or of the wildcard nearest above it.
    fn find(&self, name: &str) -> Option<&Vec<Answer>> {
        let wildcards = name.match_indices('.').map(|(dot, _)| format!("*{}", &name[dot..]));
        self.names.get(name).or_else(|| wildcards.into_iter().find_map(|wildcard| self.names.get(&wildcard)))
    }

    /// A name that only stands above others (`default.svc.cluster.local`) exists but has no records.
    fn absent(&self, name: &str) -> ResponseCode {
        let below = format!(".{name}");
        if self.names.keys().any(|known| known.ends_with(&below)) {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        }
    }

    /// The whole reply to a request, unbounded in size. `None` when the request cannot even be answered with an error.
    pub fn reply(&self, request: &[u8]) -> Option<Message> {
        let Ok(request) = Message::from_vec(request) else {
            let id = u16::from_be_bytes([*request.first()?, *request.get(1)?]);
            return Some(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
        };
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.recursion_desired = request.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        if request.edns.is_some() {
            let mut own = Edns::new();
            own.set_max_payload(UDP_SIZE_MAX).set_version(0);
            reply.set_edns(own);
        }
        let [query] = request.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return Some(reply);
        };
        reply.add_query(query.clone());
        if request.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return Some(reply);
        }
        self.fill(&mut reply, query);
        Some(reply)
    }

    fn fill(&self, reply: &mut Message, query: &Query) {
        reply.metadata.authoritative = true;
        match self.answer(&query.name().to_ascii(), query.query_type()) {
            Ok(records) => {
                reply.add_answers(records);
            }
            Err(code) => reply.metadata.response_code = code,
        }
        // Tells resolvers how long to remember that there is nothing (RFC 2308).
        if reply.answers.is_empty()
            && let (Ok(zone), Ok(mailbox)) = (name_of(DOMAIN), name_of("hostmaster.cluster.local"))
        {
            let (server, ttl) = (zone.clone(), TTL as i32);
            let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL.min(ttl as u32));
            reply.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
        }
    }
}

fn record(owner: &Name, answer: &Answer, kind: RecordType) -> Result<Option<Record>, ResponseCode> {
    let data = match (answer, kind) {
        (Answer::Address(IpAddr::V4(address)), RecordType::A | RecordType::ANY) => RData::A(A(*address)),
        (Answer::Address(IpAddr::V6(address)), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(*address)),
        (Answer::Service { port, target }, RecordType::SRV | RecordType::ANY) => {
            RData::SRV(SRV::new(0, 100, *port, name_of(target)?))
        }
        _ => return Ok(None),
    };
    Ok(Some(Record::from_rdata(owner.clone(), TTL, data)))
}

fn name_of(text: &str) -> Result<Name, ResponseCode> {
    Name::from_ascii(format!("{text}.")).map_err(|_| ResponseCode::ServFail)
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// `10-244-0-5.default.pod.cluster.local` names the address it spells; one of IPv6 is spelt with `-` for `:`.
fn pod_address(name: &str) -> Option<IpAddr> {
    let (address, _namespace) = name.strip_suffix(&format!(".pod.{DOMAIN}"))?.split_once('.')?;
    let four = address.replace('-', ".").parse().map(IpAddr::V4);
    four.or_else(|_| address.replace('-', ":").parse().map(IpAddr::V6)).ok()
}

/// Serves the newest zone on UDP and TCP until dropped.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(zones: watch::Receiver<Arc<Zone>>) -> Result<(), NetworkError> {
    let address = SocketAddr::from((DNS_SERVICE, 53));
    let failed = |cause| NetworkError::Io { step: format!("serve DNS on {address}"), cause };
    let udp = UdpSocket::bind(address).await.map_err(failed)?;
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    tokio::spawn(serve_udp(udp, zones.clone()));
    tokio::spawn(serve_tcp(tcp, zones));
    Ok(())
}

async fn serve_udp(socket: UdpSocket, zones: watch::Receiver<Arc<Zone>>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let zone = Arc::clone(&zones.borrow());
        let Some(reply) = zone.reply(&buffer[..length]) else { continue };
        if let Some(bytes) = fit(&reply, asked_size(&buffer[..length])) {
            let _ = socket.send_to(&bytes, client).await;
        }
    }
}

fn asked_size(request: &[u8]) -> u16 {
    let edns = Message::from_vec(request).ok().and_then(|request| request.edns);
    edns.map_or(UDP_SIZE, |edns| edns.max_payload().clamp(UDP_SIZE, UDP_SIZE_MAX))
}

/// An answer that is too long is sent empty and marked, so that the client asks again over TCP.
fn fit(reply: &Message, size: u16) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= usize::from(size) { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

async fn serve_tcp(listener: TcpListener, zones: watch::Receiver<Arc<Zone>>) {
    let clients = Arc::new(Semaphore::new(TCP_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let zones = zones.clone();
        tokio::spawn(async move {
            let _ = serve_tcp_client(stream, zones).await;
            drop(permit);
        });
    }
}

async fn serve_tcp_client(mut stream: TcpStream, zones: watch::Receiver<Arc<Zone>>) -> std::io::Result<()> {
    loop {
        let length = tokio::time::timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut request = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut request)).await??;
        let zone = Arc::clone(&zones.borrow());
        let reply = zone.reply(&request).and_then(|reply| reply.to_vec().ok());
        let Some(reply) = reply.filter(|bytes| bytes.len() <= usize::from(u16::MAX)) else { return Ok(()) };
        stream.write_u16(reply.len() as u16).await?;
        stream.write_all(&reply).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::services::Transport;
    use super::super::view::{EndpointView, PortView};
    use super::*;
    use hickory_proto::op::MessageType;

    fn zone() -> Zone {
        let port = PortView {
            name: "http".into(),
            transport: Some(Transport::Tcp),
            port: 9080,
            node_port: None,
            endpoints: vec![],
        };
        let endpoint = |last, hostname: Option<&str>| EndpointView {
            address: IpAddr::from([10, 244, 0, last]),
            hostname: hostname.map(Into::into),
        };
        let six = EndpointView { address: "fd00:10:244::5".parse().unwrap(), hostname: None };
        let base = ServiceView { namespace: "default".into(), ports: vec![port], ..ServiceView::default() };
        Zone::build(
            &[
                ServiceView {
                    name: "reviews".into(),
                    addresses: vec!["10.96.0.7".parse().unwrap(), "fd00:10:96::7".parse().unwrap()],
                    ..base.clone()
                },
                ServiceView { name: "six".into(), endpoints: vec![six], ..base.clone() },
                ServiceView {
                    name: "db".into(),
                    endpoints: vec![endpoint(5, Some("db-0")), endpoint(6, None)],
                    ..base.clone()
                },
                ServiceView {
                    name: "alias".into(),
                    external_name: Some("reviews.default.svc.cluster.local".into()),
                    ..base.clone()
                },
                ServiceView { name: "out".into(), external_name: Some("example.com".into()), ..base.clone() },
                ServiceView { name: "far".into(), external_name: Some("www.example.org".into()), ..base },
            ],
            &BTreeMap::from([
                ("*.example.org".to_string(), vec![IpAddr::from([198, 18, 0, 2])]),
                ("api.example.org".to_string(), vec![IpAddr::from([198, 18, 0, 3])]),
            ]),
        )
    }

    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut request = Message::new(7, MessageType::Query, OpCode::Query);
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let reply = zone().reply(&request.to_vec().unwrap()).unwrap();
        assert_eq!(reply.metadata.id, 7);
        let reply = Message::from_vec(&fit(&reply, UDP_SIZE_MAX).unwrap()).unwrap();
        let text = reply.answers.iter().map(|record| record.data.to_string()).collect();
        (reply.metadata.response_code, text)
    }

    #[test]
    fn answers() {
        use ResponseCode::{NXDomain, NoError};
        for (name, kind, code, expected) in [
            ("reviews.default.svc.cluster.local.", RecordType::A, NoError, vec!["10.96.0.7"]),
            ("Reviews.Default.svc.cluster.local.", RecordType::A, NoError, vec!["10.96.0.7"]),
            ("reviews.default.svc.cluster.local.", RecordType::AAAA, NoError, vec!["fd00:10:96::7"]),
            ("reviews.default.svc.cluster.local.", RecordType::ANY, NoError, vec!["10.96.0.7", "fd00:10:96::7"]),
            ("db.default.svc.cluster.local.", RecordType::AAAA, NoError, vec![]),
            ("six.default.svc.cluster.local.", RecordType::A, NoError, vec![]),
            ("six.default.svc.cluster.local.", RecordType::AAAA, NoError, vec!["fd00:10:244::5"]),
            ("fd00-10-244--5.six.default.svc.cluster.local.", RecordType::AAAA, NoError, vec!["fd00:10:244::5"]),
            ("fd00-10-244--9.default.pod.cluster.local.", RecordType::AAAA, NoError, vec!["fd00:10:244::9"]),
            ("db.default.svc.cluster.local.", RecordType::A, NoError, vec!["10.244.0.5", "10.244.0.6"]),
            ("db-0.db.default.svc.cluster.local.", RecordType::A, NoError, vec!["10.244.0.5"]),
            ("10-244-0-9.default.pod.cluster.local.", RecordType::A, NoError, vec!["10.244.0.9"]),
            (
                "alias.default.svc.cluster.local.",
                RecordType::A,
                NoError,
                vec!["reviews.default.svc.cluster.local.", "10.96.0.7"],
            ),
            ("out.default.svc.cluster.local.", RecordType::A, NoError, vec!["example.com."]),
            (
                "_http._tcp.reviews.default.svc.cluster.local.",
                RecordType::SRV,
                NoError,
                vec!["0 100 9080 reviews.default.svc.cluster.local."],
            ),
            ("default.svc.cluster.local.", RecordType::A, NoError, vec![]),
            ("reviews.default.svc.cluster.local.svc.cluster.local.", RecordType::A, NXDomain, vec![]),
            ("example.com.", RecordType::A, NXDomain, vec![]),
            ("www.Example.org.", RecordType::A, NoError, vec!["198.18.0.2"]),
            ("a.b.example.org.", RecordType::A, NoError, vec!["198.18.0.2"]),
            ("www.example.org.", RecordType::AAAA, NoError, vec![]),
            ("api.example.org.", RecordType::A, NoError, vec!["198.18.0.3"]),
            ("example.org.", RecordType::A, NoError, vec![]),
            ("far.default.svc.cluster.local.", RecordType::A, NoError, vec!["www.example.org.", "198.18.0.2"]),
        ] {
            let expected = expected.iter().map(ToString::to_string).collect();
            assert_eq!(ask(name, kind), (code, expected), "{name} {kind}");
        }
    }

    #[test]
    fn survives_bad_requests() {
        let zone = zone();
        assert!(zone.reply(&[]).is_none());
        assert_eq!(zone.reply(&[0, 9, 255]).unwrap().metadata.response_code, ResponseCode::FormErr);
        let empty = Message::new(3, MessageType::Query, OpCode::Query).to_vec().unwrap();
        assert_eq!(zone.reply(&empty).unwrap().metadata.response_code, ResponseCode::FormErr);
    }

    #[test]
    fn long_answers_are_cut_for_udp() {
        let endpoints =
            (1..200).map(|n| EndpointView { address: IpAddr::from([10, 244, 1, n as u8]), hostname: None }).collect();
        let service = ServiceView { namespace: "x".into(), name: "many".into(), endpoints, ..ServiceView::default() };
        let zone = Zone::build(&[service], &BTreeMap::new());
        let mut request = Message::new(7, MessageType::Query, OpCode::Query);
        request.add_query(Query::query(Name::from_ascii("many.x.svc.cluster.local.").unwrap(), RecordType::A));
        let request = request.to_vec().unwrap();
        let cut = fit(&zone.reply(&request).unwrap(), asked_size(&request)).unwrap();
        assert!(cut.len() <= 512 && Message::from_vec(&cut).unwrap().metadata.truncation);
        assert_eq!(zone.reply(&request).unwrap().answers.len(), 199);
    }
}
