//! Fetching from other git servers: real ones, and ones that mean no good.

#[path = "../../../tests/e2e/support/backend.rs"]
mod backend;
mod hostile;
mod real;
mod redirects;
mod support;
