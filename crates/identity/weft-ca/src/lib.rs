//! The certificate authority and its gRPC service.
