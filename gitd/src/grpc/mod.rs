//! What relay and workers ask of gitd, over the contract.
//!
//! - [`repositories`]: `Repositories`, for the relay; of it, `Describe` and `Snapshot` are in
//!   modules of their own
//! - [`packs`]: `Packs`, for the workers

mod inventory;
pub mod packs;
pub mod repositories;
mod snapshot;

use tonic::Status;

use crate::repository::Error;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound => Self::not_found(text),
            Error::Invalid(_) => Self::invalid_argument(text),
            Error::Precondition(_) => Self::failed_precondition(text),
            Error::Aborted(_) => Self::aborted(text),
            Error::Locked | Error::Io(_) | Error::Git2(_) | Error::Git(_) => {
                tracing::error!(%error, "storage failed");
                Self::internal(text)
            }
        }
    }
}
