//! Commands that need no cluster, as users type them: `kube-inject`, `validate`, `manifest generate`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::process::{Command, Stdio};

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

fn weft(arguments: &[&str], input: &str) -> Done {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env("WEFT_HOME", "/nonexistent/weft")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

const SLEEP: &str = "# the client\napiVersion: v1\nkind: Service\nmetadata:   {name: sleep}\nspec: {ports: [{port: 80}]}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: sleep}\nspec:\n  selector: {matchLabels: {app: sleep}}\n  template:\n    metadata: {labels: {app: sleep}}\n    spec: {containers: [{name: sleep, image: curl}]}\n";

#[test]
fn injection_from_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let config = file(
        "config",
        "templates: {hello: 'metadata: {labels: {hello: world}}'}\ndefaultTemplates: [sidecar, hello]\n",
    );
    let mesh = file("mesh", "trustDomain: example.org\n");
    let values = file("values", r#"{"global": {"hub": "registry.example", "tag": "1"}}"#);
    let offline = ["--injectConfigFile", &config, "--meshConfigFile", &mesh, "--valuesFile", &values];
    let done = weft(&[&["kube-inject", "--filename", "-"][..], &offline].concat(), SLEEP);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(
        done.stdout.starts_with("# the client\napiVersion: v1\nkind: Service\nmetadata:   {name: sleep}\n"),
        "{}",
        done.stdout
    );
    for part in ["image: registry.example/weft-proxy:1", "hello: world", "example.org"] {
        assert!(done.stdout.contains(part), "{part} not in {}", done.stdout);
    }
    // The result is valid, and injecting it again changes nothing.
    assert_eq!(weft(&["validate", "-f", "-"], &done.stdout).code, 0);
    let again = weft(&[&["kube-inject", "-f", "-"][..], &offline].concat(), &done.stdout);
    assert_eq!(again.stdout, done.stdout);
    let done = weft(&["kube-inject", "-f", "-"], SLEEP);
    assert!(done.code == 1 && done.stderr.contains("--injectConfigFile"), "{}", done.stderr);
    let bad =
        SLEEP.replace("{labels: {app: sleep}}", "{annotations: {traffic.sidecar.istio.io/excludeInboundPorts: bad}}");
    let done = weft(&[&["kube-inject", "-f", "-"][..], &offline].concat(), &bad);
    assert!(
        done.code == 1 && done.stderr.contains("Deployment sleep: metadata.annotations[traffic.sidecar"),
        "{}",
        done.stderr
    );
}

#[test]
fn validation_says_where() {
    let done = weft(&["validate", "-f", "-"], SLEEP);
    assert_eq!((done.code, done.stdout.as_str()), (0, "- is valid: 2 objects\n"));
    let wrong = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - route: [{destination: {host: b}, weight: -1}]\n---\napiVersion: example.org/v1\nkind: Thing\nmetadata: {name: t}\n";
    let done = weft(&["validate", "-f", "-"], wrong);
    assert!(
        done.code == 1 && done.stderr.contains("stdin:7: VirtualService default/a: spec.http[0].route[0].weight"),
        "{}",
        done.stderr
    );
}

#[test]
fn manifests_are_valid() {
    let made = weft(&["manifest", "generate", "--set", "profile=demo", "--revision", "canary"], "");
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stdout.contains("name: istiod-canary"), "{}", made.stderr);
    let done = weft(&["validate", "-f", "-"], &made.stdout);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let done = weft(&["manifest", "generate", "--set", "profile=none"], "");
    assert!(done.code == 1 && done.stderr.contains("demo"), "{}", done.stderr);
}
