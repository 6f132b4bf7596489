//! `weft ca`: the mesh's certificate authority. `status` says who holds which root; `rotate` replaces the authority without
//! a gap, as one command that can be run again wherever it was interrupted.

use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::connect::connect;
use crate::output::{self, Format, Table};
use crate::trust::{Holder, Store, holders};
use anyhow::{Context, bail};
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use weft_ca::rotation::{self, Phase};
use weft_ca::{Authority, CaMaterial, CaPolicy};
use weft_core::well_known::DEFAULT_TRUST_DOMAIN;
use weft_identity::TrustDomain;
use weft_store::ApiClient;

/// Between looks at the workloads.
const POLL: Duration = Duration::from_secs(2);
/// Longer than a kubelet takes to bring a changed ConfigMap into a pod: its sync period of 60 s, jittered by a half, and the TTL
/// of its cache of 60 s.
const KUBELET_SYNC: Duration = Duration::from_secs(160);
/// Longest silence while waiting.
const PROGRESS: Duration = Duration::from_secs(30);
/// Workloads named in one line.
const NAMED: usize = 8;

/// The mesh's certificate authority.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What of it.
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show the authority, its roots, and which workloads hold which root
    Status {
        /// How it is shown
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Format,
    },
    /// Replace the authority: old root, both, new root; go on where an earlier run stopped
    Rotate {
        /// Folder with ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem (and ca-crl.pem) of the new authority
        /// [default: a new self-signed root]
        #[arg(long, value_name = "DIR")]
        from_dir: Option<PathBuf>,
        /// Longest wait for the workloads in each step
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = weft_core::duration::parse)]
        timeout: Duration,
        /// Do not wait for workloads that cannot be asked
        #[arg(long)]
        ignore_unreachable: bool,
    },
    /// Take back a new root that was announced and does not sign yet
    Cancel,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let mut store = Store::read(&client, &args.control_plane.istio_namespace).await?;
    match args.what {
        What::Status { output } => status(&client, &store, output).await?,
        What::Rotate { from_dir, timeout, ignore_unreachable } => {
            let next =
                from_dir.map(|folder| CaMaterial::from_files(&folder).with_context(|| folder.display().to_string()));
            rotate(&client, &mut store, next.transpose()?, Patience { timeout, ignore_unreachable }).await?;
        }
        What::Cancel => {
            let data = rotation::cancel(&store.data)?;
            store.write(&client, data, false).await?;
            output::line("The announced root is taken back; the old authority goes on.")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(client: &ApiClient, store: &Store, format: Format) -> anyhow::Result<()> {
    let all = holders(client, &store.known()).await?;
    if format != Format::Table {
        return document(&to_value(store, &all), format == Format::Yaml);
    }
    output::line(format!("Secret {}/{}: {}", store.object.namespace(), store.object.name(), store.phase().as_str()))?;
    let signer = store.signer().map(|root| root.id);
    let trusted: Vec<String> = store.roots("root-cert.pem").into_iter().map(|root| root.id).collect();
    let mut table = Table::new(["ROOT", "SUBJECT", "NOT AFTER", "USE"]);
    for root in store.known() {
        let uses = match (Some(&root.id) == signer.as_ref(), trusted.is_empty() || trusted.contains(&root.id)) {
            (true, _) => "signs, trusted",
            (false, true) => "trusted",
            (false, false) => "not published",
        };
        table.row([&root.id, &root.facts.subject, &time(root.facts.not_after), uses]);
    }
    table.print()?;
    output::line("")?;
    let mut table = Table::new(["WORKLOAD", "SIGNED BY", "TRUSTS", "NOT AFTER", "NOTE"]);
    let dash = || "-".to_string();
    for holder in &all {
        table.row([
            holder.name.clone(),
            holder.signed_by.clone().unwrap_or_else(dash),
            if holder.trusts.is_empty() { dash() } else { holder.trusts.join(",") },
            holder.not_after.map_or_else(dash, time),
            note(store, holder),
        ]);
    }
    table.print()
}

/// What is left to happen to a workload, in words.
fn note(store: &Store, holder: &Holder) -> String {
    if let Some(problem) = &holder.problem {
        return problem.clone();
    }
    let signer = store.signer().map(|root| root.id);
    let published: Vec<String> = store.roots("root-cert.pem").into_iter().map(|root| root.id).collect();
    if let Some(missing) = published.iter().find(|root| !holder.trusts.contains(root)) {
        return format!("does not trust {missing} yet");
    }
    if holder.signed_by != signer {
        return "still shows a certificate of the old root".into();
    }
    match holder.trusts.iter().find(|root| !published.is_empty() && !published.contains(root)) {
        Some(old) => format!("still trusts the old root {old}"),
        None => String::new(),
    }
}

fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "-".into(), |t| t.to_string())
}

