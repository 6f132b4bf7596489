//! The JWT filter. A key set that cannot be used is no error of the listener: tokens of its issuer are refused, and all else
//! goes on.

use super::Ctx;
use crate::{Jwks, JwtAuthn, JwtProvider, JwtRequirement, JwtRule};
use http::HeaderName;
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Difference of clocks, in seconds, unless set; Envoy's default.
const CLOCK_SKEW: u64 = 60;
/// Deepest nesting of requirements.
const MAX_DEPTH: usize = 16;

impl Ctx<'_> {
    /// The filter.
    pub(super) fn jwt_authn(&mut self, message: &proto::JwtAuthentication, path: &Path<'_>) -> Option<JwtAuthn> {
        let proto::JwtAuthentication {
            providers,
            rules,
            filter_state_rules,
            bypass_cors_preflight,
            requirement_map,
            strip_failure_response,
            // Statistics only.
            stat_prefix: _,
        } = message;
        refuse_set!(self.c.errors, path, filter_state_rules);
        let names: Vec<&str> = providers.keys().map(String::as_str).collect();
        let compiled: Vec<_> = providers
            .iter()
            .filter_map(|(name, provider)| self.jwt_provider(name, provider, &path.key("providers", name)))
            .map(Arc::new)
            .collect();
        let mut out = Vec::with_capacity(rules.len());
        for (i, rule) in rules.iter().enumerate() {
            let path = path.item("rules", i);
            let requirement = match &rule.requirement_type {
                None => None,
                Some(proto::requirement_rule::RequirementType::Requires(requires)) => {
                    self.jwt_requirement(requires, &names, &path.field("requires"), 0)
                }
                Some(proto::requirement_rule::RequirementType::RequirementName(name)) => {
                    let Some(requires) = requirement_map.get(name) else {
                        let message = format!("{name:?} is not in requirement_map");
                        self.c.errors.refuse(&path.field("requirement_name"), message);
                        continue;
                    };
                    self.jwt_requirement(requires, &names, &path.field("requirement_name"), 0)
                }
            };
            let matcher = self.c.route_matcher(rule.r#match.as_ref(), &path.field("match"));
            out.push(JwtRule { matcher, requirement });
        }
        // Every provider that is refused refuses the filter, so places are those of the names.
        Some(JwtAuthn {
            providers: compiled,
            rules: out,
            bypass_cors_preflight: *bypass_cors_preflight,
            strip_failure_response: *strip_failure_response,
        })
    }

    fn jwt_provider(&mut self, name: &str, message: &proto::JwtProvider, path: &Path<'_>) -> Option<JwtProvider> {
        let proto::JwtProvider {
            issuer,
            audiences,
            subjects,
            require_expiration,
            max_lifetime,
            forward,
            from_headers,
            from_params,
            from_cookies,
            forward_payload_header,
            pad_forward_payload_header,
            payload_in_metadata,
            normalize_payload_in_metadata,
            header_in_metadata,
            failed_status_in_metadata,
            clock_skew_seconds,
            // Tokens are checked each time: keys and clocks change.
            jwt_cache_config: _,
            claim_to_headers,
            clear_route_cache,
            jwks_source_specifier,
        } = message;
        let mut headers = Vec::with_capacity(from_headers.len());
        for (i, header) in from_headers.iter().enumerate() {
            let path = path.item("from_headers", i);
            let key = self.header_name(&header.name, &path.field("name"))?;
            headers.push((key, self.c.pool.text(&header.value_prefix)));
        }
        let mut params: Vec<Strng> = from_params.iter().map(|p| self.c.pool.text(p)).collect();
        let cookies: Vec<Strng> = from_cookies.iter().map(|p| self.c.pool.text(p)).collect();
        if headers.is_empty() && params.is_empty() && cookies.is_empty() {
            headers.push((http::header::AUTHORIZATION, "Bearer ".into()));
            params.push("access_token".into());
        }
        let mut claim_headers = Vec::with_capacity(claim_to_headers.len());
        for (i, claim) in claim_to_headers.iter().enumerate() {
            let path = path.item("claim_to_headers", i);
            let key = self.header_name(&claim.header_name, &path.field("header_name"))?;
            let parts: Vec<&str> = match claim.claim_path.as_slice() {
                [] => claim.claim_name.split('.').collect(),
                exact => exact.iter().map(|part| part.key.as_str()).collect(),
            };
            claim_headers.push((key, parts.into_iter().map(|part| self.c.pool.text(part)).collect()));
        }
        let payload_header = match forward_payload_header.as_str() {
            "" => None,
            name => Some((self.header_name(name, &path.field("forward_payload_header"))?, *pad_forward_payload_header)),
        };
        let subjects = match subjects {
            Some(subjects) => Some(self.c.string_matcher(subjects, &path.field("subjects"))?),
            None => None,
        };
        let max_lifetime = self.c.duration(max_lifetime.as_ref(), &path.field("max_lifetime"));
        let space_delimited = normalize_payload_in_metadata.as_ref().map(|n| n.space_delimited_claims.as_slice());
        let jwks = self.jwks(jwks_source_specifier.as_ref(), path);
        let mut key = |text: &str| (!text.is_empty()).then(|| self.c.pool.text(text));
        Some(JwtProvider {
            name: name.into(),
            issuer: key(issuer),
            audiences: audiences.iter().map(|a| Strng::from(audience(a))).collect(),
            subjects,
            require_expiration: *require_expiration,
            max_lifetime,
            forward: *forward,
            headers,
            params,
            cookies,
            payload_header,
            claim_headers,
            payload_key: key(payload_in_metadata),
            header_key: key(header_in_metadata),
            failure_key: key(failed_status_in_metadata),
            space_delimited: space_delimited.unwrap_or_default().iter().map(|c| Strng::from(c.as_str())).collect(),
            clock_skew: if *clock_skew_seconds == 0 { CLOCK_SKEW } else { u64::from(*clock_skew_seconds) },
            reroute: *clear_route_cache,
            jwks,
        })
    }

    fn header_name(&mut self, name: &str, path: &Path<'_>) -> Option<HeaderName> {
        match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
            Ok(name) => Some(name),
            Err(_) => {
                self.c.errors.refuse(path, format!("{name:?} is not a header name"));
                None
            }
        }
    }

    /// The keys. Without them the provider stays, and says no to every token.
    fn jwks(
        &mut self,
        source: Option<&proto::jwt_provider::JwksSourceSpecifier>,
        path: &Path<'_>,
    ) -> Result<Jwks, String> {
        use proto::jwt_provider::JwksSourceSpecifier as Source;
        let (path, text) = match source {
            Some(Source::LocalJwks(source)) => {
                let read = super::tls::read_source(Some(source));
                let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_string()));
                (path.field("local_jwks"), text)
            }
            Some(Source::RemoteJwks(_)) => {
                let why = "is not fetched by weft-proxy; the control plane sends keys inline (local_jwks)";
                (path.field("remote_jwks"), Err(why.to_string()))
            }
            None => (path.field("local_jwks"), Err("must be set".to_string())),
        };
        let parsed = text.and_then(|text| Jwks::parse(&text).map_err(|error| error.to_string()));
        if let Err(why) = &parsed {
            self.c.errors.degrade(&path, format!("{why}; tokens of this issuer are refused"));
        }
        parsed
    }

    fn jwt_requirement(
        &mut self,
        message: &proto::JwtRequirement,
        names: &[&str],
        path: &Path<'_>,
        depth: usize,
    ) -> Option<JwtRequirement> {
        use proto::jwt_requirement::RequiresType as Requires;
        let all = || (0..names.len()).collect();
        let Some(requires) = message.requires_type.as_ref().filter(|_| depth <= MAX_DEPTH) else {
            self.c.errors.refuse(path, "must name a provider, a list, allow_missing or allow_missing_or_failed");
            return None;
        };
        match requires {
            Requires::ProviderName(name) => self.place(name, names, path).map(JwtRequirement::Provider),
            Requires::ProviderAndAudiences(both) => {
                let place = self.place(&both.provider_name, names, path)?;
                let audiences = both.audiences.iter().map(|a| Strng::from(audience(a))).collect();
                Some(JwtRequirement::Audiences(place, audiences))
            }
            Requires::RequiresAny(list) => self.any_of(&list.requirements, names, &path.field("requires_any"), depth),
            Requires::RequiresAll(list) => {
                let path = path.field("requires_all");
                let each = list.requirements.iter().enumerate();
                let each = each.map(|(i, r)| self.jwt_requirement(r, names, &path.item("requirements", i), depth + 1));
                each.collect::<Option<Vec<_>>>().map(JwtRequirement::All)
            }
            Requires::AllowMissing(()) => Some(JwtRequirement::AllowMissing(all())),
            Requires::AllowMissingOrFailed(()) => Some(JwtRequirement::AllowFailed(all())),
            Requires::ExtractOnlyWithoutValidation(_) => {
                self.c.errors.refuse(&path.field("extract_only_without_validation"), "is not supported by weft-proxy");
                None
            }
        }
    }

    /// One of a list. What may be missing is a token of those issuers that the list names; of several such entries the
    /// most generous counts.
    fn any_of(
        &mut self,
        list: &[proto::JwtRequirement],
        names: &[&str],
        path: &Path<'_>,
        depth: usize,
    ) -> Option<JwtRequirement> {
        use proto::jwt_requirement::RequiresType as Requires;
        let mut named = Vec::new();
        let mut missing = None;
        let mut any = Vec::with_capacity(list.len());
        for (i, requirement) in list.iter().enumerate() {
            let path = path.item("requirements", i);
            match &requirement.requires_type {
                Some(Requires::AllowMissing(())) => missing = missing.or(Some(false)),
                Some(Requires::AllowMissingOrFailed(())) => missing = Some(true),
                _ => {
                    let requirement = self.jwt_requirement(requirement, names, &path, depth + 1)?;
                    if let JwtRequirement::Provider(place) | JwtRequirement::Audiences(place, _) = &requirement {
                        named.push(*place);
                    }
                    any.push(requirement);
                }
            }
        }
        if named.is_empty() {
            named = (0..names.len()).collect();
        }
        match missing {
            Some(false) => any.push(JwtRequirement::AllowMissing(named)),
            Some(true) => any.push(JwtRequirement::AllowFailed(named)),
            None => {}
        }
        Some(JwtRequirement::Any(any))
    }

    fn place(&mut self, name: &str, names: &[&str], path: &Path<'_>) -> Option<usize> {
        let place = names.iter().position(|known| *known == name);
        if place.is_none() {
            self.c.errors.refuse(&path.field("provider_name"), format!("there is no provider {name:?}"));
        }
        place
    }
}

/// An audience as it is compared: Envoy takes `https://x/`, `http://x` and `x` for one.
pub fn audience(text: &str) -> &str {
    let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}
