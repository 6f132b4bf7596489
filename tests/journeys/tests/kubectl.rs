//! The lab through programs that nobody here wrote: kubectl as this machine has it and the newest one, with the commands of Istio's
//! documentation as written there, and the Python client library.
//!
//! Which kubectl: that on the PATH, and the one that `WEFT_KUBECTL` names. `WEFT_PYTHON` names a Python that has the package
//! `kubernetes`. `cargo xtask test` installs and names them.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use weft_journeys::browser::{self, Stars};
use weft_journeys::lab::text;
use weft_journeys::{Lab, eventually, sample};

/// Time for one command.
const LIMIT: Duration = Duration::from_secs(90);

/// A kubectl that speaks to a lab.
struct Kubectl {
    program: PathBuf,
    home: tempfile::TempDir,
    config: PathBuf,
    /// Whether it is told to use SPDY, as clients before 1.30 do.
    spdy: bool,
}

impl Kubectl {
    fn new(program: &Path, lab: &Lab) -> Result<Self> {
        let (home, config) = (tempfile::tempdir()?, lab.home().join("kubeconfig"));
        Ok(Self { program: program.into(), home, config, spdy: false })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("KUBECONFIG", &self.config).env("HOME", self.home.path()).stdin(Stdio::null());
        if self.spdy {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        command
    }

    /// Runs a command to its end, bounded.
    fn try_run(&self, args: &[&str]) -> Result<Output> {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        bounded(child, &format!("kubectl {}", args.join(" ")))
    }

    /// Runs a command that must succeed; what it printed.
    fn run(&self, args: &[&str]) -> Result<String> {
        let out = self.try_run(args)?;
        ensure!(
            out.status.success(),
            "kubectl {}: {}\n{}{}",
            args.join(" "),
            out.status,
            text(&out.stdout),
            text(&out.stderr)
        );
        Ok(text(&out.stdout))
    }

    /// Runs a command line without quotes, which must print exactly this.
    fn says(&self, line: &str, want: &str) -> Result<()> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let got = self.run(&args)?;
        ensure!(got.trim_end() == want, "kubectl {line} printed\n{got}instead of\n{want}");
        Ok(())
    }

    /// Runs a command line without quotes, which must print all of these somewhere.
    fn shows(&self, line: &str, wants: &[&str]) -> Result<String> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let got = self.run(&args)?;
        for want in wants {
            ensure!(got.contains(want), "kubectl {line} printed\n{got}which lacks {want:?}");
        }
        Ok(got)
    }

    /// Runs a command line without quotes, which must fail and say this.
    fn fails(&self, line: &str, want: &str) -> Result<()> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let out = self.try_run(&args)?;
        let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
        ensure!(!out.status.success() && said.contains(want), "kubectl {line}: {}\n{said}", out.status);
        Ok(())
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.home.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Starts a command and waits for the first line that holds `want`.
    fn start(&self, args: &[&str], want: &str) -> Result<(Running, String)> {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let out = child.stdout.take().context("stdout")?;
        let running = Running(child);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                lines.recv_timeout(left).with_context(|| format!("kubectl {} never said {want:?}", args.join(" ")))?;
            if line.contains(want) {
                // Further lines are read and dropped, so that the program is not held up.
                std::thread::spawn(move || while lines.recv().is_ok() {});
                return Ok((running, line));
            }
        }
    }
}

/// A command that goes on until this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a program's end, and reads what it prints meanwhile.
fn bounded(mut child: Child, what: &str) -> Result<Output> {
    let drain = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let joined = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                bail!(
                    "{what} did not end within {LIMIT:?}; it said {}{}",
                    text(&joined(stdout)),
                    text(&joined(stderr))
                );
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    Ok(Output { status, stdout: joined(stdout), stderr: joined(stderr) })
}

/// The kubectls to try, each with a word for it. At least one must be there.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file());
    let newest = std::env::var_os("WEFT_KUBECTL").map(PathBuf::from);
    let named = [("machine", own), ("newest", newest)];
    let found: Vec<_> = named.into_iter().filter_map(|(name, file)| Some((name.to_string(), file?))).collect();
    ensure!(!found.is_empty(), "no kubectl on the PATH and none named by WEFT_KUBECTL; run: cargo xtask test");
    Ok(found)
}

