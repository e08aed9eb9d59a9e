//! The allocator of the C library, told to give back what is free.
//!
//! By default glibc has up to eight heaps for each processor, and keeps what a burst has left in each of
//! them: a relay that once held a gigabyte for slow readers kept most of it for ever. With two heaps, whose
//! free ends go back to the system at once, it is back where it was within seconds. Large events have
//! mappings of their own. Other C libraries are left as they are.

/// The heaps that all threads share.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: i32 = 2;
/// What may be free at the end of one, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FREE_AT_THE_END: i32 = 1 << 20;

/// What is freed from now on goes back to the system. To be called first: before there are threads.
pub fn return_freed_memory() {
    // SAFETY: these calls set two numbers of the allocator, under its own lock.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_AT_THE_END);
    }
}
