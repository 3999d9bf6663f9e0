//! Reading and writing the guest's memory, and returning bytes to the guest as Envoy does.

use wasmtime::{Caller, Result};

use crate::failures::{Act, status};
use crate::state::{Guest, Headers, VmState};

/// Ends the callback with an error: the guest did something invalid.
macro_rules! bail {
    ($($text:tt)*) => { return Err(wasmtime::Error::msg(format!($($text)*)).into()) };
}
pub(crate) use bail;

pub(crate) type Host<'a> = Caller<'a, VmState>;

/// How a host call ends early.
pub(crate) enum Stop {
    /// It returns this status.
    Status(u32),
    /// The guest passed an address outside of its memory.
    OutOfBounds { at: u32, length: usize },
    /// It ends the callback.
    Error(wasmtime::Error),
}

impl From<u32> for Stop {
    fn from(status: u32) -> Self {
        Self::Status(status)
    }
}

impl From<wasmtime::Error> for Stop {
    fn from(error: wasmtime::Error) -> Self {
        Self::Error(error)
    }
}

/// The status that the guest gets. Addresses outside of its memory are a status if they are forgiven.
pub(crate) fn status_of(ended: Result<(), Stop>, is_forgiven: bool) -> Result<u32> {
    match ended {
        Ok(()) => Ok(status::OK),
        Err(Stop::Status(status)) => Ok(status),
        Err(Stop::OutOfBounds { .. }) if is_forgiven => Ok(status::INVALID_MEMORY_ACCESS),
        Err(Stop::OutOfBounds { at, length }) => {
            bail!("the filter passed {length} bytes at {at}, which are outside of its memory")
        }
        Err(Stop::Error(error)) => Err(error),
    }
}

fn guest(host: &Host<'_>) -> Result<Guest, Stop> {
    match &host.data().guest {
        Some(guest) => Ok(guest.clone()),
        None => bail!("a host call from a start function"),
    }
}

pub(crate) fn read(host: &Host<'_>, at: u32, length: u32) -> Result<Vec<u8>, Stop> {
    let (memory, length) = (guest(host)?.memory, length as usize);
    let bytes = memory.data(host).get(at as usize..at as usize + length);
    bytes.map(<[u8]>::to_vec).ok_or(Stop::OutOfBounds { at, length })
}

pub(crate) fn read_text(host: &Host<'_>, at: u32, length: u32) -> Result<String, Stop> {
    Ok(String::from_utf8_lossy(&read(host, at, length)?).into_owned())
}

pub(crate) fn read_u32(host: &Host<'_>, at: u32) -> Result<u32, Stop> {
    let bytes = read(host, at, 4)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

pub(crate) fn write(host: &mut Host<'_>, at: u32, bytes: &[u8]) -> Result<(), Stop> {
    let memory = guest(host)?.memory;
    memory.write(host, at as usize, bytes).map_err(|_| Stop::OutOfBounds { at, length: bytes.len() })
}

pub(crate) fn write_u32(host: &mut Host<'_>, at: u32, number: u32) -> Result<(), Stop> {
    write(host, at, &number.to_le_bytes())
}

pub(crate) fn write_u64(host: &mut Host<'_>, at: u32, number: u64) -> Result<(), Stop> {
    write(host, at, &number.to_le_bytes())
}

/// Copies bytes into memory that the guest allocates, and writes their address; the address is 0 if there are none.
pub(crate) fn return_bytes(host: &mut Host<'_>, bytes: &[u8], to: u32, size_to: u32) -> Result<(), Stop> {
    let bytes = match host.data_mut().spoils_bytes.take() {
        Some(Act::Short) => bytes[..bytes.len() / 2].to_vec(),
        Some(Act::Garbage) => bytes.iter().map(|byte| byte ^ 0xa5).collect(),
        _ => bytes.to_vec(),
    };
    let mut at = 0;
    if !bytes.is_empty() {
        let allocate = guest(host)?.allocate;
        at = allocate.call(&mut *host, bytes.len() as u32)?;
        write(host, at, &bytes)?;
    }
    write_u32(host, to, at)?;
    write_u32(host, size_to, bytes.len() as u32)
}

/// Headers in the ABI's format; `None` if they are invalid.
pub(crate) fn read_headers(bytes: &[u8]) -> Option<Headers> {
    if bytes.is_empty() {
        return Some(Headers::new());
    }
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let count = number(0)?;
    let mut text = 4 + count.checked_mul(8)?;
    let mut headers = Headers::new();
    for index in 0..count {
        let (name, value) = (number(4 + index * 8)?, number(8 + index * 8)?);
        let name_bytes = bytes.get(text..text + name)?;
        let value_bytes = bytes.get(text + name + 1..text + name + 1 + value)?;
        headers.push((String::from_utf8_lossy(name_bytes).to_lowercase(), value_bytes.to_vec()));
        text += name + value + 2;
    }
    (text == bytes.len()).then_some(headers)
}