fn workload(space: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {space}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec: {{containers: [{{name: web, image: docker.io/kennethreitz/httpbin, ports: [{{containerPort: 80}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {space}}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 8000, targetPort: 80}}]}}
"
    )
}

#[test]
fn kubectl_drives_the_lab() -> Result<()> {
    let lab = Lab::start(&["--no-bookinfo"])?;
    for (name, program) in programs()? {
        let kubectl = Kubectl::new(&program, &lab)?;
        let space = format!("shop-{name}");
        eprintln!("kubectl: {name}, {}", program.display());
        discovery(&kubectl).with_context(|| name.clone())?;
        workloads(&kubectl, &space).with_context(|| name.clone())?;
        objects(&kubectl, &space).with_context(|| name.clone())?;
        into_pods(&kubectl, &space).with_context(|| name.clone())?;
        rights(&kubectl, &space, &name).with_context(|| name.clone())?;
        custom_kinds(&kubectl, &space).with_context(|| name.clone())?;
        kubectl.shows(&format!("delete namespace {space} --wait=true"), &["deleted"])?;
        kubectl.fails(&format!("get namespace {space}"), "NotFound")?;
    }
    Ok(())
}

fn discovery(kubectl: &Kubectl) -> Result<()> {
    kubectl.shows("version", &["Server Version: v1."])?;
    kubectl.shows("api-resources", &["virtualservices", "networking.istio.io/v1", "customresourcedefinitions"])?;
    kubectl.shows("api-versions", &["security.istio.io/v1beta1", "apps/v1"])?;
    kubectl.says("get --raw /readyz", "ok")?;
    kubectl.shows("explain virtualservice.spec.http.route", &["FIELD: route <[]Object>", "destination", "weight"])?;
    kubectl.shows("explain deployment.spec.template.spec.containers", &["livenessProbe", "<Probe>"])?;
    kubectl.shows("explain destinationrule.spec --recursive", &["outlierDetection", "consecutive5xxErrors"])?;
    kubectl.fails("explain virtualservice.spec.nothing", "does not exist")?;
    kubectl.shows("get nodes -o wide", &["weft-lab", "Ready"])?;
    kubectl.shows("describe node weft-lab", &["Conditions:"])?;
    Ok(())
}

fn workloads(kubectl: &Kubectl, space: &str) -> Result<()> {
    kubectl.says(&format!("create namespace {space}"), &format!("namespace/{space} created"))?;
    kubectl.says(&format!("label namespace {space} team=a"), &format!("namespace/{space} labeled"))?;
    kubectl.says(&format!("annotate namespace {space} note=x"), &format!("namespace/{space} annotated"))?;
    let file = kubectl.file("web.yaml", &workload(space, 1))?;
    kubectl.says(&format!("apply -f {file}"), "deployment.apps/web created\nservice/web created")?;
    let rollout = format!("rollout status deployment/web -n {space} --timeout=60s");
    kubectl.shows(&rollout, &["successfully rolled out"])?;
    kubectl.says(&format!("apply -f {file}"), "deployment.apps/web unchanged\nservice/web unchanged")?;
    kubectl.shows(&format!("get deploy,pods,svc -n {space} -o wide"), &["1/1", "SELECTOR", "8000/TCP", "weft-lab"])?;
    kubectl.shows(&format!("get all -n {space}"), &["pod/web-", "service/web", "replicaset.apps/web-"])?;
    kubectl.says(&format!("scale deployment/web --replicas=2 -n {space}"), "deployment.apps/web scaled")?;
    kubectl.shows(&rollout, &["successfully rolled out"])?;
    kubectl.says(&format!("rollout restart deployment/web -n {space}"), "deployment.apps/web restarted")?;
    kubectl.shows(&rollout, &["successfully rolled out"])?;
    kubectl.shows(&format!("rollout history deployment/web -n {space}"), &["REVISION", "2"])?;
    kubectl.says(
        &format!("wait --for=condition=Available deployment/web -n {space} --timeout=60s"),
        "deployment.apps/web condition met",
    )?;
    let ready = ["get", "deploy", "web", "-n", space, "-o", "jsonpath={.status.readyReplicas}"];
    ensure!(kubectl.run(&ready)? == "2");
    let columns = format!("get deploy web -n {space} --no-headers -o custom-columns=N:.metadata.name,R:.spec.replicas");
    kubectl.says(&columns, "web   2")?;
    let json: Value = serde_json::from_str(&kubectl.run(&["get", "deploy", "web", "-n", space, "-o", "json"])?)?;
    ensure!(json["spec"]["replicas"] == 2);
    kubectl.shows(&format!("get deploy web -n {space} -o yaml"), &["kind: Deployment", "replicas: 2"])?;
    kubectl.shows(&format!("describe deployment web -n {space}"), &["2 desired", "RollingUpdate"])?;
    kubectl.shows(&format!("describe pods -l app=web -n {space}"), &["Ready:          True"])?;
    kubectl.shows(&format!("get events -n {space}"), &["Started"])?;
    Ok(())
}

