//! Journeys about who signs certificates: a plugged-in authority, certificates for DNS names, a signer of the Kubernetes API.

use crate::journey::{Journey, Run};
use crate::lab::text;
use crate::{Lab, eventually};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "2:J-PC",
        title: "plug in certificates and key of a certificate authority",
        proves: &["2:PC-4", "2:PC-5", "2:PC-6", "2:PC-7", "2:PC-8", "2:PC-9", "2:PC-11", "2:PC-12"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: plug_in,
    },
    Journey {
        id: "2:J-DC",
        title: "certificates for DNS names",
        proves: &["2:DC-1", "2:DC-3", "2:DC-4", "2:DC-5"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: dns_certificates,
    },
    Journey {
        id: "2:J-CC",
        title: "a signer of the Kubernetes API",
        proves: &["2:CC-1", "2:CC-3", "2:CC-4", "2:CC-5", "2:CC-7", "2:CC-9"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: custom_signer,
    },
];

const SOON: Duration = Duration::from_secs(60);

/// Runs openssl; what it printed on both outputs.
fn openssl(args: &[&str]) -> Result<String> {
    let out = Command::new("openssl").args(args).output().context("openssl is not installed")?;
    let said = text(&out.stdout) + &text(&out.stderr);
    ensure!(out.status.success(), "openssl {}: {said}", args.join(" "));
    Ok(said)
}

/// Folder of an authority: a root and an intermediate of it, under the names that the Secret's keys have.
struct AuthorityFiles(tempfile::TempDir);

impl AuthorityFiles {
    fn new() -> Result<Self> {
        let made = Self(tempfile::tempdir()?);
        let file = |name: &str| made.path(name);
        let (root, root_key) = (file("root-cert.pem")?, file("root-key.pem")?);
        let subject = ["-subj", "/O=Istio/CN=Root CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", &root_key, "-out", &root];
        openssl(&[&new[..], &subject].concat())?;
        let (certificate, key, request, extra) =
            (file("ca-cert.pem")?, file("ca-key.pem")?, file("ca.csr")?, file("ext")?);
        let wanted = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
                      subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
        std::fs::write(&extra, wanted)?;
        let subject = "/O=Istio/CN=Intermediate CA/L=cluster1";
        openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", &key, "-out", &request])?;
        let signed_by = ["-CA", &root, "-CAkey", &root_key, "-CAcreateserial", "-days", "20", "-extfile", &extra];
        openssl(&[&["x509", "-req", "-in", &request, "-out", &certificate][..], &signed_by].concat())?;
        let chain = made.read("ca-cert.pem")? + &made.read("root-cert.pem")?;
        std::fs::write(file("cert-chain.pem")?, chain)?;
        Ok(made)
    }

    fn path(&self, name: &str) -> Result<String> {
        Ok(self.0.path().join(name).to_str().context("path")?.to_string())
    }

    fn read(&self, name: &str) -> Result<String> {
        std::fs::read_to_string(self.0.path().join(name)).with_context(|| name.to_string())
    }

    /// `kubectl create secret generic NAME --from-file=...`.
    fn secret(&self, name: &str, keys: &[&str]) -> Result<String> {
        let mut data = serde_json::Map::new();
        for key in keys {
            data.insert((*key).into(), self.read(key)?.into());
        }
        let metadata = json!({"name": name, "namespace": "istio-system"});
        Ok(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}).to_string())
    }
}

/// Blocks of PEM in a text, each as it stands.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN CERTIFICATE-----") {
        let Some((body, end)) = after.split_once("-----END CERTIFICATE-----") else { break };
        found.push(format!("-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n"));
        rest = end;
    }
    found
}

/// Two texts of a certificate are the same certificate.
fn same(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    plain(a) == plain(b)
}

/// A namespace with sidecars, and httpbin and sleep in it.
fn workloads(lab: &Lab, namespace: &str) -> Result<()> {
    lab.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio-injection: enabled}}}}\n"
    ))?;
    lab.apply_sample_in("httpbin/httpbin.yaml", namespace)?;
    lab.apply_sample_in("sleep/sleep.yaml", namespace)?;
    lab.wait_deployments(namespace, &["httpbin", "sleep"])
}

