//! RBAC filters → [`Rbac`]. A condition that this proxy cannot evaluate becomes [`Leaf::Unsupported`], which fails closed,
//! and is reported; the rest of the policy counts on.

use crate::{Condition, HeaderTest, HeaderValueTest, Leaf, MetadataMatcher, Rbac, RuleAction, RulePolicy, Rules};
use ipnet::IpNet;
use weft_core::Strng;
use weft_proto::envoy::config::core::v3::{CidrRange, TypedExtensionConfig};
use weft_proto::envoy::config::rbac::v3 as proto;
use weft_proto::envoy::config::route::v3::HeaderMatcher;
use weft_proto::envoy::extensions::filters::http::rbac::v3 as http_filter;
use weft_proto::envoy::extensions::filters::network::rbac::v3 as network_filter;
use weft_proto::envoy::r#type::matcher::v3 as matcher;
use weft_route::compile::Compiler;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Deepest nesting of and/or/not.
const MAX_DEPTH: usize = 32;
/// Filter state that holds the peer's identity.
pub const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

/// Compiles the HTTP filter. Errors go to `compiler`; refusals left there concern the filter as a whole.
pub fn compile_http(message: &http_filter::Rbac, compiler: &mut Compiler<'_>, path: &Path<'_>) -> Rbac {
    let http_filter::Rbac {
        rules,
        // Only statistics.
        rules_stat_prefix: _,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats: _,
    } = message;
    refuse_set!(compiler.errors, path, matcher, shadow_matcher);
    let mut compile = Compile { compiler, network: false };
    Rbac {
        rules: rules.as_ref().map(|r| compile.rules(r, &path.field("rules"))),
        shadow: shadow_rules.as_ref().map(|r| compile.rules(r, &path.field("shadow_rules"))),
        shadow_prefix: shadow_rules_stat_prefix.clone(),
        shadow_keys: crate::ShadowKeys::new(shadow_rules_stat_prefix),
        stat_prefix: String::new(),
    }
}

/// Compiles the network filter.
pub fn compile_network(message: &network_filter::Rbac, compiler: &mut Compiler<'_>, path: &Path<'_>) -> Rbac {
    let network_filter::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        // How long the close of a denied connection is put off; it is closed at once.
        delay_deny: _,
    } = message;
    refuse_set!(compiler.errors, path, matcher, shadow_matcher, enforcement_type);
    let mut compile = Compile { compiler, network: true };
    Rbac {
        rules: rules.as_ref().map(|r| compile.rules(r, &path.field("rules"))),
        shadow: shadow_rules.as_ref().map(|r| compile.rules(r, &path.field("shadow_rules"))),
        shadow_prefix: shadow_rules_stat_prefix.clone(),
        shadow_keys: crate::ShadowKeys::new(shadow_rules_stat_prefix),
        stat_prefix: stat_prefix.clone(),
    }
}

struct Compile<'a, 'p> {
    compiler: &'a mut Compiler<'p>,
    network: bool,
}

impl Compile<'_, '_> {
    fn rules(&mut self, message: &proto::Rbac, path: &Path<'_>) -> Rules {
        let action = match proto::rbac::Action::try_from(message.action) {
            Ok(proto::rbac::Action::Allow) => RuleAction::Allow,
            Ok(proto::rbac::Action::Deny) => RuleAction::Deny,
            Ok(proto::rbac::Action::Log) => RuleAction::Log,
            Err(_) => {
                self.compiler.errors.refuse(&path.field("action"), "must be ALLOW, DENY or LOG");
                RuleAction::Allow
            }
        };
        let audit_logging_options = &message.audit_logging_options;
        refuse_set!(self.compiler.errors, path, audit_logging_options);
        // In order of their names, as in a sorted map: which policy is named in a log must not change by chance.
        let policies = message.policies.iter().map(|(n, p)| self.policy(n, p, &path.key("policies", n))).collect();
        Rules::new(action, policies)
    }

