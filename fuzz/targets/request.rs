//! Requests of any bytes, over gRPC, as JSON and over HTTP, to a whole server without a connection: each is
//! answered by what its protocol allows, and the store stays sound.
//!
//! Input: calls one after another, as in `calls.rs`.
#![no_main]

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, Request};
use axum::response::Response;
use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::{RangeRequest, Routes, Span, TableEdit};
use polybolt_frontend::access::Access;
use polybolt_frontend::listen;
use polybolt_frontend::proto::etcdserverpb::AuthenticateResponse;
use polybolt_frontend::server::{Server, Settings};
use polybolt_fuzz::calls::{self, FIRST_JSON, GRPC, HTTP, JSON, SIGN_OUT, TABLE_NAMES, TABLES};
use polybolt_fuzz::drive::{self, Driven, STORE};
use prost::Message;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::LazyLock;
use std::task::Poll;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Calls of one input.
const CALLS_MAX: usize = 24;
/// Turns without anything from the server after which a client goes away.
const PATIENCE: usize = 150;
/// Turns after which what a server sends is not looked at any more.
const TURNS_MAX: usize = 6000;

static TEMPLATE: LazyLock<SimDisk> = LazyLock::new(|| {
    let disk = drive::disk();
    let driven = Driven::open(&disk, STORE, drive::options(), 7).expect("a new store");
    driven.engine.create_keyspace("default", Routes::parse("low=a").expect("routes")).expect("a new keyspace");
    driven.close().expect("it closes");
    disk.after_crash(Survive::Nothing)
});

fn settings() -> Settings {
    Settings {
        name: "default".into(),
        peer_urls: vec!["http://localhost:2380".into()],
        advertise_client_urls: vec!["http://localhost:2379".into()],
        quota_bytes: -1,
        max_request_bytes: 20_000,
        unread_bytes_max: 16 << 20,
        progress_interval: Duration::from_secs(600),
        token_ttl: Duration::from_secs(300),
        bcrypt_cost: 4,
        retained_shards: Vec::new(),
    }
}

/// What became of a call.
#[derive(Default)]
struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    whole: bool,
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

fn request(call: u8, mut body: &[u8], token: Option<&str>) -> Option<Request<Body>> {
    let mut builder = Request::builder();
    if let Some(token) = token {
        builder = builder.header("authorization", token);
    }
    if call == HTTP {
        let end = body.windows(2).position(|pair| pair == b"\n\n").unwrap_or(body.len());
        let (head, body) = body.split_at(end);
        let mut lines = std::str::from_utf8(head).ok()?.lines();
        let (method, path) = lines.next()?.split_once(' ')?;
        builder = builder.method(method).uri(path);
        for line in lines {
            let (name, value) = line.split_once(':')?;
            builder = builder.header(name, value.trim());
        }
        let body = body.get(2..).unwrap_or_default().to_vec();
        return builder.body(Body::from(body)).ok();
    }
    if call >= FIRST_JSON {
        let path = JSON[usize::from(call - FIRST_JSON) % JSON.len()];
        return builder.method("POST").uri(path).body(Body::from(body.to_vec())).ok();
    }
    let (path, streams) = GRPC[usize::from(call) % GRPC.len()];
    let mut sent = Vec::new();
    if streams {
        while let Some(part) = calls::take_part(&mut body) {
            sent.extend(framed(part));
        }
    } else {
        sent = framed(body);
    }
    let builder = builder.method("POST").uri(path).header("content-type", "application/grpc").header("te", "trailers");
    builder.body(Body::from(sent)).ok()
}

