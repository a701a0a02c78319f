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
    // Two services again, for the server: what their responses hold is encoded already.
    let method = |name: &str, route: &str, input: &str, output: &str| {
        let builder = Method::builder().name(name).route_name(route).codec_path("tonic_prost::ProstCodec");
        builder
            .input_type(format!("crate::proto::etcdserverpb::{input}"))
            .output_type(format!("crate::proto::{output}"))
    };
    let watch = method("watch", "Watch", "WatchRequest", "encoded::WatchResponse");
    let watch = Service::builder()
        .name("Watch")
        .package("etcdserverpb")
        .method(watch.client_streaming().server_streaming().build());
    let kv = [
        method("range", "Range", "RangeRequest", "encoded::RangeResponse"),
        method("range_stream", "RangeStream", "RangeRequest", "encoded::RangeStreamResponse").server_streaming(),
        method("put", "Put", "PutRequest", "etcdserverpb::PutResponse"),
        method("delete_range", "DeleteRange", "DeleteRangeRequest", "etcdserverpb::DeleteRangeResponse"),
        method("txn", "Txn", "TxnRequest", "etcdserverpb::TxnResponse"),
        method("compact", "Compact", "CompactionRequest", "etcdserverpb::CompactionResponse"),
    ];
    let service = Service::builder().name("KV").package("etcdserverpb");
    let kv = kv.into_iter().fold(service, |service, method| service.method(method.build()));
    tonic_build::manual::Builder::new().build_client(false).compile(&[watch.build(), kv.build()]);
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
