//! How many cases of each operation and format passed: what a run of the table leaves behind, and what the documentation's support table is made from.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::{Case, Outcome, Verdict};

/// Counts of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Within the bounds.
    pub passed: usize,
    /// Wrong.
    pub failed: usize,
    /// Of no concern to the device.
    pub skipped: usize,
}

impl Count {
    /// Whether something passed and nothing failed.
    pub fn is_ok(self) -> bool {
        self.passed > 0 && self.failed == 0
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Counts by format and operation. As text: lines that begin with `#` tell where and how it ran, then one line for each format and operation with the
/// counts of what passed, failed and was skipped, separated by tabs. Operations without a weight have the format `-`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The lines that begin with `#`, without it; the first is the title.
    pub about: Vec<String>,
    /// By format and operation.
    pub counts: BTreeMap<(String, String), Count>,
}

const NO_FORMAT: &str = "-";

fn key(case: &Case) -> (String, String) {
    let format = case.format().map_or_else(|| NO_FORMAT.into(), |format| format.name().into_owned());
    (format, case.op().into())
}

impl Tally {
    /// Counts an outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        let count = self.counts.entry(key(&outcome.case)).or_default();
        match outcome.verdict {
            Verdict::Passed(_) => count.passed += 1,
            Verdict::Failed(_) => count.failed += 1,
            Verdict::Skipped(_) => count.skipped += 1,
        }
    }

    /// How cases like this one went; none where the run met none.
    pub fn of(&self, case: &Case) -> Option<Count> {
        self.counts.get(&key(case)).copied()
    }

    /// Adds another part of the same table.
    pub fn merge(&mut self, part: Tally) {
        for line in part.about {
            if !self.about.contains(&line) {
                self.about.push(line);
            }
        }
        for (key, count) in part.counts {
            *self.counts.entry(key).or_default() += count;
        }
    }

    /// The sum over the formats and operations for which `wanted` holds.
    pub fn sum(&self, wanted: impl Fn(&str, &str) -> bool) -> Count {
        let chosen = self.counts.iter().filter(|((format, operation), _)| wanted(format, operation));
        chosen.fold(Count::default(), |mut sum, (_, count)| {
            sum += *count;
            sum
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.about {
            writeln!(f, "# {line}")?;
        }
        for ((format, operation), Count { passed, failed, skipped }) in &self.counts {
            writeln!(f, "{format}\t{operation}\t{passed}\t{failed}\t{skipped}")?;
        }
        Ok(())
    }
}

impl FromStr for Tally {
    type Err = String;

    fn from_str(text: &str) -> Result<Tally, String> {
        let mut tally = Tally::default();
        for (number, line) in text.lines().enumerate() {
            if let Some(about) = line.strip_prefix('#') {
                tally.about.push(about.trim().to_owned());
                continue;
            }
            let bad = || format!("line {}: expected `format operation passed failed skipped`: {line}", number + 1);
            let mut fields = line.split('\t');
            let mut next = || fields.next().ok_or_else(bad);
            let [format, operation, passed, failed, skipped] = [next()?, next()?, next()?, next()?, next()?];
            if fields.next().is_some() {
                return Err(bad());
            }
            let count = |field: &str| field.parse().map_err(|_| bad());
            let count = Count { passed: count(passed)?, failed: count(failed)?, skipped: count(skipped)? };
            *tally.counts.entry((format.to_owned(), operation.to_owned())).or_default() += count;
        }
        Ok(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_there_and_back_and_parts_add_up() {
        let text = "# GPU\n# a run\n-\tcast\t4\t0\t1\nQ4_0\tmatmul\t7\t2\t0\n";
        let tally: Tally = text.parse().unwrap();
        assert_eq!(tally.to_string(), text);
        let mut both = tally.clone();
        both.merge("# GPU\nQ4_0\tmatmul\t1\t0\t0\nQ4_0\tembedding\t3\t0\t0\n".parse().unwrap());
        assert_eq!(both.about, ["GPU", "a run"]);
        assert_eq!(both.sum(|format, _| format == "Q4_0"), Count { passed: 11, failed: 2, skipped: 0 });
        assert!(both.sum(|_, operation| operation == "embedding").is_ok());
        assert!(!both.sum(|_, operation| operation == "matmul").is_ok());
        assert!(!both.sum(|_, operation| operation == "rope").is_ok());
    }

    #[test]
    fn a_line_that_is_not_one_is_named() {
        assert!("# x\nQ4_0 matmul 7 2 0".parse::<Tally>().unwrap_err().starts_with("line 2"));
        assert!("Q4_0\tmatmul\t7\t-2\t0".parse::<Tally>().is_err());
        assert!("Q4_0\tmatmul\t7\t2\t0\t1".parse::<Tally>().is_err());
    }
}
