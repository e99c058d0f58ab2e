//! What goes over the wire: a request's JSON to checked fields, answers and errors to JSON.

pub(in crate::server) mod body;
pub(in crate::server) mod error;
pub(in crate::server) mod request;
pub(in crate::server) mod response;
