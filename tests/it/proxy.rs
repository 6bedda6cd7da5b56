//! The proxy of the fault tests does to connections what its methods say.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, eventually};

/// Long enough for bytes to cross loopback many times over.
const WHILE: Duration = Duration::from_millis(200);

/// An upstream that says back what it hears, until it hears no more.
struct Echo {
    addr: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.split();
                    tokio::io::copy(&mut reads, &mut writes).await
                });
            }
        });
        Self { addr, _accepting: AbortOnDropHandle::new(accepting) }
    }
}

/// Sends `text` and reads it back.
async fn echoes(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    hears(stream, text).await
}

async fn hears(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    let mut heard = vec![0; text.len()];
    timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("bytes arrive in time")?;
    assert_eq!(String::from_utf8_lossy(&heard), text);
    Ok(())
}

/// How reading ends: with 0 where the other side has closed, with an error where it has reset.
async fn end(stream: &mut TcpStream) -> io::Result<usize> {
    timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("the connection ends in time")
}

#[tokio::test]
async fn bytes_and_ends_go_through_both_ways() {
    let echo = Echo::start().await;
    let proxy = Proxy::start(echo.addr);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
    echoes(&mut client, "one").await.unwrap();
    echoes(&mut other, "two").await.unwrap();
    assert_eq!(proxy.connections(), 2);
    let large = "0123456789".repeat(1_000_000);
    let (mut reads, mut writes) = client.split();
    let sent = async {
        writes.write_all(large.as_bytes()).await.unwrap();
        writes.shutdown().await.unwrap();
    };
    let mut heard = String::new();
    let (_, count) = tokio::join!(sent, reads.read_to_string(&mut heard));
    assert_eq!(count.unwrap(), large.len());
    assert!(heard == large, "all bytes, in order");
    eventually("the ended connection is gone", async || (proxy.connections() == 1).then_some(())).await;
    echoes(&mut other, "three").await.unwrap();
}

#[tokio::test]
async fn a_cut_resets_and_refuses_until_it_is_restored_at_the_same_address() {
    let echo = Echo::start().await;
    let proxy = Proxy::start(echo.addr);
    for _ in 0..20 {
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        echoes(&mut client, "before").await.unwrap();
        proxy.cut().await;
        assert_eq!(proxy.connections(), 0);
        assert_eq!(end(&mut client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.cut().await;
        proxy.restore();
        proxy.restore();
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        echoes(&mut client, "after").await.unwrap();
    }
}

#[tokio::test]
async fn a_stall_moves_nothing_and_loses_nothing() {
    let echo = Echo::start().await;
    let proxy = Proxy::start(echo.addr);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    echoes(&mut client, "before").await.unwrap();
    proxy.stall(true);
    client.write_all(b"during").await.unwrap();
    let mut new = TcpStream::connect(proxy.addr()).await.expect("connections are still taken");
    new.write_all(b"new").await.unwrap();
    assert!(timeout(WHILE, client.read(&mut [0; 16])).await.is_err(), "neither bytes nor an end");
    assert!(timeout(WHILE, new.read(&mut [0; 16])).await.is_err(), "neither bytes nor an end");
    assert_eq!(proxy.connections(), 2);
    proxy.stall(false);
    hears(&mut client, "during").await.unwrap();
    hears(&mut new, "new").await.unwrap();
    proxy.stall(true);
    client.write_all(b"cut").await.unwrap();
    proxy.cut().await;
    assert!(end(&mut client).await.is_err(), "a cut ends what is stalled");
}

#[tokio::test]
async fn a_delay_is_latency_and_no_rate() {
    let echo = Echo::start().await;
    let proxy = Proxy::start(echo.addr);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    client.set_nodelay(true).unwrap();
    proxy.delay(Duration::from_millis(100));
    let began = Instant::now();
    let (mut reads, mut writes) = client.split();
    let sent = async {
        for _ in 0..20 {
            writes.write_all(b"0123456789").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut heard = vec![0; 200];
    let (_, result) = tokio::join!(sent, reads.read_exact(&mut heard));
    result.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(200), "once each way: {took:?}");
    assert!(took < Duration::from_millis(2_000), "not once for each of 20 chunks: {took:?}");
    proxy.delay(Duration::ZERO);
    echoes(&mut client, "last").await.unwrap();
}

#[tokio::test]
async fn after_a_half_close_the_client_reads_an_end_and_is_still_heard() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(upstream.local_addr().unwrap());
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = upstream.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    hears(&mut client, "hello").await.unwrap();
    proxy.half_close_client_side();
    assert_eq!(end(&mut client).await.unwrap(), 0, "a clean end");
    client.write_all(b"still here").await.unwrap();
    hears(&mut server, "still here").await.unwrap();
    server.write_all(b"nobody reads this").await.unwrap();
    let mut later = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server_of_later, _) = upstream.accept().await.unwrap();
    server_of_later.write_all(b"whole").await.unwrap();
    hears(&mut later, "whole").await.unwrap();
    drop((client, server));
    eventually("only the later connection is left", async || (proxy.connections() == 1).then_some(())).await;
}

#[tokio::test]
async fn where_the_upstream_is_away_the_client_is_reset_and_dropping_it_ends_all() {
    let reserved = Proxy::start(SocketAddr::from(([127, 0, 0, 1], 1)));
    let mut client = TcpStream::connect(reserved.addr()).await.unwrap();
    assert!(end(&mut client).await.is_err());
    eventually("the connection is gone", async || (reserved.connections() == 0).then_some(())).await;

    let echo = Echo::start().await;
    let proxy = Proxy::start(echo.addr);
    let addr = proxy.addr();
    let mut client = TcpStream::connect(addr).await.unwrap();
    echoes(&mut client, "alive").await.unwrap();
    drop(proxy);
    assert!(end(&mut client).await.is_err());
    eventually("the port is closed", async || TcpStream::connect(addr).await.is_err().then_some(())).await;
}
