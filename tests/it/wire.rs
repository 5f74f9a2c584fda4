//! The client against bytes: what the real envd and the real SDK were seen to send, played by a server that knows
//! nothing of either.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use turnmill::e2b::ApiVersion::V2;
use turnmill::e2b::{ApiError, Command, EnvdError, ProcessEvent, Sandbox};

use crate::harness::client;

const SOON: Duration = Duration::from_secs(10);

/// Answers one request with these pieces, as they are; gives the request.
async fn play(pieces: Vec<Vec<u8>>) -> (String, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, heard) = oneshot::channel();
    tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = peer.read(&mut buffer).await.unwrap();
            request.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&request);
            let length = text.to_lowercase().split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            if text.split_once("\r\n\r\n").is_some_and(|(head, _)| request.len() >= head.len() + 4 + length.unwrap_or(0)) {
                break;
            }
        }
        for piece in pieces {
            peer.write_all(&piece).await.unwrap();
            peer.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        tell.send(String::from_utf8_lossy(&request).into_owned()).unwrap();
    });
    (url, heard)
}

fn frame(flags: u8, payload: &str) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[flags], &length[..], payload.as_bytes()].concat()
}

/// Chunked, as the real one sends; each chunk ends where `size` says, not where a frame does.
fn streamed(frames: &[Vec<u8>], size: usize) -> Vec<Vec<u8>> {
    let head =
        "HTTP/1.1 200 OK\r\nConnect-Accept-Encoding: gzip\r\nContent-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let all = frames.concat();
    let mut pieces = vec![head.as_bytes().to_vec()];
    pieces.extend(all.chunks(size).map(chunk));
    pieces.push(b"0\r\n\r\n".to_vec());
    pieces
}

fn sandbox() -> Sandbox {
    let answer = json!({ "templateID": "rki5dems9wqfm4r03t7g", "sandboxID": "i0000000000000000000a", "clientID": "6532622b",
        "envdVersion": "0.6.13", "envdAccessToken": "tok", "alias": "base", "domain": null, "trafficAccessToken": null });
    serde_json::from_value(answer).unwrap()
}

fn echo() -> Command {
    let args = ["-l", "-c", "echo hi"].map(str::to_owned).to_vec();
    Command { cmd: "/bin/bash".to_owned(), args, user: "user".to_owned(), cwd: Some("/tmp".to_owned()), ..Command::default() }
}

async fn heard(frames: &[Vec<u8>], size: usize) -> (Vec<Result<ProcessEvent, EnvdError>>, String) {
    let (url, request) = play(streamed(frames, size)).await;
    let events = client(&url).envd(&sandbox()).start(&echo()).await.unwrap().collect().await;
    (events, request.await.unwrap())
}

