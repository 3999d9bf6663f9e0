//! A change of health by an operator: for all Envoys on one Redis, or for this one.

use crate::admin::{self, EndpointReply, PendingChange};
use crate::config::Config;
use crate::control::Control;
use crate::health::HealthOverride;
use crate::identity::Network;
use crate::in_force::InForce;
use crate::redis_limiter::RedisLimiter;
use crate::request::DecisionStart;
use crate::store::SharedData;
use crate::store::redis::command::CommandId;
use crate::time::UnixTime;

/// A change of health.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthChange {
    /// Where it comes from, for the log.
    pub(crate) network: Network,
    /// The health to set.
    pub(crate) health_override: HealthOverride,
}

impl HealthChange {
    /// Reads a complete body.
    pub(crate) fn parse(
        pending: &PendingChange,
        body: &[u8],
        config: &Config,
    ) -> Result<Self, EndpointReply> {
        let health_override = admin::requested_health(body, config.settings.health_thresholds)?;
        Ok(Self { network: pending.network, health_override })
    }

    /// Sends it to Redis first: it is applied when Redis has replied.
    pub(crate) fn store(
        self,
        redis: &mut RedisLimiter,
        start: DecisionStart,
    ) -> Result<CommandId, EndpointReply> {
        let command = redis.set_health(start, self.network, self.health_override);
        command.map_err(|_| admin::not_stored())
    }

    /// Puts it into force for this Envoy.
    pub(crate) fn apply(self, in_force: &InForce, data: &impl SharedData, unix: UnixTime) -> EndpointReply {
        let (config, key) = (in_force.config(), in_force.control_key());
        let Self { network, health_override } = self;
        let changed = Control::change(data, key, |control| control.with_override(health_override));
        let Ok((previous, _)) = changed else { return admin::not_stored() };
        let [previous, status] = [previous.health_override, health_override]
            .map(|health_override| shown_override(health_override, config));
        log::info!("health set to {status} (it was {previous}) by {network}");
        admin::changed(previous, status, unix)
    }
}

/// The override as it is shown: where health is not measured, no override means `NORMAL`.
fn shown_override(health_override: HealthOverride, config: &Config) -> &'static str {
    match config.settings.health_thresholds {
        Some(_) => health_override.name(),
        None => health_override.health().unwrap_or_default().name(),
    }
}
