//! A lab of a test's own: `weft up` in a state folder and on ports of its own, stopped when dropped.

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_test_ports::free_port;

/// How long a lab may take to start.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How long a command may take; the longest waits 3 minutes by itself.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);
/// How long a lab may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The Deployments of Bookinfo.
pub const BOOKINFO: [&str; 6] =
    ["productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"];

/// A running lab.
pub struct Lab {
    child: Child,
    home: tempfile::TempDir,
    /// Port of loopback that leads to the ingress gateway's port 80.
    pub port: u16,
    /// Port of loopback that leads to the ingress gateway's port 443.
    pub https_port: u16,
    /// Port of loopback that leads to the ingress gateway's port 31400.
    pub tcp_port: u16,
    /// What `weft up` printed until it was ready.
    pub greeting: String,
    lines: Mutex<Receiver<String>>,
}

/// The folder with the programs: `WEFT_BIN_DIR`, else what the profile `journeys` built.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("WEFT_BIN_DIR") {
        return PathBuf::from(dir);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("journeys")
}

/// `weft ARGS` with its state in `home`.
pub fn weft(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(bin_dir().join("weft"));
    command.args(args).env("WEFT_HOME", home).env_remove("KUBECONFIG").stdin(Stdio::null());
    command
}

impl Lab {
    /// Starts Bookinfo, and waits until `weft up` says that it serves.
    pub fn start(args: &[&str]) -> Result<Self> {
        // Another program may take a port between its choice and its use.
        for _ in 0..3 {
            match Self::start_on_free_ports(args) {
                Err(error) if error.to_string().contains("is in use") => println!("once more: {error:#}"),
                started => return started,
            }
        }
        Self::start_on_free_ports(args)
    }

