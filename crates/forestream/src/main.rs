//! The forestream binary.

fn main() {}
