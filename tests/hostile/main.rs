//! Attacks on a started service with its default settings, each with a bound on what it may cost.
//!
//! Everything comes from one address that has no privileges. Meanwhile a neighbour clones, pushes and
//! publishes, and has to get what it asks for. What each attack took is printed: memory of all processes at
//! its peak and what is left of it, processor seconds, disk, handles, and how many times as long the neighbour
//! waited as when it was alone.
//!
//! `GRASPD_HOSTILE_SCALE` multiplies the attacks (1 by default); `GRASPD_HOSTILE_MINUTES` repeats all of
//! them in turn against one service for so long, and prints what has grown.

mod attacker;
mod git_attacks;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../../gitd/tests/made_pack/mod.rs"]
mod made_pack;
mod neighbour;
mod relay_attacks;
mod soak;
mod stage;
#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports)] // It is made for the other suite, which uses all of it.
mod support;
mod watch;

use std::{process::ExitCode, sync::Arc};

use futures::future::{BoxFuture, FutureExt};
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use self::{
    stage::Stage,
    watch::{Bounds, MB},
};

/// What is done to a service.
struct Attack {
    name: &'static str,
    run: for<'a> fn(&'a Stage) -> BoxFuture<'a, ()>,
    bounds: Bounds,
}

/// Attacks as functions without a name of their type.
macro_rules! attacks {
    ($($name:literal: $path:path, $bounds:expr;)*) => {
        [$(Attack { name: $name, run: |it| $path(it).boxed(), bounds: $bounds }),*]
    };
}

/// Processor time is that of a debug build.
const USUAL: Bounds = Bounds {
    peak_bytes: 512 * MB,
    left_bytes: 64 * MB,
    cpu_secs: 30.0,
    disk_bytes: 16 * MB,
    handles: 64,
};

fn attacks() -> [Attack; 13] {
    attacks! {
        "packs_that_are_bombs": git_attacks::bombs, USUAL;
        "deltas_of_deltas": git_attacks::delta_chain, USUAL;
        "pushes_that_break_off": git_attacks::broken_pushes, USUAL;
        "filters_within_filters": git_attacks::nested_filters, USUAL;
        "heads_of_requests_without_end": git_attacks::endless_heads, USUAL;
        "filters_of_many_values": relay_attacks::filters, Bounds { cpu_secs: 90.0, ..USUAL };
        "counts_and_reconciliations": relay_attacks::counts_and_reconciliations, USUAL;
        "readers_who_do_not_read": relay_attacks::slow_readers, Bounds { disk_bytes: 96 * MB, ..USUAL };
        "subscribers_who_do_not_read": relay_attacks::slow_subscribers, Bounds { disk_bytes: 96 * MB, ..USUAL };
        "events_of_strangers": relay_attacks::strangers, Bounds { disk_bytes: 32 * MB, ..USUAL };
        "announcements_of_many_urls": relay_attacks::many_urls, Bounds { disk_bytes: 32 * MB, ..USUAL };
        "states_that_move_thousands_of_refs_of_many": relay_attacks::swapped_refs, Bounds { cpu_secs: 60.0, ..USUAL };
        "events_that_nobody_signed": relay_attacks::forged, USUAL;
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each is measured by itself.
    arguments.test_threads = Some(1);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    harness::end_on_signal(&runtime, async { harness::kill_descendants() });
    if let Some(duration) = soak::duration() {
        runtime.block_on(soak::run(&attacks(), duration));
        return ExitCode::SUCCESS;
    }
    let trials = attacks().map(|attack| {
        let runtime = runtime.clone();
        Trial::test(attack.name, move || {
            runtime.block_on(async {
                let stage = Stage::start().await;
                let cost = stage.suffer(&attack).await;
                println!("{}: {cost}", attack.name);
                cost.check(&attack.bounds);
            });
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}
