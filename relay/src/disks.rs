//! Whether there is room for what comes: on the relay's disk and, where it is on this machine, on that of
//! the repositories.

use grasp_proto::{
    process::disk::{DiskFull, DiskSpace},
    transport::Role,
};
use nostr::Event;

use crate::{
    config::{Backend, Config},
    nip34::Meaning,
};

/// The disks that new data needs.
#[derive(Debug, Clone)]
pub struct Disks {
    own: DiskSpace,
    git: DiskSpace,
}

impl Disks {
    /// Those of a relay that is told this.
    pub fn of(config: &Config) -> Self {
        let floor = config.min_free_bytes;
        let own = (config.backend == Backend::Lmdb).then(|| config.data_path.clone());
        let git = match config.git_data_path.is_dir() {
            true => DiskSpace::of_another(config.git_data_path.clone(), floor),
            false => DiskSpace::unlimited(),
        };
        Self {
            own: DiskSpace::new(Role::Relay, own, floor),
            git,
        }
    }

    /// Those that always have room.
    pub fn unlimited() -> Self {
        Self {
            own: DiskSpace::unlimited(),
            git: DiskSpace::unlimited(),
        }
    }

    /// Whether there is room for an event. What makes room goes on for longer than the rest; what needs
    /// no git data does not wait for room for that.
    pub fn check_event(&self, event: &Event) -> Result<(), DiskFull> {
        if event.kind.is_ephemeral() {
            return Ok(());
        }
        match Meaning::of(event.kind) {
            Meaning::Deletion | Meaning::Vanish => self.own.check_for_deletion(),
            Meaning::Announcement | Meaning::State | Meaning::PullRequest => {
                self.own.check().and(self.git.check())
            }
            Meaning::GraspList | Meaning::Other => self.own.check(),
        }
    }

    /// Whether there is room for what a push leaves here.
    pub fn check_push(&self) -> Result<(), DiskFull> {
        self.own.check()
    }

    /// For operators: why nothing new is taken, if that is so.
    pub fn shortage(&self) -> Option<String> {
        let all = [self.own.shortage(), self.git.shortage()];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Keeps the metrics up to date for as long as the process runs.
    pub async fn watch(self) {
        self.own.watch().await;
    }
}
