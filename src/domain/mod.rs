//! Plain data that every room speaks of.

mod example;
mod reward;
mod run;
pub mod time;
mod verdict;

pub use example::{Example, Message, Tokens};
pub use reward::{Reward, Weights};
pub use run::{Candidate, Difficulty, Evidence, NewRun, RunResult, Source, SourceKind};
pub use verdict::{
    Answer, Comparison, Estimate, Guard, Guarded, Interval, ItemResult, Paired, Preference, Primary, Reason, Standing, Unpaired,
    Verdict,
};
