//! A user's command as the judge of an answer, confined.
