//! Documents of the maximum size: their cost for a callback in instructions and memory. Instructions are the same on
//! every machine.

use dynamic_rate_limiter::config::MAX_TIERS;
use scenarios::Request;
use wasm_host::{Setup, World};

use crate::support::configuration;

/// The maximum of instructions of a callback that works on a document: some milliseconds of V8. A filter built for size
/// needs a tenth more instructions than one built for speed.
const MOST_FUEL: u64 = 7_500_000;

/// The maximum of instructions per byte of an unchanged document; parsing it takes eighty times as many.
const MOST_FUEL_PER_BYTE: u64 = 10;

/// A document with the key `c4nary-0` and these entries, each after a comma.
fn document(entries: impl Iterator<Item = String>) -> Vec<u8> {
    format!("{{\"c4nary-0\": \"pro\"{}}}", entries.collect::<String>()).into_bytes()
}

fn keys(count: usize) -> Vec<u8> {
    document((1..count).map(|key| format!(",\n\"caller-{key}\": {{\"tier\":\"pro\"}}")))
}

/// Most of the keys are hashes with ids.
fn hashes(count: usize) -> Vec<u8> {
    let entry = |key| format!(",\"sha256:{key:064x}\":{{\"tier\":\"pro\",\"id\":\"c{key}\"}}");
    document((1..count).map(entry))
}

fn world(document: Vec<u8>) -> World {
    let source =
        r#", "config_source": {"cluster": "config_files", "api_keys": "/keys.json", "ttl_seconds": 20}"#;
    let mut world = World::boot(Setup::new(configuration(source)).workers(2));
    world.documents.insert("/keys.json".into(), (200, document));
    world.configure_all();
    world
}

/// The tiers of these keys, the same on both workers.
fn tiers<const N: usize>(world: &mut World, keys: [&str; N]) -> [String; N] {
    let [first, second] =
        [0, 1].map(|worker| keys.map(|key| world.get(worker, &Request::get("/").key(key)).tier()));
    assert_eq!(first, second, "the workers differ");
    first
}

/// The same for the most tiers, which are put into force as a whole.
const MOST_FUEL_FOR_TIERS: u64 = 12_500_000;

/// Advances the clocks; asserts that no callback since the last call cost too much. Returns the cost of all callbacks of
/// both workers since then.
fn work(world: &mut World, ms: u64, what: &str) -> u64 {
    work_within(MOST_FUEL, world, ms, what)
}

fn work_within(bound: u64, world: &mut World, ms: u64, what: &str) -> u64 {
    world.advance_ms(ms);
    let most = world.vms.iter().map(|vm| vm.most_fuel).max().expect("a VM");
    let total = world.vms.iter().map(|vm| vm.total_fuel).sum();
    for vm in &mut world.vms {
        (vm.most_fuel, vm.total_fuel) = (0, 0);
    }
    println!("{what}: {most} in one callback, {total} in all");
    assert!(most < bound, "{what}: {most} in one callback");
    total
}

#[test]
fn the_cost_of_a_callback_is_bounded_for_a_large_document() {
    let cases = [
        ("100,000 keys", keys(100_000)),
        ("hashes with ids", hashes(36_000)),
        ("4 MiB", {
            let mut document = keys(100_000);
            document.resize(4 << 20, b' ');
            document
        }),
    ];
    for (what, document) in cases {
        let bytes = document.len() as u64;
        assert!((3 << 20..=4 << 20).contains(&bytes), "{what}: {bytes}");
        let mut world = world(document.clone());
        work(&mut world, 15_000, &format!("{what}, {bytes} bytes, at start"));
        assert_eq!(tiers(&mut world, ["c4nary-0", "c4nary-1"]), ["pro", "free"], "{what}");
        let records = world.processes[0].shared_data_bytes();

        let total = work(&mut world, 20_000, &format!("{what}, unchanged"));
        assert!(total < MOST_FUEL_PER_BYTE * bytes, "{what}, unchanged: {total}");

        let changed = String::from_utf8(document).expect("text").replacen("c4nary-0", "c4nary-1", 1);
        world.documents.insert("/keys.json".into(), (200, changed.into_bytes()));
        work(&mut world, 35_000, &format!("{what}, one key changed"));
        assert_eq!(tiers(&mut world, ["c4nary-0", "c4nary-1"]), ["free", "pro"], "{what}");
        let grown = world.processes[0].shared_data_bytes();
        println!("{what}: {records} bytes of shared data, {grown} with the next one");
        assert!(grown < 2 * records + 100_000, "{what}: two tables, not {records} and then {grown}");
    }
}

#[test]
fn the_cost_of_a_callback_is_bounded_for_the_most_tiers() {
    let numbers = 0..MAX_TIERS - 1;
    let tiers = numbers
        .clone()
        .map(|n| format!(",\"tier-{n}\":{{\"base\":{{\"capacity\":{},\"refill_rate\":1}}}}", n + 1));
    let free = "{\"free\":{\"base\":{\"capacity\":3,\"refill_rate\":1}}";
    let tiers = format!("{free}{}}}", tiers.collect::<String>());
    let keys = numbers.map(|n| format!(",\"caller-{n}\":\"tier-{n}\"")).collect::<String>();
    let keys = format!("{{\"c4nary-0\":\"free\"{keys}}}");
    let source =
        r#"{"config_source": {"cluster": "config_files", "tiers": "/tiers.json", "api_keys": "/keys.json"}}"#;
    let mut world = World::boot(Setup::new(source).workers(2));
    world.documents.insert("/tiers.json".into(), (200, tiers.into_bytes()));
    world.documents.insert("/keys.json".into(), (200, keys.into_bytes()));
    world.configure_all();
    work_within(MOST_FUEL_FOR_TIERS, &mut world, 15_000, "the most tiers");
    assert_eq!(self::tiers(&mut world, ["caller-7"]), ["tier-7"]);
    work(&mut world, 1, "the first requests");
}

#[test]
fn a_large_document_with_an_error_at_its_end_costs_no_more() {
    let good = keys(90_000);
    for end in [",\"x\": 1}", ",\"caller-1\": \"pro\"}", ",\"x\": \"unknown\"}", "", ",\"x\": \"pro\"} x"] {
        let mut document = good.clone();
        document.pop();
        document.extend_from_slice(end.as_bytes());
        let (what, bytes) = (format!("with {end:?} at the end"), document.len() as u64);
        let mut world = world(document);
        work(&mut world, 15_000, &what);
        let rejected = "rate_limiter_config_reloads_total.result.rejected";
        assert_eq!(world.processes[0].stat(rejected), 1, "{what}");
        assert_eq!(tiers(&mut world, ["c4nary-0"]), ["free"], "{what}");
        // The same document is not parsed again.
        let total = work(&mut world, 20_000, &what);
        assert!(total < MOST_FUEL_PER_BYTE * bytes, "{what}: {total}");
        assert_eq!(world.processes[0].stat(rejected), 1, "{what}");
    }
}

#[test]
fn a_callback_does_not_read_megabytes_of_an_invalid_document() {
    for source in [" ", "[", "\"", "{\"a\":[", "{\"", "{\"a\":{\"b\":"] {
        let document = source.repeat((4 << 20) / source.len());
        work(&mut world(document.into_bytes()), 10_000, &format!("{source:?}"));
    }
}
