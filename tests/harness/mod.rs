//! For suites with a harness of their own: what they started ends with them.

use rustix::process::Signal;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::support::processes;

/// Ends this process on a signal, once `clean_up` is done.
pub fn end_on_signal(runtime: &Runtime, clean_up: impl Future<Output = ()> + Send + 'static) {
    runtime.spawn(async {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        clean_up.await;
        std::process::exit(1);
    });
}

/// Kills every process below this one.
pub fn kill_descendants() {
    for pid in processes::descendants(std::process::id()) {
        processes::send(pid, Signal::KILL);
    }
}
