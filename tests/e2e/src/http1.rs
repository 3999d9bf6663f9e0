//! HTTP/1.1 for client and upstream: finding the end of a head, reading a body.

use std::io::{self, BufRead, Read as _};

/// Far above anything a test sends. A broken peer fails the test instead of using up memory.
const MAX_HEAD_BYTES: usize = 1 << 20;
pub(crate) const MAX_HEADERS: usize = 256;

/// Names and values in the order received.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;

pub(crate) enum BodyLength {
    Known(u64),
    Chunked,
    UntilClose,
}

/// The bytes of one head including its empty line; `None` if the peer closed before it.
pub(crate) fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let line_start = head.len();
        let read = reader.read_until(b'\n', &mut head)?;
        if read == 0 {
            return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if head.len() > MAX_HEAD_BYTES {
            return Err(io::Error::other("a head without an end"));
        }
        if &head[line_start..] == b"\r\n" {
            return Ok(Some(head));
        }
    }
}

pub(crate) fn read_body(reader: &mut impl BufRead, length: BodyLength) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    match length {
        BodyLength::Known(length) => read_exactly(reader, length, &mut body)?,
        BodyLength::UntilClose => {
            reader.read_to_end(&mut body)?;
        }
        BodyLength::Chunked => loop {
            let size = read_chunk_size(reader)?;
            if size == 0 {
                // Skips the trailers.
                while !read_line(reader)?.is_empty() {}
                break;
            }
            read_exactly(reader, size, &mut body)?;
            read_line(reader)?;
        },
    }
    Ok(body)
}

/// The length that a head announces, or `otherwise` if it announces none.
pub(crate) fn body_length(headers: &[(String, Vec<u8>)], otherwise: BodyLength) -> BodyLength {
    let value = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| String::from_utf8_lossy(value).trim().to_ascii_lowercase())
    };
    if value("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        return BodyLength::Chunked;
    }
    value("content-length").and_then(|length| length.parse().ok()).map_or(otherwise, BodyLength::Known)
}

pub(crate) fn owned_headers(headers: &[httparse::Header<'_>]) -> Headers {
    headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect()
}

fn read_chunk_size(reader: &mut impl BufRead) -> io::Result<u64> {
    let line = read_line(reader)?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).map_err(|error| io::Error::other(format!("chunk size {line:?}: {error}")))
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    match reader.take(length).read_to_end(body)? as u64 == length {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
