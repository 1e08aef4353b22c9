//! The program `mlxn`.
fn main() {}