/// Lets the engine's jobs and the server's tasks have a turn.
async fn turn(driven: &Driven, at: usize) {
    driven.step();
    tokio::task::yield_now().await;
    if at % 64 == 63 {
        // Somebody may be on another thread.
        std::thread::sleep(Duration::from_micros(20));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
}

async fn with_turns<T>(driven: &Driven, answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = pin!(answer);
    for at in 0..TURNS_MAX {
        let mut done = None;
        poll_fn(|cx| {
            if let Poll::Ready(now) = answer.as_mut().poll(cx) {
                done = Some(now);
            }
            Poll::Ready(())
        })
        .await;
        if done.is_some() {
            return done;
        }
        turn(driven, at).await;
    }
    None
}

/// Reads what is sent until it ends, or nothing comes for a while.
async fn receive(driven: &Driven, response: Response) -> Answer {
    let (parts, mut body) = response.into_parts();
    let mut answer = Answer { headers: parts.headers, ..Answer::default() };
    let mut quiet = 0;
    for at in 0..TURNS_MAX {
        let frame = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
        match frame {
            Poll::Ready(None) => {
                answer.whole = true;
                break;
            }
            Poll::Ready(Some(Err(_))) => break,
            Poll::Ready(Some(Ok(frame))) => {
                quiet = 0;
                match frame.into_data() {
                    Ok(data) => answer.body.extend_from_slice(&data),
                    Err(frame) => answer.trailers.extend(frame.into_trailers().unwrap_or_default()),
                }
                continue;
            }
            Poll::Pending => quiet += 1,
        }
        if quiet > PATIENCE {
            break;
        }
        turn(driven, at).await;
    }
    answer
}

/// What a protocol allows as an answer.
fn check(call: u8, answer: &Answer) {
    if call < TABLES {
        let status = answer.trailers.get("grpc-status").or(answer.headers.get("grpc-status"));
        let code = status.and_then(|status| status.to_str().ok()).and_then(|status| status.parse::<u32>().ok());
        assert!(!answer.whole || code.is_some_and(|code| code <= 16), "ended without a status: {:?}", answer.headers);
        let mut rest = &answer.body[..];
        while let Some(([_, len @ ..], after)) = rest.split_first_chunk::<5>() {
            let len = u32::from_be_bytes(*len) as usize;
            assert!(!answer.whole || len <= after.len(), "a message is cut");
            rest = &after[len.min(after.len())..];
        }
    }
    let kind = answer.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if answer.whole && kind == "application/json" {
        let text = std::str::from_utf8(&answer.body).expect("JSON is text");
        assert!(text.trim_end().lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{text}");
    }
}

/// The tables that come before the first other call.
fn tables(input: &mut &[u8]) -> Vec<TableEdit> {
    let mut edits = Vec::new();
    loop {
        let mut ahead = *input;
        let Some((TABLES, mut body)) = calls::take(&mut ahead) else { return edits };
        *input = ahead;
        let (Some(table), Some(key)) = (calls::take_part(&mut body), calls::take_part(&mut body)) else { continue };
        let table = TABLE_NAMES[usize::from(table.first().copied().unwrap_or(0)) % TABLE_NAMES.len()].to_owned();
        let (key, value) = (Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(body)));
        edits.push(TableEdit { table, key, value });
    }
}

async fn run(mut input: &[u8]) {
    let disk = TEMPLATE.fork();
    let driven = Driven::open(&disk, STORE, drive::options(), 5).expect("it is sound");
    let ks = driven.engine.keyspace("default").expect("it is there");
    let edits = tables(&mut input);
    if driven.blocking(|| ks.table_write(edits).wait()).is_err() {
        return;
    }
    let stop = CancellationToken::new();
    let (engine, served) = (driven.engine.clone(), ks.clone());
    let started = driven.blocking(|| Server::start(engine, served, settings(), Default::default(), stop.clone()));
    let server = match started {
        Ok(server) => server,
        Err(error) => {
            assert!(error.to_string().contains("table"), "{error} does not say where");
            return;
        }
    };
    let access = Access::default();
    let serve = listen::without_connection(&server, &access).await;
    let mut token = None;
    for _ in 0..CALLS_MAX {
        let Some((call, body)) = calls::take(&mut input) else { break };
        if call == SIGN_OUT {
            token = None;
            continue;
        }
        let Some(request) = request(call, body, token.as_deref()) else { continue };
        let Some(response) = with_turns(&driven, serve(request)).await else { continue };
        let answer = receive(&driven, response).await;
        check(call, &answer);
        if GRPC.get(usize::from(call)).is_some_and(|(path, _)| path.ends_with("/Authenticate"))
            && let Some(Ok(login)) = answer.body.get(5..).map(AuthenticateResponse::decode)
            && !login.token.is_empty()
        {
            token = Some(login.token);
        }
    }
    stop.cancel();
    for at in 0..64 {
        turn(&driven, at).await;
    }
    driven.engine.verify(&mut |_| ()).expect("the store is sound");
    ks.range(&RangeRequest::new(Span::prefix(""))).expect("it can be read");
    assert!(driven.engine.failure().is_none(), "{:?}", driven.engine.failure());
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(run(input));
    runtime.shutdown_timeout(Duration::from_millis(200));
    Corpus::Keep
});
