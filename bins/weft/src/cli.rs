//! What can be typed.

use crate::commands;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use weft_core::well_known::ROOT_NAMESPACE;

/// A service mesh that speaks Istio's API, and a lab that runs it on one machine.
#[derive(Debug, Parser)]
#[command(name = "weft", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// Which API server.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which API server a command talks to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which API server")]
pub struct Connection {
    /// Kubeconfig file [default: $KUBECONFIG, then the lab's own]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

/// Where the control plane is.
#[derive(Debug, Clone, Args)]
pub struct ControlPlane {
    /// Namespace of the control plane
    #[arg(short = 'i', long = "istioNamespace", alias = "istio-namespace", global = true, value_name = "NS",
          default_value = ROOT_NAMESPACE)]
    pub istio_namespace: String,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the lab: control plane, gateway, sample applications
    Up(commands::up::Args),
    /// Stop the lab
    Down(commands::down::Args),
    /// Show what runs
    Status(commands::status::Args),
    /// Create or change objects from files
    Apply(commands::apply::Args),
    /// Delete objects
    Delete(commands::delete::Args),
    /// Change fields of an object
    Patch(commands::patch::Args),
    /// Show objects
    Get(commands::get::Args),
    /// Run a command in a container
    Exec(commands::exec::Args),
    /// Show the log of a container
    Logs(commands::logs::Args),
    /// Show whether proxies have the configuration that they should have
    #[command(visible_alias = "ps")]
    ProxyStatus(commands::proxy_status::Args),
    /// Show the configuration of a proxy
    #[command(visible_alias = "pc")]
    ProxyConfig(commands::proxy_config::Args),
    /// Show who may call what, and which policy says so
    Authz(commands::authz::Args),
    /// Show what of the mesh's objects concerns a pod or a service
    Describe(commands::describe::Args),
    /// Say what becomes of a request, and which object decides each step
    Explain(commands::explain::Args),
    /// Try expectations about requests, against a cluster or against files that are not applied yet
    Test(commands::test::Args),
    /// Show and rotate the mesh's certificate authority
    Ca(commands::ca::Args),
    /// Say what is wrong with the mesh's objects, in a cluster and in files
    Analyze(commands::analyze::Args),
    /// Wait until proxies have what an object says
    Wait(commands::wait::Args),
    /// Gather objects, logs and configuration into an archive, for those who are to find out what is wrong
    BugReport(commands::bug_report::Args),
    /// Lead a port of this machine to a page in the cluster: Prometheus, Grafana, a proxy's admin page
    #[command(visible_alias = "dash", alias = "d")]
    Dashboard(commands::dashboard::Args),
    /// Check manifests without a cluster
    #[command(visible_alias = "v")]
    Validate(commands::validate::Args),
    /// Put a proxy into the workloads of manifests
    KubeInject(commands::kube_inject::Args),
    /// Manifests of an installation on Kubernetes
    #[command(subcommand)]
    Manifest(commands::manifest::Action),
    /// Named settings of an installation
    #[command(subcommand)]
    Profile(commands::profile::Action),
    /// Install Weft on Kubernetes, or change an installation
    Install(commands::install::Args),
    /// Bring an installation to this program's version
    Upgrade(commands::install::UpgradeArgs),
    /// Remove an installation
    Uninstall(commands::uninstall::Args),
    /// Check that an installation is there and runs
    VerifyInstall(commands::verify_install::Args),
    /// Further names of revisions
    #[command(subcommand)]
    Tag(commands::tag::Action),
    /// An operator on the cluster, which installs what IstioOperator objects say
    #[command(subcommand)]
    Operator(commands::operator::Action),
    /// Show versions: of this program, the control plane, the proxies
    Version(commands::version::Args),
    /// Print a script by which a shell completes commands
    Completion(commands::completion::Args),
    /// Commands that Istio has under this name
    #[command(subcommand, visible_alias = "x", visible_alias = "exp")]
    Experimental(Experimental),
}

