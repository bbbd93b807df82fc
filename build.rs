//! Generates the gRPC types with `protox`, a protobuf compiler in Rust, so that `protoc`
//! need not be installed. Also sets the source revision for `--version`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let protos = protox::compile(["forge.proto", "nico/rewrap/v1/rewrap.proto"], ["proto"])?;
    // For the reflection service.
    std::fs::write(out.join("services.bin"), protos.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_transport(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(protos)?;
    println!("cargo:rerun-if-changed=proto");

    // A release tarball and a container build have no .git, so they pass the revision in.
    let revision = env::var("NICO_REWRAP_REVISION")
        .ok()
        .or_else(git_revision)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=NICO_REWRAP_REVISION={revision}");
    println!("cargo:rerun-if-env-changed=NICO_REWRAP_REVISION");
    // If a listed file does not exist, Cargo rebuilds every time.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    Ok(())
}

fn git_revision() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !revision.is_empty()).then_some(revision)
}