fn objects(kubectl: &Kubectl, space: &str) -> Result<()> {
    let patch =
        |kind: &str, body: &str| kubectl.run(&["patch", "deployment", "web", "-n", space, "--type", kind, "-p", body]);
    patch("json", r#"[{"op": "add", "path": "/metadata/annotations/a", "value": "1"}]"#)?;
    patch("merge", r#"{"metadata": {"annotations": {"b": "2"}}}"#)?;
    patch(
        "strategic",
        r#"{"spec": {"template": {"spec": {"containers": [{"name": "web", "env": [{"name": "X", "value": "1"}]}]}}}}"#,
    )?;
    let image = ["get", "deploy", "web", "-n", space, "-o", "jsonpath={.spec.template.spec.containers[0].image}"];
    ensure!(kubectl.run(&image)?.contains("httpbin"), "a strategic patch keeps what it does not name");
    let file = kubectl.file("web.yaml", &workload(space, 3))?;
    let out = kubectl.try_run(&["diff", "-f", &file])?;
    ensure!(out.status.code() == Some(1) && text(&out.stdout).contains("+  replicas: 3"), "{}", text(&out.stdout));
    kubectl.fails(&format!("apply --server-side -f {file}"), "conflict with \"kubectl")?;
    kubectl.shows(
        &format!("apply --server-side --force-conflicts -f {file}"),
        &["deployment.apps/web serverside-applied"],
    )?;
    kubectl.shows(
        &format!("get deploy web -n {space} -o yaml --show-managed-fields"),
        &["manager: kubectl", "f:replicas"],
    )?;
    let map = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ssa, namespace: {space}}}\ndata: {{{data}}}\n")
    };
    let file = kubectl.file("ssa.yaml", &map("a: '1', b: '1'"))?;
    kubectl.says(&format!("apply --server-side -f {file}"), "configmap/ssa serverside-applied")?;
    kubectl.file("ssa.yaml", &map("a: '1'"))?;
    kubectl.run(&["apply", "--server-side", "-f", &file])?;
    kubectl.says(&format!("get cm ssa -n {space} -o jsonpath={{.data}}"), "{\"a\":\"1\"}")?;

    for line in [
        "create configmap cm1 --from-literal=a=b",
        "create secret generic s1 --from-literal=a=b",
        "create serviceaccount sa1",
        "create quota q --hard=pods=100",
        "create ingress i1 --rule=a.b/=web:8000",
        "create pdb p1 --selector=app=web --min-available=1",
        "create service clusterip extra --tcp=80:80",
    ] {
        kubectl.shows(&format!("{line} -n {space}"), &["created"])?;
    }
    ensure!(kubectl.run(&["create", "token", "sa1", "-n", space])?.len() > 40);
    kubectl.says(&format!("create cm dry --dry-run=server -n {space} -o name"), "configmap/dry")?;
    kubectl.fails(&format!("get cm dry -n {space}"), "NotFound")?;

    // A watch sees what comes after it.
    let args = ["get", "cm", "-n", space, "-w", "-o", "name", "--output-watch-events"];
    let (watching, _) = kubectl.start(&args, "configmap/cm1")?;
    drop(watching);
    kubectl.shows(&format!("delete configmap cm1 -n {space}"), &["configmap \"cm1\" deleted"])?;

    let route = |weight: i32| {
        format!(
            "apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {{name: r, namespace: {space}}}\nspec:\n  \
             hosts: [r]\n  http: [{{route: [{{destination: {{host: r}}, weight: {weight}}}]}}]\n"
        )
    };
    let file = kubectl.file("route.yaml", &route(100))?;
    kubectl.says(&format!("apply -f {file}"), "virtualservice.networking.istio.io/r created")?;
    kubectl.shows(&format!("get istio-io -n {space}"), &["virtualservice.networking.istio.io/r", "[\"r\"]"])?;
    kubectl.file("route.yaml", &route(-1))?;
    kubectl.fails(&format!("apply -f {file}"), "spec.http[0].route[0].weight")?;
    kubectl.file("route.yaml", &route(100).replace("http:", "htttp:"))?;
    kubectl.fails(&format!("apply -f {file}"), "htttp")?;
    Ok(())
}

