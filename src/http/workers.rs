//! The threads that share a server's connections, each with a runtime of its own.
//!
//! A push is a few small pieces of work that wait for the network in between. On threads that take work from each other most
//! of them would be woken by one thread and done by another, which costs more than the work (`bench/serve`).

use std::io;
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Threads that run connections. What a connection's task spawns stays on its thread.
#[derive(Debug)]
pub(crate) struct Workers {
    /// The caller's own runtime first.
    workers: Vec<Worker>,
    /// Ends the others.
    _stop: DropGuard,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    is_own: bool,
    connections: TaskTracker,
}

impl Workers {
    /// The caller's own runtime, and no other.
    pub(super) fn own() -> Self {
        let own = Worker { handle: Handle::current(), is_own: true, connections: TaskTracker::new() };
        Self { workers: vec![own], _stop: CancellationToken::new().drop_guard() }
    }

    /// The caller's own runtime, and so many threads beside it, which end when this is dropped.
    ///
    /// # Errors
    /// Where the system has no more threads or descriptors.
    pub(crate) fn start(beside: usize) -> io::Result<Self> {
        let mut all = Self::own();
        let stop = CancellationToken::new();
        for _ in 0..beside {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, stopped) = (runtime.handle().clone(), stop.clone());
            let run = move || runtime.block_on(stopped.cancelled());
            thread::Builder::new().name("connections".to_owned()).spawn(run)?;
            all.workers.push(Worker { handle, is_own: false, connections: TaskTracker::new() });
        }
        Ok(Self { _stop: stop.drop_guard(), ..all })
    }

    /// Runs a connection on the thread that has the fewest.
    pub(super) fn spawn<T>(&self, stream: TcpStream, run: impl FnOnce(TcpStream) -> T + Send + 'static)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let fewest = self.workers.iter().min_by_key(|worker| worker.connections.len());
        let worker = fewest.expect("the caller's own is always there");
        if worker.is_own {
            worker.connections.spawn_on(run(stream), &worker.handle);
            return;
        }
        // It is to be waited for where it is used.
        let stream = stream.into_std();
        let moved = async move {
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => run(stream).await,
                Err(error) => tracing::warn!("handing a connection over to its thread: {error}"),
            }
        };
        worker.connections.spawn_on(moved, &worker.handle);
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.workers.iter().map(|worker| worker.connections.len()).sum()
    }

    /// Waits until there is no connection left.
    pub(super) async fn wait(&self) {
        for worker in &self.workers {
            worker.connections.close();
            worker.connections.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread::ThreadId;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_are_shared_out_and_end_before_the_threads_do() {
        let workers = Workers::start(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (told, mut threads) = mpsc::channel::<ThreadId>(9);
        let mut clients = Vec::new();
        for _ in 0..9 {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let told = told.clone();
            workers.spawn(listener.accept().await.unwrap().0, async move |mut stream| {
                told.send(thread::current().id()).await.unwrap();
                let byte = stream.read_u8().await.unwrap();
                // On the thread as well.
                tokio::spawn(async move { stream.write_u8(byte).await.unwrap() }).await.unwrap();
            });
        }
        let mut seen = HashMap::<ThreadId, u32>::new();
        for _ in 0..9 {
            *seen.entry(threads.recv().await.unwrap()).or_default() += 1;
        }
        assert_eq!(seen.into_values().collect::<Vec<_>>(), [3, 3, 3]);
        assert_eq!(workers.connections(), 9);
        for client in &mut clients {
            client.write_u8(7).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), 7);
        }
        workers.wait().await;
        assert_eq!(workers.connections(), 0);
    }
}
