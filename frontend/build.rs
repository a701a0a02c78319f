//! Compiles the protobuf definitions, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["rpc.proto", "kv.proto", "auth.proto", "lock.proto", "election.proto", "polybolt.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    // Byte fields share the buffer they came in.
    tonic_prost_build::configure().bytes(".").build_transport(true).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
