//! The controller's state as bytes: its numbers in order, each a little-endian `f64`.

use super::{Controller, Crowd, MOST_LOST, Trial};
use crate::load::shed::Cut;
use crate::load::signals::LEVELS;

/// Numbers that a state is made of.
const FIELDS: usize = 24 + LEVELS;

impl Controller {
    /// As bytes, for [`Controller::decode`].
    pub fn encode(&self) -> [u8; FIELDS * 8] {
        let (crowd, trial) = (self.crowd, self.trial);
        let [aim, aim_before] = crowd.aims;
        let fields = [
            self.severity,
            self.cut.share,
            f64::from(self.cut.level),
            crowd.insistence,
            aim,
            aim_before,
            self.limit,
            self.shown,
            self.usual_best,
            self.trusting,
            self.roomy,
            self.unused,
            self.busy,
            self.silent,
            self.unsettled,
            trial.age,
            trial.strain,
            trial.sent,
            trial.worked,
            trial.limit,
            self.floor,
            self.lost,
            self.rest,
            f64::from(self.failures),
        ];
        let mut bytes = [0; FIELDS * 8];
        let fields = fields.into_iter().chain(crowd.refused).flat_map(f64::to_le_bytes);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// The state that these bytes are; `None` where they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FIELDS * 8] = bytes.try_into().ok()?;
        let mut fields = [0.0; FIELDS];
        for (field, bytes) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
            *field = f64::from_le_bytes(bytes.try_into().ok()?);
            if !field.is_finite() {
                return None;
            }
        }
        let mut fields = fields.into_iter();
        let mut next = || fields.next().unwrap_or_default();
        // Out of range is clipped by the conversions to whole numbers.
        Some(Self {
            severity: next().clamp(0.0, 1.0),
            cut: Cut { share: next(), level: next() as u8 },
            crowd: Crowd { insistence: next(), aims: [next(), next()], ..Crowd::default() },
            limit: next(),
            shown: next(),
            usual_best: next(),
            trusting: next(),
            roomy: next(),
            unused: next(),
            busy: next(),
            silent: next(),
            unsettled: next(),
            trial: Trial { age: next(), strain: next(), sent: next(), worked: next(), limit: next() },
            floor: next(),
            lost: next().clamp(0.0, MOST_LOST),
            rest: next(),
            failures: next() as u32,
        })
        .map(|mut controller| {
            controller.crowd.refused.fill_with(next);
            controller
        })
    }
}