fn into_pods(kubectl: &Kubectl, space: &str) -> Result<()> {
    kubectl.run(&["rollout", "status", "deployment/web", "-n", space, "--timeout=60s"])?;
    for spdy in [false, true] {
        let kubectl = Kubectl {
            spdy,
            home: tempfile::tempdir()?,
            program: kubectl.program.clone(),
            config: kubectl.config.clone(),
        };
        let name = kubectl.run(&[
            "get",
            "pods",
            "-n",
            space,
            "-l",
            "app=web",
            "--field-selector=status.phase=Running",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        let exec = |args: &[&str]| kubectl.try_run(&[&["exec", "-n", space, &name, "--"], args].concat());
        let out = exec(&["sh", "-c", "echo out; echo err >&2; exit 4"])?;
        let said = (out.status.code(), text(&out.stdout), text(&out.stderr).contains("err\n"));
        ensure!(said == (Some(4), "out\n".into(), true), "spdy {spdy}: {said:?} {}", text(&out.stderr));
        let out = exec(&["sh", "-c", "seq 1 20000"])?;
        ensure!(out.stdout.ends_with(b"\n20000\n"), "spdy {spdy}: the end of a long output is missing");
        let mut cat = kubectl.command(&["exec", "-i", "-n", space, &name, "--", "cat"]);
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        std::io::Write::write_all(&mut cat.stdin.take().context("stdin")?, b"through\n")?;
        ensure!(cat.wait_with_output()?.stdout == b"through\n", "spdy {spdy}");

        kubectl.shows(&format!("logs -n {space} {name}"), &["listening on port 80"])?;
        ensure!(kubectl.run(&["logs", "-n", space, &name, "--tail=1"])?.lines().count() == 1);
        let (logs, _) = kubectl.start(&["logs", "-f", "-n", space, &name], "listening on port 80")?;
        drop(logs);
        let forward = ["port-forward", "-n", space, "service/web", ":8000"];
        let (forwarding, line) = kubectl.start(&forward, "Forwarding from 127.0.0.1:")?;
        let port = line.split(':').nth(1).and_then(|p| p.split(' ').next()).context("port")?.to_string();
        for _ in 0..5 {
            let answer = browser::get(&format!("http://127.0.0.1:{port}/status/418"), &[])?;
            ensure!(answer.status.as_u16() == 418, "spdy {spdy}: {}", answer.status);
        }
        drop(forwarding);
    }
    let name = kubectl.run(&[
        "get",
        "pods",
        "-n",
        space,
        "-l",
        "app=web",
        "--field-selector=status.phase=Running",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])?;
    let copy = kubectl.home.path().join("hosts");
    kubectl.run(&["cp", "-n", space, &format!("{name}:/etc/hosts"), &copy.to_string_lossy()])?;
    ensure!(std::fs::read_to_string(copy)?.contains("localhost"));
    kubectl.shows(&format!("run lonely --image=pause -n {space}"), &["pod/lonely created"])?;
    kubectl
        .says(&format!("wait --for=condition=Ready pod/lonely -n {space} --timeout=60s"), "pod/lonely condition met")?;
    kubectl.shows(&format!("delete pod lonely -n {space} --wait=true"), &["pod \"lonely\" deleted"])?;
    kubectl.says(&format!("create job once --image=curl -n {space} -- echo done"), "job.batch/once created")?;
    kubectl.says(
        &format!("wait --for=condition=Complete job/once -n {space} --timeout=60s"),
        "job.batch/once condition met",
    )?;
    kubectl.says(&format!("logs job/once -n {space}"), "done")?;
    Ok(())
}

fn rights(kubectl: &Kubectl, space: &str, name: &str) -> Result<()> {
    kubectl.shows("auth whoami", &["lab-admin", "system:masters"])?;
    kubectl.says("auth can-i delete pods -A", "yes")?;
    kubectl.shows("auth can-i --list", &["*.*"])?;
    kubectl.fails(&format!("auth can-i list pods -n {space} --as=jane"), "no")?;
    kubectl.fails(&format!("get pods -n {space} --as=jane"), "User \"jane\" cannot list resource \"pods\"")?;
    kubectl.shows(&format!("create role reader --verb=get,list --resource=pods -n {space}"), &["created"])?;
    kubectl.shows(&format!("create rolebinding reader --role=reader --user=jane -n {space}"), &["created"])?;
    kubectl.says(&format!("auth can-i list pods -n {space} --as=jane"), "yes")?;
    kubectl.shows(&format!("get pods -n {space} --as=jane"), &["web-"])?;
    let binding =
        format!("create clusterrolebinding admin-{name} --clusterrole cluster-admin --serviceaccount={space}:default");
    kubectl.shows(&binding, &["created"])?;
    kubectl.says(&format!("auth can-i create nodes --as=system:serviceaccount:{space}:default"), "yes")?;
    Ok(())
}

const DEFINITION: &str = r#"apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.ready}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What is wanted of a widget.
            required: [size]
            properties: {size: {type: integer, minimum: 1}, color: {type: string, default: red}}
          status: {type: object, properties: {ready: {type: integer}}}
"#;

fn custom_kinds(kubectl: &Kubectl, space: &str) -> Result<()> {
    let definition = kubectl.file("crd.yaml", DEFINITION)?;
    kubectl.shows(&format!("apply -f {definition}"), &["widgets.shop.example created"])?;
    kubectl.run(&["wait", "--for=condition=Established", "crd/widgets.shop.example", "--timeout=30s"])?;
    let widget = |size: i32| {
        format!(
            "apiVersion: shop.example/v1\nkind: Widget\nmetadata: {{name: w, namespace: {space}}}\nspec: {{size: {size}}}\n"
        )
    };
    let file = kubectl.file("widget.yaml", &widget(2))?;
    kubectl.says(&format!("apply -f {file}"), "widget.shop.example/w created")?;
    let table = kubectl.shows(&format!("get wd -n {space}"), &["NAME   SIZE"])?;
    ensure!(table.lines().nth(1).is_some_and(|l| l.starts_with("w      2")), "{table}");
    kubectl.shows("explain widget.spec", &["What is wanted of a widget.", "size"])?;
    kubectl.says(&format!("scale widget/w --replicas=5 -n {space}"), "widget.shop.example/w scaled")?;
    kubectl.says(&format!("get widget w -n {space} -o jsonpath={{.spec.size}}/{{.spec.color}}"), "5/red")?;
    kubectl.file("widget.yaml", &widget(0))?;
    kubectl.fails(&format!("apply -f {file}"), "should be greater than or equal to 1")?;
    kubectl.shows(&format!("delete -f {definition}"), &["deleted"])?;
    eventually(Duration::from_secs(30), || kubectl.fails(&format!("get widgets -n {space}"), "the server "))
}

#[test]
fn journeys_as_istio_writes_them() -> Result<()> {
    let lab = Lab::start(&["--no-bookinfo"])?;
    let (_, program) = programs()?.pop().context("kubectl")?;
    let kubectl = Kubectl::new(&program, &lab)?;
    getting_started(&lab, &kubectl)?;
    backup_and_restore(&kubectl)?;
    request_routing(&lab, &kubectl)?;
    faults(&lab, &kubectl)?;
    traffic_shifting(&lab, &kubectl)
}

/// J-GS, from step 3 on: the mesh is there.
fn getting_started(lab: &Lab, kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["label", "namespace", "default", "istio-injection=enabled", "--overwrite"])?;
    let made = kubectl.run(&["apply", "-f", &sample("bookinfo/platform/kube/bookinfo.yaml")])?;
    for name in ["service/details", "deployment.apps/reviews-v3", "serviceaccount/bookinfo-productpage"] {
        ensure!(made.contains(&format!("{name} created")), "{made}");
    }
    kubectl.shows("get services", &["details", "productpage", "ratings", "reviews", "9080/TCP"])?;
    eventually(Duration::from_secs(90), || {
        let pods = kubectl.run(&["get", "pods", "--no-headers"])?;
        let ready = pods.lines().filter(|l| l.contains("2/2") && l.contains("Running")).count();
        ensure!(ready == 6 && pods.lines().count() == 6, "{pods}");
        Ok(())
    })?;
    let ratings = kubectl.run(&["get", "pod", "-l", "app=ratings", "-o", "jsonpath={.items[0].metadata.name}"])?;
    eventually(Duration::from_secs(30), || {
        let page =
            kubectl.run(&["exec", &ratings, "-c", "ratings", "--", "curl", "-sS", "productpage:9080/productpage"])?;
        ensure!(page.contains("<title>Simple Bookstore App</title>"), "{page}");
        Ok(())
    })?;
    let made = kubectl.run(&["apply", "-f", &sample("bookinfo/networking/bookinfo-gateway.yaml")])?;
    let want =
        "gateway.networking.istio.io/bookinfo-gateway created\nvirtualservice.networking.istio.io/bookinfo created\n";
    ensure!(made == want, "{made}");
    let path = r#"jsonpath={.spec.ports[?(@.name=="http2")].port}"#;
    ensure!(kubectl.run(&["-n", "istio-system", "get", "service", "istio-ingressgateway", "-o", path])? == "80");
    eventually(Duration::from_secs(30), || browser::stars(&lab.url(""), None).map(drop))
}

/// J-HELM, step 7.
fn backup_and_restore(kubectl: &Kubectl) -> Result<()> {
    let backup = kubectl.run(&["get", "istio-io", "--all-namespaces", "-oyaml"])?;
    let file = kubectl.file("istio_resource_backup.yaml", &backup)?;
    kubectl.run(&["delete", "virtualservice", "bookinfo"])?;
    kubectl.fails("get virtualservice bookinfo", "NotFound")?;
    kubectl.run(&["apply", "-f", &file])?;
    kubectl.shows("get virtualservice bookinfo", &["bookinfo-gateway"])?;
    Ok(())
}

fn seen(lab: &Lab, cookie: Option<&str>, want: &[Stars]) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        for _ in 0..10 {
            let stars = browser::stars(&lab.url(""), cookie)?;
            ensure!(want.contains(&stars), "{stars:?}");
        }
        Ok(())
    })
}

