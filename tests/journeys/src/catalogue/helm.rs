//! Journeys with real Helm, line by line as the documents have them: installation and its end, a second control plane beside
//! the first, tags by templates, upgrade in place. Each begins by taking the lab's own mesh away.

use super::kubernetes::{SAME, SOON, control_plane_of, holds, until, until_pods};
use crate::journey::{Journey, Run};
use crate::kubectl::Kubectl;
use crate::{browser, eventually};
use anyhow::{Context as _, Result, ensure};

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "1:J-HELM",
        title: "installed and removed by Helm; all configuration saved and brought back",
        proves: &[
            "1:HELM-02",
            "1:HELM-04",
            "1:HELM-05",
            "1:HELM-06",
            "1:HELM-07",
            "1:HELM-08",
            "1:HELM-09",
            "1:HELM-10",
            "1:HELM-11",
            "1:HELM-12",
            "1:HELM-13",
            "1:HELM-15",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: install,
    },
    Journey {
        id: "1:J-HUP",
        title: "upgraded by Helm: in place, by a second control plane, with tags for revisions",
        proves: &["1:HUP-01", "1:HUP-02", "1:HUP-03", "1:HUP-04", "1:HUP-05", "1:HUP-06", "1:HUP-07", "1:HELM-14"],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: upgrade,
    },
];

const DISCOVERY: &str = "manifests/charts/istio-control/istio-discovery";
const INSTALLATION: [(&str, &str, &str); 4] = [
    ("istio-base", "manifests/charts/base", "base"),
    ("istiod", DISCOVERY, "istio-discovery"),
    ("istio-ingress", "manifests/charts/gateways/istio-ingress", "istio-ingress"),
    ("istio-egress", "manifests/charts/gateways/istio-egress", "istio-egress"),
];

/// A cluster without a mesh: what the lab brings is taken away.
fn without_mesh(kubectl: &Kubectl) -> Result<()> {
    kubectl.sh("helm version").context("no Helm; cargo xtask helm builds it")?;
    kubectl.sh("kubectl delete mutatingwebhookconfigurations --all")?;
    kubectl.sh("kubectl delete namespace istio-system --timeout=80s")?;
    kubectl.sh("kubectl create namespace istio-system").map(drop)
}

fn installed(kubectl: &Kubectl, release: &str, chart: &str, more: &str) -> Result<()> {
    let said = kubectl.sh(&format!("helm install {release} {chart}{more} -n istio-system"))?;
    holds(&said, &[&format!("NAME: {release}\n"), "NAMESPACE: istio-system\n", "STATUS: deployed\n", "REVISION: 1\n"])
}

/// The row of a release: chart with version, revision.
fn release(kubectl: &Kubectl, name: &str, chart: &str, revision: u32) -> Result<()> {
    let said = kubectl.sh("helm ls -n istio-system")?;
    let row = said.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap_or_default();
    let words: Vec<&str> = row.split_whitespace().collect();
    let wanted = format!("{chart}-{}", env!("CARGO_PKG_VERSION"));
    let revision = revision.to_string();
    let as_wanted = words.get(1) == Some(&"istio-system")
        && words.get(2) == Some(&revision.as_str())
        && words.contains(&"deployed")
        && words.contains(&wanted.as_str());
    ensure!(as_wanted, "{name}: revision {revision} of {wanted} is wanted:\n{said}");
    Ok(())
}

