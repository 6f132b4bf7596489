//! Journeys of the installer, with the commands as the documents have them: customizing, upgrades in place, gateways apart from
//! their control plane. `istioctl` is `weft`; an older version of it is its tag, because the lab runs the program of today for
//! every tag of its image.

use super::kubernetes::{SAME, holds, until, until_pods};
use crate::eventually;
use crate::journey::{Journey, Run};
use crate::kubectl::Kubectl;
use anyhow::{Result, ensure};
use std::time::Duration;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "1:J-CUST",
        title: "an installation as one wants it: settings, files, profiles, patches",
        proves: &[
            "1:CUST-01",
            "1:CUST-02",
            "1:CUST-03",
            "1:CUST-04",
            "1:CUST-05",
            "1:CUST-06",
            "1:CUST-07",
            "1:CUST-08",
            "1:CUST-10",
            "1:CUST-11",
            "1:CUST-12",
            "1:CUST-13",
            "1:CUST-15",
            "1:CUST-16",
            "1:CUST-17",
            "1:CUST-18",
            "1:CUST-19",
            "1:CUST-20",
            "1:GS-04",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: customizing,
    },
    Journey {
        id: "1:J-INP",
        title: "an upgrade in place, back, and when it is refused",
        proves: &[
            "1:INP-01", "1:INP-02", "1:INP-03", "1:INP-04", "1:INP-05", "1:INP-07", "1:INP-08", "1:INP-09", "1:INP-10",
        ],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: in_place,
    },
    Journey {
        id: "1:J-MREV",
        title: "gateways apart from the control plane, by revisions",
        proves: &["1:MREV-01", "1:MREV-02", "1:MREV-03", "1:MREV-04", "1:MREV-05", "1:MREV-06", "1:CAN-16", "1:CAN-18"],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: revisions,
    },
    Journey {
        id: "1:J-MREV-OP",
        title: "the same by operators on the cluster",
        proves: &["1:MREV-07", "1:MREV-08", "1:MREV-09", "1:MREV-10", "1:MREV-11"],
        not_with_envoy: SAME,
        options: &["--no-bookinfo"],
        run: operators,
    },
];

/// Time for an installation.
const INSTALLED: Duration = Duration::from_secs(90);

/// A line that must fail, and say this.
fn refused(kubectl: &Kubectl, line: &str, wants: &[&str]) -> Result<()> {
    let out = kubectl.try_sh(line)?;
    let said = crate::lab::text(&out.stdout) + &crate::lab::text(&out.stderr);
    ensure!(!out.status.success(), "{line} must be refused:\n{said}");
    holds(&said, wants)
}

fn field(kubectl: &Kubectl, object: &str, path: &str) -> Result<String> {
    kubectl.sh(&format!("kubectl get -n istio-system {object} -o jsonpath='{path}'"))
}

const TWO_GATEWAYS: &str = r#"apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  components:
    ingressGateways:
    - name: istio-ingressgateway
      enabled: true
    - name: ilb-gateway
      namespace: user-ingressgateway-ns
      enabled: true
      k8s:
        resources: {requests: {cpu: 200m}}
        serviceAnnotations: {cloud.google.com/load-balancer-type: "internal"}
        service:
          ports:
          - {port: 8060, targetPort: 8060, name: tcp-citadel-grpc-tls}
          - {port: 5353, name: tcp-dns}
  values:
    gateways:
      istio-ingressgateway:
        debug: error
"#;

