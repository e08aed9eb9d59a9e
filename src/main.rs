//! graspd
fn main() {}
