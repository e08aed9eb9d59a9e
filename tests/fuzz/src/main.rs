//! `grasp-fuzz <target> [<file>…]`: runs a target over files, or over what comes on standard input, as
//! a fuzzer gives it. Without arguments it names the targets.

use std::{
    env, fs,
    io::{self, Read},
    process::{self, ExitCode},
};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(name) = arguments.next() else {
        for target in grasp_fuzz::TARGETS {
            println!("{}", target.name);
        }
        return ExitCode::SUCCESS;
    };
    let Some(target) = grasp_fuzz::find(&name) else {
        eprintln!("there is no target {name}");
        return ExitCode::FAILURE;
    };
    // In whichever thread it is: a fuzzer sees only how the process ends.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        process::abort();
    }));
    let files: Vec<String> = arguments.collect();
    if files.is_empty() {
        let mut data = Vec::new();
        if let Err(error) = io::stdin().read_to_end(&mut data) {
            eprintln!("standard input: {error}");
            return ExitCode::FAILURE;
        }
        (target.run)(&data);
    }
    for file in files {
        match fs::read(&file) {
            Ok(data) => (target.run)(&data),
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
