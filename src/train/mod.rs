//! Training: rows in, an adapter out, and everything on the way kept so that a kill loses nothing.

pub mod checkpoint;
pub mod lessons;
pub mod method;
pub mod metrics;
pub mod objective;
pub mod order;
pub mod plan;
pub mod report;
pub mod run;
pub mod settings;
pub mod step;

pub use lessons::{Evaluation, Lessons};
pub use method::Method;
pub use run::{Evaluator, Job, Outcome, Progress};
pub use settings::{Schedule, TrainSettings};
