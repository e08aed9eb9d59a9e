//! What time it is for gitd: what the relay is told, and what its grants are checked by.

use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The wall clock's time when it was first looked at.
static BEGAN: LazyLock<(SystemTime, Instant)> =
    LazyLock::new(|| (SystemTime::now(), Instant::now()));

/// What time it is: the wall clock's when the process began, and later by what has passed. A wall
/// clock that is set meanwhile ends no transfer.
pub fn now() -> SystemTime {
    let (wall, began) = *BEGAN;
    wall + began.elapsed()
}

/// The same in milliseconds since 1970.
pub fn millis() -> u64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