    fn start_on_free_ports(args: &[&str]) -> Result<Self> {
        let (port, https_port, tcp_port) = (free_port(), free_port(), free_port());
        let home = tempfile::tempdir()?;
        let mut command = weft(home.path(), &["up", "--port", &port.to_string()]);
        for (from, to) in [(https_port, 443), (tcp_port, 31400)] {
            command.args(["--publish", &format!("{from}:istio-ingressgateway.istio-system:{to}")]);
        }
        let mut child =
            command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| {
                format!(
                    "cannot start {}; build it with: cargo build --profile journeys",
                    bin_dir().join("weft").display()
                )
            })?;
        let (send, lines) = channel();
        let out = child.stdout.take().context("stdout")?;
        let err = child.stderr.take().context("stderr")?;
        for reader in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(reader).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let mut lab =
            Self { child, home, port, https_port, tcp_port, greeting: String::new(), lines: Mutex::new(lines) };
        lab.wait_until_ready()?;
        Ok(lab)
    }

    /// Reads what `weft up` prints, up to the line that says how to stop it.
    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // What it started may hold its output open after its end.
            let ended = self.child.try_wait()?.is_some();
            let pause = if ended { Duration::from_millis(200) } else { Duration::from_secs(1) };
            let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            match lines.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) if !ended && Instant::now() < deadline => {}
                Ok(line) => {
                    self.greeting.push_str(&line);
                    self.greeting.push('\n');
                    if line.contains("Ctrl-C") {
                        return Ok(());
                    }
                }
                Err(_) => {
                    bail!("weft up was not ready within {START_LIMIT:?} or ended; it printed:\n{}", self.greeting)
                }
            }
        }
    }

    /// Runs `weft ARGS`; its output on success.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        let out = self.try_weft(args)?;
        if !out.status.success() {
            bail!("weft {} failed: {}\n{}{}", args.join(" "), out.status, text(&out.stdout), text(&out.stderr));
        }
        Ok(text(&out.stdout))
    }

    /// Runs `weft ARGS`, whatever comes of it.
    pub fn try_weft(&self, args: &[&str]) -> Result<Output> {
        let child = weft(self.home.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        crate::kubectl::bounded_by(COMMAND_LIMIT, child, &format!("weft {}", args.join(" ")))
    }

    /// Applies manifests given as text.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        std::fs::write(file.path(), manifests)?;
        self.weft(&["apply", "-f", file.path().to_str().context("path")?])
    }

    /// Applies a sample.
    pub fn apply_sample(&self, path: &str) -> Result<String> {
        self.weft(&["apply", "-f", &crate::sample(path)])
    }

    /// Applies a journey's own YAML: `FOLDER/FILE` below `tests/journeys/yaml`, into a namespace.
    pub fn apply_yaml(&self, path: &str, namespace: &str) -> Result<String> {
        self.weft(&["apply", "-n", namespace, "-f", &crate::yaml(path)])
    }

    /// Applies a journey's own YAML whose objects name their namespaces.
    pub fn apply_yaml_as_is(&self, path: &str) -> Result<String> {
        self.weft(&["apply", "-f", &crate::yaml(path)])
    }

    /// Deletes the objects of a journey's own YAML.
    pub fn delete_yaml(&self, path: &str, namespace: &str) -> Result<String> {
        self.weft(&["delete", "-n", namespace, "--ignore-not-found", "-f", &crate::yaml(path)])
    }

    /// Applies a sample into a namespace.
    pub fn apply_sample_in(&self, path: &str, namespace: &str) -> Result<String> {
        self.weft(&["apply", "-n", namespace, "-f", &crate::sample(path)])
    }

    /// Runs a command in a container of `pod` (a name, or `deploy/NAME`): its output, whatever its exit code.
    pub fn exec(&self, namespace: &str, pod: &str, container: &str, argv: &[&str]) -> Result<Output> {
        self.try_weft(&[&["exec", pod, "-n", namespace, "-c", container, "--"], argv].concat())
    }

    /// `kubectl exec deploy/sleep -c sleep -- curl ARGS` in namespace `default`: what curl printed; an error with both of its
    /// outputs when it failed.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        self.curl_in("default", args)
    }

    /// [`Lab::curl`] from the sleep pod of another namespace.
    pub fn curl_in(&self, namespace: &str, args: &[&str]) -> Result<String> {
        let out = self.exec(namespace, "deploy/sleep", "sleep", &[&["curl", "--max-time", "20"], args].concat())?;
        let printed = text(&out.stdout);
        if !out.status.success() {
            bail!("curl {}: {}: {printed}{}", args.join(" "), out.status, text(&out.stderr).trim());
        }
        Ok(printed)
    }

    /// Runs a shell's line in the sleep pod of namespace `default`.
    pub fn sh(&self, line: &str) -> Result<String> {
        let out = self.exec("default", "deploy/sleep", "sleep", &["sh", "-c", line])?;
        Ok(text(&out.stdout))
    }

    /// [`IN_A_ROW`](crate::IN_A_ROW) times `curl ARGS URL` in the sleep pod of a namespace, each on a connection of its own:
    /// status (`000` without an answer) and curl's exit code of each.
    pub fn curls(&self, namespace: &str, args: &[&str], url: &str) -> Result<Vec<(String, i32)>> {
        let fixed = ["curl", "-s", "-m", "15", "-H", "Connection: close", "-w", "%{http_code} %{exitcode}\\n"];
        let urls = ["-o", "/dev/null", url].repeat(crate::IN_A_ROW);
        let out = self.exec(namespace, "deploy/sleep", "sleep", &[&fixed[..], args, &urls].concat())?;
        let said = text(&out.stdout);
        let answer = |line: &str| {
            let (status, exit) = line.split_once(' ')?;
            Some((status.to_string(), exit.parse().ok()?))
        };
        let answers: Vec<(String, i32)> = said.lines().filter_map(answer).collect();
        anyhow::ensure!(answers.len() == crate::IN_A_ROW, "curl {url}: {said}{}", text(&out.stderr));
        Ok(answers)
    }

    /// `pilot-agent request METHOD PATH` in the proxy of `pod`.
    pub fn admin(&self, namespace: &str, pod: &str, method: &str, path: &str) -> Result<String> {
        let out = self.exec(namespace, pod, "istio-proxy", &["pilot-agent", "request", method, path])?;
        anyhow::ensure!(out.status.success(), "{method} {path} in {pod}: {}", text(&out.stderr));
        Ok(text(&out.stdout))
    }

    /// The log of a container.
    pub fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        self.weft(&["logs", pod, "-n", namespace, "-c", container])
    }

    /// Waits until all pods of the named Deployments are ready; an error shows the namespace's pods.
    pub fn wait_deployments(&self, namespace: &str, names: &[&str]) -> Result<()> {
        let waited = crate::eventually(Duration::from_secs(120), || {
            let all = self.objects("deployments", &["-n", namespace])?;
            for name in names {
                let found = all.iter().find(|d| d["metadata"]["name"] == *name);
                let found = found.with_context(|| format!("no deployment {namespace}/{name}"))?;
                let (want, status) = (&found["spec"]["replicas"], &found["status"]);
                let current = found["metadata"]["generation"] == status["observedGeneration"]
                    || status["observedGeneration"].is_null();
                let whole = |field: &str| status[field].as_u64() == Some(want.as_u64().unwrap_or(1));
                anyhow::ensure!(
                    current && whole("readyReplicas") && whole("updatedReplicas") && whole("replicas"),
                    "deployment {namespace}/{name} is not ready"
                );
            }
            Ok(())
        });
        waited.with_context(|| {
            let waiting = |pod: &serde_json::Value| {
                let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
                let states: Vec<String> = containers.iter().map(|c| format!("{} {}", c["name"], c["state"])).collect();
                format!("{}: {}", pod["metadata"]["name"], states.join(", "))
            };
            let pods = self.objects("pods", &["-n", namespace]).unwrap_or_default();
            pods.iter().map(waiting).collect::<Vec<_>>().join("\n")
        })
    }

    /// Has the control plane give out certificates of `seconds` at most, and Bookinfo and the gateway begin anew with such a one.
    pub fn short_lives(&self, seconds: u64) -> Result<()> {
        let env = json!([{"name": "MAX_WORKLOAD_CERT_TTL", "value": format!("{seconds}s")}]);
        let container = json!({"name": "discovery", "env": env});
        let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}}).to_string();
        self.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", &patch])?;
        self.wait_deployments("istio-system", &["istiod"])?;
        let again = json!({"spec": {"template": {"metadata": {"annotations": {"short": "lived"}}}}}).to_string();
        for name in BOOKINFO {
            self.weft(&["patch", "deployment", name, "-p", &again])?;
        }
        self.weft(&["patch", "deployment", "istio-ingressgateway", "-n", "istio-system", "-p", &again])?;
        self.wait_deployments("default", &BOOKINFO)?;
        self.wait_deployments("istio-system", &["istio-ingressgateway"])
    }

    /// Changes the mesh's settings: merges `change` (YAML, as under `meshConfig`) into `mesh` of ConfigMap `istio`.
    pub fn change_mesh(&self, change: &serde_json::Value) -> Result<()> {
        let map = self.weft(&["get", "configmap", "istio", "-n", "istio-system", "-o", "json"])?;
        let map: serde_json::Value = serde_json::from_str(&map)?;
        let mesh = map["data"]["mesh"].as_str().context("ConfigMap istio has no key mesh")?;
        // A setting at the top replaces the whole of the same name: as much as journeys need.
        let mut mesh: Vec<String> = mesh.lines().map(str::to_string).collect();
        for (name, value) in change.as_object().context("settings are a map")? {
            let at = mesh.iter().position(|line| line.starts_with(&format!("{name}:")));
            if let Some(at) = at {
                mesh.remove(at);
                while mesh.get(at).is_some_and(|line| line.starts_with([' ', '-'])) {
                    mesh.remove(at);
                }
            }
            mesh.push(format!("{name}: {value}"));
        }
        let patch = json!({"data": {"mesh": mesh.join("\n") + "\n"}}).to_string();
        self.weft(&["patch", "configmap", "istio", "-n", "istio-system", "-p", &patch]).map(drop)
    }

    /// Objects of a kind, as JSON.
    pub fn objects(&self, kind: &str, more: &[&str]) -> Result<Vec<serde_json::Value>> {
        let out = self.weft(&[&["get", kind, "-o", "json"], more].concat())?;
        let list: serde_json::Value = serde_json::from_str(&out).with_context(|| out.clone())?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Names of the ready pods that carry a label.
    pub fn ready_pods(&self, selector: &str, namespace: &str) -> Result<Vec<String>> {
        let by_label: &[&str] = if selector.is_empty() { &[] } else { &["-l", selector] };
        let pods = self.objects("pods", &[&["-n", namespace], by_label].concat())?;
        let ready = |pod: &&serde_json::Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            is_ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        Ok(pods.iter().filter(ready).filter_map(|p| p["metadata"]["name"].as_str()).map(str::to_string).collect())
    }

    /// Waits for `count` ready pods that carry a label; their names.
    pub fn wait_ready(&self, selector: &str, namespace: &str, count: usize) -> Result<Vec<String>> {
        // A proxy that waited for a control plane may pause up to 12 s for an identity and then 15 s for configuration.
        crate::eventually(Duration::from_secs(120), || {
            let pods = self.ready_pods(selector, namespace)?;
            anyhow::ensure!(pods.len() == count, "{} of {count} pods with {selector} are ready", pods.len());
            Ok(pods)
        })
    }

    /// Process id of `weft up`.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// The state folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// URL of a path at the ingress gateway.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Sends `signal` to `weft up` and waits for its end.
    pub fn stop(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(self.pid(), signal)?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("weft up did not end within {STOP_LIMIT:?} after {signal}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.stop(Signal::SIGINT).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            let rest: Vec<String> = lines.try_iter().collect();
            eprintln!("--- weft up printed:\n{}{}", self.greeting, rest.join("\n"));
        }
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
