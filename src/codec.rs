//! Records as bytes: numbers in little-endian order, texts with their lengths in front.
//!
//! A record is written and read field by field, in one order that its `encode` and its `decode` both show.

/// Reads what [`Writer`] wrote. `None`: the bytes are no such record.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these bytes from the beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bool(&mut self) -> Option<bool> {
        self.u8().map(|byte| byte != 0)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }

    /// A short text.
    pub fn text(&mut self) -> Option<&'a str> {
        let length = self.u8()?;
        let (text, rest) = self.rest.split_at_checked(length.into())?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }

    /// A list, as [`Writer::list`] wrote it.
    pub fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let length = self.u32()?;
        // An element has a byte at least, so that a wrong length asks for no more memory than there are bytes.
        let mut list = Vec::with_capacity((length as usize).min(self.rest.len()));
        for _ in 0..length {
            list.push(read(self)?);
        }
        Some(list)
    }

    /// What may be absent, as [`Writer::option`] wrote it.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.bool()? {
            true => read(self).map(Some),
            false => Some(None),
        }
    }

    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends to these bytes.
    pub fn after(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.array(value.to_le_bytes())
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.array(value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.array(value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.array(value.to_le_bytes())
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    pub fn array<const N: usize>(&mut self, value: [u8; N]) -> &mut Self {
        self.bytes.extend_from_slice(&value);
        self
    }

    /// A text of at most 255 bytes; more is cut off.
    pub fn text(&mut self, value: &str) -> &mut Self {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        self.u8(length);
        self.bytes.extend(value.bytes().take(length.into()));
        self
    }

    pub fn list<T>(&mut self, list: &[T], mut write: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
        for element in list {
            write(self, element);
        }
        self
    }

    /// What may be absent.
    pub fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) -> &mut Self {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }
}
