//! TrustDomain, SpiffeId, Svid, TrustBundle. Pure: no I/O, no clock.
