//! The command line of the mesh, and the one-machine lab.

fn main() {}
