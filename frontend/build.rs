//! Compiles the protobuf definitions, without a `protoc` on the machine.

use protox::prost::Message;
use tonic_build::manual::{Method, Service};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["rpc.proto", "kv.proto", "auth.proto", "lock.proto", "election.proto", "polybolt.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    // The gateway and the metrics look methods and fields up by name.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Byte fields share the buffer they came in.
    tonic_prost_build::configure().bytes(".").build_transport(true).compile_fds(descriptors)?;
    // The Watch service again, for the server: its responses hold events that are encoded already.
    let watch = Method::builder()
        .name("watch")
        .route_name("Watch")
        .input_type("crate::proto::etcdserverpb::WatchRequest")
        .output_type("crate::proto::encoded::WatchResponse")
        .codec_path("tonic_prost::ProstCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let service = Service::builder().name("Watch").package("etcdserverpb").method(watch).build();
    tonic_build::manual::Builder::new().build_client(false).compile(&[service]);
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
