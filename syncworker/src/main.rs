//! A syncworker as a process of its own.

fn main() {}
