//! A Redis Cluster on the loopback: three masters, and a replica of the first.

use std::net::SocketAddr;
use std::time::Duration;

use crate::redis::Redis;
use crate::wait;

const SLOTS: usize = 16_384;
const MASTERS: usize = 3;

/// Nodes meet and vote by gossip, some of it once a second.
const FORMATION: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct RedisCluster {
    /// The masters, and then the replica of the first, if there is one.
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts it and waits until every node knows the owner of every slot.
    #[track_caller]
    pub fn start() -> Self {
        let cluster = Self::form(MASTERS + 1);
        cluster.add_replica();
        cluster
    }

    /// A cluster without a replica.
    #[track_caller]
    pub fn of_masters() -> Self {
        Self::form(MASTERS)
    }

    #[track_caller]
    fn form(count: usize) -> Self {
        let cluster = Self { nodes: (0..count).map(|_| Redis::start_node()).collect() };
        for (index, master) in cluster.masters().iter().enumerate() {
            let first = SLOTS * index / MASTERS;
            let last = SLOTS * (index + 1) / MASTERS - 1;
            master.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            master.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &cluster.nodes[1..] {
            let (port, bus) = (node.address().port().to_string(), node.bus_port().to_string());
            cluster.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        cluster.until("every node knows every other", |node| {
            node.command(&["CLUSTER", "NODES"]).text().lines().count() == count
        });
        cluster.until_served();
        cluster
    }

    #[track_caller]
    fn until_served(&self) {
        self.until("every slot is served", |node| {
            node.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok")
        });
    }

    #[track_caller]
    fn add_replica(&self) {
        let master = id(&self.nodes[0]);
        wait::until_within(FORMATION, "a replica of the first master", || {
            self.replica().try_command(&["CLUSTER", "REPLICATE", &master]).ok()
        });
        self.until_served();
        wait::until_within(FORMATION, "the replica is synchronized", || {
            let info = self.replica().command(&["INFO", "replication"]);
            info.text().contains("master_link_status:up").then_some(())
        });
    }

    /// The initial masters.
    pub fn masters(&self) -> &[Redis] {
        &self.nodes[..MASTERS]
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.masters().iter().map(Redis::address).collect()
    }

    /// One of the initial masters, counted from zero.
    pub fn master(&self, index: usize) -> &Redis {
        &self.nodes[index]
    }

    pub fn replica(&self) -> &Redis {
        &self.nodes[MASTERS]
    }

    /// The initial owner of this key's slot.
    #[track_caller]
    pub fn master_of(&self, key: &str) -> usize {
        let slot = self.slot_of(key);
        (0..MASTERS).position(|index| slot < SLOTS * (index + 1) / MASTERS).expect("a slot below 16384")
    }

    /// Moves a key's slot with its keys to another master, as `redis-cli --cluster reshard` does.
    #[track_caller]
    pub fn migrate_slot_of(&self, key: &str, to: usize) {
        let from = &self.nodes[self.master_of(key)];
        let to = &self.nodes[to];
        let slot = self.slot_of(key).to_string();
        let (from_id, to_id) = (id(from), id(to));
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        // For some time, requests arrive during the migration.
        std::thread::sleep(Duration::from_millis(300));
        loop {
            let keys = from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).texts();
            if keys.is_empty() {
                break;
            }
            let port = to.address().port().to_string();
            for key in keys {
                from.command(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        to.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        for node in self.masters() {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
    }

    /// Fails over from the first master to its replica, coordinated with the master, so that no data is lost.
    #[track_caller]
    pub fn fail_over(&self) {
        self.replica().command(&["CLUSTER", "FAILOVER"]);
        self.await_promotion();
    }

    /// Kills the first master; the others promote its replica.
    #[track_caller]
    pub fn kill_first_master(&mut self) {
        self.nodes[0].kill();
        self.await_promotion();
    }

    #[track_caller]
    fn await_promotion(&self) {
        wait::until_within(FORMATION, "the replica is a master", || {
            self.replica().command(&["INFO", "replication"]).text().contains("role:master").then_some(())
        });
    }

    #[track_caller]
    fn slot_of(&self, key: &str) -> usize {
        let slot = self.replica().command(&["CLUSTER", "KEYSLOT", key]).integer();
        usize::try_from(slot).expect("a slot")
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Redis) -> bool) {
        wait::until_within(FORMATION, what, || self.nodes.iter().all(&holds).then_some(()));
    }
}

#[track_caller]
fn id(node: &Redis) -> String {
    node.command(&["CLUSTER", "MYID"]).text()
}