/// J-CUST.
fn customizing(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    run.check(&["1:GS-04"], "by profile, without a question: five lines", |_| {
        let said = kubectl.sh("istioctl install --set profile=demo -y")?;
        let wanted = [
            "Istio core installed",
            "Istiod installed",
            "Egress gateways installed",
            "Ingress gateways installed",
            "Installation complete",
        ];
        ensure!(said.lines().eq(wanted.map(|line| format!("✓ {line}")).iter().map(String::as_str)), "{said}");
        until_pods(&kubectl, "-n istio-system", 3, "1/1").map(drop)
    });
    run.check(&["1:CUST-01"], "a setting of the control plane, by --set", |_| {
        kubectl.sh("istioctl install --set values.global.logging.level=debug -y")?;
        let level = r#"{..env[?(@.name=="WEFT_LOG")].value}"#;
        ensure!(field(&kubectl, "deployment istiod", level)? == "debug");
        // What the demo profile had more is gone: the same owner installed something else.
        let said = kubectl.sh("kubectl get deployments -n istio-system")?;
        ensure!(!said.contains("istio-egressgateway"), "{said}");
        until(&kubectl, "kubectl logs -n istio-system deployment/istiod --tail=-1", &["DEBUG"]).map(drop)
    });
    run.check(
        &["1:CUST-02", "1:CUST-06", "1:CUST-07"],
        "a file: requests and bounds, and without it the usual ones",
        |_| {
            let requests = || field(&kubectl, "deployment istiod", "{..containers[0].resources.requests}");
            let bounds = || field(&kubectl, "hpa istiod", "{.spec.minReplicas} {.spec.maxReplicas}");
            holds(&requests()?, &["500m", "2048Mi"])?;
            ensure!(bounds()? == "1 5", "{}", bounds()?);
            kubectl.sh("istioctl install -f samples/operator/pilot-k8s.yaml -y")?;
            holds(&requests()?, &["1000m", "4096Mi"])?;
            ensure!(bounds()? == "2 10", "{}", bounds()?);
            Ok(())
        },
    );
    run.check(&["1:CUST-03", "1:CUST-08"], "a value of the charts reaches mesh and control plane", |_| {
        kubectl.sh("istioctl install --set values.pilot.traceSampling=0.1 -y")?;
        holds(&field(&kubectl, "configmap istio", "{.data.mesh}")?, &["sampling: 0.1"])?;
        let said = kubectl.sh("istioctl manifest generate --set values.global.monitoringPort=15099")?;
        holds(&said, &["0.0.0.0:15099", "containerPort: 15099"])
    });
    run.check(&["1:CUST-04", "1:CUST-05"], "components are switched", |_| {
        let said = kubectl.sh("istioctl manifest generate --set components.pilot.enabled=false")?;
        ensure!(!said.contains("name: istiod\n") && said.contains("name: istio-ingressgateway\n"), "{said}");
        let said = kubectl.sh("istioctl manifest generate --set components.base.enabled=false")?;
        ensure!(!said.contains("kind: CustomResourceDefinition") && said.contains("name: istiod\n"), "{said}");
        refused(
            &kubectl,
            "istioctl manifest generate --set components.mixer.enabled=true",
            &["components.mixer", "istiodRemote"],
        )
    });
    run.check(&["1:CUST-10"], "what the gateways' settings are", |_| {
        let said = kubectl.sh("istioctl profile dump --config-path components.ingressGateways")?;
        holds(&said, &["- name: istio-ingressgateway", "enabled: true"])?;
        let said = kubectl.sh("istioctl profile dump --config-path values.gateways.istio-ingressgateway")?;
        holds(&said, &["autoscaleMax: 5", "type: LoadBalancer"])
    });
    run.check(&["1:CUST-11", "1:CUST-12", "1:CUST-13", "1:CUST-19"], "a second gateway with settings of its own", |_| {
        kubectl.file("two-gateways.yaml", TWO_GATEWAYS)?;
        kubectl.sh("istioctl install -f two-gateways.yaml -y")?;
        until_pods(&kubectl, "-n user-ingressgateway-ns -l app=ilb-gateway", 1, "1/1")?;
        let service = kubectl.sh("kubectl get service -n user-ingressgateway-ns ilb-gateway -o yaml")?;
        holds(&service, &["cloud.google.com/load-balancer-type: internal", "port: 8060", "port: 5353"])?;
        for line in ["-n user-ingressgateway-ns ilb-gateway", "-n istio-system istio-ingressgateway"] {
            let said = kubectl.sh(&format!("kubectl get deployment {line} -o jsonpath='{{.spec.template.metadata.annotations}}'"))?;
            holds(&said, &[r#""sidecar.istio.io/logLevel":"error""#])?;
        }
        let said = kubectl.sh("istioctl manifest generate -f two-gateways.yaml --set components.ingressGateways.[name:ilb-gateway].k8s.replicaCount=7")?;
        ensure!(said.matches("replicas: 7").count() == 1, "{said}");
        refused(&kubectl, "istioctl manifest generate --set components.ingressGateways[1].enabled=true", &["name is missing"])
    });
    run.check(&["1:CUST-17", "1:CUST-18", "1:CUST-20"], "the manifest is patched", |_| {
        let said = kubectl.sh("istioctl manifest generate -f samples/operator/patched-pilot.yaml")?;
        holds(
            &said,
            &[
                "- 60m",
                "containerPort: 1234",
                "metadata.myPath",
                "port: 11111",
                "docker.io/istio/weftd:1.1.6",
                "namespace: istio-control",
            ],
        )?;
        for gone in ["- 30m", "containerPort: 8080", "name: REVISION", "allowPrivilegeEscalation"] {
            ensure!(!said.contains(gone), "{gone} is there:\n{said}");
        }
        Ok(())
    });
    run.check(&["1:CUST-15", "1:CUST-16"], "a profile of a folder is as a file before the others", |_| {
        kubectl.sh("mkdir -p mycharts/profiles")?;
        kubectl.sh(
            "sed -e '/profile: empty/d' -e s/1.1.6/1.1.5/ samples/operator/patched-pilot.yaml > mycharts/profiles/custom1.yaml",
        )?;
        kubectl.file("user-overlay.yaml", TWO_GATEWAYS)?;
        kubectl.sh("istioctl manifest generate --manifests mycharts/ --set profile=custom1 -f user-overlay.yaml > by-name.yaml")?;
        kubectl.sh("istioctl manifest generate --manifests mycharts/ -f mycharts/profiles/custom1.yaml -f user-overlay.yaml > by-file.yaml")?;
        kubectl.sh("cmp by-name.yaml by-file.yaml && grep -q weftd:1.1.5 by-name.yaml && grep -q ilb-gateway by-name.yaml")?;
        refused(&kubectl, "istioctl manifest generate --manifests mycharts/ --set profile=custom2", &["custom1, default"])
    });
    Ok(())
}

fn image(kubectl: &Kubectl) -> Result<String> {
    field(kubectl, "deployment istiod", "{..containers[0].image}")
}

/// J-INP.
fn in_place(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    let version = env!("CARGO_PKG_VERSION");
    let sidecar =
        || kubectl.sh("kubectl get pods -l app=sleep -o jsonpath='{..containers[?(@.name==\"istio-proxy\")].image}'");
    run.check(&["1:INP-10"], "before: where to, and whether it can be", |_| {
        holds(&kubectl.sh("kubectl config view")?, &["weft-lab"])?;
        let said = kubectl.sh("istioctl x precheck")?;
        let wanted = "✓ No issues found when checking the cluster. Istio is safe to install or upgrade!\n\
                      To get started, check out https://istio.io/latest/docs/setup/getting-started/\n";
        ensure!(said == wanted, "{said}");
        Ok(())
    });
    run.check(&["1:INP-04"], "what the installer did not install it does not upgrade", |_| {
        refused(&kubectl, "istioctl upgrade -y", &["was not installed by"])
    });
    run.check(&["1:INP-09"], "an older version, with a setting of its own", |_| {
        kubectl.sh("istioctl install --set tag=0.0.9 --set values.global.logging.level=warn -y")?;
        holds(&image(&kubectl)?, &["weftd:0.0.9"])?;
        kubectl.sh("kubectl apply -f samples/sleep/sleep.yaml")?;
        until_pods(&kubectl, "-l app=sleep", 1, "2/2")?;
        holds(&sidecar()?, &["weft-proxy:0.0.9"])
    });
    run.check(&["1:INP-01"], "nothing happens before it is confirmed", |_| {
        refused(&kubectl, "echo n | istioctl upgrade", &["version 0.0.9", "Proceed? (y/N)", "Cancelled"])?;
        holds(&image(&kubectl)?, &["weftd:0.0.9"])
    });
    run.check(
        &["1:INP-01", "1:INP-07", "1:INP-08"],
        "upgraded: plane and gateway, and settings that are not said again are gone",
        |_| {
            let said = kubectl.sh("echo y | istioctl upgrade")?;
            let change = "values.global.logging.level: warn -> <none>";
            holds(
                &said,
                &[
                    "Control plane",
                    "version 0.0.9",
                    change,
                    "✓ Ingress gateways installed",
                    "✓ Installation complete",
                    "Success",
                ],
            )?;
            holds(&image(&kubectl)?, &[&format!("weftd:{version}")])?;
            let env = field(&kubectl, "deployment istiod", "{..env}")?;
            ensure!(!env.contains("WEFT_LOG"), "{env}");
            // Proxies beside workloads: by hand.
            holds(&sidecar()?, &["weft-proxy:0.0.9"])?;
            kubectl.sh("kubectl rollout restart deployment")?;
            kubectl.sh("kubectl rollout status deployment sleep --timeout=80s")?;
            eventually(INSTALLED, || {
                let said = sidecar()?;
                ensure!(said.ends_with(&format!("weft-proxy:{version}")) && !said.contains("0.0.9"), "{said}");
                Ok(())
            })
        },
    );
    run.check(&["1:INP-02", "1:INP-05"], "down by one minor version, and not by two", |_| {
        kubectl.sh("istioctl upgrade --set tag=0.0.9 -y")?;
        holds(&image(&kubectl)?, &["weftd:0.0.9"])?;
        kubectl.sh("istioctl install --set tag=0.3.0 -y")?;
        refused(&kubectl, "istioctl upgrade -y", &["downgrade from 0.3.0", "more than one minor version lower"])
    });
    run.check(&["1:INP-04"], "up by one minor version, and not by two", |_| {
        refused(&kubectl, "istioctl upgrade --set tag=0.5.0 -y", &["upgrade from 0.3.0 to 0.5.0"])?;
        holds(&image(&kubectl)?, &["weftd:0.3.0"])?;
        kubectl.sh("istioctl upgrade --set tag=0.4.1 -y")?;
        holds(&image(&kubectl)?, &["weftd:0.4.1"])
    });
    run.check(&["1:INP-03"], "not what was installed with a revision", |_| {
        refused(&kubectl, "istioctl upgrade --set revision=canary -y", &["--revision"])?;
        kubectl.sh("istioctl install --set profile=minimal --revision canary -y")?;
        kubectl.sh("istioctl x uninstall --revision default -y")?;
        refused(&kubectl, "istioctl upgrade -y", &["installed with --revision (canary)"])
    });
    Ok(())
}

const CONTROL_PLANE: &str = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: control-plane}\nspec: {profile: minimal}\n";
const GATEWAYS: &str = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: gateways}\nspec:\n  profile: empty\n  \
                        components: {ingressGateways: [{name: istio-ingressgateway, enabled: true}]}\n";

