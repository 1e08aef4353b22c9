//! Prints the README's table of formats × devices: `cargo run -p conformance --example support_table`.

fn main() -> Result<(), mlx_native::MlxError> {
    print!("{}", conformance::support_table()?);
    Ok(())
}
