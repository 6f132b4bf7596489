//! Random policies, compiled by the control plane, enforced by real Envoy and by Weft's proxy; random requests and connections
//! must be decided the same. Envoy is `$ENVOY`, else `/opt/weft-peers/bin/envoy`; where neither is there the test says so and
//! passes. `WEFT_SEED` names another seed.
//!
//! Requests keep to what both take in one way. Where Weft is stricter on purpose (repeated headers, a host with port or
//! trailing dot under DENY, several tokens), tests of its own show it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../crates/control/weft-xds-gen/tests/common/mod.rs"]
mod world;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weft_dataplane::{DataPlane, Handle, Options};
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::json::to_json;
use weft_proto::unpack;
use weft_proxy_config::ConfigBuilder;
use weft_proxy_config::bootstrap::{apply_static, load_bootstrap};
use weft_security_tests::Dice;
use weft_tls::{CertifiedKey, ClientContext, ClientParams, JwsSigner, ServerVerification};
use weft_xds_gen::generate;
use world::World;

/// Policy sets; each has a listener for HTTP and one for TCP.
const SETS: usize = 25;
/// HTTP requests to each set: 20 000 in all.
const REQUESTS: usize = 800;
/// Connections to each set.
const CONNECTIONS: usize = 20;
/// Longest that one step may take.
const PATIENCE: Duration = Duration::from_secs(60);

const ENVOY_HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const WEFT_HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SOURCES: [&str; 3] = ["127.0.0.5", "127.0.0.6", "127.0.1.7"];
const ACCOUNTS: [&str; 4] = ["foo/sa/a", "foo/sa/b", "bar/sa/a", "other/sa/x-y"];
const PATHS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/api/v1/users", "/api/v2/users", "/x.html", "/a?q=1"];
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "OPTIONS"];
const HOSTS: [&str; 4] = ["a.example", "b.example", "api.a.example", "A.Example"];
const HEADERS: [&str; 3] = ["admin", "guest", "adm"];

const SERVER: &str = "
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
spec: {selector: {app: httpbin}, ports: [{name: http, port: 80}, {name: tcp, port: 81}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: httpbin, namespace: foo}
spec:
  template:
    metadata: {labels: {app: httpbin}}
    spec: {containers: [{name: httpbin, image: httpbin}]}
";

/// Patterns that a field of a rule may have.
fn source(dice: &mut Dice) -> Value {
    let negated = dice.once_in(4);
    let (field, values) = match dice.below(7) {
        0 => (
            "principals",
            dice.some(&[
                "cluster.local/ns/foo/sa/a",
                "*/sa/a",
                "cluster.local/ns/bar/*",
                "*",
                "cluster.local/ns/foo/sa/",
            ]),
        ),
        1 => ("namespaces", dice.some(&["foo", "bar", "f*", "*r", "nobody"])),
        2 => ("ipBlocks", dice.some(&["127.0.0.5", "127.0.0.0/24", "10.0.0.0/8"])),
        3 => ("remoteIpBlocks", dice.some(&["1.2.3.4", "1.2.0.0/16", "127.0.0.0/8"])),
        4 => ("requestPrincipals", dice.some(&["me/you", "me/*", "*", "*/you", "you/me"])),
        5 => ("serviceAccounts", dice.some(&["foo/a", "b", "bar/a"])),
        _ => ("trustDomains", dice.some(&["cluster.local", "other", "cluster*"])),
    };
    field_of(field, values, negated)
}

fn operation(dice: &mut Dice) -> Value {
    let negated = dice.once_in(4);
    let (field, values) = match dice.below(4) {
        0 => ("paths", dice.some(&["/a", "/a*", "*.html", "/api/{*}/users", "/{**}/c", "/a/*", "*", "/A"])),
        1 => ("methods", dice.some(&["GET", "P*", "POST", "*"])),
        2 => ("hosts", dice.some(&["a.example", "*.example", "A.EXAMPLE", "b*", "*"])),
        _ => ("ports", dice.some(&["80", "81", "9999"])),
    };
    field_of(field, values, negated)
}

fn field_of(field: &str, values: Vec<&str>, negated: bool) -> Value {
    let mut name = field.to_string();
    if negated {
        name = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
    }
    json!({name: values})
}

fn condition(dice: &mut Dice) -> Value {
    let (key, values) = match dice.below(6) {
        0 => ("request.headers[x-role]", dice.some(&["admin", "adm*", "*st", "*"])),
        1 => ("request.auth.claims[groups]", dice.some(&["g1", "g*", "g3"])),
        2 => ("request.auth.claims[realm][role]", dice.some(&["r1", "*1"])),
        3 => ("request.auth.audiences", dice.some(&["aud1", "aud2"])),
        4 => ("source.ip", dice.some(&["127.0.0.6", "127.0.1.0/24"])),
        _ => ("source.namespace", dice.some(&["foo", "bar"])),
    };
    let field = if dice.once_in(3) { "notValues" } else { "values" };
    json!({"key": key, field: values})
}

/// One to three policies of one set.
fn policies(dice: &mut Dice, set: usize) -> Vec<Value> {
    (0..=dice.below(3))
        .map(|number| {
            let rules: Vec<Value> = (0..=dice.below(3)).map(|_| rule(dice)).collect();
            let action = *dice.pick(&["ALLOW", "ALLOW", "DENY", "AUDIT"]);
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": format!("p{set}-{number}"), "namespace": "foo"},
                "spec": {"action": action, "rules": rules},
            })
        })
        .collect()
}

