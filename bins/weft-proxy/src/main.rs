//! The data plane, with its agent built in.

fn main() {}
