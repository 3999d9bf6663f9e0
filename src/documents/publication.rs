//! From fetched texts to what is in force, in slices: no call does more than a bounded piece of the work.
//!
//! A text that is in force already, or is known to be wrong, is recognised by its fingerprint and not parsed. Any other
//! is parsed once, some members at a time. Entries of a key document go straight into the table that is not in force; a
//! single write then puts into force what fits.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};

use super::fetched_text::{ENTRY_COST_BYTES, FetchedText, Stop, WORK_PER_CALL_BYTES};
use super::key_table::{Inserted, KeyTable};
use super::published::{Fingerprint, Published, PublishedKeys, PublishedTiers, SourceRecords};
use super::schedule::{KnownWrong, Schedule};
use super::{DocumentFailure, Fetched, PerDocument, fingerprint};
use crate::config::{
    Config, KEY_DOCUMENT, KeyEntry, KeySummary, MAX_TIERS, NamedTier, PluginConfig, TIER_DOCUMENT,
    check_count, parse_key_members, parse_tier_members,
};
use crate::json::Json;
use crate::shown::Shown;
use crate::store::{Contended, SharedData};
use crate::tier::Tier;

/// How many sets the names of buckets are spread over. A set is rehashed as a whole when it grows, so each is small.
const ID_SETS: usize = 256;

/// What became of a publication.
#[derive(Debug)]
pub enum PublicationOutcome {
    /// It is finished.
    Finished(Finished),
    /// Another worker has begun one after it, and this one changes nothing.
    Overtaken,
}

/// A finished publication.
#[derive(Debug)]
pub struct Finished {
    /// Whether documents are in force that were not before.
    pub is_applied: bool,
    /// Whether workers have to read the record again: documents are new, or one was settled for the first time.
    pub is_changed: bool,
    /// What is wrong with documents that are left out, if that was not reported before.
    pub complaint: Option<String>,
}

/// A publication in progress.
#[derive(Debug)]
pub struct Publication {
    records: SourceRecords,
    tiers: FetchedText,
    keys: FetchedText,
    tier_builder: TierBuilder,
    key_builder: Option<KeyBuilder>,
    /// What was in force when it began.
    base: Published,
    known_wrong: KnownWrong,
    /// For the table of its keys.
    seed: u64,
    /// A hash of the names that documents have to fit beside each other.
    tier_names: u64,
}

impl Publication {
    /// Begins with what was fetched.
    pub fn new(
        fetched: Fetched,
        plugin: &PluginConfig,
        records: SourceRecords,
        seed: u64,
        data: &impl SharedData,
    ) -> Self {
        Self {
            seed,
            tiers: FetchedText::new(fetched.tiers),
            keys: FetchedText::new(fetched.api_keys),
            tier_builder: TierBuilder::default(),
            key_builder: None,
            base: Published::read(data, &records),
            known_wrong: Schedule::read(data, &records).known_wrong,
            tier_names: plugin.tier_names_hash(),
            records,
        }
    }

    /// Does a slice of the work; once all is done, says what became of it.
    pub fn work(&mut self, plugin: &PluginConfig, data: &impl SharedData) -> Option<PublicationOutcome> {
        let mut done = 0;
        while done < WORK_PER_CALL_BYTES {
            match self.step(data) {
                Ok(Some(cost)) => done += cost.max(1),
                // Putting many tiers into force is a slice of its own.
                Ok(None) if done > 0 && self.has_many_tiers() => break,
                Ok(None) => {
                    let finished = self.commit(plugin, data);
                    return Some(
                        finished.map_or(PublicationOutcome::Overtaken, PublicationOutcome::Finished),
                    );
                }
                Err(Contended) => return Some(PublicationOutcome::Overtaken),
            }
        }
        Schedule::keep_busy(data, &self.records);
        None
    }

