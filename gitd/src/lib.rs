//! gitd