fn rule(dice: &mut Dice) -> Value {
    let mut rule = json!({});
    let merged = |dice: &mut Dice, of: fn(&mut Dice) -> Value| {
        let mut all = of(dice);
        if dice.once_in(3) {
            for (name, value) in of(dice).as_object().unwrap() {
                all[name] = value.clone();
            }
        }
        all
    };
    if dice.once_in(2) {
        let list: Vec<Value> = (0..=dice.below(2)).map(|_| json!({"source": merged(dice, source)})).collect();
        rule["from"] = list.into();
    }
    if dice.once_in(2) {
        let list: Vec<Value> = (0..=dice.below(2)).map(|_| json!({"operation": merged(dice, operation)})).collect();
        rule["to"] = list.into();
    }
    if dice.once_in(3) {
        rule["when"] = vec![condition(dice)].into();
    }
    rule
}

/// The HTTP filters and the network filters that the control plane makes of policies for ports 80 and 81.
fn filters(policies: &[Value], keys: &str) -> (Vec<Value>, Vec<Value>) {
    let mut world = World::new();
    world.add(SERVER);
    policies.iter().cloned().for_each(|policy| world.add_object(policy));
    world.add_object(json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {"name": "jwt", "namespace": "foo"},
        "spec": {"jwtRules": [{"issuer": "me", "jwks": keys}]},
    }));
    let snapshot = world.snapshot();
    let resources = generate(&snapshot, &world::proxy(&snapshot, "foo/httpbin-0", false, &Value::Null));
    let listener = resources.listeners.get("virtualInbound").expect("virtualInbound");
    let listener = to_json(&unpack::<Listener>(&listener.any).unwrap(), true).unwrap();
    let chain = |port: u16| {
        let chains = listener["filter_chains"].as_array().unwrap();
        let of_port = chains.iter().find(|c| c["filter_chain_match"]["destination_port"] == port).unwrap();
        of_port["filters"].as_array().unwrap().clone()
    };
    let decides = |filter: &Value| {
        let name = filter["name"].as_str().unwrap();
        name.ends_with(".rbac") || name.ends_with(".jwt_authn")
    };
    let http = chain(80)[0]["typed_config"]["http_filters"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| decides(f))
        .cloned()
        .collect();
    (http, chain(81).into_iter().filter(decides).collect())
}

/// Certificates: a root, the server's, one for each account.
struct Pki {
    root: String,
    server: (String, String),
    clients: Vec<CertifiedKey>,
}

fn pki() -> Pki {
    let now = SystemTime::now();
    let (not_before, not_after) = (now - Duration::from_secs(60), now + Duration::from_secs(3600));
    let params = weft_tls::RootParams {
        organization: "cluster.local".into(),
        key: weft_tls::KeyKind::default(),
        not_before,
        not_after,
    };
    let issuer = weft_tls::Issuer::self_signed(&params).unwrap();
    let leaf = |account: &str| {
        let key = weft_tls::PrivateKey::generate(weft_tls::KeyKind::default()).unwrap();
        let names = vec![weft_tls::San::Uri(format!("spiffe://cluster.local/ns/{account}"))];
        let issued = issuer.sign_key(&key, &weft_tls::LeafParams { names, not_before, not_after }).unwrap();
        (issued.pem, key.to_pem().to_string())
    };
    let clients = ACCOUNTS.iter().map(|account| {
        let (chain, key) = leaf(account);
        CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    });
    Pki { clients: clients.collect(), server: leaf("foo/sa/httpbin"), root: issuer.certificate_pem() }
}

