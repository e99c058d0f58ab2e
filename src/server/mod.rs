//! The OpenAI surface on axum.