    fn has_many_tiers(&self) -> bool {
        let tiers = self.base.tiers.as_ref().map_or(0, |base| base.tiers.len());
        let named = self.base.keys.as_ref().map_or(0, |base| base.summary.tiers.len());
        let named_anew = self.key_builder.as_ref().map_or(0, |keys| keys.summary.tiers.len());
        let most = tiers.max(self.tier_builder.tiers.len()) + named.max(named_anew);
        most > WORK_PER_CALL_BYTES / ENTRY_COST_BYTES
    }

    /// Does the next thing and says what it cost; `None` where all is ready to be put into force.
    fn step(&mut self, data: &impl SharedData) -> Result<Option<usize>, Contended> {
        if let Some(cost) = self.tiers.hash().or_else(|| self.keys.hash()) {
            return Ok(Some(cost));
        }
        if self.tiers.is_hashed() || self.keys.is_hashed() {
            self.look_up();
            self.begin(data)?;
            return Ok(Some(0));
        }
        let tiers = &mut self.tier_builder;
        if let Some(cost) = self.tiers.parse(TIER_DOCUMENT, |batch| tiers.add(batch))? {
            return Ok(Some(cost));
        }
        let Some(keys) = &mut self.key_builder else { return Ok(None) };
        self.keys.parse(KEY_DOCUMENT, |batch| keys.add(batch, data))
    }

    /// Leaves out what is in force already or known to be wrong, by the fingerprints alone.
    fn look_up(&mut self) {
        let PerDocument { tiers, keys } = self.base.fingerprints();
        self.tiers.look_up(tiers, self.known_wrong.tiers);
        self.keys.look_up(keys, self.known_wrong.keys);
        // Beside a document that is known to be wrong, the other has to fit what is in force.
        let (tiers, keys) = (self.tiers.fingerprint().or(tiers), self.keys.fingerprint().or(keys));
        let together = self.fingerprint_of_both(PerDocument { tiers, keys });
        if self.known_wrong.together == together {
            let mut failure = Some(DocumentFailure::Wrong(together, None));
            for text in [&mut self.tiers, &mut self.keys] {
                if text.is_hashed() {
                    *text = failure.take().map_or(FetchedText::NothingToDo, FetchedText::Failed);
                }
            }
        }
    }

    /// Takes a number, if there is anything to parse, and so the right to write to the table that is not in force.
    fn begin(&mut self, data: &impl SharedData) -> Result<(), Contended> {
        if !self.tiers.is_hashed() && !self.keys.is_hashed() {
            return Ok(());
        }
        let begun = Published::change(data, &self.records, |published| {
            let last_number = published.last_number.wrapping_add(1);
            Some(Published { last_number, ..published })
        })?;
        self.base = begun.unwrap_or_default();
        let is_second = self.base.keys.as_ref().is_some_and(|published| !published.table.is_second);
        self.tiers.begin(TIER_DOCUMENT);
        if let Some(bytes) = self.keys.begin(KEY_DOCUMENT) {
            let table = KeyTable::for_document(bytes, self.base.last_number, is_second, self.seed);
            self.key_builder = Some(KeyBuilder::new(table, self.records.prefix.clone()));
        }
        Ok(())
    }

