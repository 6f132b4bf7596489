//! `weft ca`: the authority replaced by one command, taken back, and made anew under the same root; weftd follows.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use weft_kube_tests::{Cluster, Weftd, check, eventually, objects, on_both, proxy, target};
use weft_proto::istio::v1::auth::IstioCertificateRequest;
use weft_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_store::client::WriteOptions;
use weft_tls::{Issuer, KeyKind, RootParams, San, pem};

on_both!(
    the_authority_is_replaced_and_a_replacement_is_taken_back,
    an_intermediate_is_replaced_in_one_step,
    an_intermediate_with_lists_waits_for_its_lists
);

/// Runs `weft ca`; what it printed, or why it failed.
async fn ca(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let folder = std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from);
    let mut command = Command::new(folder.join("weft"));
    command.arg("--kubeconfig").arg(cluster.kubeconfig()).arg("ca").args(args);
    // The embedded server runs in this process: its task must not wait for this one.
    let out =
        tokio::task::spawn_blocking(move || command.output()).await?.context("build it with: cargo build -p weft")?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "weft ca {}: {text}", args.join(" "));
    Ok(text)
}

async fn status(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&ca(cluster, &["status", "-o", "json"]).await?)?)
}

/// A folder with a new self-signed authority, as `--from-dir` wants it, and its certificate.
fn folder(cluster: &Cluster, name: &str) -> Result<(PathBuf, String)> {
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    let organization = "cluster.local".into();
    let params = RootParams { organization, key: KeyKind::default(), not_before: now - day, not_after: now + day };
    let issuer = Issuer::self_signed(&params)?;
    let folder = cluster.dir().join(name);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("ca-cert.pem"), issuer.certificate_pem())?;
    std::fs::write(folder.join("ca-key.pem"), issuer.key_pem().as_bytes())?;
    Ok((folder, issuer.certificate_pem()))
}

async fn published(cluster: &Cluster, wanted: &str) -> Result<()> {
    eventually("the root", async || {
        let now = proxy::root(cluster, "shop").await?;
        check(now.trim() == wanted.trim(), &format!("published is {now}"))
    })
    .await
}

async fn start(cluster: &Cluster) -> Result<Weftd> {
    cluster.install().await?;
    cluster.namespace("shop", &[]).await?;
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(cluster, "weftd-0", &account, &[])?;
    weftd.ready().await?;
    Ok(weftd)
}

