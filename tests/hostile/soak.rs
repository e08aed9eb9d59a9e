//! All attacks in turn, for a long time, against one service; what has grown.

use std::time::{Duration, Instant};

use crate::{
    Attack,
    stage::Stage,
    watch::{MB, Sample, disk},
};

/// For how long, if that is asked for.
pub fn duration() -> Option<Duration> {
    let minutes = std::env::var("GRASPD_HOSTILE_MINUTES").ok()?;
    let minutes: u64 = minutes.parse().expect("a number of minutes");
    Some(Duration::from_secs(60 * minutes))
}

/// Runs all attacks in turn until the time is over; prints a line after each turn.
pub async fn run(attacks: &[Attack], duration: Duration) {
    let stage = Stage::start().await;
    let begun = Instant::now();
    println!("  minute   memory MB   handles   threads   disk MB   processors s");
    loop {
        let now = Sample::of(stage.service.pid());
        println!(
            "{:8} {:11} {:9} {:9} {:9} {:14.0}",
            begun.elapsed().as_secs() / 60,
            now.memory / MB,
            now.handles,
            now.threads,
            disk(stage.service.directory()) / MB,
            now.cpu
        );
        if begun.elapsed() >= duration {
            return;
        }
        for attack in attacks {
            let cost = stage.suffer(attack).await;
            eprintln!("{}: {cost}", attack.name);
        }
    }
}
