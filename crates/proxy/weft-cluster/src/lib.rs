//! Upstream clusters: endpoints, load balancing, health, connection pools.
