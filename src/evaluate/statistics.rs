//! Paired differences with their interval, by clusters.