/// J-MREV, by the installer.
fn revisions(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.file("control-plane.yaml", CONTROL_PLANE)?;
    kubectl.file("gateways.yaml", GATEWAYS)?;
    // The lab's own makes room.
    kubectl.sh("istioctl x uninstall --purge -y")?;
    until(&kubectl, "kubectl get deployments -n istio-system 2>&1", &["No resources found"])?;
    let pods = || kubectl.sh("kubectl get pods -n istio-system --show-labels --no-headers");
    let row = |name: &str| -> Result<String> {
        let said = pods()?;
        let rows: Vec<&str> = said.lines().filter(|line| line.starts_with(name)).collect();
        ensure!(rows.len() == 1, "one pod {name} is wanted:\n{said}");
        Ok(rows[0].to_string())
    };
    run.check(&["1:MREV-02", "1:MREV-03", "1:MREV-04"], "a control plane and a gateway, each of its file", |_| {
        let said = kubectl.sh("istioctl install -n istio-system -f control-plane.yaml --revision 1-8-0 -y")?;
        ensure!(!said.contains("gateways"), "{said}");
        until_pods(&kubectl, "-n istio-system", 1, "1/1")?;
        kubectl.sh("istioctl install -n istio-system -f gateways.yaml --revision 1-8-0 -y")?;
        until_pods(&kubectl, "-n istio-system", 2, "1/1")?;
        holds(&row("istiod-1-8-0-")?, &["istio.io/rev=1-8-0"])?;
        holds(&row("istio-ingressgateway-")?, &["istio.io/rev=1-8-0", "service.istio.io/canonical-revision=1-8-0"])
    });
    run.check(
        &["1:MREV-01", "1:MREV-05", "1:MREV-06"],
        "a new control plane leaves the gateway and the old one alone",
        |_| {
            let gateway = row("istio-ingressgateway-")?.split_whitespace().next().map(str::to_string);
            kubectl.sh("istioctl install -f control-plane.yaml --revision 1-8-1 -y")?;
            until_pods(&kubectl, "-n istio-system", 3, "1/1")?;
            holds(&row("istiod-1-8-0-")?, &["istio.io/rev=1-8-0"])?;
            holds(&row("istiod-1-8-1-")?, &["istio.io/rev=1-8-1"])?;
            let now = row("istio-ingressgateway-")?;
            holds(&now, &["service.istio.io/canonical-revision=1-8-0"])?;
            ensure!(now.split_whitespace().next().map(str::to_string) == gateway, "the gateway was restarted: {now}");
            Ok(())
        },
    );
    run.check(&["1:MREV-06"], "workloads move, then the gateway", |_| {
        kubectl.sh("kubectl label namespace default istio-injection- istio.io/rev=1-8-1")?;
        kubectl.sh("kubectl apply -f samples/sleep/sleep.yaml")?;
        until_pods(&kubectl, "-l app=sleep", 1, "2/2")?;
        kubectl.sh("istioctl install -f gateways.yaml --revision 1-8-1 -y")?;
        eventually(INSTALLED, || holds(&row("istio-ingressgateway-")?, &["service.istio.io/canonical-revision=1-8-1"]))
    });
    run.check(&["1:MREV-06", "1:CAN-16", "1:CAN-18"], "the old control plane goes, and nothing else", |_| {
        let said = kubectl.sh("istioctl x uninstall --revision 1-8-0 -y")?;
        holds(&said, &["Removed Deployment:istio-system:istiod-1-8-0", "✓ Uninstall complete"])?;
        until_pods(&kubectl, "-n istio-system", 2, "1/1")?;
        holds(&row("istiod-1-8-1-")?, &["istio.io/rev=1-8-1"])?;
        holds(&kubectl.sh("kubectl get crd")?, &["virtualservices.networking.istio.io"])?;
        let said = kubectl.sh("kubectl get istiooperators -n istio-system")?;
        holds(&said, &["installed-state-control-plane-1-8-1", "installed-state-gateways-1-8-1"])?;
        ensure!(!said.contains("1-8-0"), "{said}");
        kubectl.sh("istioctl verify-install").map(drop)
    });
    Ok(())
}

