//! The smallest HTTP client that can tell whether an Envoy answers as it should.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(2);

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<String>,
    /// Whole: chunks are put together.
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|header| header == name)
    }
}

/// Sends one GET on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;

    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes())?;

    let mut reply = Vec::new();
    stream.read_to_end(&mut reply)?;
    parse(&String::from_utf8_lossy(&reply)).with_context(|| format!("no HTTP from {address}"))
}

fn parse(reply: &str) -> Option<Response> {
    let (head, body) = reply.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase()));
    let mut response = Response { status, headers: headers.collect(), body: body.to_owned() };
    if response.has_header("transfer-encoding") {
        response.body = joined_chunks(body)?;
    }
    Some(response)
}

/// The chunks of a body, which each begin with a line that has their length in hex; the last is empty.
fn joined_chunks(mut body: &str) -> Option<String> {
    let mut joined = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(joined);
        }
        joined += rest.get(..length)?;
        body = rest.get(length..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na: \r\nA\r\n1\nb: 12345\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("HTTP").body, "a: 1\nb: 12345");
        let cut = chunked.strip_suffix("0\r\n\r\n").expect("a last chunk");
        assert!(parse(cut).is_none(), "a body that is cut off is not taken for a whole one");
        assert_eq!(parse("HTTP/1.1 404 Not Found\r\n\r\n3\r\n").expect("HTTP").body, "3\r\n");
    }
}
