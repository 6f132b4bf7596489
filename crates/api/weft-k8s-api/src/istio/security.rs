//! `PeerAuthentication`, `RequestAuthentication`, `AuthorizationPolicy`.

use super::common::{Duration, PolicySelector, PolicyTargetReference};
use crate::macros::{spec, words};
use std::collections::BTreeMap;

spec! {
    /// Mutual TLS that workloads ask of their callers.
    pub struct PeerAuthentication {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Mode for all ports.
        mtls: Option<MutualTls>,
        /// Modes by workload port; needs a selector.
        port_level_mtls: BTreeMap<u32, MutualTls>,
    }

    /// Mutual TLS.
    pub struct MutualTls {
        /// Mode.
        mode: PeerAuthenticationMode,
    }

    /// How request tokens are checked.
    pub struct RequestAuthentication {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Older, single form of `targetRefs`.
        target_ref: Option<PolicyTargetReference>,
        /// Objects it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// Issuers; a token must be valid for one of them.
        jwt_rules: Vec<JwtRule>,
    }

    /// An issuer.
    pub struct JwtRule {
        /// `iss` of its tokens.
        issuer: String,
        /// Accepted `aud`. Default: any.
        audiences: Vec<String>,
        /// Where its keys are served.
        jwks_uri: String,
        /// Its keys.
        jwks: String,
        /// Headers that carry the token. Default: `Authorization: Bearer`.
        from_headers: Vec<JwtHeader>,
        /// Query parameters that carry the token.
        from_params: Vec<String>,
        /// Cookies that carry the token.
        from_cookies: Vec<String>,
        /// Header that gets the payload, base64url.
        output_payload_to_header: String,
        /// Send the token on. Default: false.
        forward_original_token: bool,
        /// Headers that get single claims.
        output_claim_to_headers: Vec<ClaimToHeader>,
        /// Time to fetch the keys. Default: 5s.
        timeout: Option<Duration>,
        /// Claims whose string is a list separated by blanks, besides `scope` and `permission`.
        space_delimited_claims: Vec<String>,
    }

    /// A header that carries a token.
    pub struct JwtHeader {
        /// Name.
        name: String,
        /// What comes before the token, such as `Bearer `.
        prefix: String,
    }

    /// A header for a claim.
    pub struct ClaimToHeader {
        /// Header.
        header: String,
        /// Claim.
        claim: String,
    }

    /// Who may do what.
    pub struct AuthorizationPolicy {
        /// Which workloads. Default: all of the namespace (in the root namespace: of the mesh).
        selector: Option<PolicySelector>,
        /// Older, single form of `targetRefs`.
        target_ref: Option<PolicyTargetReference>,
        /// Objects it is bound to instead.
        target_refs: Vec<PolicyTargetReference>,
        /// Rules, any of which suffices. Empty: nothing matches.
        rules: Vec<Rule>,
        /// What a match means. Default: ALLOW.
        action: AuthorizationAction,
        /// For CUSTOM: who decides.
        provider: Option<ExtensionProviderRef>,
    }

    /// A decider, by its name in mesh config's `extensionProviders`.
    pub struct ExtensionProviderRef {
        /// Name.
        name: String,
    }

    /// A rule: someone does something under conditions. An empty part matches everything.
    pub struct Rule {
        /// Callers, any of which suffices.
        from: Vec<RuleFrom>,
        /// Operations, any of which suffices.
        to: Vec<RuleTo>,
        /// Conditions, all of which must hold.
        when: Vec<Condition>,
    }

    /// Callers.
    pub struct RuleFrom {
        /// Caller.
        source: Option<Source>,
    }

    /// Operations.
    pub struct RuleTo {
        /// Operation.
        operation: Option<Operation>,
    }

    /// A caller; all fields that are set must hold.
    pub struct Source {
        /// Peer identities `<trust domain>/ns/<ns>/sa/<sa>`.
        principals: Vec<String>,
        /// None of these.
        not_principals: Vec<String>,
        /// Token identities `<iss>/<sub>`.
        request_principals: Vec<String>,
        /// None of these.
        not_request_principals: Vec<String>,
        /// Peer namespaces.
        namespaces: Vec<String>,
        /// None of these.
        not_namespaces: Vec<String>,
        /// Peer service accounts `[ns/]sa`.
        service_accounts: Vec<String>,
        /// None of these.
        not_service_accounts: Vec<String>,
        /// Peer trust domains.
        trust_domains: Vec<String>,
        /// None of these.
        not_trust_domains: Vec<String>,
        /// Addresses of the connection, single or CIDR.
        ip_blocks: Vec<String>,
        /// None of these.
        not_ip_blocks: Vec<String>,
        /// Addresses of the original client, by `X-Forwarded-For` or PROXY protocol.
        remote_ip_blocks: Vec<String>,
        /// None of these.
        not_remote_ip_blocks: Vec<String>,
    }

    /// An operation; all fields that are set must hold.
    pub struct Operation {
        /// Hosts, without regard to case.
        hosts: Vec<String>,
        /// None of these.
        not_hosts: Vec<String>,
        /// Ports.
        ports: Vec<String>,
        /// None of these.
        not_ports: Vec<String>,
        /// Methods.
        methods: Vec<String>,
        /// None of these.
        not_methods: Vec<String>,
        /// Paths; `{*}` and `{**}` templates are allowed.
        paths: Vec<String>,
        /// None of these.
        not_paths: Vec<String>,
    }

    /// A condition on an attribute.
    pub struct Condition {
        /// Attribute: `request.headers[..]`, `source.ip`, `request.auth.claims[..]` …
        key: String,
        /// Accepted values.
        values: Vec<String>,
        /// Refused values.
        not_values: Vec<String>,
    }
}

words! {
    /// Mutual TLS of inbound connections.
    pub enum PeerAuthenticationMode {
        /// As the wider scope says; at the top: PERMISSIVE.
        #[default]
        Unset,
        /// Plain text only.
        Disable,
        /// Both.
        Permissive,
        /// Mutual TLS only.
        Strict,
    }

    /// What a match means.
    pub enum AuthorizationAction {
        /// Allowed.
        #[default]
        Allow,
        /// Refused.
        Deny,
        /// Logged.
        Audit,
        /// Asked of the provider.
        Custom,
    }
}