fn to_value(store: &Store, all: &[Holder]) -> Value {
    let roots: Vec<Value> = store
        .known()
        .iter()
        .map(|root| json!({"id": root.id, "subject": root.facts.subject, "serial": root.facts.serial, "notAfter": time(root.facts.not_after)}))
        .collect();
    let workloads: Vec<Value> = all
        .iter()
        .map(|holder| {
            json!({
                "name": holder.name, "signedBy": holder.signed_by, "trusts": holder.trusts,
                "notAfter": holder.not_after.map(time), "note": note(store, holder),
            })
        })
        .collect();
    json!({
        "secret": format!("{}/{}", store.object.namespace(), store.object.name()),
        "phase": match store.phase() { Phase::Steady => "steady", Phase::Announced => "announced", Phase::Switched => "switched" },
        "signer": store.signer().map(|root| root.id),
        "roots": roots,
        "workloads": workloads,
    })
}

/// How long to wait, and for whom.
#[derive(Debug, Clone, Copy)]
struct Patience {
    timeout: Duration,
    ignore_unreachable: bool,
}

async fn rotate(
    client: &ApiClient,
    store: &mut Store,
    next: Option<CaMaterial>,
    patience: Patience,
) -> anyhow::Result<()> {
    if store.phase() == Phase::Steady {
        let plugged = next.is_some();
        let next = new_authority(store, next)?;
        let data = rotation::announce(&store.data, next.material())?;
        // Workloads that check by lists must have those of the new intermediate first.
        if rotation::same_root(&store.data, next.material())? && next.material().crl.is_empty() {
            let data = rotation::finish(&rotation::switch(&data)?)?;
            store.write(client, data, plugged).await?;
            output::line(
                "The new intermediate signs from now on; its root is trusted already. Workloads take it when they renew.",
            )?;
            return Ok(());
        }
        store.write(client, data, plugged).await?;
        output::line(match store.same_root() {
            true => "1/2 announced: the lists of both intermediates are published, the old one signs",
            false => "1/3 announced: both roots are trusted, the old authority signs",
        })?;
    } else {
        output::note_plain(format!("A rotation is under way ({}); going on.", store.phase().as_str()));
    }
    if store.phase() == Phase::Announced {
        let wanted: Vec<String> = store.known().into_iter().map(|root| root.id).collect();
        let (lists, since) = (store.lists(), Instant::now());
        let lacks = |holder: &Holder| {
            wanted.iter().any(|root| !holder.trusts.contains(root)) || lacks_lists(holder, &lists, since.elapsed())
        };
        let what =
            if lists.is_empty() { "to trust both roots" } else { "to trust both roots and have the lists of both" };
        wait(client, store, what, patience, lacks).await?;
        let data = rotation::switch(&store.data)?;
        if store.same_root() {
            store.write(client, rotation::finish(&data)?, false).await?;
            return output::line("2/2 switched: the new intermediate signs; workloads take it when they renew");
        }
        store.write(client, data, false).await?;
        output::line("2/3 switched: the new authority signs, both roots are trusted")?;
    }
    let signer = store.signer().map(|root| root.id);
    wait(client, store, "to show certificates of the new root", patience, |holder| holder.signed_by != signer).await?;
    let data = rotation::finish(&store.data)?;
    let old: Vec<String> =
        store.known().into_iter().map(|root| root.id).filter(|id| Some(id) != signer.as_ref()).collect();
    store.write(client, data, false).await?;
    output::line("3/3 finished: the old root is not published any more")?;
    let trusts_old = |holder: &Holder| holder.trusts.iter().any(|root| old.contains(root));
    wait(client, store, "to forget the old root", patience, trusts_old).await?;
    output::line("Done: no workload holds the old root.")
}

/// Whether a workload may still check by lists without those that were published `since` long ago. One that does not show its
/// lists is given the time in which a kubelet brings a changed ConfigMap into every pod.
fn lacks_lists(holder: &Holder, published: &[String], since: Duration) -> bool {
    match (published.is_empty(), holder.lists.is_empty()) {
        (true, _) => false,
        (false, true) => since < KUBELET_SYNC,
        (false, false) => published.iter().any(|list| !holder.lists.contains(list)),
    }
}

/// The authority to come, tried before anything is written.
fn new_authority(store: &Store, given: Option<CaMaterial>) -> anyhow::Result<Authority> {
    let now = SystemTime::now();
    let organization = store.signer().map(|root| root.facts.subject).unwrap_or_default();
    let domain = organization.strip_prefix("O=").and_then(|name| TrustDomain::new(name).ok());
    let domain = domain.map_or_else(|| TrustDomain::new(DEFAULT_TRUST_DOMAIN), Ok)?;
    match given {
        None => Ok(Authority::self_signed(domain, CaPolicy::default(), now)?),
        Some(material) => Authority::from_material(material, domain, CaPolicy::default(), now)
            .and_then(|authority| authority.check_lists(now).map(|()| authority))
            .context("the new authority cannot be used; nothing has been changed"),
    }
}

