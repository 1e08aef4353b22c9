//! Adds up the parts of a run of the table that `mlxn selftest --full --record` wrote, or prints the README's table of formats × devices from runs:
//!
//! ```sh
//! cargo run -p conformance --example support_table -- add PART… > docs/conformance/DEVICE.tsv
//! cargo run -p conformance --example support_table -- docs/conformance/*.tsv
//! ```

use conformance::Tally;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let add = arguments.first().is_some_and(|first| first == "add");
    let runs: Vec<Tally> = arguments.drain(usize::from(add)..).map(read).collect::<Result<_, _>>()?;
    if add {
        let mut sum = Tally::default();
        runs.into_iter().for_each(|part| sum.merge(part));
        print!("{sum}");
    } else {
        print!("{}", conformance::support_table(&runs)?);
    }
    Ok(())
}

fn read(path: String) -> Result<Tally, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.parse().map_err(|error| format!("{path}: {error}").into())
}
