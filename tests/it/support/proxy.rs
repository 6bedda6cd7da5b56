//! A TCP proxy that breaks the wire on command: cut, stalled, slow, or half closed.
//!
//! It stands between the bridge and Pub/Sub: name [`Proxy::addr`] where Pub/Sub's address would stand. A Kafka client
//! asks a broker where the brokers are and goes there, past any proxy: between a client and Kafka it stands only where the
//! brokers can be told to advertise its address (`advertised.listeners` of a real Kafka; start the proxy first, its
//! upstream need not listen yet). librdkafka's mock cluster always advertises its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes read at once, and how many such reads may be on their way in each direction.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS: usize = 64;

/// A running proxy; everything of it ends when it is dropped.
pub(crate) struct Proxy {
    addr: SocketAddr,
    upstream: SocketAddr,
    wire: watch::Sender<Wire>,
    connections: TaskTracker,
    /// Cancelled by the next cut; none while it is cut.
    until_cut: Mutex<Option<CancellationToken>>,
    /// Bound for as long as the proxy lives and never listening: while the proxy is cut, the port refuses connections and
    /// nobody else gets it.
    _place: TcpSocket,
}

/// What the wire does to bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Wire {
    is_stalled: bool,
    delay: Duration,
    /// How often the client's side was half closed; a connection looks for a change.
    half_closes: u64,
}

impl Proxy {
    /// Listens on a free port of loopback and carries each connection to `upstream`. A client whose connection
    /// `upstream` does not take finds it reset.
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let place = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let proxy = Self {
            addr: place.local_addr().unwrap(),
            upstream,
            wire: watch::Sender::new(Wire::default()),
            connections: TaskTracker::new(),
            until_cut: Mutex::new(None),
            _place: place,
        };
        proxy.restore();
        proxy
    }

    /// Where it listens; the same for its whole life.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets all connections, what is on its way included, and refuses new ones. All are closed when it returns.
    pub(crate) async fn cut(&self) {
        if let Some(until_cut) = self.until_cut.lock().unwrap().take() {
            until_cut.cancel();
        }
        self.connections.close();
        self.connections.wait().await;
        self.connections.reopen();
    }

    /// Takes connections again.
    pub(crate) fn restore(&self) {
        let mut until_cut = self.until_cut.lock().unwrap();
        if until_cut.is_some() {
            return;
        }
        let token = until_cut.insert(CancellationToken::new()).clone();
        let listener = bound(self.addr).listen(1024).unwrap();
        let (connections, upstream, wire) = (self.connections.clone(), self.upstream, self.wire.clone());
        let accepting = accept(listener, upstream, connections, wire, token.clone());
        // Tracked so that a cut returns after the port has begun to refuse; told apart by `connections`.
        self.connections.spawn(async move { token.run_until_cancelled(accepting).await });
    }

    /// While stalled, connections stay open and no byte moves in either direction; afterwards all of them arrive.
    pub(crate) fn stall(&self, is_stalled: bool) {
        self.wire.send_modify(|wire| wire.is_stalled = is_stalled);
    }

    /// What is read from now on arrives this much later, in each direction. Latency, not a rate: any number of chunks
    /// are on their way at once.
    pub(crate) fn delay(&self, delay: Duration) {
        self.wire.send_modify(|wire| wire.delay = delay);
    }

    /// Ends what the clients of all present connections read, as if the upstream had closed its side; what clients
    /// send still goes up.
    pub(crate) fn half_close_client_side(&self) {
        self.wire.send_modify(|wire| wire.half_closes += 1);
    }

    /// Connections that are open now.
    pub(crate) fn connections(&self) -> usize {
        let accepting = usize::from(self.until_cut.lock().unwrap().is_some());
        self.connections.len().saturating_sub(accepting)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(until_cut) = self.until_cut.get_mut().unwrap().take() {
            until_cut.cancel();
        }
    }
}

/// A socket that shares its port with others of this proxy.
fn bound(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    // Connections of the time before a cut may linger on the port.
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    socket
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    connections: TaskTracker,
    wire: watch::Sender<Wire>,
    until_cut: CancellationToken,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (wire, until_cut) = (wire.subscribe(), until_cut.clone());
        connections.spawn(connection(client, upstream, wire, until_cut));
    }
}

/// One connection, to its clean end or its reset.
async fn connection(
    mut client: TcpStream,
    upstream: SocketAddr,
    wire: watch::Receiver<Wire>,
    until_cut: CancellationToken,
) {
    let connected = until_cut.run_until_cancelled(TcpStream::connect(upstream)).await;
    if let Some(Ok(mut upstream)) = connected {
        let carried = until_cut.run_until_cancelled(carry(&mut client, &mut upstream, wire)).await;
        if matches!(carried, Some(Ok(()))) {
            return;
        }
        reset_on_close(&upstream);
    }
    reset_on_close(&client);
}

/// What the other side has not received by then is lost, as where a wire is cut.
fn reset_on_close(stream: &TcpStream) {
    stream.set_zero_linger().unwrap();
}

/// Moves bytes both ways until both ways have ended or one has failed.
async fn carry(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    wire: watch::Receiver<Wire>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (client_reads, client_writes) = client.split();
    let (upstream_reads, upstream_writes) = upstream.split();
    let (up_sender, up) = mpsc::channel(CHUNKS);
    let (down_sender, down) = mpsc::channel(CHUNKS);
    tokio::try_join!(
        read(client_reads, up_sender, wire.clone()),
        write(up, upstream_writes, wire.clone(), false),
        read(upstream_reads, down_sender, wire.clone()),
        write(down, client_writes, wire, true),
    )?;
    Ok(())
}

/// Reads to the end; each chunk is due when its delay is over.
async fn read(
    mut from: ReadHalf<'_>,
    chunks: mpsc::Sender<(Instant, Bytes)>,
    mut wire: watch::Receiver<Wire>,
) -> io::Result<()> {
    loop {
        // Nothing is read either, so that a sender's buffers fill as on a wire that is really dead.
        flowing(&mut wire).await;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let count = from.read_buf(&mut chunk).await?;
        let due = Instant::now() + wire.borrow().delay;
        if chunks.send((due, chunk.into())).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

/// Writes each chunk when it is due; an empty one is the end.
async fn write(
    mut chunks: mpsc::Receiver<(Instant, Bytes)>,
    mut to: WriteHalf<'_>,
    mut wire: watch::Receiver<Wire>,
    is_client_side: bool,
) -> io::Result<()> {
    let mut present = wire.clone();
    let at_first = present.borrow_and_update().half_closes;
    let half_closed = async {
        let is_now = |wire: &Wire| is_client_side && wire.half_closes != at_first;
        if present.wait_for(is_now).await.is_err() {
            // The proxy is gone; the connection ends with it.
            std::future::pending::<()>().await;
        }
    };
    let carried = async {
        while let Some((due, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due).await;
            flowing(&mut wire).await;
            if chunk.is_empty() {
                break;
            }
            to.write_all(&chunk).await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        done = carried => {
            done?;
            to.shutdown().await
        }
        () = half_closed => {
            to.shutdown().await?;
            // The upstream does not know and must be able to go on.
            while chunks.recv().await.is_some_and(|(_, chunk)| !chunk.is_empty()) {}
            Ok(())
        }
    }
}

/// Waits until bytes may move.
async fn flowing(wire: &mut watch::Receiver<Wire>) {
    if wire.wait_for(|wire| !wire.is_stalled).await.is_err() {
        // The proxy is gone; the connection ends with it.
        std::future::pending::<()>().await;
    }
}