fn patch_istiod(lab: &Lab, patch: &Value) -> Result<()> {
    lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", &patch.to_string()])?;
    lab.wait_deployments("istio-system", &["istiod"])
}

/// What `weft pc secret -o json` says of a pod: PEM of its chain and of what it trusts.
fn held(lab: &Lab, namespace: &str, pod: &str) -> Result<(String, String)> {
    let out = lab.weft(&["pc", "secret", pod, "-n", namespace, "-o", "json"])?;
    let dump: Value = serde_json::from_str(&out)?;
    let dump = dump.to_string();
    let dump: Value = serde_json::from_str(&dump)?;
    let of = |name: &str, path: &[&str]| -> Result<String> {
        let list = find_lists(&dump);
        let item = list.into_iter().find(|item| item["name"] == name).with_context(|| format!("no secret {name}"))?;
        let field = |value: &Value, name: &str| {
            let camel: String = name
                .split('_')
                .enumerate()
                .map(|(i, part)| if i == 0 { part.to_string() } else { part[..1].to_uppercase() + &part[1..] })
                .collect();
            value.get(name).or_else(|| value.get(&camel)).cloned().unwrap_or(Value::Null)
        };
        let value = path.iter().fold(field(item, "secret"), |value, name| field(&value, name));
        let encoded = field(&value, "inline_bytes");
        let encoded = encoded.as_str().with_context(|| format!("secret {name} has no bytes: {value}"))?;
        base64(encoded)
    };
    Ok((
        of("default", &["tls_certificate", "certificate_chain"])?,
        of("ROOTCA", &["validation_context", "trusted_ca"])?,
    ))
}

fn find_lists(dump: &Value) -> Vec<&Value> {
    let lists = ["dynamic_active_secrets", "dynamicActiveSecrets"];
    lists.iter().filter_map(|name| dump.get(name)?.as_array()).flatten().collect()
}

/// `base64 -d`.
fn base64(encoded: &str) -> Result<String> {
    let mut folder = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut folder, encoded.as_bytes())?;
    openssl(&["base64", "-d", "-A", "-in", folder.path().to_str().context("path")?])
}

fn plug_in(run: &mut Run) -> Result<()> {
    let files = AuthorityFiles::new()?;
    let keys = ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"];
    run.check(&["2:PC-4", "2:PC-12"], "the control plane starts with Secret cacerts", |lab| {
        lab.apply(&files.secret("cacerts", &keys)?)?;
        patch_istiod(lab, &json!({"spec": {"template": {"metadata": {"annotations": {"restarted": "once"}}}}}))?;
        eventually(SOON, || {
            let map = lab.objects("configmaps", &["-n", "default"])?;
            let map = map.iter().find(|m| m["metadata"]["name"] == "istio-ca-root-cert").context("no root")?;
            let root = map["data"]["root-cert.pem"].as_str().unwrap_or_default();
            ensure!(same(root, &files.read("root-cert.pem")?), "the root published is another one: {root}");
            Ok(())
        })
    });
    run.check(&["2:PC-5", "2:PC-11"], "STRICT in namespace foo, and the workloads reach each other", |lab| {
        workloads(lab, "foo")?;
        lab.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: foo}\nspec: {mtls: {mode: STRICT}}\n")?;
        eventually(SOON, || {
            let code = lab.curl_in("foo", &["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin.foo:8000/ip"])?;
            ensure!(code == "200", "{code}");
            Ok(())
        })
    });
    let mut shown = Vec::new();
    let line = "openssl s_client -showcerts -connect httpbin.foo:8000 </dev/null";
    run.check(&["2:PC-6", "2:PC-9"], "httpbin shows leaf, intermediate and the plugged-in root", |lab| {
        eventually(SOON, || {
            let out = lab.exec("foo", "deploy/sleep", "istio-proxy", &["sh", "-c", line])?;
            let (printed, said) = (text(&out.stdout), text(&out.stderr));
            shown = blocks(&printed);
            ensure!(shown.len() == 3, "{} certificates: {printed}{said}", shown.len());
            ensure!(same(&shown[2], &files.read("root-cert.pem")?), "the third is not the root: {}", shown[2]);
            let all = printed + &said;
            ensure!(all.contains("verify error:num=19"), "{all}");
            Ok(())
        })
    });
    run.check(&["2:PC-7"], "the second is the plugged-in intermediate", |_| {
        ensure!(same(shown.get(1).context("nothing")?, &files.read("ca-cert.pem")?), "it is another one");
        Ok(())
    });
    run.check(&["2:PC-8"], "the leaf verifies against intermediate and root", |_| {
        let leaf = files.path("leaf.pem")?;
        std::fs::write(&leaf, shown.first().context("nothing")?)?;
        let said = openssl(&["verify", "-CAfile", &files.path("cert-chain.pem")?, &leaf])?;
        ensure!(said.contains("leaf.pem: OK"), "{said}");
        Ok(())
    });
    Ok(())
}

