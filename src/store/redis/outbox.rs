//! What gathers for the stream until its owner flushes.

/// What is to be done on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamAction {
    Close,
    Open,
    Send(Vec<u8>),
}

/// The actions that have gathered. A stream is closed before another is opened, and nothing goes out that was meant for
/// the one before.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    close: bool,
    open: bool,
    /// To be sent after that.
    commands: Vec<u8>,
    is_flushing: bool,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        !self.close && !self.open && self.commands.is_empty()
    }

    pub fn open_stream(&mut self) {
        self.open = true;
    }

    /// Whether the stream is still to be opened.
    pub fn opens_stream(&self) -> bool {
        self.open
    }

    /// The commands that have gathered, for one more to be appended.
    pub fn commands(&mut self) -> &mut Vec<u8> {
        &mut self.commands
    }

    /// The stream is to be closed, and what has gathered for it is dropped.
    pub fn drop_stream(&mut self) {
        // A stream that was not even opened needs no closing.
        *self = Self { close: self.close || !self.open, ..Self::default() };
    }

    /// The stream is closed already.
    pub fn note_closed(&mut self) {
        self.close = false;
    }

    /// Lets [`Outbox::poll`] have what has gathered.
    pub fn flush(&mut self) {
        self.is_flushing = true;
    }

    pub fn poll(&mut self) -> Option<StreamAction> {
        if !self.is_flushing {
            return None;
        }
        if std::mem::take(&mut self.close) {
            return Some(StreamAction::Close);
        }
        if std::mem::take(&mut self.open) {
            return Some(StreamAction::Open);
        }
        self.is_flushing = false;
        let commands = std::mem::take(&mut self.commands);
        (!commands.is_empty()).then_some(StreamAction::Send(commands))
    }
}