    /// Puts what is good into force, if it fits.
    fn commit(&mut self, plugin: &PluginConfig, data: &impl SharedData) -> Result<Finished, Contended> {
        let (mut next, mut known_wrong) = (self.base.clone(), self.known_wrong);
        let (tiers, keys) = (self.finish_tiers(&mut next), self.finish_keys(&mut next));
        note_outcome(tiers.as_ref(), &mut known_wrong.tiers, &mut next.is_settled.tiers);
        note_outcome(keys.as_ref(), &mut known_wrong.keys, &mut next.is_settled.keys);
        let mut failures = PerDocument { tiers, keys };

        if let Some(reason) = self.misfit(plugin, &next) {
            known_wrong.together = self.fingerprint_of_both(next.fingerprints());
            // Of two new documents, one may fit what is in force of the other. Keys from before the first tiers were checked
            // beside none.
            let (base, both) = (&self.base, next.clone());
            let with = |tiers: &Option<PublishedTiers>, keys: &Option<PublishedKeys>| Published {
                tiers: tiers.clone(),
                keys: keys.clone(),
                ..both
            };
            let are_first_tiers = base.tiers.is_none() && both.tiers.is_some();
            let without_keys = are_first_tiers.then(|| with(&both.tiers, &None));
            let mut choices = std::iter::once(with(&both.tiers, &base.keys))
                .chain(without_keys)
                .chain([with(&base.tiers, &both.keys)]);
            let fits = |choice: &Published| self.misfit(plugin, choice).is_none();
            next = choices.find(fits).unwrap_or_else(|| with(&base.tiers, &base.keys));
            // As in `look_up`: the failure of the first document that is left out.
            let (left_out, name) = if next.tiers == both.tiers {
                (&mut failures.keys, KEY_DOCUMENT)
            } else {
                (&mut failures.tiers, TIER_DOCUMENT)
            };
            let reason = format!("{name} left out: {reason}");
            match left_out {
                // It is checked again once it can be reached.
                Some(DocumentFailure::Unreachable(_)) => known_wrong.together = 0,
                Some(DocumentFailure::Wrong(_, Some(other))) => *other = format!("{other}; {reason}"),
                _ => *left_out = Some(DocumentFailure::Wrong(known_wrong.together, Some(reason))),
            }
        } else if failures.tiers.is_none() && failures.keys.is_none() {
            known_wrong.together = 0;
        }
        let is_applied = self.is_new(&next);
        let is_changed = next != self.base;
        let is_missing = next.is_missing(&self.records);
        if is_changed {
            // Unless another worker has begun a publication since.
            let put = Published::change(data, &self.records, |now| (now == self.base).then(|| next.clone()))?;
            put.ok_or(Contended)?;
        }
        let complaint = Schedule::finish(data, &self.records, failures, known_wrong, is_missing);
        Ok(Finished { is_applied, is_changed, complaint })
    }

    fn is_new(&self, next: &Published) -> bool {
        (&next.tiers, &next.keys) != (&self.base.tiers, &self.base.keys)
    }

    /// Why these documents do not fit each other or the plugin configuration, if they are new and do not.
    fn misfit(&self, plugin: &PluginConfig, next: &Published) -> Option<String> {
        self.is_new(next).then(|| Config::new(plugin, &next.documents()).err()).flatten()
    }

