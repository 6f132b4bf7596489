//! Tokens by table: where they are, what is wrong with them, what becomes known of them; and Wycheproof's vectors, where
//! they are at hand.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use token::Signed;
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use weft_proxy_config::compile::{Ctx, Shared};
use weft_proxy_config::{HttpFilter, Jwks};
use weft_tls::JwsSigner;

const NOW: u64 = 1_000_000;
static KEY: LazyLock<JwsSigner> = LazyLock::new(|| JwsSigner::generate().unwrap());
static OTHER_KEY: LazyLock<JwsSigner> = LazyLock::new(|| JwsSigner::generate().unwrap());

fn jwk(key: &JwsSigner, kid: &str) -> Value {
    let (x, y) = key.point();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": encode(x), "y": encode(y)})
}

fn jwks() -> String {
    json!({"keys": [jwk(&KEY, "k1")]}).to_string()
}

fn signed(key: &JwsSigner, header: &Value, payload: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload));
    let signature = key.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn token(claims: &Value) -> String {
    signed(&KEY, &json!({"alg": "ES256", "kid": "k1"}), &claims.to_string())
}

fn good() -> Value {
    json!({"iss": "me", "sub": "you", "exp": NOW + 100})
}

/// Claims with changes.
fn with(changes: Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// The filter, compiled from what a control plane sends.
fn filter(config: Value) -> Arc<JwtAuthn> {
    let mut config = config;
    config["@type"] = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication".into();
    let manager = json!({
        "statPrefix": "x",
        "routeConfig": {"name": "r"},
        "httpFilters": [
            {"name": "jwt", "typedConfig": config},
            {"name": "router", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},
        ],
    });
    let message: HttpConnectionManager = weft_proto::json::from_yaml(&manager.to_string()).unwrap();
    let (mut pool, mut shared) = (weft_route::Pool::default(), Shared::default());
    let secrets = Default::default();
    let mut ctx = Ctx::new("test", &mut pool, &mut shared, &secrets);
    let manager = ctx.http_connection_manager(&message, &weft_route::error::Path::ROOT);
    let errors: Vec<String> = ctx.c.errors.into_list().iter().map(ToString::to_string).collect();
    let HttpFilter::Jwt(filter) = manager.unwrap_or_else(|| panic!("{errors:?}")).filters.remove(0) else {
        panic!("{errors:?}")
    };
    filter
}

/// One issuer, as the control plane sends it: a token may be missing.
fn one(provider: Value) -> Arc<JwtAuthn> {
    let mut own = json!({"issuer": "me", "payloadInMetadata": "payload", "localJwks": {"inlineString": jwks()}});
    for (name, value) in provider.as_object().unwrap() {
        own[name] = value.clone();
    }
    filter(json!({
        "providers": {"p": own},
        "bypassCorsPreflight": true,
        "rules": [{"match": {"prefix": "/"}, "requires": {"requiresAny": {"requirements": [{"providerName": "p"}, {"allowMissing": {}}]}}}],
    }))
}

struct Ask {
    method: Method,
    query: Option<String>,
    headers: HeaderMap,
}

impl Ask {
    fn new() -> Self {
        Self { method: Method::GET, query: None, headers: HeaderMap::new() }
    }

    fn bearer(token: &str) -> Self {
        Self::new().header("authorization", &format!("Bearer {token}"))
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    fn query(self, query: impl Into<String>) -> Self {
        Self { query: Some(query.into()), ..self }
    }

    fn check(&self, filter: &JwtAuthn) -> Result<Passed, Box<LocalReply>> {
        let view = RequestView {
            method: &self.method,
            authority: "httpbin.foo:8000",
            path: "/get",
            query: self.query.as_deref(),
            scheme: "http",
            headers: &self.headers,
            metadata: &[],
        };
        check(filter, &view, NOW)
    }

    /// Status and text of the answer.
    fn refused(&self, filter: &JwtAuthn) -> (u16, String) {
        let reply = self.check(filter).unwrap_err();
        (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
    }
}

#[test]
fn what_is_wrong_with_a_token_is_said_as_envoy_says_it() {
    let f = one(json!({"audiences": ["https://aud/"]}));
    let meant = |claims: Value| {
        let mut claims = claims;
        claims["aud"] = json!(["x", "aud"]);
        claims
    };
    let es = json!({"alg": "ES256", "kid": "k1"});
    let fine = token(&meant(good()));
    let (front, signature) = fine.rsplit_once('.').unwrap();
    let (header, payload) = front.split_once('.').unwrap();
    let raw = |payload: &str| signed(&KEY, &es, payload);
    for (token, status, text) in [
        ("deadbeef".to_string(), 401, JwtFailure::Format),
        ("a.b.c.d".into(), 401, JwtFailure::Format),
        (format!("a.{payload}.{signature}"), 401, JwtFailure::HeaderBase64),
        (format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("[]")), 401, JwtFailure::HeaderJson),
        (format!("{header}.a.{signature}"), 401, JwtFailure::PayloadBase64),
        (format!("{front}.a"), 401, JwtFailure::SignatureBase64),
        (format!("{front}."), 401, JwtFailure::Verification),
        (raw("1"), 401, JwtFailure::PayloadJson),
        (raw(r#"{"iss": "me", "iss": "you"}"#), 401, JwtFailure::PayloadJson),
        (raw(r#"{"iss": 1}"#), 401, JwtFailure::Issuer),
        (raw(r#"{"iss": "me", "sub": []}"#), 401, JwtFailure::Subject),
        (raw(r#"{"iss": "me", "aud": [1]}"#), 401, JwtFailure::Audience),
        (raw(r#"{"iss": "me", "exp": "1"}"#), 401, JwtFailure::ExpirationNumber),
        (raw(r#"{"iss": "me", "exp": -1}"#), 401, JwtFailure::ExpirationNumber),
        (raw(r#"{"iss": "me", "nbf": null}"#), 401, JwtFailure::NotBeforeNumber),
        (signed(&KEY, &json!({"kid": "k1"}), "{}"), 401, JwtFailure::NoAlgorithm),
        (signed(&KEY, &json!({"alg": "none"}), "{}"), 401, JwtFailure::Algorithm),
        (signed(&KEY, &json!({"alg": "HS256"}), "{}"), 401, JwtFailure::Algorithm),
        (signed(&KEY, &json!({"alg": "ES256", "kid": 1}), "{}"), 401, JwtFailure::Kid),
        (signed(&KEY, &json!({"alg": "ES256", "crit": ["exp"]}), "{}"), 401, JwtFailure::Critical),
        (token(&meant(with(json!({"iss": "other"})))), 401, JwtFailure::UnknownIssuer),
        (token(&meant(with(json!({"exp": NOW - 61})))), 401, JwtFailure::Expired),
        (token(&meant(with(json!({"exp": 0})))), 401, JwtFailure::Expired),
        (token(&meant(with(json!({"nbf": NOW + 61})))), 401, JwtFailure::NotYetValid),
        (token(&with(json!({"aud": "other"}))), 403, JwtFailure::AudienceNotAllowed),
        (token(&good()), 403, JwtFailure::AudienceNotAllowed),
        (signed(&OTHER_KEY, &es, &meant(good()).to_string()), 401, JwtFailure::Verification),
        (signed(&KEY, &json!({"alg": "ES256", "kid": "k2"}), &meant(good()).to_string()), 401, JwtFailure::KidMismatch),
        (signed(&KEY, &json!({"alg": "RS256", "kid": "k1"}), &meant(good()).to_string()), 401, JwtFailure::KidMismatch),
    ] {
        let ask = Ask::new().header("authorization", &format!("Bearer {token}"));
        assert_eq!(ask.refused(&f), (status, text.text().to_string()), "{token}");
    }
    for claims in [good(), with(json!({"exp": NOW - 60})), with(json!({"nbf": NOW + 60}))] {
        assert!(Ask::bearer(&token(&meant(claims))).check(&f).is_ok());
    }
    assert_eq!(Ask::new().check(&f).unwrap(), Passed::default(), "no token is no error here");
    let reply = Ask::bearer("deadbeef").check(&f).unwrap_err();
    assert_eq!(
        reply.headers["www-authenticate"],
        "Bearer realm=\"http://httpbin.foo:8000/get\", error=\"invalid_token\""
    );
    assert!(
        reply.details.starts_with("jwt_authn_access_denied{Jwt_is_not_in_the_form_of") && !reply.details.contains(' ')
    );
}

#[test]
fn a_token_may_be_required() {
    let f = filter(json!({
        "providers": {"p": {"issuer": "me", "localJwks": {"inlineString": jwks()}}},
        "rules": [
            {"match": {"path": "/free"}},
            {"match": {"prefix": "/"}, "requires": {"providerName": "p"}},
        ],
    }));
    let reply = Ask::new().check(&f).unwrap_err();
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (401, &b"Jwt is missing"[..]));
    assert_eq!(reply.headers["www-authenticate"], "Bearer realm=\"http://httpbin.foo:8000/get\"");
    assert!(Ask::bearer(&token(&good())).check(&f).is_ok());
}

#[test]
fn tokens_are_where_the_issuer_has_them() {
    let fine = token(&good());
    let in_header = one(json!({"fromHeaders": [{"name": "x-token", "valuePrefix": "jwt:"}]}));
    let in_param = one(json!({"fromParams": ["t"]}));
    let in_cookie = one(json!({"fromCookies": ["c"]}));
    let usual = one(json!({}));
    let found = |f: &JwtAuthn, ask: Ask| !ask.check(f).unwrap().metadata.is_empty();
    assert!(found(&usual, Ask::bearer(&fine)));
    assert!(found(&usual, Ask::new().query(format!("a=b&access_token={fine}"))));
    assert!(!found(&usual, Ask::new().header("authorization", &format!("Basic {fine}"))));
    assert!(found(&in_header, Ask::new().header("x-token", &format!("jwt:{fine}, more"))));
    assert!(!found(&in_header, Ask::bearer(&fine)), "the usual places count only when no other is named");
    assert!(found(&in_param, Ask::new().query(format!("t={fine}"))));
    assert!(
        found(&in_param, Ask::new().query(format!("%74={}", fine.replace('.', "%2E")))),
        "as the endpoint reads it"
    );
    assert!(found(&in_cookie, Ask::new().header("cookie", &format!("a=b; c={fine}"))));
    assert!(found(&in_cookie, Ask::new().header("cookie", "a=b").header("cookie", &format!("c=\"{fine}\""))));
}

#[test]
fn class_repeated_headers_a_cookie_that_is_no_text_hides_no_token() {
    let (fine, f) = (token(&good()), one(json!({"fromCookies": ["s"]})));
    let bad = token(&with(json!({"exp": 1})));
    let cookie = |line: &[u8]| {
        let mut ask = Ask::new();
        ask.headers.append(http::header::COOKIE, HeaderValue::from_bytes(line).unwrap());
        ask.check(&f).err().map(|reply| reply.status.as_u16())
    };
    assert_eq!(cookie(format!("s={fine}").as_bytes()), None);
    assert_eq!(cookie(&[b"a=\xff; s=", fine.as_bytes()].concat()), None);
    for forged in [&[b"a=\xff; s=", bad.as_bytes()].concat()[..], b"s=\xff", &[b"\xff;s=", bad.as_bytes()].concat()] {
        assert_eq!(cookie(forged), Some(401));
    }
}

/// As our proxies are told: whatever there is must be valid, wherever it is.
#[test]
fn class_repeated_headers_every_token_of_several_issuers_must_be_valid() {
    let provider = |issuer: &str, header: &str, audience: &str| {
        json!({"issuer": issuer, "audiences": [audience], "fromHeaders": [{"name": header}],
               "payloadInMetadata": "payload", "localJwks": {"inlineString": jwks()}})
    };
    let f = filter(json!({
        "providers": {
            "a": provider("a", "x-a", "one"), "b": provider("b", "x-b", "one"), "c": provider("b", "x-b", "two"),
        },
        "rules": [{"match": {"prefix": "/"}, "requires": {"allowMissing": {}}}],
    }));
    let of = |issuer: &str, audience: &str| token(&with(json!({"iss": issuer, "aud": audience})));
    let forged =
        signed(&OTHER_KEY, &json!({"alg": "ES256", "kid": "k1"}), &with(json!({"iss": "b", "aud": "one"})).to_string());
    for (a, b, want) in [
        (None, None, None),
        (Some(of("a", "one")), None, None),
        (Some(of("a", "one")), Some(of("b", "one")), None),
        (Some(of("a", "one")), Some(of("b", "two")), None),
        (Some(of("a", "one")), Some(of("b", "three")), Some("Audiences in Jwt are not allowed")),
        (Some(of("a", "one")), Some(forged), Some("Jwt verification fails")),
        (Some(of("a", "one")), Some(of("a", "one")), Some("Jwt issuer is not configured")),
        (
            Some(of("a", "one")),
            Some("x".into()),
            Some("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        ),
    ] {
        let with =
            |ask: Ask, name, token: &Option<String>| token.iter().fold(ask, |ask, token| ask.header(name, token));
        let ask = with(with(Ask::new(), "x-a", &a), "x-b", &b);
        let said = ask.check(&f).err().map(|reply| String::from_utf8(reply.body.to_vec()).unwrap());
        assert_eq!(said.as_deref(), want, "{a:?} {b:?}");
    }
}

#[test]
fn class_repeated_headers_every_token_must_be_valid() {
    let (fine, f) = (token(&good()), one(json!({})));
    let bad = token(&with(json!({"exp": 1})));
    for ask in [
        Ask::bearer(&fine).header("authorization", &format!("Bearer {bad}")),
        Ask::bearer(&bad).header("authorization", &format!("Bearer {fine}")),
        Ask::bearer(&fine).query(format!("access_token={bad}")),
        Ask::new().query(format!("access_token={fine}&access_token={bad}")),
    ] {
        assert_eq!(ask.refused(&f), (401, "Jwt is expired".into()));
    }
    let many = (0..40).fold(Ask::new(), |ask, i| {
        ask.header("authorization", &format!("Bearer {}", token(&with(json!({"jti": i.to_string()})))))
    });
    assert_eq!(many.check(&f).unwrap_err().status, 401, "more tokens than are looked at");
}

#[test]
fn several_issuers_and_rotated_keys() {
    let keys = |list: &[Value]| json!({"inlineString": json!({"keys": list}).to_string()});
    let f = filter(json!({
        "providers": {
            "a": {"issuer": "a", "payloadInMetadata": "payload", "localJwks": keys(&[jwk(&KEY, "k1"), jwk(&OTHER_KEY, "k2")])},
            "b": {"issuer": "b", "payloadInMetadata": "payload", "localJwks": keys(&[jwk(&OTHER_KEY, "k2")])},
        },
        // As Istio writes it: one of them, or nothing that is wrong for any of them.
        "rules": [{"match": {"prefix": "/"}, "requires": {"requiresAny": {"requirements": [
            {"providerName": "a"},
            {"providerName": "b"},
            {"requiresAll": {"requirements": [
                {"requiresAny": {"requirements": [{"providerName": "a"}, {"allowMissing": {}}]}},
                {"requiresAny": {"requirements": [{"providerName": "b"}, {"allowMissing": {}}]}},
            ]}},
        ]}}}],
    }));
    let made = |key: &JwsSigner, kid: &str, iss: &str| {
        Ask::bearer(&signed(key, &json!({"alg": "ES256", "kid": kid}), &json!({"iss": iss, "exp": NOW}).to_string()))
    };
    for (ask, want) in [
        (made(&KEY, "k1", "a"), None),
        (made(&OTHER_KEY, "k2", "a"), None),
        (made(&OTHER_KEY, "k2", "b"), None),
        (made(&KEY, "k1", "b"), Some("Jwks doesn't have key to match kid or alg from Jwt")),
        (made(&OTHER_KEY, "k1", "a"), Some("Jwt verification fails")),
        (made(&KEY, "k1", "c"), Some("Jwt issuer is not configured")),
        (Ask::new(), None),
    ] {
        let said = ask.check(&f).err().map(|reply| String::from_utf8(reply.body.to_vec()).unwrap());
        assert_eq!(said.as_deref(), want);
    }
}

#[test]
fn what_becomes_of_a_valid_token() {
    let claims = with(json!({"scope": "a  b", "n": {"deep": {"er": 7}}, "list": ["x"], "yes": true, "name": "José"}));
    let f = one(json!({
        "normalizePayloadInMetadata": {"spaceDelimitedClaims": ["scope"]},
        "forwardPayloadHeader": "x-payload",
        "padForwardPayloadHeader": true,
        "clearRouteCache": true,
        "claimToHeaders": [
            {"headerName": "x-sub", "claimName": "sub"},
            {"headerName": "x-deep", "claimName": "n.deep.er"},
            {"headerName": "x-list", "claimName": "list"},
            {"headerName": "x-yes", "claimName": "yes"},
            {"headerName": "x-name", "claimName": "name"},
            {"headerName": "x-none", "claimName": "nothing"},
        ],
    }));
    let text = token(&claims);
    // Forged by the client.
    let passed = Ask::bearer(&text).header("x-sub", "root").header("x-none", "root").check(&f).unwrap();
    assert!(passed.reroute);
    let mut removed: Vec<&str> = passed.remove.iter().map(HeaderName::as_str).collect();
    removed.sort_unstable();
    assert_eq!(removed, ["authorization", "x-none", "x-sub"]);
    let shown = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
    let set: Vec<(&str, String)> = passed.set.iter().map(|(n, v)| (n.as_str(), shown(v))).collect();
    assert!(set[0].0 == "x-payload" && set[0].1.len().is_multiple_of(4));
    let claims = [("x-sub", "you"), ("x-deep", "7"), ("x-list", "WyJ4Il0="), ("x-yes", "true"), ("x-name", "José")];
    assert_eq!(&set[1..], claims.map(|(name, value)| (name, value.to_string())));
    let payload = &passed.metadata[0].1;
    let words = ["a", "b"].map(|w| MetadataValue::String(w.into())).to_vec();
    assert_eq!(payload.field("scope"), Some(&MetadataValue::List(words)));
    assert_eq!(payload.field("n").and_then(|n| n.field("deep")?.field("er")), Some(&MetadataValue::Number(7.0)));

    let kept = one(json!({"forward": true}));
    assert!(Ask::bearer(&text).check(&kept).unwrap().remove.is_empty());
    let dropped = Ask::new().query(format!("a=b&access_token={text}")).check(&f).unwrap();
    assert_eq!(dropped.drop_params, [Strng::from("access_token")]);
    assert_eq!(without_params("a=b&%61ccess_token=x&c", &dropped.drop_params).as_deref(), Some("a=b&c"));
    assert_eq!(without_params("access_token=x", &dropped.drop_params), None);
    let forged = Ask::new().header("x-payload", "forged").check(&f).unwrap();
    assert_eq!(forged.remove, [HeaderName::from_static("x-payload")], "also without a token");
}

#[test]
fn preflights_pass_and_failures_can_be_allowed() {
    let f = one(json!({}));
    let mut ask = Ask::bearer("deadbeef").header("origin", "https://x").header("access-control-request-method", "PUT");
    assert!(ask.check(&f).is_err());
    ask.method = Method::OPTIONS;
    assert!(ask.check(&f).is_ok());
    let lenient = filter(json!({
        "providers": {"p": {"issuer": "me", "failedStatusInMetadata": "failed", "localJwks": {"inlineString": jwks()}}},
        "rules": [{"match": {"prefix": "/"}, "requires": {"allowMissingOrFailed": {}}}],
    }));
    let passed = Ask::bearer("deadbeef").check(&lenient).unwrap();
    assert!(passed.metadata[0].1.field("message").is_some(), "{passed:?}");
}

#[test]
fn class_jwt_missing_or_failed_key_set_denies() {
    for source in [
        json!({"inlineString": ""}),
        json!({"inlineString": "{\"keys\": []}"}),
        json!({"inlineString": "{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\", \"alg\": \"HS256\"}]}"}),
        json!({"inlineString": format!("{{\"keys\": [{}]}}", " ".repeat(10 << 20))}),
        json!({"filename": "/nonexistent"}),
    ] {
        let f = one(json!({"localJwks": source}));
        let want = (401, "Jwks doesn't have any valid public key".to_string());
        assert_eq!(Ask::bearer(&token(&good())).refused(&f), want);
        assert!(Ask::new().check(&f).is_ok(), "who shows no token is not concerned");
    }
}

#[test]
fn class_jwt_sizes_are_bounded() {
    let f = one(json!({}));
    let mut claims = good();
    for i in 0..10_000 {
        claims[format!("c{i}")] = json!(1);
    }
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    for token in [
        token(&claims),
        token(&with(json!({"list": vec![0; 5000]}))),
        token(&with(json!({"deep": deep}))),
        format!("{}.e30.AAAA", "A".repeat(100_000)),
    ] {
        assert_eq!(Ask::bearer(&token).refused(&f), (401, "Jwt is too large".into()));
    }
}

/// A vector's verdict where this filter is stricter on purpose: an algorithm that is not on the list, or a key that says it is
/// for another algorithm than the one that the token names.
fn stricter(set: &Value, jws: &str) -> bool {
    let header = jws.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    let algorithm = header["alg"].as_str().unwrap_or_default();
    let keys = set["keys"].as_array().cloned().unwrap_or_else(|| vec![set.clone()]);
    header.is_null() || algorithm.starts_with("HS") || keys.iter().all(|key| key["alg"] != *algorithm)
}

#[test]
fn wycheproof_vectors() {
    let root = std::env::var_os("WEFT_ORACLES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../shared/oracles")),
        PathBuf::from,
    );
    let folder = root.join("jose");
    if !folder.is_dir() {
        eprintln!("skipped: {} holds no vectors", folder.display());
        return;
    }
    let (mut accepted, mut refused, mut excused) = (0, 0, 0);
    for file in ["json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json"] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let vectors: Value = serde_json::from_str(&text).unwrap();
        for group in vectors["testGroups"].as_array().unwrap() {
            let set = if group["public"].is_null() { &group["private"] } else { &group["public"] };
            for test in group["tests"].as_array().unwrap() {
                let Some(jws) = test["jws"].as_str() else { continue };
                let keys = Jwks::parse(&set.to_string());
                let outcome = keys.map_err(|error| error.to_string()).and_then(|keys| {
                    Signed::parse(jws).and_then(|s| s.signed_by(&keys)).map_err(|f| f.text().to_string())
                });
                let what = format!("{file} {} {}: {outcome:?}", test["tcId"], test["comment"]);
                match (test["result"].as_str().unwrap(), &outcome) {
                    ("valid", Ok(())) => accepted += 1,
                    ("valid", Err(_)) => {
                        assert!(stricter(set, jws), "{what}");
                        excused += 1;
                    }
                    (_, outcome) => {
                        assert!(outcome.is_err(), "{what}");
                        refused += 1;
                    }
                }
            }
        }
    }
    println!("{accepted} accepted, {refused} refused, {excused} more refused because of their algorithm");
    assert!(accepted > 25 && refused > 300, "{accepted} {refused}");
}
