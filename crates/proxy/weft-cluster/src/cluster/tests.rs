//! Who is left out of a cluster, and for how long, when its configuration and its endpoints change.

use super::*;
use crate::limits::tests::{limits, thresholds};
use futures_util::FutureExt;
use std::sync::mpsc;
use std::thread;
use weft_proxy_config::{
    CheckIntervals, Endpoint, EndpointCheck, EndpointHealth, FailureRule, HealthCheck, LbPolicy, LocalityEndpoints,
    LookupFamily, Probe, SuccessRule, UpstreamProtocol,
};

fn config(discovery: Discovery) -> Cluster {
    Cluster {
        name: "c".into(),
        alt_stat_name: None,
        discovery,
        lb: LbPolicy::Random,
        connect_timeout: Duration::from_secs(1),
        transport: UpstreamTransport::Plain,
        transport_matches: Vec::new(),
        protocol: UpstreamProtocol::Http1,
        limits: limits(thresholds(100)),
        outlier: None,
        health_check: None,
        lookup: LookupFamily::default(),
        metadata: Arc::default(),
        panic_threshold: 0,
        locality_weighted: false,
        subsets: None,
        slow_start: None,
        proxy_protocol: None,
        source_address: None,
        more_source_addresses: Vec::new(),
        fingerprint: 0,
    }
}

fn check() -> Option<Arc<HealthCheck>> {
    let second = Duration::from_secs(1);
    Some(Arc::new(HealthCheck {
        timeout: second,
        intervals: CheckIntervals {
            healthy: second,
            unhealthy: second,
            healthy_edge: second,
            unhealthy_edge: second,
            no_traffic: [second; 2],
        },
        initial_jitter: Duration::ZERO,
        jitter: Duration::ZERO,
        jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        reuse_connection: true,
        probe: Probe::Tcp { send: Vec::new(), receive: Vec::new() },
    }))
}

fn policy() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 1,
        consecutive_gateway: 0,
        consecutive_local: 0,
        enforcing: [100; 7],
        success: SuccessRule { min_hosts: 5, volume: 100, factor: 1.9 },
        failure: FailureRule { min_hosts: 5, volume: 50, threshold: 85.0 },
        statuses: None,
        split_local: false,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection: Duration::from_secs(300),
        max_ejection_percent: 100,
        always_one: true,
        check_takes_back: true,
    }
}

fn endpoints() -> Arc<EndpointSet> {
    let one = Endpoint {
        address: EndpointAddress::Ip(([127, 0, 0, 1], 1).into()),
        weight: 1,
        health: EndpointHealth::Healthy,
        hostname: None,
        check: EndpointCheck::default(),
        metadata: Arc::default(),
    };
    let localities = vec![LocalityEndpoints { locality: "".into(), priority: 0, weight: 1, endpoints: vec![one] }];
    Arc::new(EndpointSet { localities, drop: 0, overprovisioning: 140 })
}

/// The cluster in one worker, which makes no checks itself.
fn live(config: Cluster, health: &Arc<ClusterHealth>) -> Rc<LiveCluster> {
    let registry = weft_telemetry::Registry::default();
    let stats = Rc::new(ClusterStats::new(&registry.shard(), &config.name));
    let breaker = Breaker::new(Arc::default(), config.limits.clone());
    Rc::new(LiveCluster::new(Arc::new(config), stats, breaker, health.clone(), None))
}

fn listed() -> Discovery {
    Discovery::Eds("c".into())
}

fn fill(cluster: &Rc<LiveCluster>) -> Rc<Host> {
    cluster.set_endpoints(&endpoints(), &|address| vec![address.clone()]);
    cluster.hosts.borrow().all[0].clone()
}

#[test]
fn checks_that_are_no_more_keep_nobody_out() {
    let health = Arc::default();
    let checked = live(Cluster { health_check: check(), ..config(listed()) }, &health);
    let host = fill(&checked);
    assert!(!host.is_usable(), "not found well yet");
    let unchecked = live(config(listed()), &health);
    unchecked.inherit(&checked);
    assert!(host.is_usable(), "before its endpoints come again");
    host.checked.set(true);
    assert!(Rc::ptr_eq(&host, &fill(&unchecked)) && host.is_usable());
    assert!(unchecked.pick(&PickContext::default()).is_ok());
}

#[test]
fn who_is_left_out_comes_back_whatever_the_count_says() {
    let health = Arc::default();
    let cluster = live(Cluster { outlier: Some(Arc::new(policy())), ..config(listed()) }, &health);
    let (host, now) = (fill(&cluster), Instant::now());
    host.outlier.eject(&policy(), now);
    assert_eq!(health.ejected(), 0, "as it may be after a race");
    cluster.sweep(now + Duration::from_secs(1));
    assert!(host.outlier.is_ejected());
    cluster.sweep(now + Duration::from_secs(60));
    assert!(!host.outlier.is_ejected());
    assert_eq!(health.ejected(), 0);
}

#[test]
fn endpoints_are_not_counted_while_somebody_judges() {
    let health: Arc<ClusterHealth> = Arc::default();
    let judging = health.judging();
    health.set_ejected(5);
    let (begins, begun) = mpsc::channel();
    let worker = thread::spawn({
        let health = health.clone();
        move || {
            let cluster = live(Cluster { outlier: Some(Arc::new(policy())), ..config(listed()) }, &health);
            begins.send(()).unwrap();
            fill(&cluster);
        }
    });
    begun.recv().unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(health.ejected(), 5, "what it counted could be old by now");
    drop(judging);
    worker.join().unwrap();
    assert_eq!(health.ejected(), 0);
}

#[tokio::test]
async fn nobody_waits_for_checks_that_nobody_makes() {
    for discovery in [listed(), Discovery::OriginalDst(None), Discovery::DynamicForward(None)] {
        let cluster = live(Cluster { health_check: check(), ..config(discovery) }, &Arc::default());
        assert!(cluster.ready().now_or_never().is_some(), "{:?}", cluster.config.discovery);
    }
    let health = Arc::default();
    let cluster = live(Cluster { health_check: check(), ..config(listed()) }, &health);
    fill(&cluster);
    assert!(cluster.ready().now_or_never().is_none(), "its endpoint is being checked");
    health.set_checked();
    assert!(cluster.ready().now_or_never().is_some());
}

#[tokio::test]
async fn traffic_of_any_worker_is_traffic() {
    let health = Arc::default();
    let (checks, serves) = (live(config(listed()), &health), live(config(listed()), &health));
    let host = fill(&serves);
    assert!(!checks.health.had_traffic());
    // Nobody listens there.
    assert!(serves.connect_tcp(&host, None, None, None).await.is_err());
    assert!(checks.health.had_traffic());
}
