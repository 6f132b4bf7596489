//! HTTP and network filters in the order that a request passes them.