/// Waits until no workload is left of which `lacks` holds.
async fn wait(
    client: &ApiClient,
    store: &Store,
    what: &str,
    patience: Patience,
    lacks: impl Fn(&Holder) -> bool,
) -> anyhow::Result<()> {
    let (start, end) = (Instant::now(), Instant::now() + patience.timeout);
    let (mut said, mut told) = (0, start);
    loop {
        let all = match holders(client, &store.known()).await {
            Ok(all) => all,
            // A busy API server is no reason to stop half way.
            Err(error) if Instant::now() < end => {
                output::note_plain(format!("{error:#}; trying again"));
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let waited_for = |holder: &&Holder| match &holder.problem {
            Some(_) => !patience.ignore_unreachable,
            None => lacks(holder),
        };
        let left: Vec<&Holder> = all.iter().filter(waited_for).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let names = names(&left);
            bail!("{} workloads have yet {what}: {names}; run the command again, or see `weft ca status`", left.len());
        }
        if left.len() != said || told.elapsed() >= PROGRESS {
            output::note_plain(format!(
                "waiting for {} of {} workloads {what} ({} s): {}",
                left.len(),
                all.len(),
                start.elapsed().as_secs(),
                names(&left)
            ));
            (said, told) = (left.len(), Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn names(all: &[&Holder]) -> String {
    let more = all.len().saturating_sub(NAMED);
    let names: Vec<String> = all
        .iter()
        .take(NAMED)
        .map(|holder| match &holder.problem {
            Some(problem) => format!("{} ({problem})", holder.name),
            None => holder.name.clone(),
        })
        .collect();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_do_not_cover_the_new_authority_stop_before_anything_changes() {
        weft_tls::install_provider();
        let domain = TrustDomain::new("td").unwrap();
        let made = || Authority::self_signed(domain.clone(), CaPolicy::default(), SystemTime::now()).unwrap();
        let object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}})).unwrap();
        let store = Store { object, data: made().material().to_secret() };
        let (next, other) = (made().material().clone(), made().material().clone());
        let issuer = weft_tls::Issuer::from_pem(other.ca_cert.as_bytes(), other.ca_key.as_bytes()).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let lists = issuer.revocation_list(&[], now - hour, now + hour).unwrap();
        let error = new_authority(&store, Some(CaMaterial { crl: lists, ..next })).unwrap_err();
        assert!(format!("{error:#}").contains("nothing has been changed"), "{error:#}");
        assert!(format!("{error:#}").contains("ca-crl.pem"), "{error:#}");
    }

    #[test]
    fn lists_are_waited_for() {
        let has =
            |lists: &[&str]| Holder { lists: lists.iter().map(ToString::to_string).collect(), ..Holder::default() };
        let both = ["old".to_string(), "new".to_string()];
        let (now, late) = (Duration::ZERO, KUBELET_SYNC);
        for (holder, published, since, lacks) in [
            (has(&[]), &[][..], now, false),
            (has(&["old", "new"]), &both, now, false),
            // One that shows its lists is believed, however long it takes.
            (has(&["old"]), &both, now, true),
            (has(&["old"]), &both, late, true),
            (has(&[]), &both, now, true),
            (has(&[]), &both, late, false),
        ] {
            assert_eq!(lacks_lists(&holder, published, since), lacks, "{holder:?} {since:?}");
        }
    }

    #[test]
    fn notes_say_what_is_left() {
        weft_tls::install_provider();
        let domain = TrustDomain::new("td").unwrap();
        let made = || Authority::self_signed(domain.clone(), CaPolicy::default(), SystemTime::now()).unwrap();
        let (old, new) = (made(), made());
        let object: weft_k8s_api::Object =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}})).unwrap();
        let announced = rotation::announce(&old.material().to_secret(), new.material()).unwrap();
        let switched = rotation::switch(&announced).unwrap();
        let finished = rotation::finish(&switched).unwrap();
        let store = |data: &rotation::SecretData| Store { object: object.clone(), data: data.clone() };
        let ids: Vec<String> = store(&announced).known().into_iter().map(|root| root.id).collect();
        let (old_id, new_id) = (&ids[0], &ids[1]);
        let holder = |signed: &String, trusts: &[&String]| Holder {
            name: "a.b".into(),
            signed_by: Some(signed.clone()),
            trusts: trusts.iter().map(|id| (*id).clone()).collect(),
            ..Holder::default()
        };
        for (data, holder, says) in [
            (&announced, holder(old_id, &[old_id]), format!("does not trust {new_id} yet")),
            (&announced, holder(old_id, &[old_id, new_id]), String::new()),
            (&switched, holder(old_id, &[old_id, new_id]), "still shows a certificate of the old root".into()),
            (&switched, holder(new_id, &[old_id, new_id]), String::new()),
            (&finished, holder(new_id, &[old_id, new_id]), format!("still trusts the old root {old_id}")),
            (&finished, holder(new_id, &[new_id]), String::new()),
        ] {
            assert_eq!(note(&store(data), &holder), says);
        }
    }
}
