//! The HTTP filters in the order of the configuration: each may answer, delay, or change the request.

use crate::chain::HttpRuntime;
use crate::downstream::Downstream;
use crate::http::authorize;
use crate::http::compress;
use crate::http::exchange::Exchange;
use crate::http::format;
use crate::http::intake::Head;
use crate::http::ratelimit;
use crate::http::trace;
use http::header::ACCEPT;
use http::{HeaderName, HeaderValue, Uri};
use http_body::Body as _;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};
use weft_authz::Decision;
use weft_codec::{Flags, LocalReply, ProxyBody, Reason};
use weft_core::Strng;
use weft_filter::{cors, fault, grpc_web, jwt, rbac};
use weft_proxy_config::{HttpFilter, JwtAuthn};
use weft_route::{
    Action, AppendAction, CorsPolicy, Fault, FilterOverrides, LocalRateLimit, RateLimitPerRoute, Route, VirtualHost,
    WeightedCluster,
};

/// Name under which claims of tokens are known.
static JWT: LazyLock<Strng> = LazyLock::new(|| Strng::from(jwt::FILTER));

/// Name by which a route switches authorization off.
const RBAC: &str = "envoy.filters.http.rbac";

/// Where the request would go; what filters may be told by it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Destination<'a> {
    pub host: Option<&'a Arc<VirtualHost>>,
    pub route: Option<&'a Arc<Route>>,
    pub weighted: Option<&'a WeightedCluster>,
    pub cluster: Option<&'a str>,
}

/// What filters want done to the response.
#[derive(Default)]
pub(crate) struct Marks {
    /// The origin that may read the response, and the policy that says so.
    pub cors: Option<(Arc<CorsPolicy>, HeaderValue)>,
    /// Headers, and whether they stand beside those there.
    pub response: Vec<(HeaderName, HeaderValue, AppendAction)>,
}

const CORS: &str = "envoy.filters.http.cors";

impl<'a> Destination<'a> {
    /// Settings for filters, the most specific first.
    fn overrides(&self) -> impl Iterator<Item = &'a FilterOverrides> {
        let cluster = self.weighted.map(|w| &w.filters);
        let route = self.route.map(|r| &r.filters);
        let host = self.host.map(|h| &h.filters);
        [cluster, route, host].into_iter().flatten()
    }

    fn fault(&self) -> Option<&'a Arc<Fault>> {
        self.overrides().find_map(|o| o.fault.as_ref())
    }

    fn cors(&self) -> Option<&'a Arc<CorsPolicy>> {
        let of_route = self.route.and_then(|route| match &route.action {
            Action::Forward(forward) => forward.cors.as_ref(),
            _ => None,
        });
        self.overrides().find_map(|o| o.cors.as_ref()).or(of_route)
    }

    fn local_rate_limit(&self) -> Option<&'a Arc<LocalRateLimit>> {
        self.overrides().find_map(|o| o.local_rate_limit.as_ref())
    }

    pub fn rate_limit(&self) -> Option<&'a Arc<RateLimitPerRoute>> {
        self.overrides().find_map(|o| o.rate_limit.as_ref())
    }

    pub fn is_disabled(&self, filter: &str) -> bool {
        let said = |o: &FilterOverrides| o.switched.iter().find(|(name, _)| &**name == filter).map(|(_, on)| *on);
        self.overrides().find_map(said) == Some(false)
    }
}

