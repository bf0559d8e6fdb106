//! The command line: thin shells over the library, one file a command.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