fn typed(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": config})
}

/// The listeners of one set on a host.
fn listeners(
    set: usize,
    host: IpAddr,
    ports: (u16, u16),
    filters: &(Vec<Value>, Vec<Value>),
    tls: Option<&Pki>,
) -> [Value; 2] {
    let socket = tls.map(|pki| {
        let text = |text: &str| json!({"inline_string": text});
        typed("envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [{"certificate_chain": text(&pki.server.0), "private_key": text(&pki.server.1)}],
                "validation_context": {"trusted_ca": text(&pki.root)},
            },
        }))
    });
    let mut http = filters.0.clone();
    http.push(typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({})));
    let answer = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200}});
    let manager = typed(
        "hcm",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": format!("h{set}"), "normalize_path": true, "http_filters": http,
            "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [answer]}]},
        }),
    );
    let mut tcp = filters.1.clone();
    tcp.push(typed(
        "tcp",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": "t", "cluster": "echo"}),
    ));
    let listener = |name: &str, port: u16, filters: Value| {
        let mut chain = json!({"filters": filters});
        if let Some(socket) = &socket {
            chain["transport_socket"] = socket.clone();
        }
        let address = json!({"socket_address": {"address": host, "port_value": port}});
        json!({"name": format!("{name}{set}"), "address": address, "filter_chains": [chain]})
    };
    [listener("h", ports.0, json!([manager])), listener("t", ports.1, tcp.into())]
}

fn bootstrap(listeners: Vec<Value>, echo: SocketAddr) -> String {
    let address = json!({"socket_address": {"address": echo.ip(), "port_value": echo.port()}});
    let cluster = json!({
        "name": "echo", "type": "STATIC", "connect_timeout": "30s",
        "load_assignment": {"cluster_name": "echo", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
    });
    json!({"static_resources": {"listeners": listeners, "clusters": [cluster]}}).to_string()
}

/// Ports that are free on both hosts.
fn free_ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| weft_test_ports::free_port_on(&[ENVOY_HOST, WEFT_HOST])).collect()
}