/// Asks the filters from number `from` on. The number of the next one to ask, when the route is to be chosen again before.
///
/// # Errors
/// The answer of the first filter that gives one.
pub(crate) async fn run(
    exchange: &Exchange,
    head: &mut Head,
    body: &mut ProxyBody,
    destination: Destination<'_>,
    marks: &mut Marks,
    from: usize,
) -> Result<Option<usize>, Box<LocalReply>> {
    if from == 0 {
        trace::routed(exchange, head, destination);
    }
    for (number, filter) in exchange.http.hcm.filters.iter().enumerate().skip(from) {
        match filter {
            HttpFilter::Jwt(jwt) if !destination.is_disabled("envoy.filters.http.jwt_authn") => {
                if authenticate(exchange, head, jwt)? {
                    return Ok(Some(number + 1));
                }
            }
            HttpFilter::Rbac(rbac) if !destination.is_disabled(RBAC) => {
                authorize(exchange, head, rbac)?;
                let is_rbac = |filter: &HttpFilter| matches!(filter, HttpFilter::Rbac(_));
                if !exchange.http.hcm.filters.iter().skip(number + 1).any(is_rbac) {
                    // Before the filters after it change the request.
                    exchange.facts.borrow_mut().admitted = Some(Box::new(Admitted::new(head, destination)));
                }
            }
            HttpFilter::ExtAuthz(ask) if !destination.is_disabled("envoy.filters.http.ext_authz") => {
                if Box::pin(authorize::request(exchange, head, body, marks, ask)).await? {
                    return Ok(Some(number + 1));
                }
            }
            HttpFilter::LocalRateLimit(own) if !destination.is_disabled("envoy.filters.http.local_ratelimit") => {
                ratelimit::local(exchange, head, destination, destination.local_rate_limit().unwrap_or(own))?;
            }
            HttpFilter::RateLimit(service) if !destination.is_disabled("envoy.filters.http.ratelimit") => {
                Box::pin(ratelimit::service(exchange, head, destination, marks, service)).await?;
            }
            HttpFilter::Cors if !destination.is_disabled(CORS) => {
                if let Some(policy) = destination.cors() {
                    check_origin(head, policy, marks)?;
                }
            }
            HttpFilter::CorsPolicy(own) if !destination.is_disabled(CORS) => {
                check_origin(head, destination.cors().unwrap_or(own), marks)?;
            }
            HttpFilter::Fault(own) if !destination.is_disabled("envoy.filters.http.fault") => {
                if let Some(fault) = destination.fault().or(own.as_ref()) {
                    inject(exchange, head, fault, destination.cluster).await?;
                }
            }
            HttpFilter::GrpcWeb if !destination.is_disabled("envoy.filters.http.grpc_web") => {
                if let Some(web) = grpc_web::request(&mut head.headers) {
                    let mut facts = exchange.facts.borrow_mut();
                    facts.web = Some(web);
                    facts.is_grpc = true;
                }
            }
            HttpFilter::HeaderMutation(edits) if !destination.is_disabled("envoy.filters.http.header_mutation") => {
                format::edit_request(exchange, head, &edits.request);
            }
            HttpFilter::Compressor(own) if !destination.is_disabled(&own.name) => {
                compress::compressor(exchange, head, own, number);
            }
            HttpFilter::Decompressor(own) if !destination.is_disabled(&own.name) => {
                compress::decompressor(exchange, head, body, own, number);
            }
            HttpFilter::Rbac(_)
            | HttpFilter::Compressor(_)
            | HttpFilter::Decompressor(_)
            | HttpFilter::Cors
            | HttpFilter::CorsPolicy(_)
            | HttpFilter::Fault(_)
            | HttpFilter::GrpcWeb
            | HttpFilter::HeaderMutation(_)
            | HttpFilter::LocalRateLimit(_)
            | HttpFilter::RateLimit(_)
            | HttpFilter::Jwt(_)
            | HttpFilter::ExtAuthz(_)
            | HttpFilter::Telemetry(_)
            | HttpFilter::GrpcStats => {}
            HttpFilter::Other(name, _) => {
                // A filter may be what keeps somebody out: what cannot be asked says no.
                tracing::warn!(filter = %name, "no such HTTP filter in this proxy; the request is refused");
                return Err(Box::new(LocalReply::new(Reason::UnusableRoute).with_details("filter_not_supported")));
            }
        }
    }
    Ok(None)
}

/// Checks the request's tokens; true when the route is to be chosen again.
fn authenticate(exchange: &Exchange, head: &mut Head, filter: &JwtAuthn) -> Result<bool, Box<LocalReply>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let stats = &exchange.http.stats;
    let passed = match jwt::check(filter, &head.view(), now) {
        Ok(passed) => passed,
        Err(reply) => {
            stats.jwt_denied.inc();
            return Err(reply);
        }
    };
    stats.jwt_allowed.inc();
    for name in &passed.remove {
        head.headers.remove(name);
    }
    for (name, value) in passed.set {
        head.headers.insert(name, value);
    }
    if !passed.drop_params.is_empty()
        && let Some(query) = head.uri.query()
    {
        let query = jwt::without_params(query, &passed.drop_params).map(|q| format!("?{q}")).unwrap_or_default();
        let target = format!("{}{query}", head.uri.path());
        head.uri = Uri::try_from(target).map_err(|_| LocalReply::new(Reason::BadPath))?;
    }
    for (key, value) in passed.metadata {
        weft_route::metadata::put(&mut head.metadata, &JWT, &key, value);
    }
    trace::said(exchange, &head.metadata);
    Ok(passed.reroute)
}

fn authorize(exchange: &Exchange, head: &mut Head, filter: &weft_authz::Rbac) -> Result<(), Box<LocalReply>> {
    let decision = judge(&exchange.conn.downstream, head, filter);
    let stats = &exchange.http.stats;
    if let Some((allowed, _)) = &decision.shadow {
        if !allowed {
            stats.rbac_shadow_denied.inc();
        }
        stats.dry_run(&filter.shadow_prefix, *allowed);
    }
    (if decision.allowed { &stats.rbac_allowed } else { &stats.rbac_denied }).inc();
    trace::said(exchange, &head.metadata);
    if decision.allowed { Ok(()) } else { Err(Box::new(rbac::reply(&decision))) }
}

