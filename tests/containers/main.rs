//! graspd in containers: the image, and `docker-compose.yml` as it stands, on a real engine.
//!
//! One deployment is shared by all tests, which run one after another in the order of [`ON_ENGINE`]; any of
//! them also runs alone. What was ever accepted is looked at again by each. Without an engine the
//! tests that need one are listed as ignored, and why is said. Containers, networks, volumes and
//! images are removed at the end, after a failure and a signal too.

mod deployment;
mod files;
#[path = "../harness/mod.rs"]
#[allow(dead_code)] // Containers are nobody's children.
mod harness;
mod journeys;
#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports)] // It is made for the other suite, which uses all of it.
mod support;

use std::{process::ExitCode, sync::Arc};

use futures::future::{BoxFuture, FutureExt};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{runtime::Runtime, sync::OnceCell};

use deployment::{Deployment, Engine};

type Journey = for<'a> fn(&'a Deployment) -> BoxFuture<'a, ()>;

/// In the order they run in.
const ON_ENGINE: [(&str, Journey); 10] = [
    ("the_image_is_small_and_runs_as_nobody", |it| {
        journeys::image(it).boxed()
    }),
    ("it_starts_as_it_stands_and_does_its_job", |it| {
        journeys::main_job(it).boxed()
    }),
    ("each_sees_no_more_than_it_needs", |it| {
        journeys::walls(it).boxed()
    }),
    ("workers_share_what_is_to_be_fetched_while_some_die", |it| {
        journeys::workers(it).boxed()
    }),
    ("each_container_dies_and_comes_back", |it| {
        journeys::deaths(it).boxed()
    }),
    ("gitd_is_cut_off_and_heals", |it| {
        journeys::gitd_cut_off(it).boxed()
    }),
    ("the_relay_is_cut_off_and_heals", |it| {
        journeys::relay_cut_off(it).boxed()
    }),
    ("another_image_is_rolled_out_with_the_data", |it| {
        journeys::rollout(it).boxed()
    }),
    ("it_is_taken_down_and_brought_up_again", |it| {
        journeys::down_and_up(it).boxed()
    }),
    ("credentials_and_key_may_be_secrets_of_ones_own", |it| {
        journeys::secrets(it).boxed()
    }),
];

const ON_FILES: [(&str, fn()); 3] = [
    ("every_setting_reaches_a_container", files::settings),
    ("no_key_stands_twice", files::keys),
    ("the_image_names_its_version", files::version),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one deployment.
    arguments.test_threads = Some(1);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let engine = runtime.block_on(Engine::find());
    if let Err(reason) = &engine {
        eprintln!("containers: the tests that need a container engine are skipped: {reason}");
    }
    let shared: Arc<OnceCell<Deployment>> = Arc::default();
    if engine.is_ok() {
        harness::end_on_signal(&runtime, deployment::remove_everything());
    }

    let on_files = ON_FILES.map(|(name, check)| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    });
    let on_engine = ON_ENGINE.map(|(name, journey)| {
        let (runtime, shared, engine) = (runtime.clone(), shared.clone(), engine.clone());
        let ignored = engine.is_err();
        Trial::test(name, move || {
            let engine = engine.map_err(Failed::from)?;
            runtime.block_on(async {
                let deployment = shared.get_or_init(|| Deployment::start(engine)).await;
                journey(deployment).await;
                deployment.lost_nothing().await;
            });
            Ok(())
        })
        .with_ignored_flag(ignored)
    });
    let trials = on_files.into_iter().chain(on_engine).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(deployment) = shared.get().filter(|_| conclusion.has_failed()) {
        runtime.block_on(deployment.tell());
    }
    runtime.block_on(deployment::remove_everything());
    conclusion.exit_code()
}
