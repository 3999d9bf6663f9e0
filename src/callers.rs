//! Who an API key belongs to: a caller of the plugin configuration, or an entry of the published key document.

use std::collections::HashMap;
use std::rc::Rc;

use crate::config::{Config, KnownCaller};
use crate::documents::{KeyTable, Outdated};
use crate::identity::KeyHash;
use crate::store::SharedData;

/// Most callers of a published document that a worker remembers. A remembered key costs no read of shared data. A
/// full map is cleared as a whole, and fills again soon.
const MAX_REMEMBERED: usize = 2_048;

/// The known keys, as one worker sees them.
#[derive(Debug, Default)]
pub struct Callers {
    /// The table of the document in force, and what its records' names begin with.
    published: Option<(KeyTable, String)>,
    remembered: HashMap<KeyHash, Rc<KnownCaller>>,
}

impl Callers {
    /// The callers of the plugin configuration, or of a published document where there is one.
    pub fn new(published: Option<(KeyTable, String)>) -> Self {
        Self { published, remembered: HashMap::new() }
    }

    /// The caller whose key this is.
    pub fn find(
        &mut self,
        key: KeyHash,
        config: &Config,
        data: &impl SharedData,
    ) -> Result<Option<Rc<KnownCaller>>, Outdated> {
        let Some((table, prefix)) = &self.published else {
            return Ok(config.caller(key));
        };
        if let Some(caller) = self.remembered.get(&key) {
            return Ok(Some(caller.clone()));
        }
        let Some(entry) = table.find(data, prefix, key)? else { return Ok(None) };
        let Some(tier) = config.key_tiers.get(usize::from(entry.tier)) else { return Ok(None) };
        let bucket = entry.id.unwrap_or_else(|| key.short_hex());
        let caller = Rc::new(KnownCaller::new(tier.clone(), bucket, &config.settings.namespace));
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(key, caller.clone());
        Ok(Some(caller))
    }
}
