//! graspd behind real proxies: nginx and Caddy as Debian has them, by the configurations that our own pages
//! show and by those that people leave as they are.
//!
//! Where a proxy is not installed, its tests are ignored, and why is said.
//! `GRASPD_PROXIES_SCALE` makes what is transferred larger.

#[path = "../../proto/tests/authority/mod.rs"]
mod authority;
mod clones;
mod configuration;
mod front;
#[path = "../harness/mod.rs"]
mod harness;
mod pushes;
mod stage;
#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports)] // It is made for the other suite, which uses all of it.
mod support;

use std::{process::ExitCode, sync::Arc};

use futures::future::{BoxFuture, FutureExt};
use libtest_mimic::{Arguments, Completion, Trial};
use tokio::runtime::Runtime;

use self::configuration::Configuration;

/// What is tried.
struct Case {
    name: &'static str,
    run: fn(Configuration) -> BoxFuture<'static, ()>,
    of: fn(Configuration) -> bool,
}

fn all(_: Configuration) -> bool {
    true
}

fn is_impatient(configuration: Configuration) -> bool {
    configuration == Configuration::NginxImpatient
}

fn streams(configuration: Configuration) -> bool {
    configuration != Configuration::NginxUnconfigured
}

fn passes_the_relay(configuration: Configuration) -> bool {
    !configuration.leads_to_gitd()
}

/// Cases as functions without a name of their type.
macro_rules! cases {
    ($($name:literal: $path:path, $of:expr;)*) => {
        [$(Case { name: $name, run: |it| $path(it).boxed(), of: $of }),*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They mostly wait.
    arguments.test_threads.get_or_insert(4);
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let cases = cases! {
        "pushes_of_any_size": pushes::of_any_size, all;
        "pushes_that_ask_first": pushes::that_ask_first, all;
        "pushes_that_are_refused": pushes::that_are_refused, all;
        "pushes_that_are_refused_at_the_door": pushes::that_are_refused_at_the_door, all;
        "pushes_that_are_slow": pushes::that_are_slow, is_impatient;
        "pushes_that_take_long_to_be_checked": pushes::that_take_long_to_be_checked, is_impatient;
        "pushes_that_break_off": pushes::that_break_off, all;
        "pushes_that_lose_gitd": pushes::that_lose_gitd, passes_the_relay;
        "pushes_beside_a_websocket": pushes::beside_a_websocket, Configuration::passes_websockets;
        "pushes_that_are_compressed": pushes::that_are_compressed, all;
        "pushes_that_are_hunted_for": pushes::that_are_hunted_for, all;
        "clones_of_any_size": clones::of_any_size, all;
        "clones_that_are_slow": clones::that_are_slow, all;
        "clones_that_have_much": clones::that_have_much, all;
        "clones_that_break_off": clones::that_break_off, streams;
    };
    harness::end_on_signal(&runtime, async {
        harness::kill_descendants();
        stage::clean_up();
    });
    let mut trials = Vec::new();
    for configuration in Configuration::ALL {
        for case in cases.iter().filter(|case| (case.of)(configuration)) {
            let (run, runtime) = (case.run, runtime.clone());
            let name = format!("{}::{}", configuration.name(), case.name);
            trials.push(Trial::ignorable_test(name, move || {
                if let Err(reason) = configuration.program() {
                    return Ok(Completion::ignored_with(reason));
                }
                runtime.block_on(run(configuration));
                Ok(Completion::Completed)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    stage::clean_up();
    conclusion.exit_code()
}
