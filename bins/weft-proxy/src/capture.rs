//! `weft-proxy istio-iptables`: the init container of a pod. Sets up the redirection, shows it (`--dry-run`), removes it
//! (`--cleanup`), or checks that somebody else has set it up (`--run-validation`). The options are those of Istio's program of
//! that name, so that pods and tools need not know which one they have.

use crate::dns::{ResolvConf, resolv};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use nix::sys::socket::{getsockopt, sockopt};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use weft_capture::{Arguments, Backend, CaptureConfig, apply_with, remove_with};
use weft_core::well_known::port;

/// Code with which a failed check ends: whoever repairs pods knows them by it.
pub const INVALID: u8 = 126;
/// Port that nobody serves: a connection to it arrives only where it is redirected.
const PROBE_PORT: u16 = 15002;
/// Time for one try of the check.
const TRY: Duration = Duration::from_secs(2);

/// Options.
#[derive(Debug, Clone, Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct CaptureArgs {
    /// The proxy's port for what the pod sends
    #[arg(short = 'p', long = "envoy-port", alias = "proxy-port", default_value_t = port::OUTBOUND, value_name = "PORT")]
    outbound_port: u16,
    /// The proxy's port for what the pod receives
    #[arg(short = 'z', long = "inbound-capture-port", default_value_t = port::INBOUND, value_name = "PORT")]
    inbound_port: u16,
    /// User ids of the proxy, comma-separated
    #[arg(short = 'u', long = "proxy-uid", default_value = "1337", value_name = "IDS")]
    uids: String,
    /// Group ids of the proxy [default: those of its users]
    #[arg(short = 'g', long = "proxy-gid", default_value = "", value_name = "IDS")]
    gids: String,
    /// REDIRECT, TPROXY to keep the client's address, or NONE for no redirection of inbound traffic
    #[arg(short = 'm', long = "istio-inbound-interception-mode", default_value = "REDIRECT", value_name = "MODE")]
    mode: String,
    /// Inbound ports to redirect: a list, * for all, nothing for none
    #[arg(short = 'b', long = "istio-inbound-ports", default_value = "", value_name = "PORTS")]
    inbound_ports: String,
    /// Inbound ports not to redirect
    #[arg(short = 'd', long = "istio-local-exclude-ports", default_value = "", value_name = "PORTS")]
    exclude_inbound_ports: String,
    /// Outbound ranges to redirect: a list, * for all, nothing for none
    #[arg(short = 'i', long = "istio-service-cidr", default_value = "", value_name = "RANGES")]
    outbound_ranges: String,
    /// Outbound ranges not to redirect
    #[arg(short = 'x', long = "istio-service-exclude-cidr", default_value = "", value_name = "RANGES")]
    exclude_outbound_ranges: String,
    /// Outbound ports to redirect whatever the address
    #[arg(short = 'q', long = "istio-outbound-ports", default_value = "", value_name = "PORTS")]
    outbound_ports: String,
    /// Outbound ports not to redirect
    #[arg(short = 'o', long = "istio-local-outbound-ports-exclude", default_value = "", value_name = "PORTS")]
    exclude_outbound_ports: String,
    /// Network interfaces to leave alone
    #[arg(short = 'c', long = "istio-exclude-interfaces", default_value = "", value_name = "NAMES")]
    exclude_interfaces: String,
    /// Interfaces of virtual machines, whose traffic is outbound
    #[arg(
        short = 'k',
        long = "reroute-virtual-interfaces",
        alias = "kube-virt-interfaces",
        default_value = "",
        value_name = "NAMES"
    )]
    virtual_interfaces: String,
    /// Redirect DNS queries to the proxy
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    redirect_dns: bool,
    /// Redirect queries to every server, not only to those of the pod
    #[arg(long)]
    capture_all_dns: bool,
    /// Print the rules and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do not set up rules
    #[arg(long)]
    skip_rule_apply: bool,
    /// Check that connections are redirected
    #[arg(long)]
    run_validation: bool,
    /// Remove the rules
    #[arg(long, alias = "cleanup-only")]
    cleanup: bool,
    /// Which program sets the rules [default: nft where it is installed, else iptables]
    #[arg(long, value_enum)]
    backend: Option<Program>,
    /// Use nft
    #[arg(long)]
    native_nftables: bool,
    /// Port on which the check expects nobody
    #[arg(long = "iptables-probe-port", default_value_t = PROBE_PORT, value_name = "PORT")]
    probe_port: u16,
    /// Time for the check
    #[arg(long, default_value = "5s", value_parser = weft_core::duration::parse, value_name = "TIME")]
    probe_timeout: Duration,
    /// Mark of -m TPROXY
    #[arg(short = 't', long = "istio-inbound-tproxy-mark", default_value = "", value_name = "NUMBER")]
    tproxy_mark: String,
    /// Routing table of -m TPROXY
    #[arg(short = 'r', long = "istio-inbound-tproxy-route-table", default_value = "", value_name = "NUMBER")]
    tproxy_table: String,
    /// Accepted, without meaning here
    #[command(flatten)]
    _others: Others,
}

