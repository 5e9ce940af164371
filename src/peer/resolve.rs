//! From a peer's name to its addresses: by the system's resolver, or by the DNS server that the
//! endpoint names.
//!
//! For that server, which names are tried is up to `/etc/resolv.conf`, as with Go's own resolver: one
//! with fewer dots than `ndots` is looked for in the domains of `search` first.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, SimpleDnsError, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::model::target::Target;

/// Looks all addresses of a target up.
pub type Resolve = for<'a> fn(&'a Target) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

/// A question without an answer is asked again after this, and so often at most.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS_MAX: u32 = 2;

/// The longest message over UDP, as the head of one says its length in 16 bits.
const DATAGRAM_BYTES_MAX: usize = u16::MAX as usize;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Looks a target up where it says.
pub fn resolve(target: &Target) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move {
        match &target.dns_server {
            None => {
                let found = tokio::net::lookup_host((&target.host[..], target.port)).await?;
                Ok(found.collect())
            }
            Some((server, port)) => {
                let found = lookup((server, *port), &target.host).await?;
                Ok(found.into_iter().map(|ip| SocketAddr::new(ip, target.port)).collect())
            }
        }
    })
}

/// All addresses of `host`, as the DNS server at a host and a port knows them.
async fn lookup(server: (&str, u16), host: &str) -> io::Result<Vec<IpAddr>> {
    let server = tokio::net::lookup_host(server).await?.next();
    let no_host = || io::Error::new(io::ErrorKind::NotFound, "no such host");
    let server = server.ok_or_else(no_host)?;
    // Without one there are no domains to search.
    let resolv_conf = tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default();
    let mut failure = None;
    for name in Search::parse(&resolv_conf).names(host) {
        let (v4, v6) = tokio::join!(ask(server, &name, TYPE::A), ask(server, &name, TYPE::AAAA));
        let mut found = Vec::new();
        for answer in [v4, v6] {
            match answer {
                Ok(addresses) => found.extend(addresses),
                Err(error) => failure = Some(error),
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(failure.unwrap_or_else(no_host))
}

/// Domains in which a short name is looked for.
#[derive(Debug, PartialEq, Eq)]
struct Search {
    domains: Vec<String>,
    /// A name with so many dots is tried by itself first.
    ndots: usize,
}

impl Search {
    fn parse(resolv_conf: &str) -> Search {
        let mut search = Search { domains: Vec::new(), ndots: 1 };
        for line in resolv_conf.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("domain" | "search") => search.domains = words.map(str::to_owned).collect(),
                Some("options") => {
                    let said = words.rev().find_map(|word| word.strip_prefix("ndots:"));
                    let said = said.and_then(|ndots| ndots.parse().ok());
                    search.ndots = said.unwrap_or(search.ndots).min(15);
                }
                _ => {}
            }
        }
        search
    }

    /// The names to try for a host, in order.
    fn names(&self, host: &str) -> Vec<String> {
        if let Some(whole) = host.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let within = self.domains.iter().map(|domain| domain.trim_end_matches('.'));
        let within = within.filter(|domain| !domain.is_empty());
        let mut names: Vec<String> = within.map(|domain| format!("{host}.{domain}")).collect();
        let has_dots = host.bytes().filter(|byte| *byte == b'.').count() >= self.ndots;
        names.insert(if has_dots { 0 } else { names.len() }, host.to_owned());
        names
    }
}

/// The addresses of one kind that a name has; none if there is no such name.
async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Vec<IpAddr>> {
    let id = (getrandom::u32().map_err(io::Error::other)? >> 16) as u16;
    let question = question(id, name, kind).map_err(malformed)?;
    let mut failure = None;
    for _ in 0..ATTEMPTS_MAX {
        let answer = match timeout(PATIENCE, over_udp(server, &question, id)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                failure = Some(error);
                continue;
            }
            Err(_) => continue,
        };
        return match read(&answer, server)? {
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::CutShort => {
                let whole = timeout(PATIENCE, over_tcp(server, &question)).await;
                match read(&whole.map_err(|_| silent(server))??, server)? {
                    Answer::Addresses(addresses) => Ok(addresses),
                    Answer::CutShort => Err(io::Error::other("an answer over TCP is cut short")),
                }
            }
        };
    }
    Err(failure.unwrap_or_else(|| silent(server)))
}

fn silent(server: SocketAddr) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer of DNS server {server}"))
}

