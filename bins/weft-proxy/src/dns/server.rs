//! The sockets of the DNS server: UDP and TCP on one address, bounded in work and time.

use super::answer::{Decision, decide, response, udp_bytes};
use super::forward;
use super::{NameTable, ResolvConf};
use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::RecordType;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use weft_dataplane::demand::Demands;

/// Queries that wait for a resolver at once; more are told to try again.
const MAX_FORWARDS: usize = 512;
/// TCP connections at once.
const MAX_CONNECTIONS: usize = 128;
/// Idle time of a TCP connection.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Largest query over UDP.
const MAX_QUERY: usize = 4096;

/// Counts since start.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Queries received.
    pub requests: AtomicU64,
    /// Queries answered from the name table.
    pub answered: AtomicU64,
    /// Queries passed on.
    pub forwarded: AtomicU64,
    /// Queries that no resolver answered.
    pub failures: AtomicU64,
}

/// The server, bound to its address.
pub struct DnsServer {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    table: Arc<ArcSwap<NameTable>>,
    /// Where the table has only names that were asked for.
    demands: Option<Demands>,
    servers: Vec<SocketAddr>,
    forwards: Semaphore,
    turn: AtomicUsize,
    stats: Arc<DnsStats>,
}

impl DnsServer {
    /// Binds UDP and TCP. `table` is looked at for each query; with `demands` a name is asked for first.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        table: Arc<ArcSwap<NameTable>>,
        conf: &ResolvConf,
        demands: Option<Demands>,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let udp = Arc::new(UdpSocket::bind(tcp.local_addr()?).await?);
        let own = tcp.local_addr()?;
        // To ask ourselves would go round for ever.
        let servers = conf.servers.iter().copied().filter(|server| *server != own).collect();
        let shared = Shared {
            table,
            demands,
            servers,
            forwards: Semaphore::new(MAX_FORWARDS),
            turn: AtomicUsize::new(0),
            stats: Arc::default(),
        };
        Ok(Self { udp, tcp, shared: Arc::new(shared) })
    }

    /// Counts.
    pub fn stats(&self) -> Arc<DnsStats> {
        self.shared.stats.clone()
    }

    /// Serves until dropped.
    pub async fn run(self) {
        tokio::join!(serve_udp(self.udp, self.shared.clone()), serve_tcp(self.tcp, self.shared));
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier answer; the socket goes on.
            Err(_) => continue,
        };
        let bytes = &buffer[..length];
        let Some(query) = shared.query(bytes) else { continue };
        if shared.demands.is_some() {
            let (bytes, shared, socket) = (bytes.to_vec(), shared.clone(), socket.clone());
            tokio::spawn(async move {
                shared.ask(&query).await;
                let answer = match decide(&shared.table.load(), &query, shared.turn.fetch_add(1, Ordering::Relaxed)) {
                    Decision::Answer(message) => {
                        shared.stats.answered.fetch_add(1, Ordering::Relaxed);
                        udp_bytes(&query, &message)
                    }
                    Decision::Forward => Some(shared.forward(&bytes, &query, Transport::Udp).await),
                };
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, client).await;
                }
            });
            continue;
        }
        match decide(&shared.table.load(), &query, shared.turn.fetch_add(1, Ordering::Relaxed)) {
            Decision::Answer(message) => {
                shared.stats.answered.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = udp_bytes(&query, &message) {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
            Decision::Forward => {
                let (bytes, shared, socket) = (bytes.to_vec(), shared.clone(), socket.clone());
                tokio::spawn(async move {
                    let answer = shared.forward(&bytes, &query, Transport::Udp).await;
                    let _ = socket.send_to(&answer, client).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    // A client that goes away or sends nonsense ends its own connection alone.
                    let _ = serve_connection(stream, &shared).await;
                });
            }
            // Out of file descriptors, most likely: wait for some to come free.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = timeout(TCP_IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(query) = shared.query(&bytes) else { return Ok(()) };
        shared.ask(&query).await;
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let decision = decide(&shared.table.load(), &query, turn);
        let answer = match decision {
            Decision::Answer(message) => {
                shared.stats.answered.fetch_add(1, Ordering::Relaxed);
                message.to_vec().map_err(io::Error::other)?
            }
            Decision::Forward => shared.forward(&bytes, &query, Transport::Tcp).await,
        };
        timeout(TCP_IDLE, stream.write_all(&forward::frame(&answer)?)).await??;
    }
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

impl Shared {
    /// The query in `bytes`; `None` for what is not one: it gets no answer, so that two servers cannot be set on each other.
    fn query(&self, bytes: &[u8]) -> Option<Message> {
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)
    }

    /// Asks the control plane for the name, where the table has only names that were asked for. Without an answer it is one
    /// for the resolvers, as any name that is not the mesh's: connections to what they say have to be asked for again.
    async fn ask(&self, query: &Message) {
        if let (Some(demands), Some(question)) = (&self.demands, query.queries.first())
            && matches!(question.query_type(), RecordType::A | RecordType::AAAA)
        {
            let name = question.name().to_ascii().to_ascii_lowercase();
            demands.name(name.strip_suffix('.').unwrap_or(&name)).await;
        }
    }

    /// The resolver's answer, or that there is none.
    async fn forward(&self, bytes: &[u8], query: &Message, transport: Transport) -> Vec<u8> {
        self.stats.forwarded.fetch_add(1, Ordering::Relaxed);
        let asked = match self.forwards.try_acquire() {
            Err(_) => Err(io::Error::other("too many queries wait for the name servers")),
            Ok(_slot) => match transport {
                Transport::Udp => forward::over_udp(bytes, &self.servers).await,
                Transport::Tcp => forward::over_tcp(bytes, &self.servers).await,
            },
        };
        asked.unwrap_or_else(|error| {
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "a DNS query could not be passed on");
            response(query, ResponseCode::ServFail, Vec::new()).to_vec().unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::Name;
    use weft_proto::istio::networking::nds::v1 as nds;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    /// One number, free for both transports.
    fn free() -> SocketAddr {
        ([127, 0, 0, 1], weft_test_ports::free_port()).into()
    }

    async fn start(servers: Vec<SocketAddr>) -> (SocketAddr, Arc<DnsStats>) {
        let info = nds::name_table::NameInfo { ips: vec!["10.96.0.7".into()], ..Default::default() };
        let message = nds::NameTable { table: [("reviews.default.svc.cluster.local".to_owned(), info)].into() };
        let table = Arc::new(ArcSwap::from_pointee(NameTable::new(&message, "default", &[])));
        let conf = ResolvConf { servers, search: Vec::new() };
        let server = DnsServer::bind(free(), table, &conf, None).await.unwrap();
        let (address, stats) = (server.tcp.local_addr().unwrap(), server.stats());
        tokio::spawn(server.run());
        (address, stats)
    }

    async fn ask_udp(server: SocketAddr, bytes: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(bytes, server).await.unwrap();
        let mut buffer = [0; 4096];
        let length = timeout(Duration::from_secs(30), socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(&forward::frame(bytes).unwrap()).await.unwrap();
        let length = timeout(Duration::from_secs(30), stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    #[tokio::test]
    async fn answers_and_forwards_over_both_transports() {
        // The resolver is a second server of ours, with a table of its own.
        let (resolver, asked) = start(Vec::new()).await;
        let (empty, _) = {
            let table = Arc::new(ArcSwap::from_pointee(NameTable::default()));
            let conf = ResolvConf { servers: vec![resolver], search: Vec::new() };
            let server = DnsServer::bind(free(), table, &conf, None).await.unwrap();
            let at = (server.tcp.local_addr().unwrap(), server.stats());
            tokio::spawn(server.run());
            at
        };
        let question = query("reviews.default.svc.cluster.local.");
        for answer in [
            ask_udp(resolver, &question).await,
            ask_tcp(resolver, &question).await,
            ask_udp(empty, &question).await,
            ask_tcp(empty, &question).await,
        ] {
            assert_eq!((answer.metadata.id, answer.answers.len()), (77, 1));
        }
        assert_eq!(asked.answered.load(Ordering::Relaxed), 4);
    }

    /// A control plane that knows one name, and says of all others that they are not the mesh's.
    #[tokio::test]
    async fn on_demand_a_name_is_asked_for_first() {
        let (demands, table) =
            (Demands::new(Default::default()), Arc::new(ArcSwap::from_pointee(NameTable::default())));
        let conf = ResolvConf { servers: Vec::new(), search: Vec::new() };
        let address = free();
        demands.reachable(true);
        let server = DnsServer::bind(address, table.clone(), &conf, Some(demands.clone())).await.unwrap();
        let address = server.tcp.local_addr().unwrap();
        tokio::spawn(server.run());
        let mut changes = demands.changes();
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let names = demands.names();
                if names.contains("dns/reviews.example") {
                    let info = nds::name_table::NameInfo { ips: vec!["10.96.0.7".into()], ..Default::default() };
                    let message = nds::NameTable { table: [("reviews.example".to_owned(), info)].into() };
                    table.store(Arc::new(NameTable::new(&message, "default", &[])));
                }
                names.iter().for_each(|name| demands.answered(name, 1, Vec::new()));
            }
        });
        assert_eq!(ask_udp(address, &query("Reviews.example.")).await.answers.len(), 1);
        assert_eq!(ask_tcp(address, &query("reviews.example.")).await.answers.len(), 1);
        let other = ask_udp(address, &query("other.example.")).await;
        assert_eq!(
            other.metadata.response_code,
            ResponseCode::ServFail,
            "passed on, and there is nobody to pass it to"
        );
    }

    #[tokio::test]
    async fn without_a_resolver_others_fail_at_once() {
        let (server, stats) = start(Vec::new()).await;
        let answer = ask_udp(server, &query("example.com.")).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(stats.failures.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn nonsense_gets_no_answer_and_does_no_harm() {
        let (server, _) = start(Vec::new()).await;
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for junk in [&b"x"[..], &[0xff; 600], &[0; 12]] {
            socket.send_to(junk, server).await.unwrap();
        }
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "the connection ends");
        assert_eq!(ask_udp(server, &query("reviews.default.svc.cluster.local.")).await.answers.len(), 1);
    }
}