fn of_revision(file: &str, name: &str, revision: &str) -> String {
    let (head, spec) = file.split_once("spec:").unwrap_or((file, ""));
    let spec = match spec.trim_start().strip_prefix('{') {
        Some(inline) => format!("spec: {{revision: {revision}, {inline}"),
        None => format!("spec:\n  revision: {revision}{spec}"),
    };
    head.replace("name: control-plane", &format!("name: {name}")) + &spec
}

/// J-MREV, by operators.
fn operators(run: &mut Run) -> Result<()> {
    let kubectl = Kubectl::newest(&run.lab)?;
    kubectl.sh("istioctl x uninstall --purge -y")?;
    until(&kubectl, "kubectl get deployments -n istio-system 2>&1", &["No resources found"])?;
    let apply = |file: &str, text: &str| {
        kubectl.file(file, text)?;
        kubectl.sh(&format!("kubectl apply -n istio-system -f {file}"))
    };
    let plane = |revision: &str| {
        let name = format!("control-plane-{revision}");
        apply(&format!("{name}.yaml"), &of_revision(CONTROL_PLANE, &name, revision))
    };
    run.check(&["1:MREV-07"], "an operator of a revision", |_| {
        let said = kubectl.sh("istioctl operator init --revision 1-8-0")?;
        holds(&said, &["✓ Istio operator installed", "✓ Installation complete"])?;
        until_pods(&kubectl, "-n istio-operator", 1, "1/1").map(drop)
    });
    run.check(&["1:MREV-08"], "it installs what objects of its revision say", |_| {
        plane("1-8-0")?;
        apply("gateways.yaml", &of_revision(GATEWAYS, "gateways", "1-8-0"))?;
        // Nobody is there for this one yet.
        plane("1-8-1")?;
        let pods = until_pods(&kubectl, "-n istio-system", 2, "1/1")?;
        ensure!(pods.iter().any(|name| name.starts_with("istiod-1-8-0-")), "{pods:?}");
        until(&kubectl, "kubectl get istiooperator -n istio-system gateways", &["HEALTHY"]).map(drop)
    });
    run.check(&["1:MREV-07", "1:MREV-09"], "a second operator, and its control plane beside the first", |_| {
        kubectl.sh("istioctl operator init --revision 1-8-1")?;
        let pods = until_pods(&kubectl, "-n istio-system -l app=istiod", 2, "1/1")?;
        for revision in ["istiod-1-8-0-", "istiod-1-8-1-"] {
            ensure!(pods.iter().any(|name| name.starts_with(revision)), "{pods:?}");
        }
        Ok(())
    });
    run.check(&["1:MREV-10"], "the gateway moves with its object", |_| {
        apply("gateways.yaml", &of_revision(GATEWAYS, "gateways", "1-8-1"))?;
        let line = "kubectl -n istio-system get pod -l app=istio-ingressgateway --show-labels --no-headers";
        until(&kubectl, line, &["canonical-revision=1-8-1"]).map(drop)
    });
    run.check(&["1:MREV-11"], "a control plane goes with its object", |_| {
        kubectl.sh("kubectl delete istiooperator -n istio-system control-plane-1-8-0 --timeout=80s")?;
        let pods = until_pods(&kubectl, "-n istio-system -l app=istiod", 1, "1/1")?;
        ensure!(pods.iter().all(|name| name.starts_with("istiod-1-8-1-")), "{pods:?}");
        kubectl.sh("istioctl operator remove --revision 1-8-0").map(drop)
    });
    Ok(())
}
