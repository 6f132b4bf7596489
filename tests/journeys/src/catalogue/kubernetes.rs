//! Journeys with kubectl, line by line as the documents have them: getting started, injection, revisions, gateways of one's
//! own.

use crate::journey::{Journey, Run};
use crate::kubectl::Kubectl;
use crate::{Lab, browser, eventually};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) const SAME: Option<&str> =
    Some("it is about objects, not about traffic; with Weft's own proxy it takes half the time");

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "1:J-GS",
        title: "getting started with kubectl: Bookinfo, a way in, and the end of it",
        proves: &[
            "1:GS-05", "1:GS-06", "1:GS-07", "1:GS-08", "1:GS-09", "1:GS-10", "1:GS-11", "1:GS-13", "1:GS-14",
            "1:GS-15", "1:GS-17", "1:GS-18",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: getting_started,
    },
    Journey {
        id: "1:J-KIND",
        title: "a cluster on one machine: contexts, a proxy to the API, a token",
        proves: &["1:KIND-05", "1:KIND-08", "1:KIND-09"],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: kind,
    },
    Journey {
        id: "1:J-CAN",
        title: "a second control plane beside the first, and a namespace that moves to it",
        proves: &[
            "1:CAN-01", "1:CAN-02", "1:CAN-04", "1:CAN-05", "1:CAN-06", "1:CAN-07", "1:CAN-08", "1:CAN-09", "1:CAN-10",
            "1:CAN-11", "1:CAN-12", "1:CAN-13", "1:CAN-14", "1:CAN-17", "1:INJ-07", "1:INJ-08",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: canary,
    },
    Journey {
        id: "1:J-GW",
        title: "a gateway of one's own, and a second one behind the same Service",
        proves: &["1:GW-01", "1:GW-02", "1:GW-03", "1:GW-04", "1:GW-05", "1:GW-07", "1:GW-08", "1:INJ-17"],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: own_gateway,
    },
    Journey {
        id: "1:J-INJ",
        title: "sidecar injection: by namespace, by pod, by hand, with overrides",
        proves: &[
            "1:INJ-01", "1:INJ-02", "1:INJ-03", "1:INJ-04", "1:INJ-05", "1:INJ-06", "1:INJ-09", "1:INJ-10", "1:INJ-11",
            "1:INJ-12", "1:INJ-13", "1:INJ-16",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: injection,
    },
];

pub(super) const SOON: Duration = Duration::from_secs(90);

pub(super) fn holds(text: &str, wants: &[&str]) -> Result<()> {
    for want in wants {
        ensure!(text.contains(want), "{want:?} is not in\n{text}");
    }
    Ok(())
}

/// Repeats a line until what it prints holds all of these.
pub(super) fn until(kubectl: &Kubectl, line: &str, wants: &[&str]) -> Result<String> {
    eventually(SOON, || {
        let said = kubectl.sh(line)?;
        holds(&said, wants).map(|()| said)
    })
}

/// Waits until the pods of a selection are `count`, each with these READY and STATUS columns; their names.
pub(super) fn until_pods(kubectl: &Kubectl, selection: &str, count: usize, ready: &str) -> Result<BTreeSet<String>> {
    eventually(SOON, || {
        let said = kubectl.sh(&format!("kubectl get pods {selection} --no-headers"))?;
        let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let rows: Vec<Vec<String>> = said.lines().map(words).collect();
        let good = |row: &Vec<String>| row.len() > 3 && row[1] == ready && row[2] == "Running";
        ensure!(rows.len() == count && rows.iter().all(good), "{count} pods with {ready} are wanted:\n{said}");
        Ok(rows.into_iter().map(|mut row| row.swap_remove(0)).collect())
    })
}

/// Where the gateway is reached, as the documents find it; the node's address is asked of the API in place of `minikube ip`.
const WAY_IN: [&str; 4] = [
    r#"export INGRESS_PORT=$(kubectl -n istio-system get service istio-ingressgateway -o jsonpath='{.spec.ports[?(@.name=="http2")].nodePort}')"#,
    r#"export SECURE_INGRESS_PORT=$(kubectl -n istio-system get service istio-ingressgateway -o jsonpath='{.spec.ports[?(@.name=="https")].nodePort}')"#,
    r#"export INGRESS_HOST=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="ExternalIP")].address}')"#,
    "export GATEWAY_URL=$INGRESS_HOST:$INGRESS_PORT",
];

/// J-GS: the mesh is there; what follows is as a user types it.
fn getting_started(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.sh("kubectl label namespace default istio-injection-")?;
    run.check(&["1:GS-05"], "a namespace is labelled", |_| {
        let said = kubectl.sh("kubectl label namespace default istio-injection=enabled")?;
        ensure!(said == "namespace/default labeled\n", "{said}");
        Ok(())
    });
    run.check(&["1:GS-06"], "Bookinfo is applied, in the order of its file", |_| {
        let said = kubectl.sh("kubectl apply -f samples/bookinfo/platform/kube/bookinfo.yaml")?;
        let mut wanted = Vec::new();
        for (service, versions) in [("details", 1), ("ratings", 1), ("reviews", 3), ("productpage", 1)] {
            wanted.push(format!("service/{service} created"));
            wanted.push(format!("serviceaccount/bookinfo-{service} created"));
            wanted.extend((1..=versions).map(|v| format!("deployment.apps/{service}-v{v} created")));
        }
        ensure!(said.lines().eq(wanted.iter().map(String::as_str)), "{said}");
        Ok(())
    });
    run.check(&["1:GS-07"], "four services, six pods of two containers", |_| {
        let services = kubectl.sh("kubectl get services")?;
        for name in ["details", "productpage", "ratings", "reviews"] {
            let row = services.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            holds(row, &["ClusterIP", "<none>", "9080/TCP"])?;
        }
        until_pods(&kubectl, "", 6, "2/2").map(drop)
    });
    run.check(&["1:GS-08"], "ratings reaches the product page", |_| {
        let line = r#"kubectl exec "$(kubectl get pod -l app=ratings -o jsonpath='{.items[0].metadata.name}')" -c ratings -- curl -sS productpage:9080/productpage | grep -o "<title>.*</title>""#;
        until(&kubectl, line, &["<title>Simple Bookstore App</title>"]).map(drop)
    });
    run.check(&["1:GS-09"], "a Gateway and a VirtualService", |_| {
        let said = kubectl.sh("kubectl apply -f samples/bookinfo/networking/bookinfo-gateway.yaml")?;
        let wanted = "gateway.networking.istio.io/bookinfo-gateway created\nvirtualservice.networking.istio.io/bookinfo created\n";
        ensure!(said == wanted, "{said}");
        Ok(())
    });
    run.check(&["1:GS-10"], "nothing is wrong with the configuration", |_| {
        // Pods of before the label have gone, and with them what there was to say of them.
        let line = "istioctl analyze 2>&1";
        eventually(SOON, || {
            let said = kubectl.sh(line)?;
            ensure!(said == "✓ No validation issues found when analyzing namespace: default.\n", "{said}");
            Ok(())
        })
    });
    run.check(&["1:GS-11", "1:GS-13"], "the page from outside, by the gateway's node ports", |_| {
        let gateway = format!("{}; echo -n \"http://$GATEWAY_URL\"", WAY_IN.join("; "));
        let url = kubectl.sh(&gateway)?;
        ensure!(url.starts_with("http://127.0.0.1:3"), "{url}");
        let secure = kubectl.sh(&format!("{}; echo -n $SECURE_INGRESS_PORT", WAY_IN.join("; ")))?;
        ensure!(secure.parse::<u16>().is_ok_and(|port| port >= 30_000), "{secure}");
        eventually(SOON, || browser::stars(&url, None).map(drop))
    });
    run.check(&["1:GS-14", "1:GS-15"], "Prometheus collects from the proxies, and a port leads to it", |_| {
        // Of the add-ons it is the one that can run here: Kiali, Grafana and Jaeger are programs that no package brings.
        kubectl.sh("kubectl apply --dry-run=server -f samples/addons")?;
        kubectl.sh("kubectl apply -f samples/addons/lab")?;
        let said = kubectl.sh("kubectl rollout status deployment/prometheus -n istio-system --timeout=80s")?;
        holds(&said, &["deployment \"prometheus\" successfully rolled out"])?;
        // Once more is no error.
        holds(&kubectl.sh("kubectl apply -f samples/addons/lab")?, &["deployment.apps/prometheus unchanged"])?;
        let (_dashboard, url) =
            kubectl.start_istioctl(&["dashboard", "prometheus", "--port", "0"], "http://localhost:")?;
        let query = format!(
            "curl -sS --get {}/api/v1/query --data-urlencode 'query=istio_requests_total{{destination_service_name=\"details\"}}'",
            url.trim()
        );
        until(&kubectl, &query, &["\"status\":\"success\"", "destination_service_name"]).map(drop)
    });
    run.check(&["1:GS-17", "1:GS-18"], "uninstalled, but for the namespace and its label", |_| {
        let generate = "istioctl manifest generate --set profile=demo";
        holds(&kubectl.sh("kubectl delete -f samples/addons/lab")?, &["deployment.apps \"prometheus\""])?;
        let said = kubectl.sh(&format!("{generate} | kubectl delete --ignore-not-found=true --wait=false -f -"))?;
        holds(&said, &[r#"deployment.apps "istiod" deleted"#, r#""istio-ingressgateway" deleted"#])?;
        until(&kubectl, "kubectl get deployments -n istio-system 2>&1", &["No resources found"])?;
        holds(&kubectl.sh("kubectl get ns")?, &["istio-system"])?;
        holds(&kubectl.sh("kubectl get ns default --show-labels")?, &["istio-injection=enabled"])?;
        let said = kubectl.sh("kubectl label namespace default istio-injection-")?;
        ensure!(said == "namespace/default unlabeled\n", "{said}");
        kubectl.sh("kubectl delete namespace istio-system --timeout=60s").map(drop)
    });
    Ok(())
}

const TOKEN: &str = r#"apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {name: default-token, annotations: {kubernetes.io/service-account.name: default}}
"#;

/// J-KIND, with the lab in kind's place: its context has another name.
fn kind(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    run.check(&["1:KIND-05"], "one context, which can be chosen", |_| {
        let said = kubectl.sh("kubectl config get-contexts --no-headers")?;
        let words: Vec<&str> = said.split_whitespace().take(4).collect();
        ensure!(words == ["*", "weft-lab", "weft-lab", "weft-lab"], "{said}");
        let said = kubectl.sh("kubectl config use-context weft-lab")?;
        ensure!(said == "Switched to context \"weft-lab\".\n", "{said}");
        Ok(())
    });
    run.check(&["1:KIND-08"], "the token of an account with a role, out of its Secret", |_| {
        kubectl.sh("kubectl create clusterrolebinding default-admin --clusterrole cluster-admin --serviceaccount=default:default")?;
        // Kubernetes makes such Secrets by itself no more since 1.24; one that is asked for is filled in.
        kubectl.file("token.yaml", TOKEN)?;
        kubectl.sh("kubectl apply -f token.yaml")?;
        let line = r#"kubectl get secrets -o jsonpath="{.items[?(@.metadata.annotations['kubernetes\.io/service-account\.name']=='default')].data.token}" | base64 --decode"#;
        let token = eventually(SOON, || {
            let token = kubectl.sh(line)?;
            ensure!(!token.is_empty(), "no token yet");
            Ok(token)
        })?;
        let said = kubectl.sh(&format!("kubectl auth can-i delete nodes --token={} || true", token.trim()))?;
        ensure!(said == "yes\n", "{said}");
        Ok(())
    });
    run.check(&["1:KIND-09"], "kubectl proxy, for a token of an account with a role", |_| {
        let token = kubectl.sh("kubectl create token default")?;
        let who = kubectl
            .sh(&format!("kubectl auth whoami --token={} -o jsonpath='{{.status.userInfo.username}}'", token.trim()))?;
        ensure!(who == "system:serviceaccount:default:default", "{who}");
        let (_proxy, line) = kubectl.start(&["proxy", "--port=0"], "Starting to serve on 127.0.0.1:")?;
        let port = line.rsplit(':').next().unwrap_or_default().trim().to_string();
        let said = kubectl.sh(&format!("curl -sS http://127.0.0.1:{port}/api/v1/namespaces/default/pods"))?;
        holds(&said, &["\"PodList\""])
    });
    Ok(())
}

/// Which control plane a proxy is configured by, by its own command line and environment.
pub(super) fn control_plane_of(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<String> {
    let path = r#"{.spec.containers[?(@.name=="istio-proxy")].env[?(@.name=="CA_ADDR")].value}"#;
    kubectl.sh(&format!("kubectl get pod {pod} -n {namespace} -o jsonpath='{path}'"))
}

/// J-CAN.
fn canary(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.sh("kubectl create namespace test-ns")?;
    kubectl.sh("kubectl label namespace test-ns istio-injection=enabled")?;
    kubectl.sh("kubectl apply -n test-ns -f samples/sleep/sleep.yaml")?;
    let before = until_pods(&kubectl, "-n test-ns", 1, "2/2")?;
    run.check(&["1:CAN-04"], "a revision's name has no dot", |_| {
        let out = kubectl.try_sh("istioctl manifest generate --set revision=1.6.8")?;
        let said = crate::lab::text(&out.stderr);
        ensure!(!out.status.success() && said.contains("1.6.8"), "{said}");
        Ok(())
    });
    run.check(&["1:CAN-02"], "the cluster is ready for it", |_| {
        holds(&kubectl.sh("istioctl x precheck")?, &["✓ No issues found when checking the cluster."])
    });
    run.check(&["1:CAN-01", "1:CAN-05", "1:CAN-06"], "a second control plane comes up beside the first", |_| {
        kubectl.sh("istioctl install --set revision=canary -y")?;
        let pods = until_pods(&kubectl, "-n istio-system -l app=istiod", 2, "1/1")?;
        ensure!(pods.iter().filter(|name| name.starts_with("istiod-canary-")).count() == 1, "{pods:?}");
        until(&kubectl, "kubectl get svc -n istio-system -l app=istiod", &["istiod-canary", "15012/TCP"]).map(drop)
    });
    run.check(&["1:CAN-07"], "each has a webhook configuration of its own", |_| {
        let said = kubectl.sh("kubectl get mutatingwebhookconfigurations")?;
        holds(&said, &["istio-sidecar-injector ", "istio-sidecar-injector-canary "])
    });
    run.check(&["1:CAN-08"], "the gateway moves to it", |_| {
        let line = "istioctl proxy-status | grep $(kubectl -n istio-system get pod -l app=istio-ingressgateway \
                    -o jsonpath='{.items..metadata.name}') | awk '{print $7}'";
        eventually(SOON, || {
            let said = kubectl.sh(line)?;
            ensure!(said.starts_with("istiod-canary-") && said.lines().count() == 1, "{said}");
            Ok(())
        })
    });
    run.check(&["1:CAN-09"], "running sidecars stay where they are", |_| {
        let pods = until_pods(&kubectl, "-n test-ns", 1, "2/2")?;
        ensure!(pods == before, "{pods:?}");
        Ok(())
    });
    let moved = |labels: &str, plane: &str| -> Result<()> {
        kubectl.sh(&format!("kubectl label namespace test-ns --overwrite {labels}"))?;
        // kubectl writes the time in whole seconds, and takes a second restart within one for a mistake.
        eventually(SOON, || kubectl.sh("kubectl rollout restart deployment -n test-ns"))?;
        kubectl.sh("kubectl rollout status deployment sleep -n test-ns --timeout=80s")?;
        for pod in until_pods(&kubectl, "-n test-ns", 1, "2/2")? {
            let address = control_plane_of(&kubectl, "test-ns", &pod)?;
            ensure!(address == format!("{plane}.istio-system.svc:15012"), "{labels}: {pod} asks {address}");
        }
        Ok(())
    };
    run.check(&["1:INJ-08"], "with both labels the plain one counts", |_| moved("istio.io/rev=canary", "istiod"));
    run.check(&["1:CAN-10", "1:INJ-07"], "the namespace moves to the second control plane", |lab| {
        moved("istio-injection- istio.io/rev=canary", "istiod-canary")?;
        let listed = kubectl.sh("kubectl get pods -n test-ns -l istio.io/rev=canary -o name")?;
        ensure!(listed.lines().count() == 1 && listed.starts_with("pod/sleep-"), "{listed}");
        // Field 7 of the proxy's row is who configures it.
        eventually(SOON, || {
            let said = lab.weft(&["proxy-status"])?;
            let row = said.lines().find(|line| line.contains(".test-ns")).unwrap_or_default();
            holds(row, &["istiod-canary-"])
        })
    });
    run.check(&["1:CAN-11", "1:CAN-12"], "names that stand for revisions", |_| {
        kubectl.sh("istioctl tag set prod-stable --revision default")?;
        kubectl.sh("istioctl tag set prod-canary --revision canary")?;
        moved("istio.io/rev=prod-stable", "istiod")?;
        let said = kubectl.sh("istioctl tag list")?;
        let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        let wanted = [
            vec!["TAG", "REVISION", "NAMESPACES"],
            vec!["prod-canary", "canary"],
            vec!["prod-stable", "default", "test-ns"],
        ];
        ensure!(rows == wanted, "{said}");
        Ok(())
    });
    run.check(&["1:CAN-13"], "the name moves, the label stays", |_| {
        kubectl.sh("istioctl tag set prod-stable --revision canary")?;
        moved("istio.io/rev=prod-stable", "istiod-canary")
    });
    run.check(&["1:CAN-17"], "the first control plane goes, by the options that it was installed with", |_| {
        kubectl.sh("istioctl x uninstall -f manifests/profiles/default.yaml -y")?;
        let pods = until_pods(&kubectl, "-n istio-system -l app=istiod", 1, "1/1")?;
        ensure!(pods.iter().all(|name| name.starts_with("istiod-canary-")), "{pods:?}");
        // The gateway has moved, and is no longer its.
        until_pods(&kubectl, "-n istio-system -l app=istio-ingressgateway", 1, "1/1")?;
        let said = kubectl.sh("kubectl get mutatingwebhookconfigurations")?;
        ensure!(!said.lines().any(|line| line.starts_with("istio-sidecar-injector ")), "{said}");
        Ok(())
    });
    run.check(&["1:CAN-14"], "the default revision is for those who name none", |_| {
        kubectl.sh("istioctl tag set default --revision canary")?;
        moved("istio.io/rev- istio-injection=enabled", "istiod-canary")
    });
    Ok(())
}

const INGRESS: &str = r#"apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: ingress}
spec:
  profile: empty
  components:
    ingressGateways:
    - {name: ingressgateway, namespace: istio-ingress, enabled: true, label: {istio: own-gateway}}
  values: {gateways: {istio-ingressgateway: {injectionTemplate: gateway}}}
"#;

const SECOND: &str = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway-canary, namespace: istio-ingress}
spec:
  selector: {matchLabels: {istio: own-gateway, version: canary}}
  template:
    metadata:
      annotations: {inject.istio.io/templates: gateway}
      labels: {app: ingressgateway, istio: own-gateway, version: canary, sidecar.istio.io/inject: "true"}
    spec: {containers: [{name: istio-proxy, image: auto}]}
"#;

fn own_gateway_listens(lab: &Lab, port: &str) -> Result<bool> {
    let gateway = lab.wait_ready("istio=own-gateway", "istio-ingress", 1)?;
    // Without any listener it says so, and fails.
    let out = lab.try_weft(&["proxy-config", "listeners", &format!("{}.istio-ingress", gateway[0])])?;
    let said = crate::lab::text(&out.stdout) + &crate::lab::text(&out.stderr);
    ensure!(out.status.success() || said.contains("the proxy has nothing of that"), "{said}");
    Ok(out.status.success() && said.contains(port))
}

/// J-GW, its label another one than that of the lab's own gateway.
fn own_gateway(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.file("ingress.yaml", INGRESS)?;
    run.check(&["1:GW-01"], "a control plane without a gateway", |_| {
        kubectl.sh("istioctl x uninstall --purge -y")?;
        let said = kubectl.sh("istioctl install --set profile=minimal -y")?;
        ensure!(!said.contains("gateways"), "{said}");
        until_pods(&kubectl, "-n istio-system", 1, "1/1")?;
        let said = kubectl.sh("kubectl get deployments -A -l istio=ingressgateway 2>&1")?;
        holds(&said, &["No resources found"])
    });
    run.check(&["1:GW-02", "1:GW-03", "1:GW-04", "1:INJ-17"], "a gateway of the operator's file, injected", |_| {
        kubectl.sh("kubectl create namespace istio-ingress")?;
        let said = kubectl.sh("istioctl install -f ingress.yaml -y")?;
        ensure!(said == "✓ Ingress gateways installed\n✓ Installation complete\n", "{said}");
        let pods = until_pods(&kubectl, "-n istio-ingress -l istio=own-gateway", 1, "1/1")?;
        let before = pods.clone();
        let names =
            kubectl.sh("kubectl get pods -n istio-ingress -o jsonpath='{.items[*].spec.containers[*].name}'")?;
        ensure!(names == "istio-proxy", "{names}");
        let image =
            kubectl.sh("kubectl get pods -n istio-ingress -o jsonpath='{.items[*].spec.containers[*].image}'")?;
        ensure!(!image.contains("auto"), "{image}");
        // A restart injects anew.
        kubectl.sh("kubectl rollout restart deployment -n istio-ingress")?;
        kubectl.sh("kubectl rollout status deployment ingressgateway -n istio-ingress --timeout=80s")?;
        let after = until_pods(&kubectl, "-n istio-ingress -l istio=own-gateway", 1, "1/1")?;
        ensure!(after != before, "{after:?}");
        Ok(())
    });
    run.check(&["1:GW-05"], "a Gateway reaches the pods that its selector names, no others", |lab| {
        let gateway = |selector: &str| {
            format!(
                "apiVersion: networking.istio.io/v1beta1\nkind: Gateway\nmetadata: {{name: own, namespace: istio-ingress}}\n\
                 spec: {{selector: {{istio: {selector}}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}\n"
            )
        };
        kubectl.file("gateway.yaml", &gateway("own-gateway"))?;
        kubectl.sh("kubectl apply -f gateway.yaml")?;
        let listens = |wanted: bool| {
            eventually(SOON, || {
                ensure!(own_gateway_listens(lab, "8080")? == wanted, "listener on 8080: {wanted} is wanted");
                Ok(())
            })
        };
        listens(true)?;
        kubectl.file("gateway.yaml", &gateway("nobody"))?;
        kubectl.sh("kubectl apply -f gateway.yaml")?;
        listens(false)
    });
    run.check(&["1:GW-08"], "a second Deployment behind the same Service", |_| {
        kubectl.file("canary.yaml", SECOND)?;
        kubectl.sh("kubectl apply -f canary.yaml")?;
        until_pods(&kubectl, "-n istio-ingress -l istio=own-gateway", 2, "1/1")?;
        let line = r#"kubectl get endpoints -n istio-ingress -o "custom-columns=NAME:.metadata.name,PODS:.subsets[*].addresses[*].targetRef.name" | grep '^ingressgateway '"#;
        let said = until(&kubectl, line, &["istio-ingressgateway-canary-"])?;
        let pods = said.split_whitespace().nth(1).unwrap_or_default();
        ensure!(pods.split(',').count() == 2, "{said}");
        Ok(())
    });
    run.check(&["1:GW-07"], "the gateway moves to a revision by its label", |lab| {
        kubectl.sh("istioctl install --set profile=minimal --revision canary -y")?;
        let labels = r#"{"spec":{"template":{"metadata":{"labels":{"istio.io/rev":"canary"}}}}}"#;
        kubectl.sh(&format!("kubectl patch deployment ingressgateway -n istio-ingress -p '{labels}'"))?;
        kubectl.sh("kubectl rollout status deployment ingressgateway -n istio-ingress --timeout=80s")?;
        eventually(SOON, || {
            let pod = kubectl.sh(
                "kubectl get pods -n istio-ingress -l istio.io/rev=canary -o jsonpath='{.items[*].metadata.name}'",
            )?;
            let said = lab.weft(&["proxy-status"])?;
            let row = said.lines().find(|line| !pod.is_empty() && line.starts_with(&pod)).unwrap_or_default();
            holds(row, &["istiod-canary-"])
        })
    });
    Ok(())
}

const OVERRIDE: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: example}
spec:
  containers:
  - {name: hello, image: curlimages/curl, command: ["/bin/sleep", "3650d"]}
  - name: istio-proxy
    image: auto
    resources: {requests: {cpu: "100m"}}
    volumeMounts: [{mountPath: /etc/certs, name: certs}]
    lifecycle: {preStop: {exec: {command: ["sleep","10"]}}}
  volumes: [{name: certs, secret: {secretName: istio-certs}}]
"#;

const NAMESPACES: [(&str, &str); 3] =
    [("on", "istio-injection=enabled"), ("off", "istio-injection=disabled"), ("none", "")];

/// J-INJ.
fn injection(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.sh("kubectl label namespace default istio-injection-")?;
    run.check(&["1:INJ-05"], "a Deployment without a proxy, and the label's column", |_| {
        let said = kubectl.sh("kubectl apply -f samples/sleep/sleep.yaml")?;
        ensure!(
            said == "serviceaccount/sleep created\nservice/sleep created\ndeployment.apps/sleep created\n",
            "{said}"
        );
        until_pods(&kubectl, "-l app=sleep", 1, "1/1")?;
        let said = kubectl.sh("kubectl get deployment -o wide --no-headers")?;
        holds(&said, &["1/1", "curlimages/curl", "app=sleep"])?;
        kubectl.sh("kubectl label namespace default istio-injection=enabled --overwrite")?;
        let said = kubectl.sh("kubectl get namespace -L istio-injection --no-headers")?;
        let row = said.lines().find(|line| line.starts_with("default ")).unwrap_or_default();
        ensure!(row.ends_with("enabled"), "{said}");
        Ok(())
    });
    run.check(&["1:INJ-01", "1:INJ-02"], "the next pod has one, the Deployment is as it was", |_| {
        let old = until_pods(&kubectl, "-l app=sleep", 1, "1/1")?;
        let said = kubectl.sh("kubectl delete pod -l app=sleep")?;
        holds(&said, &["pod \"sleep-", "deleted"])?;
        let new = until_pods(&kubectl, "-l app=sleep", 1, "2/2")?;
        ensure!(old != new, "{new:?}");
        let names =
            kubectl.sh("kubectl get deployment sleep -o jsonpath='{.spec.template.spec.containers[*].name}'")?;
        ensure!(names == "sleep", "{names}");
        Ok(())
    });
    run.check(&["1:INJ-03"], "what the pod's description tells", |_| {
        let started = ["istio-init", "sleep", "istio-proxy"].map(|name| format!("Started container {name}"));
        let started: Vec<&str> = started.iter().map(String::as_str).collect();
        let said = until(&kubectl, "kubectl describe pod -l app=sleep", &started)?;
        let at = |what: &str| said.find(what).ok_or_else(|| anyhow::anyhow!("{what:?} is not in\n{said}"));
        ensure!(at("Init Containers:")? < at("istio-init:")?, "{said}");
        holds(&said, &["istio-envoy:", "istio-token:", "istio-podinfo:"])
    });
    run.check(&["1:INJ-04"], "switched off for the next pods", |_| {
        kubectl.sh("kubectl label namespace default istio-injection-")?;
        kubectl.sh("kubectl delete pod -l app=sleep")?;
        until_pods(&kubectl, "-l app=sleep", 1, "1/1").map(drop)
    });
    run.check(&["1:INJ-06", "1:INJ-09"], "namespace and pod: all nine cases", |_| {
        for (namespace, label) in NAMESPACES {
            kubectl.sh(&format!("kubectl create namespace {namespace}"))?;
            if !label.is_empty() {
                kubectl.sh(&format!("kubectl label namespace {namespace} {label}"))?;
            }
            for (pod, label) in
                [("true", "sidecar.istio.io/inject=true"), ("false", "sidecar.istio.io/inject=false"), ("none", "a=b")]
            {
                kubectl.sh(&format!("kubectl run {pod} -n {namespace} --image=pause --labels={label}"))?;
                let names = format!("kubectl get pod {pod} -n {namespace} -o jsonpath='{{.spec.containers[*].name}}'");
                let injected = kubectl.sh(&names)?.contains("istio-proxy");
                let wanted = matches!((namespace, pod), ("on", "true" | "none") | ("none", "true"));
                ensure!(injected == wanted, "namespace {namespace}, pod {pod}: injected: {injected}");
            }
        }
        Ok(())
    });
    run.check(&["1:INJ-10", "1:INJ-12"], "by hand", |_| {
        kubectl.sh("kubectl delete -f samples/sleep/sleep.yaml")?;
        until(&kubectl, "kubectl get pods -l app=sleep 2>&1", &["No resources found"])?;
        let said = kubectl.sh("istioctl kube-inject -f samples/sleep/sleep.yaml | kubectl apply -f -")?;
        ensure!(said.lines().filter(|line| line.ends_with("created")).count() == 3, "{said}");
        until_pods(&kubectl, "-l app=sleep", 1, "2/2")?;
        let said = kubectl.sh("kubectl apply -f <(istioctl kube-inject -f samples/sleep/sleep.yaml)")?;
        holds(&said, &["deployment.apps/sleep unchanged"])
    });
    run.check(&["1:INJ-11"], "by hand, with settings from files", |_| {
        for (map, key, file) in [
            ("istio-sidecar-injector", "config", "inject-config.yaml"),
            ("istio-sidecar-injector", "values", "inject-values.yaml"),
            ("istio", "mesh", "mesh-config.yaml"),
        ] {
            kubectl.sh(&format!("kubectl -n istio-system get configmap {map} -o=jsonpath='{{.data.{key}}}' > {file}"))?;
        }
        kubectl.sh("kubectl delete -f samples/sleep/sleep.yaml")?;
        until(&kubectl, "kubectl get pods -l app=sleep 2>&1", &["No resources found"])?;
        kubectl.sh("istioctl kube-inject --injectConfigFile inject-config.yaml --meshConfigFile mesh-config.yaml --valuesFile inject-values.yaml --filename samples/sleep/sleep.yaml | kubectl apply -f -")?;
        until_pods(&kubectl, "-l app=sleep", 1, "2/2").map(drop)
    });
    run.check(&["1:INJ-13"], "what the pod says of its proxy counts", |_| {
        kubectl.sh("kubectl create secret generic istio-certs -n on --from-literal=a=b")?;
        kubectl.file("example.yaml", OVERRIDE)?;
        kubectl.sh("kubectl apply -n on -f example.yaml")?;
        let of_proxy = |path: &str| {
            let all = format!(r#"{{.spec.containers[?(@.name=="istio-proxy")]{path}}}"#);
            kubectl.sh(&format!("kubectl get pod example -n on -o jsonpath='{all}'"))
        };
        ensure!(of_proxy(".resources.requests.cpu")? == "100m");
        holds(&of_proxy(".volumeMounts[*].mountPath")?, &["/etc/certs", "/etc/istio/proxy"])?;
        holds(&of_proxy(".lifecycle")?, &["sleep"])?;
        ensure!(!of_proxy(".image")?.contains("auto"));
        eventually(SOON, || {
            let said = kubectl.sh("kubectl get pod example -n on --no-headers")?;
            holds(&said, &["2/2", "Running"])
        })
        .or_else(|error| {
            let more = kubectl.sh("kubectl describe pod example -n on; kubectl logs example -n on -c istio-proxy")?;
            Err(error.context(more))
        })
    });
    run.check(&["1:INJ-16"], "a template of one's own, for those who ask for it", |_| {
        let set = "values.sidecarInjectorWebhook.templates.custom=spec: {containers: [{name: istio-proxy, env: [{name: GREETING, value: hello-world}]}]}";
        let generate = format!("istioctl manifest generate --set profile=minimal --set '{set}' > custom.yaml");
        kubectl.sh(&generate)?;
        let only = r#"python3 -c 'import sys; print("---\n".join(d for d in open("custom.yaml").read().split("---\n") if "kind: ConfigMap" in d and "name: istio-sidecar-injector" in d))' | kubectl apply -f -"#;
        kubectl.sh(only)?;
        let greeted = |pod: &str, more: &str| -> Result<bool> {
            kubectl.sh(&format!("kubectl delete pod {pod} -n on --ignore-not-found --wait=true --grace-period=1"))?;
            kubectl.sh(&format!("kubectl run {pod} -n on --image=pause {more}"))?;
            Ok(kubectl.sh(&format!("kubectl get pod {pod} -n on -o yaml"))?.contains("hello-world"))
        };
        eventually(SOON, || {
            ensure!(greeted("custom", "--annotations=inject.istio.io/templates=sidecar,custom")?, "no GREETING");
            Ok(())
        })?;
        ensure!(!greeted("usual", "")?);
        Ok(())
    });
    Ok(())
}
