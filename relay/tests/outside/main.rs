//! The relay's public face over real sockets, with stand-ins for what is behind it.

mod pages;
mod proxy;
mod slow_readers;
mod support;
mod upstream;
mod websocket;
