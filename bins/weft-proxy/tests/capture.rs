//! The init container's command as a pod runs it, in a network namespace of its own: rules set up, checked as the proxy's user,
//! and removed. Skipped, saying so, where the test is not root or `nft`, `unshare` or `setpriv` is missing.
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// A pod whose address is on lo beside 127.0.0.1, as a pod's own address is reached through lo.
const SCRIPT: &str = r#"
set -u
ip link set lo up
ip addr add 10.244.0.9/32 dev lo
as_proxy() { setpriv --reuid 1337 --regid 1337 --clear-groups "$P" istio-iptables "$@"; }
as_proxy --run-validation --skip-rule-apply --probe-timeout 1s; echo "before: $?"
"$P" istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020 \
  -q 443 -o 3306 -c eth9 -k virbr0 --redirect-dns --capture-all-dns --log_output_level=default:info; echo "set up: $?"
as_proxy --run-validation --skip-rule-apply; echo "after: $?"
nft list table inet weft_capture
"$P" istio-iptables -p 15001 -i 10.0.0.0/8 -b 80; echo "again: $?"
nft list table inet weft_capture | grep -c 'redirect to :15053'
"$P" istio-iptables --cleanup; echo "removed: $?"
nft list ruleset | grep -c weft_capture
"$P" istio-iptables --cleanup; echo "removed twice: $?"
"$P" istio-iptables -u 0; echo "root: $?"
"#;

#[test]
fn set_up_checked_and_removed() {
    let found = |program: &str| weft_capture::find_tool(program).is_some();
    let works = Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|status| status.success());
    if !nix::unistd::geteuid().is_root() || !works || !["nft", "ip", "setpriv"].into_iter().all(found) {
        eprintln!("skipped: needs root, unshare, nft, ip and setpriv");
        return;
    }
    // The proxy's user must be able to run the program, wherever it was built.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let program = folder.path().join("weft-proxy");
    std::fs::copy(env!("CARGO_BIN_EXE_weft-proxy"), &program).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let output =
        Command::new("timeout").args(["180", "unshare", "-n", "sh", "-c", SCRIPT]).env("P", &program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    for said in [
        "before: 126",
        "set up: 0",
        "after: 0",
        "redirect to :15053",
        "iifname \"eth9\" return",
        "iifname { \"virbr0\" }",
        "tcp dport { 3306 } return",
        "again: 0\n0\n",
        "removed: 0\n0\n",
        "removed twice: 0",
        "root: 1",
    ] {
        // nft writes sets of one as one; both are the same rule.
        let plain = said.replace("{ ", "").replace(" }", "");
        assert!(text.contains(said) || text.contains(&plain), "{said:?} not in\n{text}\n{errors}");
    }
    assert!(errors.contains("the pod's traffic is not redirected to the proxy"), "{errors}");
}