/// The program that sets rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Program {
    /// `nft`.
    Nft,
    /// `iptables-restore`.
    Iptables,
}

/// Options of Istio's program that mean nothing here.
#[derive(Debug, Clone, Args)]
struct Others {
    #[arg(short = 'e', long = "inbound-tunnel-port", hide = true)]
    tunnel_port: Option<u16>,
    #[arg(long, hide = true)]
    force_apply: bool,
    #[arg(long, hide = true)]
    drop_invalid: bool,
    #[arg(long, hide = true)]
    dual_stack: bool,
    #[arg(long = "log_output_level", hide = true)]
    log_output_level: Option<String>,
    #[arg(long = "log_as_json", hide = true)]
    log_as_json: bool,
}

/// Does what the options ask for.
///
/// # Errors
/// An option that cannot be followed, rules that are refused, a check that fails.
pub fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    let config = args.arguments().config().map_err(|error| anyhow!(error))?;
    let backend = || match (args.backend, args.native_nftables) {
        (Some(Program::Nft), _) | (None, true) => Ok(Backend::Nftables),
        (Some(Program::Iptables), _) => Ok(Backend::Iptables),
        (None, false) => Backend::installed(),
    };
    if args.dry_run {
        // To see the rules nothing need be installed.
        let text = backend().unwrap_or(Backend::Nftables).render(&config);
        io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    if args.cleanup {
        return remove_with(backend()?).context("removing the redirection");
    }
    if !args.skip_rule_apply {
        apply_with(backend()?, &config).context("setting up the redirection (is CAP_NET_ADMIN there?)")?;
        eprintln!("redirection is set up: {}", summary(&config));
    }
    if args.run_validation && args.mode != "NONE" {
        return validate(&config, args).map_err(|error| error.context(Invalid));
    }
    Ok(())
}

/// The pod's traffic is not redirected.
#[derive(Debug)]
pub struct Invalid;

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the pod's traffic is not redirected to the proxy")
    }
}

/// The exit code for an error of [`run`].
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Invalid>() {
        Some(_) => ExitCode::from(INVALID),
        None => ExitCode::FAILURE,
    }
}