/// Commands that Istio has, or had, as experimental ones.
#[derive(Debug, Subcommand)]
pub enum Experimental {
    /// Show what of the mesh's objects concerns a pod or a service
    #[command(alias = "des")]
    Describe(commands::describe::Args),
    /// Check whether the cluster can have an installation, or a newer one
    Precheck(commands::precheck::Args),
    /// Remove an installation
    Uninstall(commands::uninstall::Args),
    /// Further names of revisions
    #[command(name = "tag", subcommand)]
    Revision(commands::tag::Action),
    /// Say whether a pod would get a proxy, and what decides it
    CheckInject(commands::check_inject::Args),
    /// Which namespaces' pods get proxies, and whose
    #[command(subcommand)]
    Injector(commands::injector::Action),
    /// Show a debug page of the control plane
    InternalDebug(commands::internal_debug::Args),
    /// Wait until proxies have what an object says
    Wait(commands::wait::Args),
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn accepts_what_users_of_kubectl_and_istioctl_type() {
        for line in [
            "weft apply -f a.yaml -f b/ -n foo --dry-run",
            "weft apply -f - --dry-run=server",
            "weft delete -f a.yaml",
            "weft delete virtualservice reviews -n default --ignore-not-found",
            "weft delete pods -l app=reviews",
            "weft patch deployment istiod -n istio-system -p {}",
            "weft patch vs/reviews --type json --patch-file p.yaml",
            "weft get pods -A -o wide",
            "weft get vs,dr",
            "weft get pod/reviews-1 -o yaml",
            "weft exec deploy/sleep -c sleep -- curl -s http://reviews:9080",
            "weft exec -it sleep-1 -n foo -- sh",
            "weft logs -f deploy/reviews-v1 -c istio-proxy --tail 10",
            "weft logs -l app=reviews",
            "weft ps",
            "weft proxy-status --kubeconfig /tmp/k",
            "weft pc listener productpage-1.default --port 9080",
            "weft proxy-config secret deploy/productpage-v1 -n default -o json",
            "weft pc clusters p.default --fqdn reviews.default.svc.cluster.local",
            "weft proxy-config all p.default -o yaml",
            "weft authz can productpage reviews:9080 -n default --method GET --path /x --header a=b --claim sub=x",
            "weft authz check reviews.default",
            "weft authz matrix -n default -o json",
            "weft authz lint",
            "weft authz check -n default -X POST -H a:b reviews",
            "weft explain productpage-v1 http://reviews:9080/reviews/0 -H end-user=jason -o yaml",
            "weft explain istio-ingressgateway.istio-system https://shop.example/ -f shop/ -R --use-kube=false",
            "weft test tests.yaml -f shop.yaml -k=false",
            "weft pc log deploy/httpbin.foo --level rbac:debug",
            "weft pc routes --file config_dump.json -o yaml",
            "weft proxy-config log productpage-v1-x -n default --level debug,http:trace",
            "weft pc log productpage-v1-x --reset",
            "weft pc bootstrap productpage-v1-x.default -o json",
            "weft x describe pod ratings-v1-7c9cfb6f4b-7x2xk.default",
            "weft experimental describe svc productpage -n default",
            "weft describe deploy/reviews-v1 -o yaml",
            "weft ps -o json",
            "weft proxy-status --istioNamespace istio-control",
            "weft status -o yaml",
            "weft ca status -o json",
            "weft ca rotate --from-dir /tmp/ca --timeout 5m -i istio-system",
            "weft ca cancel",
            "weft analyze",
            "weft dashboard kiali",
            "weft dash envoy productpage-v1-x.default --browser=false",
            "weft analyze a.yaml b/ --recursive --use-kube=false -o json",
            "weft analyze -A --failure-threshold Warning -S IST0102=Namespace*test -L",
            "weft validate -f a.yaml -f b/ -R",
            "weft kube-inject -f a.yaml",
            "weft kube-inject --injectConfigFile c --meshConfigFile m --valuesFile v --filename -",
            "weft manifest generate --manifests mycharts/ --set profile=custom1 -f a.yaml -r 1-8-0",
            "weft manifest diff a.yaml b.yaml",
            "weft profile dump --config-path components.ingressGateways",
            "weft profile dump demo",
            "weft profile diff default demo",
            "weft profile list",
            "weft install --set profile=demo -y",
            "weft install -n istio-system -f control-plane.yaml --revision 1-8-0",
            "weft install --manifests istio-1.11.3/manifests --dry-run",
            "weft upgrade -f a.yaml --set values.global.logging.level=debug",
            "weft x uninstall --revision=canary",
            "weft experimental uninstall --purge -y",
            "weft uninstall -f manifests/profiles/default.yaml",
            "weft x precheck",
            "weft tag set prod-stable --revision 1-9-5",
            "weft tag list",
            "weft x tag remove prod-stable -y",
            "weft verify-install",
            "weft operator init --revision 1-8-0",
            "weft operator dump --watchedNamespaces a,b --operatorNamespace o",
            "weft operator server --watched-namespaces istio-system",
            "weft version --remote=false -o json",
            "weft bug-report --include ns1,ns2//p* --exclude ///app=x --duration 1h --dir /tmp --dry-run",
            "weft bug-report --istio-namespace istio-control --output-dir out --timeout 5m --tail 100",
            "weft completion bash",
            "weft proxy-config ecds p.default -o json",
            "weft x injector list -n default",
            "weft x internal-debug syncz",
            "weft x check-inject reviews-v1-1.default",
            "weft experimental check-inject -n default -l app=a,version=v1",
            "weft experimental wait --for=distribution virtualservice bookinfo.default --timeout 1m --threshold 0.9",
            "weft wait --for delete vs/reviews -n default",
            "weft manifest generate --set profile=demo --set values.global.proxy.logLevel=debug -f a.yaml",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "weft",
            "weft apply",
            "weft get",
            "weft exec pod",
            "weft pc nonsense p",
            "weft pc route",
            "weft get pods -o jpeg",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
