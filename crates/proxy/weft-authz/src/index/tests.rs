//! The index changes nothing: with it and without it the same is decided.

use super::*;
use crate::{PeerCertificate, RequestFacts, RuleAction, Rules, compile_http};
use std::fmt::Write as _;
use weft_proto::envoy::extensions::filters::http::rbac::v3::Rbac as Message;
use weft_route::Pool;
use weft_route::compile::Compiler;
use weft_route::error::Path;

/// A small generator of numbers (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const PATHS: [&str; 6] = ["/", "/a", "/a/b", "/api/x", "/api/y", "/other"];
const HOSTS: [&str; 4] = ["a.example", "a.example:80", "b.example.", "c.example"];
const CLIENTS: [&str; 5] =
    ["td/ns/foo/sa/a", "td/ns/foo/sa/b", "td/ns/bar/sa/a", "other/ns/x/sa/ns/foo/y", "td/ns/ns/sa/x"];

fn permission(dice: &mut Dice) -> String {
    let path = dice.pick(&PATHS);
    match dice.below(7) {
        0 => format!("{{url_path: {{path: {{exact: '{path}'}}}}}}"),
        1 => format!("{{url_path: {{path: {{prefix: '{path}'}}}}}}"),
        2 => format!(
            "{{header: {{name: ':authority', string_match: {{exact: {}, ignore_case: true}}}}}}",
            dice.pick(&HOSTS)
        ),
        3 => format!("{{not_rule: {}}}", permission(dice)),
        4 => format!("{{and_rules: {{rules: [{}, {}]}}}}", permission(dice), permission(dice)),
        5 => format!("{{or_rules: {{rules: [{}, {}]}}}}", permission(dice), permission(dice)),
        _ => "{any: true}".into(),
    }
}

fn principal(dice: &mut Dice) -> String {
    match dice.below(5) {
        0 => format!("{{authenticated: {{principal_name: {{exact: 'spiffe://{}'}}}}}}", dice.pick(&CLIENTS)),
        1 => format!(
            "{{authenticated: {{principal_name: {{safe_regex: {{regex: '.*/ns/{}/.*'}}}}}}}}",
            dice.pick(&["foo", "bar", "sa", "ns"])
        ),
        2 => format!("{{not_id: {}}}", principal(dice)),
        3 => format!("{{or_ids: {{ids: [{}, {}]}}}}", principal(dice), principal(dice)),
        _ => "{any: true}".into(),
    }
}

fn rules(dice: &mut Dice, action: &str, count: usize) -> Rules {
    let mut yaml = format!("{{rules: {{action: {action}, policies: {{");
    for i in 0..count {
        write!(yaml, "p{i:03}: {{permissions: [{}], principals: [{}]}}, ", permission(dice), principal(dice)).unwrap();
    }
    yaml.push_str("}}}");
    let message: Message = weft_proto::json::from_yaml(&yaml).unwrap();
    let mut pool = Pool::default();
    let mut compiler = Compiler::new("test", &mut pool);
    let rbac = compile_http(&message, &mut compiler, &Path::ROOT);
    assert_eq!(compiler.errors.into_list(), vec![]);
    rbac.rules.unwrap()
}

#[test]
fn decides_as_a_scan_does() {
    let mut dice = Dice(0x5eed_0f0f);
    let mut matched = 0;
    for round in 0..60 {
        let action = dice.pick(&["ALLOW", "DENY"]);
        let count = 8 + dice.below(20);
        let indexed = rules(&mut dice, action, count);
        for _ in 0..50 {
            let client = dice.pick(&CLIENTS);
            let certificate = PeerCertificate { uris: vec![format!("spiffe://{client}").into()], ..Default::default() };
            let path = dice.pick(&PATHS);
            let headers = http::HeaderMap::new();
            let facts = Facts {
                peer: "10.0.0.1:1".parse().unwrap(),
                remote: "10.0.0.1:1".parse().unwrap(),
                destination: "10.0.0.2:80".parse().unwrap(),
                server_name: None,
                certificate: (dice.below(4) > 0).then_some(&certificate),
                request: (dice.below(8) > 0).then_some(RequestFacts {
                    method: "GET",
                    authority: dice.pick(&HOSTS),
                    path,
                    path_and_query: path,
                    scheme: "http",
                    headers: &headers,
                }),
                metadata: &[],
            };
            let by_index = indexed.decide(&facts);
            let by_scan = indexed.scan(&facts);
            matched += usize::from(by_scan.1.is_some());
            assert_eq!(by_index, by_scan, "round {round}: {facts:?}");
        }
    }
    assert!(matched > 300, "only {matched} matched");
}

#[test]
fn few_are_asked_of_many() {
    let mut yaml = String::from("{rules: {policies: {");
    for i in 0..1000 {
        write!(
            yaml,
            "p{i}: {{permissions: [{{and_rules: {{rules: [{{header: {{name: ':method', string_match: {{exact: GET}}}}}}, {{url_path: {{path: {{exact: /p{i}}}}}}}]}}}}], principals: [{{any: true}}]}}, "
        )
        .unwrap();
    }
    yaml.push_str("}}}");
    let message: Message = weft_proto::json::from_yaml(&yaml).unwrap();
    let mut pool = Pool::default();
    let rbac = compile_http(&message, &mut Compiler::new("test", &mut pool), &Path::ROOT);
    let rules = rbac.rules.unwrap();
    assert_eq!(rules.action, RuleAction::Allow);
    let headers = http::HeaderMap::new();
    let address = "10.0.0.1:1".parse().unwrap();
    let facts = Facts {
        peer: address,
        remote: address,
        destination: address,
        server_name: None,
        certificate: None,
        request: Some(RequestFacts {
            method: "GET",
            authority: "x",
            path: "/p77",
            path_and_query: "/p77",
            scheme: "http",
            headers: &headers,
        }),
        metadata: &[],
    };
    assert_eq!(rules.candidates(&facts).map(|c| c.len()), Some(1));
    assert!(rules.decide(&facts).0);
}