    fn policy(&mut self, name: &str, message: &proto::Policy, path: &Path<'_>) -> RulePolicy {
        let proto::Policy { permissions, principals, condition, checked_condition, cel_config: _ } = message;
        let permissions =
            permissions.iter().enumerate().map(|(i, p)| self.permission(p, &path.item("permissions", i), 0)).collect();
        let mut principals: Vec<_> =
            principals.iter().enumerate().map(|(i, p)| self.principal(p, &path.item("principals", i), 0)).collect();
        if condition.is_some() || checked_condition.is_some() {
            let unsupported = self.unsupported(&path.field("condition"), "expressions are not supported by weft-proxy");
            principals = vec![Condition::And(vec![Condition::Or(principals), unsupported])];
        }
        RulePolicy { name: self.text(name), permissions, principals }
    }

    #[allow(deprecated)]
    fn permission(&mut self, message: &proto::Permission, path: &Path<'_>, depth: usize) -> Condition {
        use proto::permission::Rule;
        if depth > MAX_DEPTH {
            return self.unsupported(path, format!("is nested deeper than {MAX_DEPTH}"));
        }
        let Some(rule) = &message.rule else { return self.unsupported(path, "must set a rule, such as any: true") };
        match rule {
            Rule::AndRules(set) => Condition::And(self.permissions(&set.rules, &path.field("and_rules"), depth)),
            Rule::OrRules(set) => Condition::Or(self.permissions(&set.rules, &path.field("or_rules"), depth)),
            Rule::NotRule(inner) => {
                Condition::Not(Box::new(self.permission(inner, &path.field("not_rule"), depth + 1)))
            }
            Rule::Any(true) => Condition::Any,
            Rule::Any(false) => self.unsupported(&path.field("any"), "must be true"),
            Rule::Header(header) => self.header(header, &path.field("header")),
            Rule::UrlPath(url_path) => self.url_path(url_path, &path.field("url_path")),
            Rule::DestinationIp(range) => self.range(range, &path.field("destination_ip"), Leaf::DestinationIp),
            Rule::DestinationPort(port) => match u16::try_from(*port) {
                Ok(port) => Condition::Leaf(Leaf::DestinationPort(port)),
                Err(_) => self.unsupported(&path.field("destination_port"), "must be 0 to 65535"),
            },
            Rule::DestinationPortRange(range) => match (u16::try_from(range.start), port_end(range.end)) {
                (Ok(start), Some(end)) => Condition::Leaf(Leaf::DestinationPortRange(start, end)),
                _ => self.unsupported(&path.field("destination_port_range"), "must lie within 0 and 65536"),
            },
            Rule::Metadata(metadata) => self.metadata(metadata, &path.field("metadata")),
            Rule::SourcedMetadata(sourced) => self.sourced_metadata(sourced, &path.field("sourced_metadata")),
            Rule::RequestedServerName(name) => {
                self.matcher(name, &path.field("requested_server_name"), Leaf::ServerName)
            }
            Rule::UriTemplate(template) => self.template(template, &path.field("uri_template")),
            Rule::Matcher(extension) => self.extension(extension, &path.field("matcher")),
        }
    }

    fn permissions(&mut self, list: &[proto::Permission], path: &Path<'_>, depth: usize) -> Vec<Condition> {
        list.iter().enumerate().map(|(i, p)| self.permission(p, &path.item("rules", i), depth + 1)).collect()
    }

