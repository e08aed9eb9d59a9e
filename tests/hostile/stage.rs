//! A service that is attacked, and the neighbour beside.

use tokio::sync::Mutex;

use crate::{
    Attack,
    neighbour::Neighbour,
    support::Service,
    watch::{Cost, Watch},
};

/// Multiplies what is done.
pub fn scaled(number: usize) -> usize {
    let scale = std::env::var("GRASPD_HOSTILE_SCALE").ok();
    number * scale.map_or(1, |scale| scale.parse().expect("a number"))
}

/// A running service.
pub struct Stage {
    pub service: Service,
    neighbour: Mutex<Neighbour>,
}

impl Stage {
    /// With its default settings; only the neighbour's address is one of its own.
    pub async fn start() -> Self {
        let service = Service::start_with(&[
            ("NGIT_TEST", "0"),
            ("NGIT_LOG_LEVEL", "info"),
            ("NGIT_RELAY_EVENTS_PER_MINUTE", "60"),
            ("NGIT_UNLIMITED_CIDRS", "127.0.0.1/32"),
        ])
        .await;
        let neighbour = Mutex::new(Neighbour::settle(&service).await);
        Self { service, neighbour }
    }

    /// What an attack costs.
    pub async fn suffer(&self, attack: &Attack) -> Cost {
        let mut neighbour = self.neighbour.lock().await;
        let watch = Watch::start(self.service.pid(), self.service.directory());
        let attacking = (attack.run)(self);
        let ratios = neighbour.live_on(&self.service, attacking).await;
        watch.end(ratios, &attack.bounds).await
    }
}
