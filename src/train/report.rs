//! report.html
