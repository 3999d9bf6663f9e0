//! Documents of the maximum size: their cost for a callback in instructions and memory. Instructions are the same on
//! every machine.

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
    for worker in 0..2 {
        assert!(world.configure(worker, configuration(source).as_bytes()));
    }
    world
}

fn tier(world: &mut World, worker: usize, key: &str) -> String {
    world.get(worker, &Request::get("/").key(key)).tier()
}

/// The maximum of one callback and the sum of all callbacks in both workers, since the last call.
fn fuel(world: &mut World) -> (u64, u64) {
    world.vms.iter_mut().fold((0, 0), |(most, total), vm| {
        (most.max(std::mem::take(&mut vm.most_fuel)), total + std::mem::take(&mut vm.total_fuel))
    })
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
        fuel(&mut world);
        world.advance_ms(15_000);
        let (most, total) = fuel(&mut world);
        assert!(most < MOST_FUEL, "{what} at start: {most} in one callback");
        println!("{what}, {bytes} bytes, at start: {most} in one callback, {total} in all");
        for worker in 0..2 {
            assert_eq!(tier(&mut world, worker, "c4nary-0"), "pro", "{what}");
            assert_eq!(tier(&mut world, worker, "c4nary-1"), "free", "{what}");
        }
        let records = world.processes[0].shared_data_bytes();

        fuel(&mut world);
        world.advance_ms(20_000);
        let (most, total) = fuel(&mut world);
        println!("{what}, unchanged: {most} in one callback, {total} in all");
        assert!(most < MOST_FUEL && total < MOST_FUEL_PER_BYTE * bytes, "{what} unchanged: {most}, {total}");

        let changed = String::from_utf8(document).expect("text").replacen("c4nary-0", "c4nary-1", 1);
        world.documents.insert("/keys.json".into(), (200, changed.into_bytes()));
        world.advance_ms(35_000);
        let (most, total) = fuel(&mut world);
        println!("{what}, one key changed: {most} in one callback, {total} in all");
        assert!(most < MOST_FUEL, "{what}, one key changed: {most} in one callback");
        for worker in 0..2 {
            assert_eq!(tier(&mut world, worker, "c4nary-0"), "free", "{what}");
            assert_eq!(tier(&mut world, worker, "c4nary-1"), "pro", "{what}");
        }
        let grown = world.processes[0].shared_data_bytes();
        println!("{what}: {records} bytes of shared data, {grown} with the next one");
        assert!(grown < 2 * records + 100_000, "{what}: two tables, not {records} and then {grown}");
    }
}

#[test]
fn a_large_document_with_an_error_at_its_end_costs_no_more() {
    let good = keys(90_000);
    for end in
        [&b",\"x\": 1}"[..], b",\"caller-1\": \"pro\"}", b",\"x\": \"unknown\"}", b"", b",\"x\": \"pro\"} x"]
    {
        let mut document = good.clone();
        document.pop();
        document.extend_from_slice(end);
        let mut world = world(document.clone());
        world.advance_ms(15_000);
        let rejected = "rate_limiter_config_reloads_total.result.rejected";
        assert_eq!(world.processes[0].stat(rejected), 1);
        assert_eq!(tier(&mut world, 0, "c4nary-0"), "free");
        assert!(fuel(&mut world).0 < MOST_FUEL);
        // The same document is not parsed again.
        world.advance_ms(20_000);
        let (most, total) = fuel(&mut world);
        assert!(most < MOST_FUEL && total < MOST_FUEL_PER_BYTE * document.len() as u64, "{most} {total}");
        assert_eq!(world.processes[0].stat(rejected), 1);
    }
}

#[test]
fn a_callback_does_not_read_megabytes_of_an_invalid_document() {
    let sources: [&[u8]; 6] = [b" ", b"[", b"\"", b"{\"a\":[", b"{\"", b"{\"a\":{\"b\":"];
    for source in sources {
        let document = source.repeat((4 << 20) / source.len());
        let mut world = world(document);
        fuel(&mut world);
        world.advance_ms(10_000);
        let (most, _) = fuel(&mut world);
        assert!(most < MOST_FUEL, "{:?}: {most}", String::from_utf8_lossy(source));
    }
}
