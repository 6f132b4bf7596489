//! The sample workloads, as one multi-call program.

fn main() {}
