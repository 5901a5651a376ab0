//! Compiles the .proto with protox, so that no protoc has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/fastcache.proto");
    let files = protox::compile(["proto/fastcache.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
