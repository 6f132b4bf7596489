//! The test's own `weft up`, the programs of its pods, and a look at the machine from outside.
#![allow(dead_code)]

use futures_util::TryStreamExt as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_k8s_api::{Object, kinds};
use weft_node::lab::{LabOptions, Published};
use weft_store::ApiClient;
use weft_store::client::{ExecOptions, ExecOutput, ListOptions, LogOptions};

const BOUND: Duration = Duration::from_secs(60);
const AS_USER: &str = "WEFT_TEST_AS_USER";

pub type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// Runs the chosen cases; root runs them all again as an ordinary user.
pub fn cases(arguments: &[String], cases: &[Case]) -> ExitCode {
    if arguments.iter().any(|a| a == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.0));
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let chosen: Vec<&Case> = cases.iter().filter(|case| case.0.contains(&filter)).collect();
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut failed) = (0, 0);
    if std::env::var_os(AS_USER).is_none() && nix::unistd::geteuid().is_root() {
        failed += usize::from(!as_user(&filter));
    }
    if let Some(why) = not_permitted() {
        println!("all skipped: {why}");
    } else {
        for (name, run) in chosen {
            let begun = Instant::now();
            let result = std::panic::catch_unwind(|| {
                // On this very thread: the lab lives no longer than the thread that starts it.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(run());
            });
            let word = if result.is_ok() { "ok" } else { "FAILED" };
            println!("test {name} ... {word} ({} ms)", begun.elapsed().as_millis());
            if result.is_ok() { passed += 1 } else { failed += 1 }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn as_user(filter: &str) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // The build folder may stand where only root may look, as in root's home.
    let exe = folder.path().join("lab");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    match command.arg(exe).arg(filter).env(AS_USER, "1").env("TMPDIR", folder.path()).current_dir("/").status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("as an ordinary user: skipped, setpriv cannot be run: {error}");
            true
        }
    }
}

fn not_permitted() -> Option<String> {
    if weft_capture::find_tool("nft").is_none() {
        return Some("nft is not installed".into());
    }
    let root = nix::unistd::geteuid().is_root();
    let flags = if root { "-n" } else { "-Urn" };
    let works = Command::new("unshare").args([flags, "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    (!works).then(|| "this machine does not permit namespaces (unshare fails)".into())
}

/// A running lab.
pub struct Lab {
    child: Child,
    _lifeline: std::io::PipeWriter,
    folder: tempfile::TempDir,
    pub client: ApiClient,
    /// Port of the machine that leads to service `web`.
    pub port: u16,
}

impl Lab {
    /// Starts one and waits until its API answers. Image `test/self` is this program.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (child, lifeline, port) = spawn(folder.path());
        let client = connect(folder.path()).await;
        Self { child, _lifeline: lifeline, folder, client, port }
    }

    pub async fn apply(&self, objects: &[Value]) {
        for object in objects {
            let object: Object = serde_json::from_value(object.clone()).unwrap();
            self.client.apply(&object, &Default::default()).await.unwrap();
        }
    }

    pub async fn get(&self, group: &str, kind: &str, name: &str) -> Object {
        self.client.get(kinds::by_kind(group, kind).unwrap(), "default", name).await.unwrap()
    }

    pub async fn pods(&self, selector: &str) -> Vec<Object> {
        let options = ListOptions { labels: Some(selector.into()), ..Default::default() };
        self.client.list(kinds::by_kind("", "Pod").unwrap(), Some("default"), &options).await.unwrap().items
    }

    pub async fn until_available(&self, deployment: &str, count: u64) {
        eventually(&format!("{count} pods of {deployment} are available"), async || {
            self.get("apps", "Deployment", deployment).await.body["status"]["availableReplicas"] == count
        })
        .await;
    }

    pub async fn until_ready(&self, pod: &str) {
        eventually(&format!("pod {pod} is ready"), async || {
            let kind = kinds::by_kind("", "Pod").unwrap();
            let Ok(pod) = self.client.get(kind, "default", pod).await else { return false };
            let conditions = pod.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .await;
    }

    pub async fn exec(&self, pod: &str, options: ExecOptions, input: &[u8]) -> ExecOutput {
        self.client.exec_output("default", pod, &options, input, 1 << 20).await.unwrap()
    }

    /// Exit code and all output of a command.
    pub async fn run(&self, pod: &str, command: &[&str]) -> (i32, String) {
        let command = command.iter().map(ToString::to_string).collect();
        let output = self.exec(pod, ExecOptions { command, ..Default::default() }, b"").await;
        (output.code, String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    pub async fn log(&self, pod: &str, options: LogOptions) -> String {
        let stream = self.client.logs("default", pod, &options).await.unwrap();
        let parts: Vec<_> = stream.try_collect().await.unwrap();
        String::from_utf8(parts.concat()).unwrap()
    }

    /// What a pod's port answers to a GET, through port forwarding.
    pub async fn forwarded(&self, pod: &str, port: u16) -> String {
        let mut stream = self.client.port_forward("default", pod, port).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("lab.log")).unwrap_or_default();
            println!("the lab's log:\n{log}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path) -> (Child, std::io::PipeWriter, u16) {
    let exe = std::env::current_exe().unwrap();
    let config = folder.join("weft-lab.yaml");
    let exe_shown = exe.display();
    let images = format!("images:\n  test/self: [{exe_shown}]\n  weft-proxy: [{exe_shown}, proxy]\n");
    std::fs::write(&config, images).unwrap();
    std::fs::create_dir_all(folder.join("run")).unwrap();
    let (api, published) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (api_port, port) = (api.local_addr().unwrap().port(), published.local_addr().unwrap().port());
    let (lifeline, kept) = std::io::pipe().unwrap();
    let fds: [OwnedFd; 3] = [api.into(), published.into(), lifeline.into()];
    let options = LabOptions {
        api_fd: fds[0].as_raw_fd(),
        api_port,
        admin_token: "0123456789abcdef0123456789abcdef".into(),
        kubeconfig: folder.join("kubeconfig"),
        published: vec![Published {
            fd: fds[1].as_raw_fd(),
            namespace: "default".into(),
            service: "web".into(),
            port: 80,
        }],
        lifeline_fd: fds[2].as_raw_fd(),
        run_folder: folder.join("run"),
        programs: exe.parent().unwrap().to_path_buf(),
        config: Some(config),
        ..LabOptions::default()
    };
    let log = std::fs::File::create(folder.join("lab.log")).unwrap();
    let mut child = weft_node::init::start(&options, &fds.each_ref(), log.into()).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next().expect("the lab ended before its API was up").unwrap();
        assert!(!line.contains("\"error\"") && !line.contains("\"failed\""), "{line}");
        if line.contains("the objects are applied") {
            break;
        }
    }
    std::thread::spawn(move || lines.for_each(drop));
    (child, kept, port)
}

async fn connect(folder: &Path) -> ApiClient {
    let client = ApiClient::from_kubeconfig(&folder.join("kubeconfig"), None).await.unwrap();
    client.version().await.unwrap();
    client
}

/// Waits until `condition` holds, with a bound.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !condition().await {
        assert!(Instant::now() < end, "not within {} s: {what}", BOUND.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Program of a pod: answers every request with a text and the pod's name.
pub fn serve(port: &str, text: &str) -> ExitCode {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap())).unwrap();
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    for stream in listener.incoming().flatten() {
        let body = format!("{text} from {name}");
        std::thread::spawn(move || answer(stream, &body));
    }
    ExitCode::SUCCESS
}

fn answer(mut stream: TcpStream, body: &str) {
    let mut request = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while request.read_line(&mut line).is_ok_and(|n| n > 2) {
        line.clear();
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + body).as_bytes());
}

/// Body of an answer of 200.
pub fn ask(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or("not http")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let target = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(target).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_string()) } else { Err(head.to_string()) }
}

/// Program of a pod: a GET.
pub fn get(url: &str) -> ExitCode {
    match ask(url) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Program of an injected pod: passes on what is redirected to it, and says from where to where.
pub fn proxy() -> ExitCode {
    let ports = [("outbound", 15001), ("inbound", 15006)];
    let threads = ports.map(|(word, port)| {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| pass_on(word, stream)))
    });
    // The application's probes come to the agent, which asks the application.
    let probes = TcpListener::bind(("0.0.0.0", 15020)).unwrap();
    std::thread::spawn(move || {
        let serves = || TcpStream::connect(("127.0.0.1", 8080)).is_ok();
        probes.incoming().flatten().filter(|_| serves()).for_each(|stream| answer(stream, "ready"));
    });
    // Ready only now: whatever starts after this proxy finds it listening.
    let ready = TcpListener::bind(("0.0.0.0", 15021)).unwrap();
    ready.incoming().flatten().for_each(|stream| answer(stream, "ready"));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    ExitCode::SUCCESS
}