    /// Puts the tiers into `next`, if they are good; returns what is wrong with their document.
    fn finish_tiers(&mut self, next: &mut Published) -> Option<DocumentFailure> {
        match std::mem::replace(&mut self.tiers, FetchedText::NothingToDo) {
            FetchedText::Parsed(fingerprint) => match std::mem::take(&mut self.tier_builder).finish() {
                Ok(tiers) => {
                    next.tiers = Some(PublishedTiers { fingerprint, tiers });
                    None
                }
                Err(reason) => Some(DocumentFailure::Wrong(fingerprint, Some(reason))),
            },
            FetchedText::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// The same with the keys.
    fn finish_keys(&mut self, next: &mut Published) -> Option<DocumentFailure> {
        match (std::mem::replace(&mut self.keys, FetchedText::NothingToDo), self.key_builder.take()) {
            (FetchedText::Parsed(fingerprint), Some(KeyBuilder { table, summary, .. })) => {
                next.keys = Some(PublishedKeys { fingerprint, table, summary });
                None
            }
            (FetchedText::Failed(failure), _) => Some(failure),
            _ => None,
        }
    }

    /// The fingerprint of two documents together, with the names that they have to fit.
    fn fingerprint_of_both(&self, each: PerDocument<Option<Fingerprint>>) -> Fingerprint {
        let parts = [each.tiers.unwrap_or_default(), each.keys.unwrap_or_default(), self.tier_names];
        fingerprint(&parts.map(u64::to_le_bytes).each_ref().map(<[u8; 8]>::as_slice))
    }
}

/// Notes whether a document that could be reached is known to be wrong now.
fn note_outcome(failure: Option<&DocumentFailure>, wrong: &mut Fingerprint, is_settled: &mut bool) {
    *wrong = match failure {
        Some(DocumentFailure::Unreachable(_)) => return,
        Some(DocumentFailure::Wrong(fingerprint, _)) => *fingerprint,
        None => 0,
    };
    *is_settled = true;
}

/// The tier document so far.
#[derive(Debug, Default)]
struct TierBuilder {
    tiers: Vec<Tier>,
    names: HashSet<String>,
}

impl TierBuilder {
    fn add(&mut self, members: &Json) -> Result<usize, Stop> {
        let read = parse_tier_members(&members.root(TIER_DOCUMENT)).map_err(Stop::Wrong)?;
        let count = read.len();
        for tier in read {
            if !self.names.insert(tier.name.clone()) {
                let name = Shown(&tier.name);
                return Err(Stop::Wrong(format!(
                    "{TIER_DOCUMENT}.{name}: found the same name a second time, wanted each name once"
                )));
            }
            self.tiers.push(tier);
        }
        if self.tiers.len() > MAX_TIERS {
            return Err(Stop::Wrong(check_count(self.tiers.len()).err().unwrap_or_default()));
        }
        Ok(count)
    }

    fn finish(self) -> Result<Vec<Tier>, String> {
        check_count(self.tiers.len()).map(|()| self.tiers)
    }
}

/// The key document so far. Its entries are in shared data.
#[derive(Debug)]
struct KeyBuilder {
    table: KeyTable,
    prefix: String,
    summary: KeySummary,
    /// The number of each tier that is named.
    tiers: HashMap<String, u16>,
    /// Hashes of the buckets' names: 64 bits, as many as in a name that is made from a key's hash.
    buckets: Vec<HashSet<u64>>,
}

impl KeyBuilder {
    fn new(table: KeyTable, prefix: String) -> Self {
        Self {
            table,
            prefix,
            summary: KeySummary::default(),
            tiers: HashMap::new(),
            buckets: vec![HashSet::new(); ID_SETS],
        }
    }

    fn add(&mut self, members: &Json, data: &impl SharedData) -> Result<usize, Stop> {
        let first = self.summary.keys + 1;
        let entries = parse_key_members(&members.root(KEY_DOCUMENT), first).map_err(Stop::Wrong)?;
        for entry in &entries {
            self.summary.keys += 1;
            let tier = self.tier(entry)?;
            match self.table.insert(data, &self.prefix, entry, tier) {
                Ok(Inserted::New) => {}
                Ok(Inserted::Duplicate) => return Err(Stop::Wrong(entry.duplicate_key())),
                Ok(Inserted::Outdated) | Err(Contended) => return Err(Stop::Overtaken),
            }
            let bucket = name_hash(&entry.bucket());
            let set = usize::from(bucket.to_be_bytes()[0]);
            if self.buckets.get_mut(set).is_some_and(|buckets| !buckets.insert(bucket)) {
                return Err(Stop::Wrong(entry.duplicate_id()));
            }
        }
        Ok(entries.len())
    }

    fn tier(&mut self, entry: &KeyEntry) -> Result<u16, Stop> {
        if let Some(number) = self.tiers.get(&entry.tier) {
            return Ok(*number);
        }
        let number = self.summary.tiers.len();
        if number >= MAX_TIERS {
            return Err(Stop::Wrong(format!(
                "{KEY_DOCUMENT}: found more than {MAX_TIERS} names of tiers, wanted at most so many"
            )));
        }
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        self.summary.tiers.push(NamedTier { name: entry.tier.clone(), number: entry.number });
        self.tiers.insert(entry.tier.clone(), number);
        Ok(number)
    }
}

fn name_hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}
