//! The services the relay serves to the other processes.

pub mod admin;
pub mod hunt;
mod import;
pub mod push;
pub mod relay_sync;

use std::time::Duration;

use tonic::Status;

fn worker_name(name: &str) -> Result<(), Status> {
    let is_one = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    match is_one {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "a worker's name has 1 to 64 visible ASCII characters",
        )),
    }
}

fn at_most<T>(list: &[T], most: usize, what: &str) -> Result<(), Status> {
    match list.len() <= most {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!("more than {most} {what}"))),
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