fn malformed(error: SimpleDnsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn question(id: u16, name: &str, kind: TYPE) -> Result<Vec<u8>, SimpleDnsError> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let question = Question::new(Name::new(name)?, kind.into(), CLASS::IN.into(), false);
    packet.questions.push(question);
    packet.build_bytes_vec()
}

async fn over_udp(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let len = socket.recv(&mut answer).await?;
        // Others are late answers to somebody else, or made up.
        if answer[..len].starts_with(&id.to_be_bytes()) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

enum Answer {
    Addresses(Vec<IpAddr>),
    /// It does not fit in a datagram.
    CutShort,
}

fn read(answer: &[u8], server: SocketAddr) -> io::Result<Answer> {
    let packet = Packet::parse(answer).map_err(malformed)?;
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(Answer::CutShort);
    }
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => {}
        refused => return Err(io::Error::other(format!("DNS server {server}: {refused:?}"))),
    }
    // Aliases stand beside what they lead to.
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(record) => Some(IpAddr::from(record.address.to_be_bytes())),
        RData::AAAA(record) => Some(IpAddr::from(record.address.to_be_bytes())),
        _ => None,
    });
    Ok(Answer::Addresses(addresses.collect()))
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, AAAA};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn short_names_are_searched_for() {
        let search =
            Search::parse("nameserver 1.2.3.4\nsearch a.b c.\noptions timeout:1 ndots:2\n");
        assert_eq!(search.names("x"), ["x.a.b", "x.c", "x"]);
        assert_eq!(search.names("x.y.z"), ["x.y.z", "x.y.z.a.b", "x.y.z.c"]);
        assert_eq!(search.names("x."), ["x"]);
        assert_eq!(Search::parse("").names("x"), ["x"]);
    }

    /// The answer of a server that knows one name.
    fn answer(question: &[u8], with_flags: PacketFlag) -> Vec<u8> {
        let question = Packet::parse(question).unwrap();
        let mut reply = Packet::new_reply(question.id());
        reply.set_flags(with_flags);
        let asked = &question.questions[0];
        if asked.qname.to_string() == "known.example" {
            let rdata = if asked.qtype == TYPE::A.into() {
                RData::A(A { address: 0x7f00_0002 })
            } else {
                RData::AAAA(AAAA { address: 1 })
            };
            let name = asked.qname.clone();
            reply.answers.push(ResourceRecord::new(name, CLASS::IN, 1, rdata));
        } else {
            *reply.rcode_mut() = RCODE::NameError;
        }
        reply.questions = question.questions;
        reply.build_bytes_vec().unwrap()
    }

    /// Answers over UDP; if that is to be cut short, whole over TCP.
    async fn serve(cut_short: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut question = [0; 512];
            loop {
                let (len, from) = socket.recv_from(&mut question).await.unwrap();
                let flags = match cut_short {
                    true => PacketFlag::TRUNCATION,
                    false => PacketFlag::RECURSION_AVAILABLE,
                };
                // Somebody guesses.
                socket.send_to(&[0xff; 12], from).await.unwrap();
                let answer = answer(&question[..len], flags);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let len = stream.read_u16().await.unwrap();
                let mut question = vec![0; usize::from(len)];
                stream.read_exact(&mut question).await.unwrap();
                let answer = answer(&question, PacketFlag::RECURSION_AVAILABLE);
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_server_is_asked_for_both_kinds_of_addresses() {
        for cut_short in [false, true] {
            let server = serve(cut_short).await;
            let named = |name| Target::parse(&format!("dns://{server}/{name}:7"), 443).unwrap();
            let found = resolve(&named("known.example.")).await.unwrap();
            let expected = ["127.0.0.2:7", "[::1]:7"].map(|at| at.parse::<SocketAddr>().unwrap());
            assert_eq!(found, expected, "{cut_short}");
            let unknown = resolve(&named("unknown.example.")).await.unwrap_err();
            assert_eq!(unknown.to_string(), "no such host");
        }
    }

    #[tokio::test]
    async fn an_address_is_its_own() {
        for endpoint in ["dns:///[::1]:7", "dns://192.0.2.1/[::1]:7", "[::1]:7"] {
            let target = Target::parse(endpoint, 443).unwrap();
            let expected: SocketAddr = "[::1]:7".parse().unwrap();
            assert_eq!(resolve(&target).await.unwrap(), [expected], "{endpoint}");
        }
    }
}
