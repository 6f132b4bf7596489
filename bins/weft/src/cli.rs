//! What can be typed.

use crate::commands;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
pub struct Connection {
    /// Kubeconfig file [default: $KUBECONFIG, then the lab's own]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
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
    #[command(alias = "ps")]
    ProxyStatus(commands::proxy_status::Args),
    /// Show the configuration of a proxy
    #[command(alias = "pc")]
    ProxyConfig(commands::proxy_config::Args),
    /// Show who may call what, and which policy says so
    Authz(commands::authz::Args),
    /// Show and rotate the mesh's certificate authority
    Ca(commands::ca::Args),
    /// Check manifests without a cluster
    #[command(alias = "v")]
    Validate(commands::validate::Args),
    /// Put a proxy into the workloads of manifests
    KubeInject(commands::kube_inject::Args),
    /// Manifests of an installation on Kubernetes
    #[command(subcommand)]
    Manifest(commands::manifest::Action),
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
            "weft ca status -o json",
            "weft ca rotate --from-dir /tmp/ca --timeout 5m -i istio-system",
            "weft ca cancel",
            "weft validate -f a.yaml -f b/ -R",
            "weft kube-inject -f a.yaml",
            "weft kube-inject --injectConfigFile c --meshConfigFile m --valuesFile v --filename -",
            "weft manifest generate --set profile=demo --set values.global.proxy.logLevel=debug -f a.yaml",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in ["weft", "weft apply", "weft get", "weft exec pod", "weft pc nonsense p", "weft get pods -o jpeg"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
