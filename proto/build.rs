//! Generates the contracts' code from the `.proto` files, without an installed `protoc`.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "grasp/relay/v1/push.proto",
        "grasp/relay/v1/hunt.proto",
        "grasp/relay/v1/relay_sync.proto",
        "grasp/relay/v1/admin.proto",
        "grasp/git/v1/repositories.proto",
        "grasp/git/v1/packs.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=grasp");
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