/// Envoy, ended when dropped.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn envoy(program: &PathBuf, config: &str, folder: &std::path::Path, port: u16) -> Envoy {
    let file = folder.join("envoy.json");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(folder.join("envoy.log")).unwrap();
    let args = ["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"];
    let mut child =
        Command::new(program).args(args).arg(&file).stdout(Stdio::null()).stderr(log).spawn().map(Envoy).unwrap();
    let end = tokio::time::Instant::now() + PATIENCE;
    while TcpStream::connect((ENVOY_HOST, port)).await.is_err() {
        let said = || std::fs::read_to_string(folder.join("envoy.log")).unwrap_or_default();
        assert!(child.0.try_wait().unwrap().is_none(), "Envoy ended: {}", said());
        assert!(tokio::time::Instant::now() < end, "Envoy does not serve: {}", said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child
}

async fn weft(config: &str) -> Handle {
    let bootstrap = load_bootstrap(config).unwrap();
    let mut builder = ConfigBuilder::default();
    assert_eq!(apply_static(&bootstrap, &mut builder), Vec::<String>::new());
    let mut options = Options::new(tokio::runtime::Handle::current());
    options.concurrency = NonZeroUsize::MIN;
    let (_, seen) = tokio::sync::watch::channel(0);
    let handle = DataPlane::start(Arc::new(ArcSwap::from(builder.snapshot())), seen, options).unwrap();
    handle.wait_ready().await;
    handle
}

/// A request, as it is sent to both.
#[derive(Debug, Clone)]
struct Ask {
    account: usize,
    source: usize,
    method: &'static str,
    path: &'static str,
    host: &'static str,
    role: Option<&'static str>,
    forwarded: Option<&'static str>,
    token: usize,
}

impl Ask {
    fn random(dice: &mut Dice, tokens: usize) -> Self {
        Self {
            account: dice.below(ACCOUNTS.len()),
            source: dice.below(SOURCES.len()),
            method: *dice.pick(&METHODS),
            path: *dice.pick(&PATHS),
            host: *dice.pick(&HOSTS),
            role: if dice.once_in(2) { Some(*dice.pick(&HEADERS)) } else { None },
            forwarded: if dice.once_in(2) { Some(*dice.pick(&["1.2.3.4", "1.2.9.9", "9.9.9.9"])) } else { None },
            token: dice.below(tokens),
        }
    }

    fn request(&self, tokens: &[Option<String>]) -> http::Request<Empty<Bytes>> {
        let mut request = http::Request::builder().method(self.method).uri(self.path).header("host", self.host);
        let token = tokens[self.token].as_ref().map(|token| format!("Bearer {token}"));
        let headers = [("x-role", self.role), ("x-forwarded-for", self.forwarded), ("authorization", token.as_deref())];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.body(Empty::new()).unwrap()
    }
}

/// Tokens of several kinds, the first of them none.
fn tokens(key: &JwsSigner) -> Vec<Option<String>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let sign = |claims: Value| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(&claims));
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(key.sign(text.as_bytes()).unwrap()))
    };
    let exp = now + 3600;
    [
        json!({"iss": "me", "sub": "you", "exp": exp, "groups": ["g1", "g2"], "realm": {"role": "r1"}, "aud": "aud1"}),
        json!({"iss": "me", "sub": "me", "exp": exp, "groups": "g3", "realm": {"role": ["r1"]}, "aud": ["aud2", "x"]}),
        json!({"iss": "me", "sub": "you"}),
        json!({"iss": "you", "sub": "me", "exp": exp}),
        json!({"iss": "me", "sub": "you", "exp": now - 100}),
    ]
    .into_iter()
    .map(|claims| Some(sign(claims)))
    .chain([None, None, Some("deadbeef".into())])
    .collect()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection from an address, with an account's certificate where the listener wants one.