/// J-HELM.
fn install(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    without_mesh(&kubectl)?;
    run.check(&["1:HELM-02", "1:HELM-04"], "what all control planes share", |_| {
        let (release, chart, _) = INSTALLATION[0];
        installed(&kubectl, release, chart, "")?;
        let said = kubectl.sh("kubectl get crd -o name")?;
        holds(&said, &["/virtualservices.networking.istio.io", "/authorizationpolicies.security.istio.io"])
    });
    run.check(&["1:HELM-05", "1:HELM-06", "1:HELM-07"], "control plane and gateways", |_| {
        for (release, chart, _) in &INSTALLATION[1..] {
            installed(&kubectl, release, chart, "")?;
        }
        Ok(())
    });
    run.check(&["1:HELM-08"], "all of them run", |_| {
        let pods = until_pods(&kubectl, "-n istio-system", 3, "1/1")?;
        for name in ["istiod-", "istio-ingressgateway-", "istio-egressgateway-"] {
            ensure!(pods.iter().any(|pod| pod.starts_with(name)), "{name}: {pods:?}");
        }
        Ok(())
    });
    run.check(&["1:HELM-05"], "the mesh that Helm installed carries Bookinfo", |lab| {
        // Pods are injected once the webhook is known to the API server; one made before would have no proxy.
        until(&kubectl, "kubectl get mutatingwebhookconfigurations istio-sidecar-injector -o jsonpath='{.webhooks[*].clientConfig.caBundle}'", &["LS0t"])?;
        kubectl.sh("kubectl apply -f samples/bookinfo/platform/kube/bookinfo.yaml")?;
        eventually(SOON, || kubectl.sh("kubectl apply -f samples/bookinfo/networking/bookinfo-gateway.yaml"))?;
        until_pods(&kubectl, "", 6, "2/2")?;
        eventually(SOON, || browser::stars(&lab.url(""), None).map(drop))
    });
    run.check(&["1:HELM-10"], "what is deleted comes back from the saved file", |_| {
        // The file has revisions: an object whose status is still written meanwhile would be in conflict with it.
        eventually(SOON, || {
            kubectl.sh(r#"kubectl get istio-io --all-namespaces -oyaml > "$HOME"/istio_resource_backup.yaml"#)?;
            let saved = std::fs::read_to_string(kubectl.folder().join("istio_resource_backup.yaml"))?;
            ensure!(!saved.contains("validationMessages"), "the control plane has something to say: {saved}");
            Ok(())
        })?;
        kubectl.sh("kubectl delete virtualservice bookinfo")?;
        kubectl.fails("get virtualservice bookinfo", "NotFound")?;
        kubectl.sh(r#"kubectl apply -f "$HOME"/istio_resource_backup.yaml"#)?;
        holds(&kubectl.sh("kubectl get virtualservice bookinfo")?, &["bookinfo-gateway"])
    });
    run.check(&["1:HELM-12"], "four releases", |_| {
        for (name, _, chart) in INSTALLATION {
            release(&kubectl, name, chart, 1)?;
        }
        let rows = kubectl.sh("helm ls -n istio-system -q")?;
        ensure!(rows.lines().count() == 4, "{rows}");
        Ok(())
    });
    run.check(&["1:HELM-09"], "settings by a file of values, and unknown ones refused", |_| {
        kubectl
            .file("values.yaml", "global: {proxy: {logLevel: debug}}\nmeshConfig: {accessLogFile: /dev/stdout}\n")?;
        kubectl.sh(&format!("helm upgrade istiod {DISCOVERY} -n istio-system -f values.yaml"))?;
        let mesh = kubectl.sh("kubectl -n istio-system get configmap istio -o=jsonpath='{.data.mesh}'")?;
        holds(&mesh, &["accessLogFile: /dev/stdout"])?;
        let out = kubectl.try_sh(&format!("helm upgrade istiod {DISCOVERY} -n istio-system --set globl.tag=1"))?;
        let said = crate::lab::text(&out.stderr);
        ensure!(!out.status.success(), "a value that nobody knows was taken");
        holds(&said, &["has no value globl; the names at the top are"])
    });
    run.check(&["1:HELM-11", "1:HELM-13"], "removed, last first; definitions and configuration stay", |_| {
        for (name, _, _) in INSTALLATION.iter().rev() {
            let said = kubectl.sh(&format!("helm delete {name} -n istio-system"))?;
            holds(&said, &[&format!("release \"{name}\" uninstalled")])?;
        }
        let said = kubectl.sh("helm ls -n istio-system -q")?;
        ensure!(said.trim().is_empty(), "{said}");
        until(&kubectl, "kubectl get deployments,services -n istio-system 2>&1", &["No resources found"])?;
        kubectl.sh("kubectl delete namespace istio-system --timeout=80s")?;
        holds(&kubectl.sh("kubectl get crd -o name")?, &["/virtualservices.networking.istio.io"])?;
        holds(&kubectl.sh("kubectl get virtualservice bookinfo")?, &["bookinfo-gateway"])
    });
    run.check(&["1:HELM-15"], "definitions go when they are deleted", |_| {
        kubectl
            .sh("kubectl get crd | grep --color=never 'istio.io' | awk '{print $1}' | xargs -n1 kubectl delete crd")?;
        let left = kubectl.sh("kubectl get crd -o name")?;
        ensure!(!left.contains("istio.io"), "{left}");
        Ok(())
    });
    Ok(())
}

/// A tag as the documents make it.
fn tag(kubectl: &Kubectl, tag: &str, revision: &str, then: &str) -> Result<String> {
    let template = format!("helm template istiod {DISCOVERY} -s templates/revision-tags.yaml");
    kubectl.sh(&format!("{template} --set revisionTags={{{tag}}} --set revision={revision} -n istio-system | {then}"))
}

/// Waits until the control plane has told the API server how to trust the webhooks of a tag.
fn tag_answers(kubectl: &Kubectl, tag: &str, service: &str) -> Result<()> {
    let get = format!("kubectl get mutatingwebhookconfigurations istio-revision-tag-{tag} -o yaml");
    until(kubectl, &get, &["caBundle: LS0t", &format!("name: {service}\n")]).map(drop)
}

/// Labels namespace `test-ns`, restarts its pods, and waits until they ask `plane` for their configuration.
fn moved(kubectl: &Kubectl, labels: &str, plane: &str) -> Result<()> {
    if !labels.is_empty() {
        kubectl.sh(&format!("kubectl label namespace test-ns --overwrite {labels}"))?;
    }
    // kubectl writes the time in whole seconds, and takes a second restart within one for a mistake.
    eventually(SOON, || kubectl.sh("kubectl rollout restart deployment -n test-ns"))?;
    kubectl.sh("kubectl rollout status deployment sleep -n test-ns --timeout=80s")?;
    for pod in until_pods(kubectl, "-n test-ns", 1, "2/2")? {
        let address = control_plane_of(kubectl, "test-ns", &pod)?;
        ensure!(address == format!("{plane}.istio-system.svc:15012"), "{labels}: {pod} asks {address}");
    }
    Ok(())
}

/// J-HUP.
fn upgrade(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    without_mesh(&kubectl)?;
    for (release, chart, _) in INSTALLATION {
        installed(&kubectl, release, chart, "")?;
    }
    until_pods(&kubectl, "-n istio-system", 3, "1/1")?;
    run.check(&["1:HUP-01"], "definitions, which Helm leaves alone", |_| {
        let said = kubectl.sh("kubectl apply -f manifests/charts/base/crds 2>/dev/null")?;
        holds(&said, &["customresourcedefinition.apiextensions.k8s.io/virtualservices.networking.istio.io "])
    });
    run.check(&["1:HUP-07"], "upgraded in place", |_| {
        kubectl.sh("helm upgrade istio-base manifests/charts/base -n istio-system --skip-crds")?;
        for (name, chart, _) in &INSTALLATION[1..] {
            kubectl.sh(&format!("helm upgrade {name} {chart} -n istio-system"))?;
        }
        for (name, _, chart) in INSTALLATION {
            release(&kubectl, name, chart, 2)?;
        }
        until_pods(&kubectl, "-n istio-system", 3, "1/1")?;
        // An upgrade changes nothing of what the control plane has written: the API server still trusts its webhooks.
        let closed = "kubectl get validatingwebhookconfigurations istiod-default-validator -o yaml";
        until(&kubectl, closed, &["caBundle: LS0t", "failurePolicy: Fail"]).map(drop)
    });
    run.check(&["1:HUP-02", "1:HUP-03"], "a second control plane beside the first, on the same definitions", |_| {
        let before = kubectl.sh("kubectl get crd -o name")?;
        installed(&kubectl, "istiod-canary", DISCOVERY, " --set revision=canary")?;
        let rows = || kubectl.sh("kubectl get pods -l app=istiod -L istio.io/rev -n istio-system --no-headers");
        eventually(SOON, || {
            let said = rows()?;
            let of = |name: &str, revision: &str| {
                said.lines()
                    .any(|row| row.starts_with(name) && row.contains("1/1") && row.trim_end().ends_with(revision))
            };
            ensure!(said.lines().count() == 2 && of("istiod-canary-", "canary") && of("istiod-", "default"), "{said}");
            Ok(())
        })?;
        ensure!(kubectl.sh("kubectl get crd -o name")? == before, "definitions have changed");
        Ok(())
    });
    run.check(&["1:HUP-05"], "a tag for the first, which a namespace carries", |_| {
        let said = tag(&kubectl, "prod-stable", "", "kubectl apply -f -")?;
        holds(
            &said,
            &["mutatingwebhookconfiguration.admissionregistration.k8s.io/istio-revision-tag-prod-stable created"],
        )?;
        tag(&kubectl, "prod-canary", "canary", "kubectl apply -f -")?;
        tag_answers(&kubectl, "prod-stable", "istiod")?;
        tag_answers(&kubectl, "prod-canary", "istiod-canary")?;
        // No release owns them.
        let said = kubectl.sh("kubectl get mutatingwebhookconfigurations -l istio.io/tag -o yaml")?;
        ensure!(!said.contains("meta.helm.sh/release-name"), "{said}");
        kubectl.sh("kubectl create namespace test-ns")?;
        kubectl.sh("kubectl label namespace test-ns istio.io/rev=prod-stable")?;
        kubectl.sh("kubectl apply -n test-ns -f samples/sleep/sleep.yaml")?;
        until_pods(&kubectl, "-n test-ns", 1, "2/2")?;
        moved(&kubectl, "", "istiod")
    });
    run.check(&["1:HUP-06"], "the tag moves, and the namespace with it", |_| {
        tag(&kubectl, "prod-stable", "canary", "kubectl apply -f -")?;
        tag_answers(&kubectl, "prod-stable", "istiod-canary")?;
        moved(&kubectl, "", "istiod-canary")?;
        let said = kubectl.sh("kubectl get namespace test-ns -L istio.io/rev --no-headers")?;
        ensure!(said.trim_end().ends_with("prod-stable"), "{said}");
        Ok(())
    });
    run.check(&["1:HUP-04"], "the first control plane goes, then the base is upgraded", |_| {
        kubectl.sh("helm delete istiod -n istio-system")?;
        kubectl.sh("helm upgrade istio-base manifests/charts/base -n istio-system --skip-crds")?;
        release(&kubectl, "istio-base", "base", 3)?;
        let said = kubectl.sh("helm ls -n istio-system -q")?;
        ensure!(!said.lines().any(|name| name == "istiod"), "{said}");
        until_pods(&kubectl, "-n istio-system -l app=istiod", 1, "1/1")?;
        // Objects without a revision are checked by the one that is left.
        let get = "kubectl get validatingwebhookconfigurations istiod-default-validator -o yaml";
        until(&kubectl, get, &["caBundle: LS0t", "name: istiod-canary"])?;
        eventually(SOON, || kubectl.sh("kubectl apply -f samples/bookinfo/networking/bookinfo-gateway.yaml")).map(drop)
    });
    run.check(&["1:HUP-06"], "the tag default, for namespaces without a revision", |_| {
        tag(&kubectl, "default", "canary", "kubectl apply -f -")?;
        tag_answers(&kubectl, "default", "istiod-canary")?;
        moved(&kubectl, "istio.io/rev- istio-injection=enabled", "istiod-canary")
    });
    run.check(&["1:HELM-14"], "tags go by the same template", |_| {
        tag(&kubectl, "prod-canary", "canary", "kubectl delete -f -")?;
        let said = kubectl.sh("kubectl get mutatingwebhookconfigurations,clusterroles -o name")?;
        ensure!(!said.contains("prod-canary") && said.contains("istio-revision-tag-prod-stable"), "{said}");
        Ok(())
    });
    Ok(())
}