    #[allow(deprecated)]
    fn principal(&mut self, message: &proto::Principal, path: &Path<'_>, depth: usize) -> Condition {
        use proto::principal::Identifier;
        if depth > MAX_DEPTH {
            return self.unsupported(path, format!("is nested deeper than {MAX_DEPTH}"));
        }
        let Some(identifier) = &message.identifier else {
            return self.unsupported(path, "must set an identifier, such as any: true");
        };
        match identifier {
            Identifier::AndIds(set) => Condition::And(self.principals(&set.ids, &path.field("and_ids"), depth)),
            Identifier::OrIds(set) => Condition::Or(self.principals(&set.ids, &path.field("or_ids"), depth)),
            Identifier::NotId(inner) => {
                Condition::Not(Box::new(self.principal(inner, &path.field("not_id"), depth + 1)))
            }
            Identifier::Any(true) => Condition::Any,
            Identifier::Any(false) => self.unsupported(&path.field("any"), "must be true"),
            Identifier::Authenticated(authenticated) => match &authenticated.principal_name {
                None => Condition::Leaf(Leaf::Principal(None)),
                Some(name) => {
                    let path = path.field("authenticated");
                    self.matcher(name, &path.field("principal_name"), |m| Leaf::Principal(Some(m)))
                }
            },
            // Deprecated, and in Envoy the address after trusted forwarding headers.
            Identifier::SourceIp(range) => self.range(range, &path.field("source_ip"), Leaf::RemoteIp),
            Identifier::DirectRemoteIp(range) => {
                self.range(range, &path.field("direct_remote_ip"), Leaf::DirectRemoteIp)
            }
            Identifier::RemoteIp(range) => self.range(range, &path.field("remote_ip"), Leaf::RemoteIp),
            Identifier::Header(header) => self.header(header, &path.field("header")),
            Identifier::UrlPath(url_path) => self.url_path(url_path, &path.field("url_path")),
            Identifier::Metadata(metadata) => self.metadata(metadata, &path.field("metadata")),
            Identifier::SourcedMetadata(sourced) => self.sourced_metadata(sourced, &path.field("sourced_metadata")),
            Identifier::FilterState(state) => self.filter_state(state, &path.field("filter_state")),
            Identifier::Custom(extension) => self.extension(extension, &path.field("custom")),
        }
    }

    fn principals(&mut self, list: &[proto::Principal], path: &Path<'_>, depth: usize) -> Vec<Condition> {
        list.iter().enumerate().map(|(i, p)| self.principal(p, &path.item("ids", i), depth + 1)).collect()
    }

    fn header(&mut self, message: &HeaderMatcher, path: &Path<'_>) -> Condition {
        if self.network {
            return self.unsupported(path, "a connection has no headers; use the HTTP filter");
        }
        self.contained(path, |compile| {
            let compiled = compile.compiler.header_matcher(message, path)?;
            let test = match compiled.test {
                weft_route::HeaderTest::Present(present) => HeaderValueTest::Present(present),
                weft_route::HeaderTest::Value(matcher) => HeaderValueTest::Value(matcher),
                weft_route::HeaderTest::Range(start, end) => HeaderValueTest::Range(start, end),
            };
            let missing_as_empty = compiled.missing_as_empty;
            Some(Leaf::Header(HeaderTest { key: compiled.key, test, invert: compiled.invert, missing_as_empty }))
        })
    }

    fn url_path(&mut self, message: &matcher::PathMatcher, path: &Path<'_>) -> Condition {
        if self.network {
            return self.unsupported(path, "a connection has no path; use the HTTP filter");
        }
        match &message.rule {
            Some(matcher::path_matcher::Rule::Path(text)) => self.matcher(text, &path.field("path"), Leaf::Path),
            None => self.unsupported(path, "must set path"),
        }
    }

    fn template(&mut self, message: &TypedExtensionConfig, path: &Path<'_>) -> Condition {
        if self.network {
            return self.unsupported(path, "a connection has no path; use the HTTP filter");
        }
        self.contained(path, |compile| compile.compiler.uri_template(message, path).map(Leaf::PathTemplate))
    }

    fn range(&mut self, message: &CidrRange, path: &Path<'_>, leaf: fn(IpNet) -> Leaf) -> Condition {
        match cidr(message) {
            Ok(net) => Condition::Leaf(leaf(net)),
            Err(reason) => self.unsupported(path, reason),
        }
    }

    fn matcher(
        &mut self,
        message: &matcher::StringMatcher,
        path: &Path<'_>,
        leaf: fn(crate::Matcher) -> Leaf,
    ) -> Condition {
        if let Some(part) = namespace_part(message) {
            return Condition::Leaf(leaf(crate::Matcher::Contains(self.text(part))));
        }
        self.contained(path, |compile| compile.compiler.string_matcher(message, path).map(leaf))
    }

    fn sourced_metadata(&mut self, message: &proto::SourcedMetadata, path: &Path<'_>) -> Condition {
        if proto::MetadataSource::try_from(message.metadata_source) != Ok(proto::MetadataSource::Dynamic) {
            return self.unsupported(&path.field("metadata_source"), "must be DYNAMIC");
        }
        match &message.metadata_matcher {
            Some(metadata) => self.metadata(metadata, &path.field("metadata_matcher")),
            None => self.unsupported(path, "must set metadata_matcher"),
        }
    }

