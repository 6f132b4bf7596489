//! The lab through programs that nobody here wrote: kubectl as this machine has it and the newest one, with the commands of Istio's
//! documentation as written there, and the Python client library.
//!
//! Which kubectl: that on the PATH, and the one that `WEFT_KUBECTL` names. `WEFT_PYTHON` names a Python that has the package
//! `kubernetes`. `cargo xtask test` installs and names them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_journeys::browser::{self, Stars};
use weft_journeys::kubectl::{Kubectl, bounded, programs};
use weft_journeys::lab::text;
use weft_journeys::{Lab, eventually, sample};

const SOON: Duration = Duration::from_secs(60);

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
    // For several objects kubectl leaves the events out since 1.37, unless it is told.
    let described = format!("describe pods -l app=web -n {space} --show-events=true");
    // Pods of before the restart are there until they have ended; what they go through is not the question.
    eventually(SOON, || {
        let said = kubectl.shows(&described, &["Ready:          True", "Started container web"])?;
        let pods = said.lines().filter(|line| line.starts_with("Name:")).count();
        ensure!(pods == 2, "{pods} pods:\n{said}");
        ensure!(said.lines().filter(|line| *line == "Events:").count() == pods, "{pods} pods:\n{said}");
        Ok(())
    })?;
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

/// A pod of the Deployment that stays: one that is about to end is `Running` too.
fn running(kubectl: &Kubectl, space: &str) -> Result<String> {
    let only = "--field-selector=status.phase=Running";
    let all: Value =
        serde_json::from_str(&kubectl.run(&["get", "pods", "-n", space, "-l", "app=web", only, "-o", "json"])?)?;
    let mut pods = all["items"].as_array().into_iter().flatten();
    let stays = pods.find(|pod| pod["metadata"]["deletionTimestamp"].is_null()).context("no pod runs")?;
    Ok(stays["metadata"]["name"].as_str().context("a pod without name")?.to_string())
}

fn into_pods(kubectl: &Kubectl, space: &str) -> Result<()> {
    kubectl.run(&["rollout", "status", "deployment/web", "-n", space, "--timeout=60s"])?;
    for spdy in [false, true] {
        let kubectl = kubectl.another(spdy)?;
        let name = running(&kubectl, space)?;
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
    taken(kubectl, space)?;
    let name = running(kubectl, space)?;
    let copy = kubectl.folder().join("hosts");
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

/// What the processes of pods take: those of a container, and of the node all together.
fn taken(kubectl: &Kubectl, space: &str) -> Result<()> {
    let rows = kubectl.run(&["top", "pods", "-n", space, "-l", "app=web", "--containers", "--no-headers"])?;
    ensure!(!rows.trim().is_empty(), "nothing runs");
    for row in rows.lines() {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let [pod, "web", processor, memory] = fields[..] else { anyhow::bail!("{row}") };
        let number = |text: &str, unit: &str| text.strip_suffix(unit).and_then(|n| n.parse::<u64>().ok());
        ensure!(pod.starts_with("web-") && number(processor, "m").is_some() && number(memory, "Mi").is_some(), "{row}");
    }
    let row = kubectl.run(&["top", "nodes", "--no-headers"])?;
    let fields: Vec<&str> = row.split_whitespace().collect();
    let memory = fields.get(3).and_then(|text| text.strip_suffix("Mi")?.parse::<u64>().ok());
    // The control plane alone takes more than that.
    ensure!(fields.len() == 5 && memory.is_some_and(|memory| memory > 5) && fields[4].ends_with('%'), "{row}");
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

/// Those about traffic; those about the cluster are in the catalogue of journeys.
#[test]
fn journeys_as_istio_writes_them() -> Result<()> {
    let lab = Lab::start(&[])?;
    let kubectl = Kubectl::newest(&lab)?;
    request_routing(&lab, &kubectl)?;
    faults(&lab, &kubectl)?;
    traffic_shifting(&lab, &kubectl)
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
        let mut kubectl = Kubectl::new(&program, lab)?;
        kubectl.config = state.path().join("kubeconfig");
        Ok(kubectl)
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
