//! Plain data that every room speaks of.

mod example;
mod run;
mod verdict;

pub use example::{Example, Message, Tokens};
pub use run::{Candidate, Difficulty, Evidence, NewRun, RunResult, Source, SourceKind};
pub use verdict::{
    Answer, Comparison, Estimate, Guard, Guarded, Interval, ItemResult, Paired, Preference, Primary, Reason, Standing, Unpaired,
    Verdict,
};