fn dns_certificates(run: &mut Run) -> Result<()> {
    let certificate = |n: u32| {
        let name = format!("example{n}.istio-system");
        json!({"secretName": format!("dns.example{n}-service-account"), "dnsNames": [format!("{name}.svc"), name]})
    };
    run.lab.change_mesh(&json!({"certificates": [certificate(1), certificate(2)]}))?;
    let secret = |lab: &Lab, n: u32| -> Result<Value> {
        let name = format!("dns.example{n}-service-account");
        let out = lab.weft(&["get", "secret", &name, "-n", "istio-system", "-o", "json"])?;
        Ok(serde_json::from_str(&out)?)
    };
    let names = |lab: &Lab, n: u32| -> Result<String> {
        let object = secret(lab, n)?;
        let chain = base64(object["data"]["cert-chain.pem"].as_str().context("no cert-chain.pem")?)?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), chain)?;
        openssl(&["x509", "-in", file.path().to_str().context("path")?, "-text", "-noout"])
    };
    for n in [1, 2] {
        run.check(&["2:DC-1", "2:DC-3"], "the Secret's certificate has the names and no others", |lab| {
            eventually(SOON, || {
                let said = names(lab, n)?;
                let want = format!("DNS:example{n}.istio-system.svc, DNS:example{n}.istio-system\n");
                ensure!(said.contains(&want), "{said}");
                Ok(())
            })
        });
    }
    run.check(&["2:DC-5"], "key and roots are in the same Secret", |lab| {
        eventually(SOON, || {
            let object = secret(lab, 1)?;
            for key in ["key.pem", "root-cert.pem"] {
                ensure!(object["data"][key].is_string(), "no {key}");
            }
            Ok(())
        })
    });
    run.check(&["2:DC-4"], "a deleted Secret is made anew, with another certificate", |lab| {
        let before = secret(lab, 1)?["data"]["cert-chain.pem"].clone();
        lab.weft(&["delete", "secret", "dns.example1-service-account", "-n", "istio-system"])?;
        eventually(SOON, || {
            let now = secret(lab, 1)?["data"]["cert-chain.pem"].clone();
            ensure!(now.is_string() && now != before, "it is the old one");
            ensure!(names(lab, 1)?.contains("DNS:example1.istio-system.svc, DNS:example1.istio-system\n"), "names");
            Ok(())
        })
    });
    Ok(())
}

