//! Time of one decision over 1000 policies of 10 rules each: `cargo bench -p weft-authz`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;
use weft_authz::{Facts, PeerCertificate, RequestFacts, compile_http};
use weft_proto::envoy::extensions::filters::http::rbac::v3::Rbac as Message;
use weft_route::Pool;
use weft_route::compile::Compiler;
use weft_route::error::Path;

const POLICIES: usize = 1000;
const RULES: usize = 10;
const ROUNDS: u32 = 200_000;

/// Rule `r` of policy `p`, of the kinds that users write: by principal and path, by namespace and method, by host and path.
fn rule(p: usize, r: usize) -> String {
    let (permission, principal) = match r % 3 {
        0 => (
            format!("{{url_path: {{path: {{exact: /svc{p}/item{r}}}}}}}"),
            format!("{{authenticated: {{principal_name: {{exact: 'spiffe://td/ns/ns{p}/sa/sa{r}'}}}}}}"),
        ),
        1 => (
            "{header: {name: ':method', string_match: {exact: GET}}}".to_string(),
            format!("{{authenticated: {{principal_name: {{safe_regex: {{regex: '.*/ns/ns{p}/.*'}}}}}}}}"),
        ),
        _ => (
            format!(
                "{{and_rules: {{rules: [{{header: {{name: ':authority', string_match: {{exact: h{p}.example, ignore_case: true}}}}}}, {{url_path: {{path: {{prefix: /svc{p}/}}}}}}]}}}}"
            ),
            "{any: true}".to_string(),
        ),
    };
    format!(
        "{{permissions: [{{and_rules: {{rules: [{permission}]}}}}], principals: [{{and_ids: {{ids: [{principal}]}}}}]}}"
    )
}

fn main() {
    let mut yaml = String::from("{rules: {policies: {");
    for p in 0..POLICIES {
        for r in 0..RULES {
            let _ = write!(yaml, "'ns[x]-policy[{p}]-rule[{r}]': {}, ", rule(p, r));
        }
    }
    yaml.push_str("}}}");
    let message: Message = match weft_proto::json::from_yaml(&yaml) {
        Ok(message) => message,
        Err(error) => return eprintln!("{error}"),
    };
    let mut pool = Pool::default();
    let began = Instant::now();
    let rbac = compile_http(&message, &mut Compiler::new("bench", &mut pool), &Path::ROOT);
    println!("compiled {} rules in {:?}", POLICIES * RULES, began.elapsed());
    let headers = http::HeaderMap::new();
    let address = ([10, 0, 0, 1], 80).into();
    for (what, client, path, host) in [
        ("matches by principal and path", "td/ns/ns500/sa/sa0", "/svc500/item0", "other"),
        ("matches by host and prefix", "td/ns/none/sa/x", "/svc700/x", "h700.example"),
        ("matches nothing", "td/ns/none/sa/x", "/nothing", "nobody"),
    ] {
        let certificate = PeerCertificate { uris: vec![format!("spiffe://{client}").into()], ..Default::default() };
        let facts = Facts {
            peer: address,
            remote: address,
            destination: address,
            server_name: None,
            certificate: Some(&certificate),
            request: Some(RequestFacts {
                method: "POST",
                authority: host,
                path,
                path_and_query: path,
                scheme: "http",
                headers: &headers,
            }),
            metadata: &[],
        };
        let began = Instant::now();
        for _ in 0..ROUNDS {
            black_box(rbac.decide(black_box(&facts)));
        }
        println!("{what}: {:?} a decision ({})", began.elapsed() / ROUNDS, rbac.decide(&facts).allowed);
    }
}