///
/// # Errors
/// When the other side ends it at once.
async fn connect(to: SocketAddr, ask: (usize, usize), pki: Option<&Pki>) -> Result<Box<dyn Stream>, String> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(SOURCES[ask.1].parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(to).await.map_err(|e| e.to_string())?;
    let Some(pki) = pki else { return Ok(Box::new(stream)) };
    let params = ClientParams {
        certificate: Some(pki.clients[ask.0].clone()),
        ..ClientParams::new(ServerVerification::Insecure)
    };
    let secured = ClientContext::build(params).unwrap().connect(stream).await.map_err(|e| e.to_string())?;
    Ok(Box::new(secured.stream))
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn sender(to: SocketAddr, ask: &Ask, pki: Option<&Pki>) -> Sender {
    let stream = connect(to, (ask.account, ask.source), pki).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn status(sender: &mut Sender, request: http::Request<Empty<Bytes>>) -> u16 {
    let work = async {
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    };
    tokio::time::timeout(PATIENCE, work).await.expect("an answer in time")
}

/// True when the connection is let through: the echo answers.
async fn passes(to: SocketAddr, ask: (usize, usize), pki: Option<&Pki>) -> bool {
    let work = async {
        // Who is denied may find the connection reset before its handshake is over.
        let Ok(mut stream) = connect(to, ask, pki).await else { return false };
        let mut answer = [0; 5];
        stream.write_all(b"hello").await.is_ok() && stream.read_exact(&mut answer).await.is_ok() && answer == *b"hello"
    };
    tokio::time::timeout(PATIENCE, work).await.expect("an end in time")
}

async fn echo_server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A policy set with its listeners.
struct Set {
    number: usize,
    policies: Vec<Value>,
    ports: (u16, u16),
    tls: bool,
}

/// Asks both about everything of a set; what they disagree on, how many were allowed, and how many asked.
async fn compare(set: &Set, seed: u64, pki: &Pki, tokens: &[Option<String>]) -> (Vec<String>, usize, usize) {
    let mut dice = Dice::new(seed + 1000 + set.number as u64);
    let pki = set.tls.then_some(pki);
    let mut open: Vec<((usize, usize), Sender, Sender)> = Vec::new();
    let (mut wrong, mut allowed) = (Vec::new(), 0);
    for _ in 0..REQUESTS {
        let ask = Ask::random(&mut dice, tokens.len());
        let who = (if set.tls { ask.account } else { 0 }, ask.source);
        if !open.iter().any(|(known, ..)| *known == who) {
            let envoy = sender((ENVOY_HOST, set.ports.0).into(), &ask, pki).await;
            open.push((who, envoy, sender((WEFT_HOST, set.ports.0).into(), &ask, pki).await));
        }
        let (_, envoy, weft) = open.iter_mut().find(|(known, ..)| *known == who).unwrap();
        let (theirs, ours) = tokio::join!(status(envoy, ask.request(tokens)), status(weft, ask.request(tokens)));
        allowed += usize::from(theirs == 200);
        if theirs != ours {
            wrong.push(format!("Envoy {theirs}, Weft {ours}: {ask:?}"));
        }
    }
    for _ in 0..CONNECTIONS {
        let who = (dice.below(ACCOUNTS.len()), dice.below(SOURCES.len()));
        let theirs = passes((ENVOY_HOST, set.ports.1).into(), who, pki).await;
        let ours = passes((WEFT_HOST, set.ports.1).into(), who, pki).await;
        allowed += usize::from(theirs);
        if theirs != ours {
            wrong.push(format!("TCP: Envoy {theirs}, Weft {ours}: {} from {}", ACCOUNTS[who.0], SOURCES[who.1]));
        }
    }
    (wrong, allowed, REQUESTS + CONNECTIONS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn envoy_decides_the_same() {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let program = named.unwrap_or_else(|| "/opt/weft-peers/bin/envoy".into());
    if !program.is_file() {
        eprintln!("skipped: no Envoy at $ENVOY or {}", program.display());
        return;
    }
    let seed = std::env::var("WEFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_121);
    let mut dice = Dice::new(seed);
    let key = JwsSigner::generate().unwrap();
    let (x, y) = key.point();
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "x": x, "y": y}]}).to_string();
    let (pki, tokens, echo) = (Arc::new(pki()), Arc::new(tokens(&key)), echo_server().await);

    let ports = free_ports(2 * SETS);
    let (mut of_envoy, mut of_weft, mut sets) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..SETS {
        let policies = policies(&mut dice, number);
        let filters = filters(&policies, &keys);
        let (ports, tls) = ((ports[2 * number], ports[2 * number + 1]), number % 3 != 2);
        let with = tls.then_some(&*pki);
        of_envoy.extend(listeners(number, ENVOY_HOST, ports, &filters, with));
        of_weft.extend(listeners(number, WEFT_HOST, ports, &filters, with));
        sets.push(Set { number, policies, ports, tls });
    }
    let folder = tempfile::tempdir().unwrap();
    let _envoy = envoy(&program, &bootstrap(of_envoy, echo), folder.path(), sets[SETS - 1].ports.1).await;
    let handle = weft(&bootstrap(of_weft, echo)).await;

    let mut tasks = tokio::task::JoinSet::new();
    for set in sets {
        let (pki, tokens) = (pki.clone(), tokens.clone());
        tasks.spawn(async move {
            let (wrong, allowed, asked) = compare(&set, seed, &pki, &tokens).await;
            (set, wrong, allowed, asked)
        });
    }
    let (mut report, mut all_allowed, mut all) = (String::new(), 0, 0);
    while let Some(done) = tasks.join_next().await {
        let (set, wrong, allowed, asked) = done.unwrap();
        all_allowed += allowed;
        all += asked;
        if !wrong.is_empty() {
            let policies = serde_json::to_string_pretty(&set.policies).unwrap();
            report += &format!(
                "set {} (seed {seed}, mutual TLS {}): {} differ\n{}\n{policies}\n",
                set.number,
                set.tls,
                wrong.len(),
                wrong[..wrong.len().min(5)].join("\n")
            );
        }
    }
    std::thread::spawn(move || handle.stop()).join().unwrap();
    println!("{all} asked, {all_allowed} allowed");
    assert!(report.is_empty(), "{report}");
    assert!(
        all >= 20_000 && all_allowed > all / 20 && all_allowed < all * 19 / 20,
        "{all} asked, {all_allowed} allowed"
    );
}
