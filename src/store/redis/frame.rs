//! What the bridge does: gRPC's frames around the bytes that the limiter and Redis exchange.
//!
//! The limiter can only keep a stream open that speaks gRPC, which puts five bytes before each message: a flag for
//! compression and the length. On the way to Redis they are taken off, on the way back they are put on. Frames
//! begin and end anywhere in the chunks that pass.

/// Bytes before each message.
pub const HEADER_BYTES: usize = 5;

/// The header of a message of `length` bytes.
pub fn header(length: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [0, a, b, c, d]
}

/// A frame says that its message is compressed, which ours never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed;

/// Takes the frames off a stream; keeps no byte of a message, only where in a frame it is.
#[derive(Debug, Default)]
pub struct Unframer {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    message_bytes_left: usize,
}

impl Unframer {
    /// Appends the messages in `chunk` to `out`.
    pub fn unframe(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Compressed> {
        while !chunk.is_empty() {
            let message = self.message_bytes_left.min(chunk.len());
            if let Some((message, rest)) = chunk.split_at_checked(message) {
                out.extend_from_slice(message);
                self.message_bytes_left -= message.len();
                chunk = rest;
            }
            if let Some((byte, rest)) = chunk.split_first() {
                self.push_header(*byte)?;
                chunk = rest;
            }
        }
        Ok(())
    }

    /// Takes one byte of a frame's header.
    fn push_header(&mut self, byte: u8) -> Result<(), Compressed> {
        if let Some(slot) = self.header.get_mut(self.header_bytes) {
            *slot = byte;
        }
        self.header_bytes += 1;
        if self.header_bytes == HEADER_BYTES {
            self.header_bytes = 0;
            let [flag, length @ ..] = self.header;
            if flag != 0 {
                return Err(Compressed);
            }
            self.message_bytes_left = u32::from_be_bytes(length) as usize;
        }
        Ok(())
    }
}
