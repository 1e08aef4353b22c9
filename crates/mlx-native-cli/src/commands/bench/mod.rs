//! `mlxn bench`.

mod beside;
mod cases;
mod model;
mod ops;
mod queued;

use anyhow::Result;

/// Measure speed.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Model(model::Args),
    Ops(ops::Args),
}

/// Measures what is asked for.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Model(args) => model::run(args),
        What::Ops(args) => ops::run(args),
    }
}

/// The middle value, or the mean of the two in the middle; NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (half, 0) => (sorted[half - 1] + sorted[half]) / 2.0,
        (half, _) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
