//! The agent's ports besides admin: readiness (15021), merged metrics (15020), proxy metrics (15090).

use crate::http::{Answer, Asked, Handler, handler, reply, serve, text};
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::probes::Probes;
use crate::settings::agent::Ports;
use crate::state::ProxyState;
use http::{Method, StatusCode};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Servers that end when this is dropped.
#[derive(Debug, Default)]
pub struct Servers(Vec<JoinHandle<()>>);

impl Servers {
    /// Serves on a bound socket.
    pub fn add(&mut self, listener: TcpListener, handler: Handler) {
        self.0.push(tokio::spawn(serve(listener, handler)));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Starts the three ports.
///
/// # Errors
/// When one is in use; the text names it.
pub async fn start(ports: Ports, probes: Probes, state: &ProxyState, metrics: &Metrics) -> Result<Servers, String> {
    let mut servers = Servers::default();
    servers.add(listen(ports.readiness).await?, readiness(state.clone()));
    servers.add(listen(ports.status).await?, status(state.clone(), metrics.clone(), probes));
    servers.add(listen(ports.metrics).await?, prometheus(metrics.clone()));
    Ok(servers)
}

/// A socket on every address, IPv6 included where the machine has it.
///
/// # Errors
/// When the port is in use; the text names it.
pub async fn listen(port: u16) -> Result<TcpListener, String> {
    let named = |error: io::Error| format!("port {port} of the agent cannot be opened: {error}");
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(named(error)),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await.map_err(named),
    }
}

fn readiness(state: ProxyState) -> Handler {
    handler(move |asked: Asked| {
        let state = state.clone();
        async move {
            match asked.path.as_str() {
                "/healthz/ready" => ready(&state),
                _ => text(StatusCode::NOT_FOUND, "ask for /healthz/ready\n"),
            }
        }
    })
}

/// 200 when ready; 503 and the reason when not.
pub fn ready(state: &ProxyState) -> Answer {
    match state.ready() {
        Ok(()) => text(StatusCode::OK, ""),
        Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn status(state: ProxyState, metrics: Metrics, probes: Probes) -> Handler {
    handler(move |asked: Asked| {
        let (state, metrics, probes) = (state.clone(), metrics.clone(), probes.clone());
        async move {
            match (asked.path.as_str(), &asked.method) {
                (path, _) if path.starts_with("/app-health/") => probes.answer(&asked).await,
                ("/stats/prometheus" | "/metrics", _) => {
                    reply(StatusCode::OK, CONTENT_TYPE, metrics.merged(&asked.headers).await)
                }
                ("/healthz/ready", _) => ready(&state),
                // Whoever may end the proxy is in the pod already.
                ("/quitquitquit" | "/drain", method) => {
                    match (asked.client.ip().to_canonical().is_loopback(), method) {
                        (false, _) => text(StatusCode::FORBIDDEN, "only from inside the pod\n"),
                        (true, &Method::POST) => {
                            match asked.path.as_str() {
                                "/drain" => state.start_draining(),
                                _ => state.ask_to_stop(),
                            }
                            text(StatusCode::OK, "OK\n")
                        }
                        (true, _) => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
                    }
                }
                _ => text(StatusCode::NOT_FOUND, "ask for /stats/prometheus or /healthz/ready\n"),
            }
        }
    })
}

fn prometheus(metrics: Metrics) -> Handler {
    handler(move |asked: Asked| {
        let metrics = metrics.clone();
        async move {
            match asked.path.as_str() {
                "/stats/prometheus" => reply(StatusCode::OK, CONTENT_TYPE, metrics.proxy().await),
                _ => text(StatusCode::NOT_FOUND, "ask for /stats/prometheus\n"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Source;
    use http::HeaderMap;
    use std::time::Duration;
    use weft_telemetry::Registry;

    async fn get(port: u16, method: Method, path: &str) -> (StatusCode, String) {
        let address = format!("127.0.0.1:{port}");
        let limit = Duration::from_secs(30);
        let fetched = crate::http::fetch(method, &address, path, HeaderMap::new(), limit, 1 << 20).await.unwrap();
        (fetched.status, String::from_utf8_lossy(&fetched.body).into_owned())
    }

    /// Below the ports that the kernel gives out, so that no other test takes it meanwhile.
    fn free() -> u16 {
        let start = 32_000 + u16::try_from(std::process::id() % 700).unwrap();
        (start..).find(|port| std::net::TcpListener::bind(("::", *port)).is_ok()).unwrap()
    }

    #[tokio::test]
    async fn each_port_answers_its_questions() {
        let state = ProxyState::default();
        let block = state.readiness.block("an identity: the token is not accepted");
        let metrics = Metrics::new(Source::Registry(Registry::default()), state.clone(), None, None);
        let first = free();
        let ports = Ports { admin: 0, status: first, readiness: first + 1, metrics: first + 2 };
        let _servers = start(ports, Probes::default(), &state, &metrics).await.unwrap();
        for port in [ports.readiness, ports.status] {
            let (status, why) = get(port, Method::GET, "/healthz/ready").await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(why.contains("the token is not accepted"), "{why}");
        }
        drop(block);
        assert_eq!(get(ports.readiness, Method::GET, "/healthz/ready").await.0, StatusCode::OK);
        state.start_draining();
        assert_eq!(get(ports.readiness, Method::GET, "/healthz/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
        for port in [ports.metrics, ports.status] {
            assert!(get(port, Method::GET, "/stats/prometheus").await.1.contains("envoy_server_state 1"));
        }
        assert_eq!(get(ports.status, Method::GET, "/quitquitquit").await.0, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(get(ports.status, Method::POST, "/quitquitquit").await.0, StatusCode::OK);
        state.stop_asked().await;
        let taken = start(ports, Probes::default(), &state, &metrics).await.unwrap_err();
        assert!(taken.contains(&ports.readiness.to_string()), "{taken}");
    }
}
