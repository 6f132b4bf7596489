//! RequestAuthentication to the JWT filter, as Istio writes it: tokens that are there must be valid for some issuer, and none
//! need be there. Who must show one is authorization's business.
//!
//! Keys are always inline, so that every proxy checks tokens by the keys that the control plane has. An issuer whose keys are
//! not known gets a key of nobody's, by which every token of its is refused; no key that somebody else may hold ever stands
//! in (CVE-2026-31837).

use crate::pb::{core, hcm, http_filter, route};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::istio::{self, JwtRule};
use weft_model::jwks::NO_KEYS;
use weft_model::{MeshSnapshot, Policy};
use weft_proto::envoy::extensions::filters::http::jwt_authn::v3 as jwt;

/// Name of the filter.
pub(crate) const FILTER: &str = "envoy.filters.http.jwt_authn";
/// Key of the claims in the filter's metadata.
const PAYLOAD: &str = "payload";
/// Claims that are lists of words whatever the rule says.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];
/// Beginning of the header names of VirtualServices that stand for claims.
const CLAIMS: &str = "@request.auth.claims";

/// A policy as the model holds it.
pub(crate) type AuthnPolicy = Policy<istio::RequestAuthentication>;

/// The filter that enforces `policies`; none without rules. With `reroute` claims decide about routes. With `weft` it is for a
/// proxy of ours, which reads keys more strictly than an Envoy.
pub(crate) fn http_filter_for(
    snapshot: &MeshSnapshot,
    policies: &[Arc<AuthnPolicy>],
    reroute: bool,
    weft: bool,
) -> Option<hcm::HttpFilter> {
    let mut rules: Vec<&JwtRule> = policies.iter().flat_map(|p| &p.spec.jwt_rules).collect();
    if rules.is_empty() {
        return None;
    }
    // By issuer, so that the age of a policy changes nothing.
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    let named: Vec<(String, &JwtRule)> =
        rules.into_iter().enumerate().map(|(i, rule)| (format!("origins-{i}"), rule)).collect();
    let providers: BTreeMap<String, jwt::JwtProvider> =
        named.iter().map(|(name, rule)| (name.clone(), provider(rule, reroute, keys(snapshot, rule, weft)))).collect();
    let config = jwt::JwtAuthentication {
        rules: vec![jwt::RequirementRule {
            r#match: Some(route::RouteMatch {
                path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
                ..Default::default()
            }),
            requirement_type: Some(jwt::requirement_rule::RequirementType::Requires(requirement(&named, weft))),
        }],
        providers,
        bypass_cors_preflight: true,
        ..Default::default()
    };
    Some(http_filter(FILTER, &config))
}

/// True when a VirtualService of the mesh routes by claims.
pub(crate) fn claims_route(snapshot: &MeshSnapshot) -> bool {
    let is_claim = |name: &String| name.get(..CLAIMS.len()).is_some_and(|head| head.eq_ignore_ascii_case(CLAIMS));
    let matches = snapshot.virtual_services.iter().flat_map(|vs| vs.spec.http.iter().flat_map(|http| &http.matches));
    matches.into_iter().any(|m| m.headers.keys().chain(m.without_headers.keys()).any(is_claim))
}

/// Any issuer's token; or, where issuers share a place, whatever there is must be valid for each that it claims to be from. That is
/// Istio's form. An Envoy is content with the first issuer whose token is valid, and passes a forged one in another place on; ours is
/// asked to judge all that there are.
fn requirement(named: &[(String, &JwtRule)], weft: bool) -> jwt::JwtRequirement {
    use jwt::jwt_requirement::RequiresType as Requires;
    let requires = |kind| jwt::JwtRequirement { requires_type: Some(kind) };
    if weft {
        return requires(Requires::AllowMissing(()));
    }
    let any = |requirements| requires(Requires::RequiresAny(jwt::JwtRequirementOrList { requirements }));
    let of = |name: &String| requires(Requires::ProviderName(name.clone()));
    let or_none = |name: &String| any(vec![of(name), requires(Requires::AllowMissing(()))]);
    if let [(only, _)] = named {
        return or_none(only);
    }
    let mut outer: Vec<_> = named.iter().map(|(name, _)| of(name)).collect();
    let requirements = named.iter().map(|(name, _)| or_none(name)).collect();
    outer.push(requires(Requires::RequiresAll(jwt::JwtRequirementAndList { requirements })));
    any(outer)
}

fn provider(rule: &JwtRule, reroute: bool, keys: String) -> jwt::JwtProvider {
    let mut claims: Vec<String> = rule.space_delimited_claims.clone();
    claims.extend(SPACE_DELIMITED.map(String::from));
    claims.sort();
    claims.dedup();
    let headers = rule.from_headers.iter();
    jwt::JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        from_headers: headers
            .map(|h| jwt::JwtHeader { name: h.name.clone(), value_prefix: h.prefix.clone() })
            .collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward_payload_header: rule.output_payload_to_header.clone(),
        payload_in_metadata: PAYLOAD.into(),
        normalize_payload_in_metadata: Some(jwt::jwt_provider::NormalizePayload { space_delimited_claims: claims }),
        claim_to_headers: rule
            .output_claim_to_headers
            .iter()
            .map(|c| jwt::JwtClaimToHeader {
                header_name: c.header.clone(),
                claim_name: c.claim.clone(),
                claim_path: Vec::new(),
            })
            .collect(),
        clear_route_cache: reroute,
        jwks_source_specifier: Some(jwt::jwt_provider::JwksSourceSpecifier::LocalJwks(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(keys)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn keys(snapshot: &MeshSnapshot, rule: &JwtRule, weft: bool) -> String {
    // An Envoy refuses the whole listener for a set without a key that it can use, and goes on with the old one.
    snapshot.keys_of(rule, weft).map_or_else(|| NO_KEYS.into(), |keys| keys.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::jwks;

    #[test]
    fn nobodys_keys_are_keys() {
        assert!(jwks::only_usable(NO_KEYS).is_ok() && jwks::for_envoy(NO_KEYS).is_ok());
    }

    #[test]
    fn each_proxy_gets_the_keys_that_it_reads() {
        let short = format!(r#"{{"keys":[{{"kty":"RSA","kid":"short","n":"{}8=","e":"AQAB"}}]}}"#, "z".repeat(170));
        let of = |jwks: &str, weft| {
            keys(&MeshSnapshot::default(), &JwtRule { jwks: jwks.into(), ..JwtRule::default() }, weft)
        };
        let envoy = of(&short, false);
        assert!(envoy.contains("short") && !envoy.contains('='), "{envoy}");
        assert_eq!(of(&short, true), NO_KEYS);
        assert_eq!(of(r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, false), NO_KEYS);
    }
}
