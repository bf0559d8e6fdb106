//! Plain data that every room speaks of.

mod example;

pub use example::{Example, Message, Tokens};