fn pass_on(word: &str, from: TcpStream) {
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    let raw = getsockopt(&from, sockopt::OriginalDst).unwrap();
    let address = std::net::Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    let target = std::net::SocketAddr::from((address, u16::from_be(raw.sin_port)));
    println!("{word} {target}");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mark = std::env::var("WEFT_SOCKET_MARK").unwrap().parse().unwrap();
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    if word == "inbound" {
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 6], 0)).into()).unwrap();
    }
    socket.connect(&target.into()).unwrap();
    let to = TcpStream::from(socket);
    for (mut from, mut to) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    }
}

/// A `weft up` of its own process, to be killed: starts a lab, says so, and stays.
pub fn parent(folder: &str) -> ExitCode {
    let _kept = spawn(Path::new(folder));
    println!("up");
    loop {
        std::thread::park();
    }
}

/// Starts a lab with a pod in a process of its own, kills one of its processes, and looks whether anything is left.
pub async fn kill_and_look(victim: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["parent", &folder.path().display().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let client = connect(folder.path()).await;
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", "sleep 1000 & sleep 1000"]}]}});
    client.apply(&serde_json::from_value(pod).unwrap(), &Default::default()).await.unwrap();
    // parent, keeper, lab, sh, two sleeps
    let mut family = Vec::new();
    eventually("the pod's processes run", async || {
        family = descendants(parent.id());
        family.len() >= 6
    })
    .await;
    let killed = family[victim].0;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(killed as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("every process of the lab is gone", async || {
        family.iter().filter(|member| member.0 != parent.id()).all(|(pid, start)| start_time(*pid) != Some(*start))
    })
    .await;
    let _ = parent.kill();
    parent.wait().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&folder.path().display().to_string()), "{mounts}");
    let links = std::fs::read_dir("/sys/class/net").unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    assert!(!links.iter().any(|name| name.to_string_lossy().starts_with("weft")), "{links:?}");
}

/// Process ids with their start times: the process, its children, their children, outermost first.
fn descendants(root: u32) -> Vec<(u32, u64)> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some((parent, _)) = stat(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        found.extend(start_time(pid).map(|start| (pid, start)));
        next.extend(children.get(&pid).into_iter().flatten());
    }
    found
}

fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, start)| start)
}

/// Parent and start time, from `/proc/PID/stat`; `None` for one that has ended and only waits to be collected.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    (fields.first() != Some(&"Z")).then(|| Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?)))?
}
