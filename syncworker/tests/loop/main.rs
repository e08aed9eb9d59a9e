//! The hunt's loop: its rules in a world that is made up, on a clock of its own; its calls over gRPC
//! against stand-ins of relay and gitd.

mod contract;
mod leases;
mod places;
mod steps;
mod stop;
mod world;
