//! The controller's state as bytes: its numbers in order, each a little-endian `f64`.

use super::{Before, Controller, LEVELS, MOST_LOST, Trial};
use crate::load::shed::Cut;

impl Controller {
    /// As bytes, for [`Controller::decode`].
    pub fn encode(&self) -> [u8; FIELDS * 8] {
        let trial = self.trial;
        let fields = [
            self.severity,
            self.cut.share,
            f64::from(self.cut.level),
            self.limit,
            self.aim,
            self.insistence,
            f64::from(self.roomy),
            f64::from(trial.slots),
            f64::from(trial.age),
            f64::from(trial.futile),
            trial.strain,
            trial.first.sent,
            trial.first.good,
            trial.first.limit,
            trial.last.sent,
            trial.last.good,
            trial.last.limit,
            self.floor,
            self.lost,
            f64::from(self.rest),
            self.known,
            f64::from(self.failures),
        ];
        let mut bytes = [0; FIELDS * 8];
        let fields = fields.into_iter().chain(self.refused).flat_map(f64::to_le_bytes);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// The state that these bytes are; `None` where they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fields: &[u8; FIELDS * 8] = bytes.try_into().ok()?;
        let mut fields =
            fields.chunks_exact(8).map(|field| field.try_into().map_or(f64::NAN, f64::from_le_bytes));
        let mut next = || fields.next().filter(|field| field.is_finite());
        // Out of range is clipped by the conversions to whole numbers.
        Some(Self {
            severity: next()?.clamp(0.0, 1.0),
            cut: Cut { share: next()?, level: next()? as u8 },
            limit: next()?,
            aim: next()?,
            insistence: next()?,
            roomy: next()? as u32,
            trial: Trial {
                slots: next()? as u32,
                age: next()? as u32,
                futile: next()? as u32,
                strain: next()?,
                first: Before { sent: next()?, good: next()?, limit: next()? },
                last: Before { sent: next()?, good: next()?, limit: next()? },
            },
            floor: next()?,
            lost: next()?.clamp(0.0, MOST_LOST),
            rest: next()? as u32,
            known: next()?,
            failures: next()? as u32,
            refused: {
                let mut refused = [0.0; LEVELS];
                for share in &mut refused {
                    *share = next()?;
                }
                refused
            },
        })
    }
}

/// Numbers that a state is made of.
const FIELDS: usize = 22 + LEVELS;
