//! The data plane, with its agent built in.

mod admin;
mod cli;
mod dns;
mod held;
mod http;
mod metrics;
mod ports;
mod settings;
mod state;

fn main() {}
