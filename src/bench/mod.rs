//! The load generator: an HTTP client; it never links the engine.
