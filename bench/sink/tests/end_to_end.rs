//! The sink as a client and a harness meet it: the built binary, over the wire.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};

struct Sink {
    process: Child,
    publisher: SocketAddr,
    control: SocketAddr,
}

impl Sink {
    fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_null-pubsub"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["listening", publisher, "control", control] = words[..] else { panic!("{line:?}") };
        Self { process, publisher: publisher.parse().unwrap(), control: control.parse().unwrap() }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.control).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: sink\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        body.to_owned()
    }

    fn stat(&self, name: &str) -> u64 {
        let stats: serde_json::Value = serde_json::from_str(&self.ask("GET", "/totals", "")).unwrap();
        stats[name].as_u64().unwrap()
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = tokio::net::TcpStream::connect(self.publisher).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Ends it as a service manager does, and waits.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    /// OK, with that many bytes of message.
    Message(usize),
    Status(String),
    Broken,
}

const ID_BYTES: usize = 18;

async fn call(sender: &mut SendRequest<Full<Bytes>>, method: &str, message: &[u8]) -> Answer {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put(message);
    let request = Request::post(format!("http://sink/google.pubsub.v1.Publisher/{method}"))
        .header("content-type", "application/grpc")
        .body(Full::new(frame.freeze()))
        .unwrap();
    let Ok(response) = sender.send_request(request).await else { return Answer::Broken };
    if let Some(status) = response.headers().get("grpc-status") {
        return Answer::Status(status.to_str().unwrap().to_owned());
    }
    let Ok(body) = response.into_body().collect().await else { return Answer::Broken };
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    Answer::Message(body.to_bytes().len() - 5)
}

/// A request with these messages, each with data and attributes, none over 127 bytes.
fn publish_request(messages: &[(&str, &[(&str, &str)])]) -> Vec<u8> {
    let mut request = Vec::new();
    field(&mut request, 1, b"projects/p/topics/t");
    for (data, attributes) in messages {
        let mut message = Vec::new();
        field(&mut message, 1, data.as_bytes());
        for (name, value) in *attributes {
            let mut entry = Vec::new();
            field(&mut entry, 1, name.as_bytes());
            field(&mut entry, 2, value.as_bytes());
            field(&mut message, 2, &entry);
        }
        field(&mut request, 2, &message);
    }
    request
}

fn field(message: &mut Vec<u8>, number: u8, payload: &[u8]) {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 0x80);
    message.extend([number << 3 | 2, length]);
    message.extend(payload);
}

fn plain(data: &str) -> Vec<u8> {
    publish_request(&[(data, &[("kafka-partition", "2"), ("kafka-offset", "7")])])
}

#[tokio::test]
async fn counts_acknowledges_and_writes_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages");
    let sink = Sink::start(&["--record", path.to_str().unwrap()]);
    let mut sender = sink.connect().await;

    let name = b"projects/p/topics/t";
    let mut topic = Vec::new();
    field(&mut topic, 1, name);
    assert_eq!(call(&mut sender, "GetTopic", &topic).await, Answer::Message(topic.len()));
    let packed = [("kafka-partition", "1"), ("content-type", "text/uri-list"), ("kafka-offset", "5-6,9")];
    let request = publish_request(&[("http://a/\r\nhttp://b/\r\nhttp://c/", &packed), ("alone", &[])]);
    assert_eq!(call(&mut sender, "Publish", &request).await, Answer::Message(2 * ID_BYTES));
    assert_eq!(call(&mut sender, "Publish", b"").await, Answer::Status("3".to_owned()));

    assert_eq!((sink.stat("messages"), sink.stat("urls"), sink.stat("calls")), (2, 4, 1));
    assert_eq!(sink.stat("bytes"), request.len() as u64);
    assert_eq!(sink.stat("calls_not_accepted"), 1);
    assert!(sink.ask("GET", "/stats", "").contains("\"messages\":2,"));
    sink.ask("POST", "/reset", "");
    assert_eq!(sink.stat("messages"), 0);

    sink.stop();
    assert_eq!(read(&path), "1 5-6,9 http://a/|http://b/|http://c/\n- - alone\n");
}

#[tokio::test]
async fn breaks_as_it_is_told() {
    let sink = Sink::start(&[]);
    let mut sender = sink.connect().await;
    let accepted = Answer::Message(ID_BYTES);

    for (rule, answer, accepts) in [
        (r#"[{"kind": "status", "code": 8, "count": 1}]"#, Answer::Status("8".to_owned()), 0),
        (r#"[{"kind": "reset", "count": 1}]"#, Answer::Broken, 0),
        (r#"[{"kind": "lost_answer", "count": 1}]"#, Answer::Broken, 1),
        (r#"[{"kind": "short_ids", "count": 1}]"#, Answer::Message(0), 1),
        (r#"[{"kind": "refuse_data", "contains": "url"}]"#, Answer::Status("3".to_owned()), 0),
        (r#"[{"kind": "refuse_data", "contains": "poison"}]"#, Answer::Message(ID_BYTES), 1),
    ] {
        sink.ask("POST", "/reset", "");
        sink.ask("POST", "/faults", rule);
        assert_eq!(call(&mut sender, "Publish", &plain("url")).await, answer, "{rule}");
        assert_eq!(sink.stat("messages"), accepts, "{rule}");
    }

    sink.ask("POST", "/faults", r#"[{"kind": "latency", "ms": 150}]"#);
    let started = Instant::now();
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, accepted);
    assert!(started.elapsed() >= Duration::from_millis(150));

    sink.ask("POST", "/faults", r#"[{"kind": "hang"}]"#);
    let request = plain("url");
    let hanging = call(&mut sender, "Publish", &request);
    assert!(tokio::time::timeout(Duration::from_millis(200), hanging).await.is_err());

    sink.ask("POST", "/faults", r#"[{"kind": "close", "count": 1}]"#);
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, Answer::Broken);
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, Answer::Broken);
    let mut sender = sink.connect().await;
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, accepted);

    sink.ask("POST", "/faults", r#"[{"kind": "refuse_connections"}]"#);
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, Answer::Broken);
    let mut refused = sink.connect().await;
    assert_eq!(call(&mut refused, "Publish", &plain("url")).await, Answer::Broken);
    sink.ask("POST", "/faults", "[]");
    let mut sender = sink.connect().await;
    assert_eq!(call(&mut sender, "Publish", &plain("url")).await, accepted);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