/// J-RR.
fn request_routing(lab: &Lab, kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/destination-rule-all.yaml")])?;
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
    kubectl.shows("get virtualservices -o yaml", &["subset: v1"])?;
    kubectl.shows("get destinationrules -o yaml", &["subsets:"])?;
    seen(lab, None, &[Stars::None])?;
    kubectl.says(
        &format!("apply -f {}", sample("bookinfo/networking/virtual-service-reviews-test-v2.yaml")),
        "virtualservice.networking.istio.io/reviews configured",
    )?;
    let jason = browser::login(&lab.url(""), "jason")?;
    seen(lab, Some(&jason), &[Stars::Black])?;
    seen(lab, None, &[Stars::None])
}

/// J-FI, the delay and the abort.
fn faults(lab: &Lab, kubectl: &Kubectl) -> Result<()> {
    let jason = browser::login(&lab.url(""), "jason")?;
    let page = || browser::get(&lab.url("/productpage"), &[("cookie", &jason)]);
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-ratings-test-delay.yaml")])?;
    eventually(Duration::from_secs(60), || {
        let body = page()?.body;
        ensure!(body.contains("product reviews are currently unavailable for this book"), "{body}");
        Ok(())
    })?;
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-ratings-test-abort.yaml")])?;
    eventually(Duration::from_secs(60), || {
        let body = page()?.body;
        ensure!(body.contains("Ratings service is currently unavailable"), "{body}");
        Ok(())
    })?;
    seen(lab, None, &[Stars::None])?;
    kubectl.run(&["delete", "-f", &sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
    kubectl.says("get virtualservices -o name", "virtualservice.networking.istio.io/bookinfo")
}

/// J-TS.
fn traffic_shifting(lab: &Lab, kubectl: &Kubectl) -> Result<()> {
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
    seen(lab, None, &[Stars::None])?;
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-reviews-50-v3.yaml")])?;
    kubectl.shows("get virtualservice reviews -o yaml", &["weight: 50", "subset: v3"])?;
    seen(lab, None, &[Stars::None, Stars::Red])?;
    kubectl.run(&["apply", "-f", &sample("bookinfo/networking/virtual-service-reviews-v3.yaml")])?;
    seen(lab, None, &[Stars::Red])?;
    kubectl.run(&["delete", "-f", &sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
    Ok(())
}

#[test]
fn the_python_client_drives_the_lab() -> Result<()> {
    let Some(python) = std::env::var_os("WEFT_PYTHON") else {
        eprintln!("skipped: WEFT_PYTHON names no Python with the package kubernetes; cargo xtask test installs one");
        return Ok(());
    };
    let lab = Lab::start(&["--no-bookinfo"])?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/client.py");
    let mut command = Command::new(python);
    command.arg(script).env("KUBECONFIG", lab.home().join("kubeconfig")).stdin(Stdio::null());
    let out = bounded(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?, "the Python client")?;
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    ensure!(out.status.success() && said.contains("all of it holds"), "{}\n{said}", out.status);
    Ok(())
}

#[test]
fn objects_outlive_a_lab_that_is_asked_to_keep_them() -> Result<()> {
    let state = tempfile::tempdir()?;
    let folder = state.path().to_str().context("path")?;
    let (_, program) = programs()?.pop().context("kubectl")?;
    let of = |lab: &Lab| -> Result<Kubectl> {
        Ok(Kubectl { config: state.path().join("kubeconfig"), ..Kubectl::new(&program, lab)? })
    };
    let mut lab = Lab::start(&["--no-bookinfo", "--state", folder])?;
    let kubectl = of(&lab)?;
    kubectl.run(&["create", "namespace", "shop"])?;
    kubectl.run(&["create", "configmap", "kept", "-n", "shop", "--from-literal=a=b"])?;
    kubectl.run(&["create", "deployment", "sleep", "-n", "shop", "--image=pause"])?;
    kubectl.run(&["rollout", "status", "deployment/sleep", "-n", "shop", "--timeout=60s"])?;
    let uid = kubectl.run(&["get", "cm", "kept", "-n", "shop", "-o", "jsonpath={.metadata.uid}"])?;
    let root = ["get", "cm", "istio-ca-root-cert", "-n", "shop", "-o", "jsonpath={.data.root-cert\\.pem}"];
    let before = eventually(Duration::from_secs(30), || kubectl.run(&root))?;
    // What was written before the last moment counts, however the lab dies.
    let log = state.path().join("objects/objects.log");
    eventually(Duration::from_secs(30), || {
        ensure!(std::fs::read_to_string(&log)?.contains(&uid), "not written yet");
        Ok(())
    })?;
    lab.stop(nix::sys::signal::Signal::SIGKILL)?;
    drop(lab);
    let again = eventually(Duration::from_secs(60), || Lab::start(&["--no-bookinfo", "--state", folder]))?;
    let kubectl = of(&again)?;
    kubectl.says("get cm kept -n shop -o jsonpath={.data.a}/{.metadata.uid}", &format!("b/{uid}"))?;
    kubectl.run(&["rollout", "status", "deployment/sleep", "-n", "shop", "--timeout=60s"])?;
    let after = eventually(Duration::from_secs(30), || kubectl.run(&root))?;
    ensure!(before == after, "the root of trust is the same");
    Ok(())
}
