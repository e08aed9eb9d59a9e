//! Every input that was kept, through its target.

use std::{fs, path::Path};

use grasp_fuzz::{TARGETS, Target};
use libtest_mimic::{Arguments, Failed, Trial};

fn try_all(target: Target) -> Result<(), Failed> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let mut files: Vec<_> = fs::read_dir(&directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    if files.is_empty() {
        return Err("its corpus is empty".into());
    }
    (target.run)(b"");
    for file in files {
        println!("{}", file.display());
        let data = fs::read(&file)?;
        (target.run)(&data);
        // What breaks off is as likely to come.
        (target.run)(&data[..data.len() / 2]);
        (target.run)(&data[..data.len().saturating_sub(1)]);
    }
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    // A panic in a task of a service would end that task alone.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    let trials = TARGETS
        .iter()
        .map(|target| Trial::test(target.name, move || try_all(*target)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