/// Asks one filter, without counting what it says.
fn judge(downstream: &Downstream, head: &mut Head, filter: &weft_authz::Rbac) -> Decision {
    let facts = weft_authz::Facts {
        peer: downstream.peer,
        remote: head.client,
        destination: downstream.destination,
        server_name: downstream.server_name.as_deref(),
        certificate: downstream.certificate.as_ref(),
        request: Some(head.facts()),
        metadata: &head.metadata,
    };
    let (decision, told) = rbac::decide(filter, &facts, &rbac::HTTP_FILTER);
    told.into_iter().for_each(|one| one.put(&mut head.metadata));
    decision
}

/// Whether the rules in force let the request in, when they changed while filters waited: for a body, an authorizer, the end of
/// a delay.
///
/// # Errors
/// The answer to a request that may not go on.
pub(crate) fn recheck(
    exchange: &Exchange,
    head: &mut Head,
    destination: Destination<'_>,
) -> Result<(), Box<LocalReply>> {
    let current = exchange.conn.slot.current();
    let Some(http) = current.http.as_ref().filter(|http| !Rc::ptr_eq(http, &exchange.http)) else { return Ok(()) };
    let downstream = &exchange.conn.downstream;
    let refused = match &exchange.facts.borrow().admitted {
        Some(admitted) => admitted.refusal(downstream, http),
        None if destination.is_disabled(RBAC) => None,
        None => refusal(downstream, head, http),
    };
    refused.map_or(Ok(()), |decision| Err(Box::new(rbac::reply(&decision))))
}

/// Asks the authorization filters of `http` once more; what the first says that says no. That alone is counted: the request was
/// counted when it was let in, and ends now. Neither tokens nor authorizers outside the proxy are asked again: what they said
/// stands.
fn refusal(downstream: &Downstream, head: &mut Head, http: &HttpRuntime) -> Option<Decision> {
    http.hcm.filters.iter().find_map(|filter| {
        let HttpFilter::Rbac(rbac) = filter else { return None };
        let decision = judge(downstream, head, rbac);
        if decision.allowed {
            return None;
        }
        http.stats.rbac_denied.inc();
        Some(decision)
    })
}

/// A request that was let in, as authorization saw it.
#[derive(Debug)]
pub(crate) struct Admitted {
    head: Head,
    /// Its route has authorization switched off.
    exempt: bool,
}

impl Admitted {
    /// `head` as the last authorization filter let it in, without one as it is after all filters, on its way to `destination`.
    pub fn new(head: &Head, destination: Destination<'_>) -> Self {
        Self { head: head.copy(), exempt: destination.is_disabled(RBAC) }
    }

    /// Whether `head` is to be kept where there are no rules, so that those which come later bind the request: it is likely to
    /// last. A plain request that turns out to last is not bound by the first rules.
    pub fn is_wanted(exchange: &Exchange, head: &Head, body: &ProxyBody) -> bool {
        let endless = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("text/event-stream"));
        head.upgrade.is_some()
            || exchange.facts.borrow().is_grpc
            || (!body.is_end_stream() && body.size_hint().exact().is_none())
            || head.headers.get(ACCEPT).is_some_and(endless)
    }

    /// Asks the authorization filters of `http`; the details word when one says no.
    pub fn denied(&self, downstream: &Downstream, http: &HttpRuntime) -> Option<String> {
        self.refusal(downstream, http).map(|decision| rbac::details(&decision))
    }

    fn refusal(&self, downstream: &Downstream, http: &HttpRuntime) -> Option<Decision> {
        if self.exempt { None } else { refusal(downstream, &mut self.head.copy(), http) }
    }
}

fn check_origin(head: &Head, policy: &Arc<CorsPolicy>, marks: &mut Marks) -> Result<(), Box<LocalReply>> {
    match cors::request(policy, &head.method, &head.headers) {
        cors::Outcome::Pass => Ok(()),
        cors::Outcome::Allowed(origin) => {
            marks.cors = Some((policy.clone(), origin));
            Ok(())
        }
        cors::Outcome::Reply(reply) => Err(reply),
    }
}

async fn inject(
    exchange: &Exchange,
    head: &Head,
    policy: &Fault,
    cluster: Option<&str>,
) -> Result<(), Box<LocalReply>> {
    let random = [fastrand::u64(..), fastrand::u64(..)];
    let injection = fault::decide(policy, &head.view(), cluster, random);
    if let Some(delay) = injection.delay {
        exchange.facts.borrow_mut().flags |= Flags::DI;
        Box::pin(tokio::time::sleep(delay)).await;
    }
    match injection.abort {
        None => Ok(()),
        Some(abort) => Err(Box::new(fault::reply(abort))),
    }
}