async fn the_authority_is_replaced_and_a_replacement_is_taken_back(cluster: Cluster) -> Result<()> {
    let _weftd = start(&cluster).await?;
    let old = proxy::root(&cluster, "shop").await?;
    // A workload with a native sidecar that cannot be asked (nothing runs here) holds a rotation up, and is named.
    let mut pod = objects::pod("shop", "web-0", "web");
    let sidecar = pod["spec"]["containers"].as_array_mut().context("containers")?.pop().context("a sidecar")?;
    pod["spec"]["initContainers"] = json!([sidecar]);
    pod["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
    let mut made = cluster.create(pod).await?;
    made.body.insert("status".into(), objects::running("10.128.0.1"));
    cluster.client.replace_status(&made).await?;
    let (new_folder, new) = folder(&cluster, "new")?;
    let from = new_folder.to_str().context("a path")?;
    let stopped = ca(&cluster, &["rotate", "--from-dir", from, "--timeout", "1s"]).await;
    let stopped = stopped.err().context("it did not wait for the workload")?.to_string();
    ensure!(stopped.contains("web-0.shop"), "{stopped}");
    ensure!(status(&cluster).await?["phase"] == "announced");
    published(&cluster, &format!("{old}{new}")).await?;
    // Taken back: as if nothing had been said.
    ca(&cluster, &["cancel"]).await?;
    published(&cluster, &old).await?;
    let now = status(&cluster).await?;
    ensure!(now["phase"] == "steady" && now["workloads"][0]["name"] == "web-0.shop", "{now}");
    ensure!(ca(&cluster, &["cancel"]).await.is_err(), "there is nothing more to take back");
    // And once more, without it.
    cluster.delete("pods", "shop", "web-0").await?;
    eventually("the pod is gone", async || check(cluster.get("pods", "shop", "web-0").await.is_err(), "it is there"))
        .await?;
    let said = ca(&cluster, &["rotate", "--from-dir", from, "--timeout", "90s"]).await?;
    ensure!(said.contains("3/3 finished") && said.contains("Done"), "{said}");
    published(&cluster, &new).await?;
    ensure!(status(&cluster).await?["roots"].as_array().is_some_and(|roots| roots.len() == 1));
    Ok(())
}

fn openssl(folder: &Path, args: &str) -> Result<()> {
    let out = Command::new("openssl").args(args.split(' ')).current_dir(folder).output().context("openssl")?;
    ensure!(out.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Two intermediates under one root, each in a folder of its own.
fn intermediates(cluster: &Cluster) -> Result<[PathBuf; 2]> {
    let base = cluster.dir().join("pki");
    std::fs::create_dir_all(&base)?;
    std::fs::write(base.join("ca.cnf"), "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n")?;
    let key = "ecparam -genkey -name prime256v1 -noout -out";
    openssl(&base, &format!("{key} root.key"))?;
    openssl(&base, "req -x509 -new -key root.key -subj /O=root -days 30 -out root.pem")?;
    let mut made = Vec::new();
    for name in ["one", "two"] {
        let folder = base.join(name);
        std::fs::create_dir_all(&folder)?;
        openssl(&base, &format!("{key} {name}/ca-key.pem"))?;
        openssl(&base, &format!("req -new -key {name}/ca-key.pem -subj /O={name} -out {name}.csr"))?;
        let sign = "-CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile ca.cnf";
        openssl(&base, &format!("x509 -req -in {name}.csr {sign} -out {name}/ca-cert.pem"))?;
        for (from, to) in [(base.join("root.pem"), "root-cert.pem"), (folder.join("ca-cert.pem"), "cert-chain.pem")] {
            std::fs::copy(from, folder.join(to))?;
        }
        made.push(folder);
    }
    made.try_into().map_err(|_| anyhow::anyhow!("two"))
}

/// An empty revocation list of the authority of these files.
fn empty_list(certificate: PathBuf, key: PathBuf) -> Result<String> {
    let issuer = Issuer::from_pem(&std::fs::read(certificate)?, &std::fs::read(key)?)?;
    let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    Ok(issuer.revocation_list(&[], now - day, now + day)?)
}

async fn an_intermediate_with_lists_waits_for_its_lists(cluster: Cluster) -> Result<()> {
    use base64::Engine as _;
    let [one, two] = intermediates(&cluster)?;
    let pki = cluster.dir().join("pki");
    let root = empty_list(pki.join("root.pem"), pki.join("root.key"))?;
    for folder in [&one, &two] {
        let own = empty_list(folder.join("ca-cert.pem"), folder.join("ca-key.pem"))?;
        std::fs::write(folder.join("ca-crl.pem"), format!("{own}{root}"))?;
    }
    cluster.namespace("istio-system", &[]).await?;
    let mut data = serde_json::Map::new();
    for key in ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem", "ca-crl.pem"] {
        let text = base64::engine::general_purpose::STANDARD.encode(std::fs::read(one.join(key))?);
        data.insert(key.into(), json!(text));
    }
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": "istio-system"}, "data": data});
    cluster.client.create(&serde_json::from_value(secret)?, &WriteOptions::default()).await?;
    let _weftd = start(&cluster).await?;
    published(&cluster, &std::fs::read_to_string(two.join("root-cert.pem"))?).await?;
    let lists = async || -> Result<usize> {
        let map = cluster.get("configmaps", "shop", "istio-ca-root-cert").await?;
        let text = map.body["data"]["ca-crl.pem"].as_str().unwrap_or_default().to_owned();
        Ok(pem::revocation_lists(text.as_bytes()).map_or(0, |lists| lists.len()))
    };
    eventually("the lists", async || check(lists().await? == 2, "others are published")).await?;
    // A workload that cannot be asked: nobody knows which lists it has.
    let mut made = cluster.create(objects::pod("shop", "web-0", "web")).await?;
    made.body.insert("status".into(), objects::running("10.128.0.1"));
    cluster.client.replace_status(&made).await?;
    let from = two.to_str().context("a path")?;
    let stopped = ca(&cluster, &["rotate", "--from-dir", from, "--timeout", "1s"]).await;
    let stopped = stopped.err().context("it did not wait for the workload")?.to_string();
    ensure!(stopped.contains("1/2 announced") && stopped.contains("web-0.shop"), "{stopped}");
    ensure!(status(&cluster).await?["phase"] == "announced");
    let signs = async |signer: &Path| -> Result<bool> {
        let secret = cluster.get("secrets", "istio-system", "cacerts").await?;
        let text = secret.body["data"]["ca-cert.pem"].as_str().context("ca-cert.pem")?.to_owned();
        Ok(base64::engine::general_purpose::STANDARD.decode(text)? == std::fs::read(signer.join("ca-cert.pem"))?)
    };
    ensure!(signs(&one).await?, "the new one signs before its lists are everywhere");
    eventually("the lists of both", async || check(lists().await? == 3, "others are published")).await?;
    // And without the workload it goes on.
    cluster.delete("pods", "shop", "web-0").await?;
    eventually("the pod is gone", async || check(cluster.get("pods", "shop", "web-0").await.is_err(), "it is there"))
        .await?;
    let said = ca(&cluster, &["rotate", "--from-dir", from, "--timeout", "90s"]).await?;
    ensure!(said.contains("2/2 switched"), "{said}");
    ensure!(signs(&two).await? && status(&cluster).await?["phase"] == "steady", "{said}");
    Ok(())
}

async fn an_intermediate_is_replaced_in_one_step(cluster: Cluster) -> Result<()> {
    use base64::Engine as _;
    let [one, two] = intermediates(&cluster)?;
    cluster.namespace("istio-system", &[]).await?;
    let mut data = serde_json::Map::new();
    for key in ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"] {
        let text = base64::engine::general_purpose::STANDARD.encode(std::fs::read(one.join(key))?);
        data.insert(key.into(), json!(text));
    }
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": "istio-system"}, "data": data});
    cluster.client.create(&serde_json::from_value(secret)?, &WriteOptions::default()).await?;
    let weftd = start(&cluster).await?;
    let root = std::fs::read_to_string(two.join("root-cert.pem"))?;
    published(&cluster, &root).await?;
    let signs = async |signer: &Path| {
        let signer = pem::certificates("signer", &std::fs::read(signer.join("ca-cert.pem"))?)?;
        eventually("a certificate of the intermediate", async || {
            let chain = certificate(&cluster, &weftd, &root).await?;
            check(chain.contains(&signer[0]), "another one signs")
        })
        .await
    };
    signs(&one).await?;
    let said = ca(&cluster, &["rotate", "--from-dir", two.to_str().context("a path")?]).await?;
    ensure!(said.contains("The new intermediate signs from now on"), "{said}");
    signs(&two).await?;
    published(&cluster, &root).await?;
    ensure!(status(&cluster).await?["phase"] == "steady");
    Ok(())
}

/// A new certificate of the account `default`, and those above it.
async fn certificate(cluster: &Cluster, weftd: &Weftd, root: &str) -> Result<Vec<weft_tls::Der>> {
    let token = cluster.token("shop", "default", &["istio-ca"]).await?;
    let identity = San::Uri("spiffe://cluster.local/ns/shop/sa/default".into());
    let made = weft_tls::generate_key_and_csr(KeyKind::EcdsaP256, &[identity])?;
    let body = IstioCertificateRequest { csr: made.csr_pem, validity_duration: 3600, ..Default::default() };
    let mut request = tonic::Request::new(body);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut service = IstioCertificateServiceClient::new(proxy::channel(weftd.secure, root).await?);
    let chain = service.create_certificate(request).await?.into_inner().cert_chain;
    Ok(pem::certificates("chain", chain.concat().as_bytes())?)
}
