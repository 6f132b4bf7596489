//! Bytes to protocol: sniffing, PROXY protocol, normalisation, body types.
