//! The one crypto provider: keys, CSRs, TLS configurations, SPIFFE verification.
