//! The forestream binary: reads the command line, runs one command, prints one error.
//!
//! Exit codes: 0 for success, also of a command that ends since nobody reads its output any more, 1 for a failure, 2 for a
//! command line that cannot be understood, 130 for a second Ctrl-C, or a first one where there was nothing to end in order.

mod args;
mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match args::parse(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match commands::run(arguments.command) {
        Ok(code) => code,
        Err(error) if commands::has_no_reader(&error) => ExitCode::SUCCESS,
        Err(error) => {
            commands::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