#[tokio::test]
async fn the_real_envd_s_answer_is_read_however_it_is_chopped() {
    let frames = [
        frame(0, r#"{"event":{"start":{"pid":5763}}}"#),
        frame(0, r#"{"event":{"data":{"stdout":"b3V0Cg=="}}}"#),
        frame(0, r#"{"event":{"keepalive":{}}}"#),
        frame(0, r#"{"event":{"data":{"stderr":"ZXJyCg=="}}}"#),
        frame(0, r#"{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}"#),
        frame(2, "{}"),
    ];
    for size in [1, 2, 7, 64, 10_000] {
        let (events, request) = heard(&frames, size).await;
        let events: Vec<_> = events.into_iter().map(Result::unwrap).collect();
        let expected = [
            ProcessEvent::Started { pid: 5763 },
            ProcessEvent::Stdout("out\n".into()),
            ProcessEvent::Stderr("err\n".into()),
            ProcessEvent::Ended { exit_code: 3 },
        ];
        assert_eq!(events, expected);
        // Asked as the official SDK asks, but for the deadline: that would kill the process.
        let request = request.to_lowercase();
        for line in [
            "post /process.process/start http/1.1",
            "authorization: basic dxnlcjo=",
            "connect-protocol-version: 1",
            "content-type: application/connect+json",
            "x-access-token: tok",
            "e2b-sandbox-id: i0000000000000000000a",
            "e2b-sandbox-port: 49983",
            r#""cmd":"/bin/bash""#,
            r#""stdin":false"#,
        ] {
            assert!(request.contains(line), "{line} in {request}");
        }
        assert!(!request.contains("connect-timeout-ms"), "{request}");
    }
}

#[tokio::test]
async fn a_stream_s_end_says_how_it_ended_and_none_means_that_it_was_cut() {
    let start = || frame(0, r#"{"event":{"start":{"pid":1}}}"#);
    let ends = [
        (vec![start()], EnvdError::Unreachable("the stream was cut".to_owned())),
        (
            vec![start(), frame(2, r#"{"error":{"code":"deadline_exceeded","message":"context deadline exceeded"}}"#)],
            EnvdError::DeadlineExceeded,
        ),
        (
            vec![frame(2, r#"{"error":{"code":"not_found","message":"process with pid 7 not found"}}"#)],
            EnvdError::NotFound("process with pid 7 not found".to_owned()),
        ),
        (
            vec![frame(2, r#"{"error":{"code":"unauthenticated","message":"invalid username: 'nouser'"}}"#)],
            EnvdError::Unauthorized("invalid username: 'nouser'".to_owned()),
        ),
        (
            vec![frame(2, r#"{"error":{"code":"unavailable","message":"the connection to sandbox x ended"}}"#)],
            EnvdError::Unreachable("the connection to sandbox x ended".to_owned()),
        ),
    ];
    for (frames, expected) in ends {
        let (mut events, _) = heard(&frames, 1000).await;
        assert_eq!(events.pop().unwrap(), Err(expected));
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<Vec<u8>> {
    vec![format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()]
}

#[tokio::test]
async fn the_proxy_s_words_are_understood() {
    let cases = [
        ("502 Bad Gateway", r#"{"sandboxId":"i1","message":"The sandbox was not found","code":502}"#, "Gone"),
        (
            "502 Bad Gateway",
            r#"{"sandboxId":"i1","message":"The sandbox is running but port is not open","port":49983,"code":502}"#,
            "NotReady",
        ),
        ("409 Conflict", r#"{"message":"still transitioning. Try again in a moment."}"#, "NotReady"),
        ("401 Unauthorized", r#"{"code":401,"message":"unauthorized access, please provide a valid access token"}"#, "Unauthorized"),
        ("429 Too Many Requests", "too many concurrent incoming connections (limit: 5)", "Unreachable"),
        ("400 Bad Request", "missing header", "Rejected"),
        ("507 Insufficient Storage", r#"{"code":507,"message":"not enough disk space"}"#, "DiskFull"),
    ];
    for (status, body, kind) in cases {
        let (url, _) = play(answer(status, "", body)).await;
        let error = client(&url).envd(&sandbox()).upload("/x", "user", "x".into(), SOON).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(kind), "{status} {body}: {error:?}");
    }
}

#[tokio::test]
async fn a_create_is_asked_for_as_the_official_sdk_does() {
    let body =
        r#"{"templateID":"t","sandboxID":"ixxxxxxxxxxxxxxxxxxxx","clientID":"6532622b","envdVersion":"0.6.13","envdAccessToken":"tok"}"#;
    let (url, request) = play(answer("201 Created", "Content-Type: application/json\r\n", body)).await;
    let wanted = json!({ "templateID": "claude", "timeout": 600, "metadata": { "job": "a" } });
    let sandbox = client(&url).create(V2, "job-1-attempt-1", &wanted, SOON).await.unwrap();
    assert_eq!(sandbox.id, "ixxxxxxxxxxxxxxxxxxxx");
    let request = request.await.unwrap();
    let (head, sent) = request.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.starts_with("post /v2/sandboxes http/1.1"), "{head}");
    assert!(head.contains("x-api-key: local") && head.contains("idempotency-key: job-1-attempt-1"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(sent).unwrap(), wanted);
}

#[tokio::test]
async fn a_filter_s_labels_are_encoded_as_the_server_decodes_them() {
    let (url, request) = play(answer("200 OK", "X-Total-Running: 0\r\n", "[]")).await;
    assert_eq!(client(&url).list(&[("worker", "w1"), ("fleet", "prod")]).await.unwrap().len(), 0);
    let request = request.await.unwrap();
    assert!(request.contains("metadata=worker%3Dw1%26fleet%3Dprod"), "{request}");
}

#[tokio::test]
async fn an_answer_that_is_none_of_e2b_s_is_an_error_with_what_to_do() {
    let page = "<!doctype html><title>Welcome</title>";
    for (status, headers) in [("200 OK", "Content-Type: text/html\r\n"), ("404 Not Found", "Content-Type: text/html\r\n")] {
        let (url, _) = play(answer(status, headers, page)).await;
        let client = client(&url);
        let error = client.list(&[]).await.unwrap_err();
        assert!(matches!(error, ApiError::Refused(_) | ApiError::Transient(_)), "{error:?}");
    }
    let (url, _) = play(answer("301 Moved", "Location: https://there/\r\n", "")).await;
    let error = client(&url).kill("i1").await.unwrap_err();
    assert!(error.to_string().contains("https://there/"), "a redirect is never followed with our key: {error}");
}

#[tokio::test]
async fn a_file_without_ranges_is_cut_to_what_was_asked_for() {
    let (url, _) = play(answer("200 OK", "", "0123456789")).await;
    let bytes = client(&url).envd(&sandbox()).download("/x", "root", 3..6, SOON).await.unwrap();
    assert_eq!(bytes, "345");
    let (url, _) = play(answer("416 Range Not Satisfiable", "", "")).await;
    assert_eq!(client(&url).envd(&sandbox()).download("/x", "root", 10..20, SOON).await.unwrap(), "");
}

#[tokio::test]
async fn output_on_the_wrong_field_is_output_too() {
    let frames = [frame(0, r#"{"event":{"data":{"pty":"b3V0"}}}"#), frame(0, r#"{"event":{"end":{"exited":true}}}"#), frame(2, "{}")];
    let (url, _) = play(streamed(&frames, 100)).await;
    let events: Vec<_> = client(&url).envd(&sandbox()).start(&echo()).await.unwrap().try_collect().await.unwrap();
    assert_eq!(events, [ProcessEvent::Stdout("out".into()), ProcessEvent::Ended { exit_code: 0 }]);
}
