//! What tests of `warm` stand on: a name server with scripted answers, and a connector that ends at one origin wherever it
//! was to go, and remembers where that was.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpStream, UdpSocket};

use self::origin::Origin;
use super::connect::Connector;
use super::names::Names;
use super::{Attempt, WarmArgs, Warmer};
use crate::outcome::{Outcome, Source, shown_url};
use crate::request::WarmRequest;
use crate::telemetry::instance::Instance;
use crate::verdict::Verdict;

#[path = "../../tests/it/support/origin.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
pub(super) mod origin;

/// What every name has that the script does not know.
pub(super) const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));

/// The rows of a file of the corpus, split at tabs, without its headings, and with its characters put in.
pub(super) fn rows(file: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.split('\n').filter(|row| !row.is_empty() && !row.starts_with("# "));
    rows.map(|row| row.split('\t').map(unescaped).collect()).collect()
}

fn unescaped(text: &str) -> String {
    let names = [("<SP>", " "), ("<TAB>", "\t"), ("<LF>", "\n"), ("<CR>", "\r"), ("<NUL>", "\0")];
    names.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

/// The name server that the URLs of the corpus assume.
pub(super) fn corpus_names() -> HashMap<String, Vec<Vec<IpAddr>>> {
    rows("ssrf_dns.txt").iter().map(|row| (row[0].clone(), vec![addresses(&row[1])])).collect()
}

/// The addresses of one answer.
pub(super) fn addresses(text: &str) -> Vec<IpAddr> {
    text.split(',').map(|address| address.parse().unwrap()).collect()
}

/// A name server, gone with its task; it counts what it is asked.
pub(super) struct NameServer {
    pub(super) addr: SocketAddr,
    pub(super) asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl NameServer {
    /// For each name, the answers to successive questions of a kind; the last one repeats. A name without any answer gets
    /// none ever; one that is not here is [`PUBLIC`], after this `delay`.
    pub(super) async fn start(names: HashMap<String, Vec<Vec<IpAddr>>>, delay: Duration) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            let mut times: HashMap<(String, RecordType), usize> = HashMap::new();
            let mut packet = [0; 1500];
            loop {
                let (len, from) = socket.recv_from(&mut packet).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let question = Message::from_vec(&packet[..len]).unwrap();
                let name = question.queries[0].name().to_ascii().trim_end_matches('.').to_lowercase();
                let kind = question.queries[0].query_type();
                let number = times.entry((name.clone(), kind)).or_insert(0);
                let public = [vec![PUBLIC]];
                let answers = names.get(&name).map_or(&public[..], Vec::as_slice);
                let Some(found) = answers.get((*number).min(answers.len().wrapping_sub(1))) else { continue };
                *number += 1;
                let (answer, socket) = (answer(&question, kind, found), socket.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    socket.send_to(&answer, from).await.unwrap();
                });
            }
        });
        Self { addr, asked, task }
    }

    /// Look-ups at this name server, which keep what they find for so long.
    pub(super) fn names(&self, kept: Duration) -> Names {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.addr.port();
        let mut server = NameServerConfig::udp_and_tcp(self.addr.ip());
        server.connections = vec![connection];
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"10.1.1.1 only.hosts.example.com # here alone"[..]).unwrap();
        Names::new(config, ResolverOpts::default(), hosts, kept).unwrap()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(question: &Message, kind: RecordType, found: &[IpAddr]) -> Vec<u8> {
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.response_code = ResponseCode::NoError;
    answer.add_query(question.queries[0].clone());
    for address in found.iter().filter(|address| address.is_ipv6() == (kind == RecordType::AAAA)) {
        answer.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, RData::from(*address)));
    }
    answer.to_vec().unwrap()
}

/// Takes every connection to one place, and remembers where each was to go.
pub(super) struct Detour {
    to: SocketAddr,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl Detour {
    /// For the connector.
    pub(super) async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialled.lock().unwrap().push(address);
        TcpStream::connect(self.to).await
    }
}

/// A warmer before one origin that stands for the whole Internet.
pub(super) struct Stand {
    pub(super) warmer: Warmer,
    pub(super) origin: Origin,
    pub(super) name_server: NameServer,
    detour: Arc<Detour>,
}

impl Stand {
    /// The arguments' time limits and longest body do not matter.
    pub(super) async fn new(args: WarmArgs, origin: Origin, name_server: NameServer) -> Self {
        let args = WarmArgs {
            timeout: 20,
            connect_timeout: 5,
            first_byte_timeout: 20,
            stall_timeout: 20,
            max_body_bytes: 1 << 20,
            ..args
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(origin.ca.path()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let detour = Arc::new(Detour { to: origin.addr, dialled: Mutex::default() });
        let names = name_server.names(Duration::from_nanos(1));
        let warmer = Warmer::build(args, config, |guard, limit| {
            let mut connector = Connector::new(guard, names, limit);
            connector.detour = Some(detour.clone());
            connector
        });
        Self { warmer, origin, name_server, detour }
    }

    /// What becomes of these bytes as a push's data, or a record's value; and where it dialled meanwhile.
    pub(super) async fn warm(&self, data: &[u8]) -> (Box<Outcome>, Vec<SocketAddr>) {
        self.warm_with(data, &[]).await
    }

    /// As [`Stand::warm`], with options.
    pub(super) async fn warm_with(
        &self,
        data: &[u8],
        options: &[(&str, &str)],
    ) -> (Box<Outcome>, Vec<SocketAddr>) {
        let (attempt, url) = match WarmRequest::parse(data, options.iter().copied()) {
            Ok(request) => {
                let attempt = self.warmer.warm(&request, "here", self.warmer.deadline()).await;
                (attempt, shown_url(request.url()))
            }
            Err(error) => (Attempt::without_request(Verdict::Refused(error.reason())), String::new()),
        };
        let instance = Instance { region: "here".to_owned(), id: String::new() };
        let outcome = attempt.into_outcome(&instance, url, "1".to_owned(), Source::default());
        (outcome, std::mem::take(&mut *self.detour.dialled.lock().unwrap()))
    }
}

/// Whether the guard said no.
pub(super) fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome.verdict, Verdict::Refused(_))
}