/// A controller that signs what is approved for `signer`, with openssl, until told to stop.
fn controller(
    home: PathBuf,
    files: &AuthorityFiles,
    signer: &'static str,
) -> Result<(Arc<AtomicBool>, std::thread::JoinHandle<()>)> {
    let stop = Arc::new(AtomicBool::new(false));
    let (certificate, key, folder) = (files.path("ca-cert.pem")?, files.path("ca-key.pem")?, files.path("")?);
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            if let Err(error) = sign_all(&home, &certificate, &key, Path::new(&folder), signer) {
                println!("signer: {error:#}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    Ok((stop, thread))
}

fn sign_all(home: &Path, certificate: &str, key: &str, folder: &Path, signer: &str) -> Result<()> {
    let out = crate::lab::weft(home, &["get", "csr", "-o", "json"]).output()?;
    let list: Value = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
    for object in list["items"].as_array().into_iter().flatten() {
        let approved = object["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Approved");
        if object["spec"]["signerName"] != signer || !approved || object["status"]["certificate"].is_string() {
            continue;
        }
        let name = object["metadata"]["name"].as_str().context("name")?;
        let file = |ending: &str| -> Result<String> {
            Ok(folder.join(format!("{name}.{ending}")).to_str().context("path")?.to_string())
        };
        let (request, signed, extra) = (file("csr")?, file("crt")?, file("ext")?);
        std::fs::write(&request, base64(object["spec"]["request"].as_str().context("request")?)?)?;
        std::fs::write(
            &extra,
            "basicConstraints=critical,CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n",
        )?;
        let by = ["-CA", certificate, "-CAkey", key, "-CAcreateserial", "-copy_extensions", "copyall"];
        let how = ["-extfile", &extra, "-days", "1", "-out", &signed];
        openssl(&[&["x509", "-req", "-in", &request][..], &by, &how].concat())?;
        let chain = std::fs::read_to_string(&signed)? + &std::fs::read_to_string(certificate)?;
        let plain = folder.join(format!("{name}.chain"));
        std::fs::write(&plain, chain)?;
        let encoded = openssl(&["base64", "-A", "-in", plain.to_str().context("path")?])?;
        let patch = json!({"status": {"certificate": encoded.trim()}}).to_string();
        crate::lab::weft(home, &["patch", "csr", name, "--subresource", "status", "-p", &patch]).output()?;
    }
    Ok(())
}

fn custom_signer(run: &mut Run) -> Result<()> {
    const SIGNER: &str = "example.com/foo";
    let files = AuthorityFiles::new()?;
    let (stop, thread) = controller(run.lab.home().to_path_buf(), &files, SIGNER)?;
    let outcome = with_signer(run, &files, SIGNER);
    stop.store(true, Ordering::Relaxed);
    let _ = thread.join();
    outcome
}

fn with_signer(run: &mut Run, files: &AuthorityFiles, signer: &str) -> Result<()> {
    run.check(&["2:CC-5", "2:CC-7"], "the control plane starts as registration authority with the external root", |lab| {
        lab.apply(&files.secret("external-ca-cert", &["root-cert.pem"])?)?;
        let volume = json!({"name": "external-ca-cert", "secret": {"secretName": "external-ca-cert", "optional": true}});
        let mount = json!({"name": "external-ca-cert", "mountPath": "/etc/external-ca-cert", "readOnly": true});
        let env = json!([{"name": "EXTERNAL_CA", "value": "ISTIOD_RA_KUBERNETES_API"}, {"name": "K8S_SIGNER", "value": signer}]);
        let container = json!({"name": "discovery", "env": env, "volumeMounts": [mount]});
        patch_istiod(lab, &json!({"spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}}}))
    });
    run.check(&["2:CC-1", "2:CC-4"], "workloads get certificates of the signer, and reach each other", |lab| {
        workloads(lab, "bookinfo")?;
        eventually(SOON, || {
            let code = lab.curl_in(
                "bookinfo",
                &["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin.bookinfo:8000/headers"],
            )?;
            ensure!(code == "200", "{code}");
            Ok(())
        })?;
        let (chain, _) = held(lab, "bookinfo", "deploy/sleep")?;
        let leaf = files.path("workload.pem")?;
        std::fs::write(&leaf, &chain)?;
        let said = openssl(&["verify", "-CAfile", &files.path("cert-chain.pem")?, &leaf])?;
        ensure!(said.contains(": OK"), "{said}");
        Ok(())
    });
    run.check(&["2:CC-3", "2:CC-9"], "what they trust is the external root and nothing else", |lab| {
        eventually(SOON, || {
            let (_, trusted) = held(lab, "bookinfo", "deploy/sleep")?;
            ensure!(same(&trusted, &files.read("root-cert.pem")?), "trusted: {trusted}");
            Ok(())
        })
    });
    Ok(())
}