    fn metadata(&mut self, message: &matcher::MetadataMatcher, path: &Path<'_>) -> Condition {
        let leaf = self.contained(path, |compile| {
            let matcher = compile.compiler.metadata_matcher(message, path)?;
            // The inversion is a negation like any other.
            Some(Leaf::Metadata(MetadataMatcher { invert: false, ..matcher }))
        });
        match leaf {
            // What cannot be evaluated fails closed as it stands: turning it round would open it.
            Condition::Leaf(Leaf::Unsupported(_)) => leaf,
            leaf if message.invert => Condition::Not(Box::new(leaf)),
            leaf => leaf,
        }
    }

    fn filter_state(&mut self, message: &matcher::FilterStateMatcher, path: &Path<'_>) -> Condition {
        if message.key != PEER_PRINCIPAL {
            let reason = format!("{:?} is not supported by weft-proxy; only {PEER_PRINCIPAL} is", message.key);
            return self.unsupported(&path.field("key"), reason);
        }
        match &message.matcher {
            Some(matcher::filter_state_matcher::Matcher::StringMatch(text)) => {
                self.matcher(text, &path.field("string_match"), |m| Leaf::FilterState(PEER_PRINCIPAL.into(), m))
            }
            _ => self.unsupported(path, "must set string_match"),
        }
    }

    fn extension(&mut self, message: &TypedExtensionConfig, path: &Path<'_>) -> Condition {
        let type_url = message.typed_config.as_ref().map_or("", |any| any.type_url.as_str());
        self.unsupported(path, format!("extension {:?} ({type_url}) is not supported by weft-proxy", message.name))
    }

    /// Builds a leaf; when that fails, the errors are contained and the leaf fails closed.
    fn contained(&mut self, path: &Path<'_>, build: impl FnOnce(&mut Self) -> Option<Leaf>) -> Condition {
        let from = self.compiler.errors.len();
        let leaf = build(self);
        let refused = self.compiler.errors.refused_since(from);
        self.compiler.errors.contain(from);
        match (leaf, refused) {
            (Some(leaf), None) => Condition::Leaf(leaf),
            (_, Some(reason)) => Condition::Leaf(Leaf::Unsupported(reason.into())),
            (None, None) => self.unsupported(path, "is incomplete"),
        }
    }

    fn unsupported(&mut self, path: &Path<'_>, reason: impl Into<String>) -> Condition {
        let reason = reason.into();
        self.compiler.errors.degrade(path, reason.as_str());
        Condition::Leaf(Leaf::Unsupported(reason.into()))
    }

    fn text(&mut self, text: &str) -> Strng {
        self.compiler.pool.text(text)
    }
}

/// `/ns/NAME/`, when the condition is the expression `.*/ns/NAME/.*` by which control planes ask for a namespace.
fn namespace_part(message: &matcher::StringMatcher) -> Option<&str> {
    let matcher::string_matcher::MatchPattern::SafeRegex(regex) = message.match_pattern.as_ref()? else { return None };
    let part = regex.regex.strip_prefix(".*")?.strip_suffix(".*")?;
    let name = part.strip_prefix("/ns/")?.strip_suffix('/')?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')).then_some(part)
}

fn port_end(end: i32) -> Option<u16> {
    // The end is exclusive: 65536 takes in the last port, and there is no port above.
    if end == 65536 { Some(u16::MAX) } else { u16::try_from(end).ok() }
}

/// An address range; its host bits are cleared.
///
/// # Errors
/// When it is not a range.
pub fn cidr(message: &CidrRange) -> Result<IpNet, String> {
    let wrong = || format!("{:?} is not an IP address; write one such as 10.0.0.0 or fd00::", message.address_prefix);
    let address: std::net::IpAddr = message.address_prefix.parse().map_err(|_| wrong())?;
    let length = message.prefix_len.unwrap_or(0);
    let length = u8::try_from(length).map_err(|_| format!("prefix length {length} is too long"))?;
    IpNet::new(address, length)
        .map(|net| net.trunc())
        .map_err(|_| format!("prefix length {length} is too long for {address}"))
}

#[cfg(test)]
mod tests;
