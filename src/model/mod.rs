//! The transformer on candle, and the one place where the table meets it.

pub mod ops;