impl CaptureArgs {
    fn arguments(&self) -> Arguments {
        let servers = match self.capture_all_dns {
            true => Vec::new(),
            // As the container sees it; a pod's containers share the file.
            false => ResolvConf::parse(&std::fs::read_to_string(resolv::PATH).unwrap_or_default()).servers,
        };
        Arguments {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            uids: self.uids.clone(),
            gids: self.gids.clone(),
            mode: self.mode.clone(),
            tproxy_mark: self.tproxy_mark.clone(),
            tproxy_table: self.tproxy_table.clone(),
            inbound_ports: self.inbound_ports.clone(),
            exclude_inbound_ports: self.exclude_inbound_ports.clone(),
            outbound_ranges: self.outbound_ranges.clone(),
            exclude_outbound_ranges: self.exclude_outbound_ranges.clone(),
            outbound_ports: self.outbound_ports.clone(),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_interfaces: self.exclude_interfaces.clone(),
            virtual_interfaces: self.virtual_interfaces.clone(),
            dns: self.redirect_dns,
            dns_servers: servers.iter().map(SocketAddr::ip).collect(),
        }
    }
}

fn summary(config: &CaptureConfig) -> String {
    let dns = if config.dns.is_some() { ", DNS to the proxy" } else { "" };
    format!(
        "outbound {:?} to {}, inbound {:?} to {}{dns}",
        config.outbound, config.outbound_port, config.inbound, config.inbound_port
    )
}

/// Takes the proxy's place and calls this very pod on a port that nobody serves, as the proxy's user: where the redirection
/// works, the call comes in at the proxy's inbound port, with the port that was called as its original destination.
fn validate(config: &CaptureConfig, args: &CaptureArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, config.inbound_port))
        .with_context(|| format!("port {} cannot be opened", config.inbound_port))?;
    listener.set_nonblocking(true)?;
    let own = crate::settings::agent::own_addresses().map_err(|error| anyhow!(error))?;
    let Some(own) = own.into_iter().find(IpAddr::is_ipv4) else {
        eprintln!("not checked: the pod has no IPv4 address");
        return Ok(());
    };
    let target = SocketAddr::new(own, args.probe_port);
    let end = Instant::now() + args.probe_timeout;
    loop {
        let problem = match TcpStream::connect_timeout(&target, TRY) {
            Err(error) => format!("{target}: {error}"),
            Ok(stream) => match original(&listener, stream.local_addr()?)? {
                Some(found) if found == target => return Ok(()),
                Some(found) => format!("a connection to {target} arrives as one to {found}"),
                None => format!("somebody else answers on {target}"),
            },
        };
        if Instant::now() >= end {
            bail!("{problem}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The original destination of the connection from `client`; nothing when it does not arrive.
fn original(listener: &TcpListener, client: SocketAddr) -> anyhow::Result<Option<SocketAddr>> {
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, peer)) if peer == client => {
                let raw = getsockopt(&stream, sockopt::OriginalDst)?;
                let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
                return Ok(Some(SocketAddr::from((address, u16::from_be(raw.sin_port)))));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parsed(arguments: &[&str]) -> CaptureArgs {
        let all = ["weft-proxy", "istio-iptables"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Some(Command::IstioIptables(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takes_what_the_injector_writes() {
        let args = parsed(&[
            "-p",
            "15001",
            "-z",
            "15006",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,9443,15020",
            "-q",
            "443",
            "-o",
            "3306",
            "-k",
            "virbr0",
            "-c",
            "eth1",
            "--log_output_level=default:info",
            "--run-validation",
            "--skip-rule-apply",
        ]);
        let config = args.arguments().config().unwrap();
        assert_eq!(config.exclude_inbound_ports, [15090, 15021, 9443, 15020]);
        assert_eq!((config.include_outbound_ports, config.exclude_outbound_ports), (vec![443], vec![3306]));
        assert_eq!(
            (config.exclude_interfaces, config.virtual_interfaces),
            (vec!["eth1".to_string()], vec!["virbr0".to_string()])
        );
        assert!(args.run_validation && args.skip_rule_apply && config.dns.is_none());
        assert!(parsed(&["--redirect-dns", "--capture-all-dns"]).arguments().config().unwrap().dns.is_some());
        assert!(Cli::try_parse_from(["weft-proxy", "istio-iptables", "--cleanup-only"]).is_ok());
    }
}
