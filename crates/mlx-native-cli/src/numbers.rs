//! Numbers on the command line.

use clap::{ArgAction, Command};

/// A whole number of at least `LEAST`.
///
/// # Errors
///
/// What was expected.
pub fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= LEAST => Ok(number),
        _ => Err(format!("expected a whole number from {LEAST} to {}", usize::MAX)),
    }
}

/// Lets options take `-1` for a value, so that the message is about the value; without this it is about an option that does not exist.
pub fn negative_values(command: Command) -> Command {
    let takes_value = |action: &ArgAction| matches!(action, ArgAction::Set | ArgAction::Append);
    command
        .mut_args(|arg| {
            if !arg.is_positional() && takes_value(arg.get_action()) { arg.allow_negative_numbers(true) } else { arg }
        })
        .mut_subcommands(negative_values)
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn whole_numbers() {
        assert_eq!((at_least::<0>("0"), at_least::<1>("1")), (Ok(0), Ok(1)));
        for wrong in ["", "-1", "1.5", "a", "99999999999999999999999"] {
            assert!(at_least::<0>(wrong).is_err(), "{wrong}");
        }
        assert!(at_least::<1>("0").is_err_and(|message| message.contains("from 1 to")));
    }
}
