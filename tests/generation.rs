//! The generation of a plugin that acts on shared state, in an Envoy with a main thread and workers that lag
//! behind it.

use dynamic_rate_limiter::generation::{CLAIM_TTL, Claimed, Generations, PluginIdentity, Role};
use dynamic_rate_limiter::time::{StoreTime, whole_micros};
use harness::random::Random;
use harness::{FakeData, SECOND};

/// One thread of Envoy: a VM, and the root contexts that Envoy keeps in it.
#[derive(Default)]
struct Thread {
    vm: Generations,
    /// Root context, configuration, and whether a request holds it.
    roots: Vec<(u32, u64, bool)>,
    last_root: u32,
}

impl Thread {
    /// Envoy replaces the current configuration with this one, and reuses a root context that still has it.
    fn deliver(&mut self, configuration: u64, data: &FakeData) {
        if !self.roots.iter().any(|(_, known, _)| *known == configuration) {
            self.last_root += 1;
            self.vm.add(self.last_root, identity(configuration), now(data));
            self.roots.push((self.last_root, configuration, false));
        }
        let gone = self.roots.extract_if(.., |(_, known, held)| *known != configuration && !*held);
        for (root, ..) in gone.collect::<Vec<_>>() {
            self.vm.remove(root, data);
        }
    }

    /// Starts a request that does not end.
    fn hold(&mut self, configuration: u64) {
        self.vm.note_request();
        let root = self.roots.iter_mut().find(|(_, known, _)| *known == configuration);
        root.expect("a configuration that is here").2 = true;
    }

    fn tick(&self, data: &FakeData) -> Vec<Claimed> {
        self.roots.iter().map(|(root, ..)| self.vm.claim(*root, data)).collect()
    }

    /// The configurations that act.
    fn newest(&self, data: &FakeData) -> Vec<u64> {
        let acts = |root: u32| self.vm.role(root, data) == Role::Newest;
        self.roots
            .iter()
            .filter(|(root, ..)| acts(*root))
            .map(|(_, configuration, _)| *configuration)
            .collect()
    }
}

fn identity(fingerprint: u64) -> PluginIdentity<'static> {
    PluginIdentity { name: b"rate_limiter", namespace: "default", fingerprint }
}

fn now(data: &FakeData) -> StoreTime {
    use dynamic_rate_limiter::store::SharedData;
    data.advance(1);
    data.now()
}

fn data() -> FakeData {
    FakeData::at(1_000 * SECOND)
}

#[test]
fn the_main_thread_claims_for_the_last_configuration() {
    let (data, mut main, mut worker) = (data(), Thread::default(), Thread::default());
    for thread in [&mut main, &mut worker] {
        thread.deliver(1, &data);
    }
    assert_eq!(main.tick(&data), [Claimed::First]);
    worker.hold(1);
    for configuration in [2, 3] {
        for thread in [&mut main, &mut worker] {
            thread.deliver(configuration, &data);
        }
        assert_eq!(main.tick(&data), [Claimed::Replaced]);
        assert_eq!(worker.tick(&data), vec![Claimed::Unchanged; worker.roots.len()]);
        assert_eq!((main.newest(&data), worker.newest(&data)), (vec![configuration], vec![configuration]));
    }
}

#[test]
fn a_configuration_that_returns_acts_again_without_a_call_in_its_worker() {
    let (data, mut main, mut worker) = (data(), Thread::default(), Thread::default());
    for configuration in [1, 2, 1] {
        main.deliver(configuration, &data);
        worker.deliver(configuration, &data);
        worker.hold(configuration);
        main.tick(&data);
    }
    assert_eq!(worker.newest(&data), [1]);
}

#[test]
fn a_worker_that_lags_ends_up_with_the_last_configuration() {
    // Each thread gets configurations 1 to 4 at its own times, and each seed is an order of ticks.
    for seed in 0..500 {
        let (data, mut threads) = (data(), [(); 3].map(|()| Thread::default()));
        let mut delivered = [0_u64; 3];
        let mut random = Random::new(seed);
        while delivered != [4; 3] {
            let thread = random.below(3) as usize;
            // Thread 0 is the main one, which is never behind.
            if delivered[thread] < if thread == 0 { 4 } else { delivered[0] } {
                delivered[thread] += 1;
                threads[thread].deliver(delivered[thread], &data);
                if thread != 0 && random.one_in(2) {
                    threads[thread].hold(delivered[thread]);
                }
            }
            threads[random.below(3) as usize].tick(&data);
        }
        for _ in 0..5 {
            data.advance(SECOND);
            threads.iter().for_each(|thread| drop(thread.tick(&data)));
        }
        for (index, thread) in threads.iter().enumerate() {
            assert_eq!(thread.newest(&data), [4], "seed {seed}, thread {index}");
        }
    }
}

#[test]
fn without_a_claim_each_vm_uses_its_own_order() {
    let (data, mut worker) = (data(), Thread::default());
    worker.deliver(1, &data);
    worker.hold(1);
    worker.deliver(2, &data);
    assert_eq!(worker.newest(&data), [2]);
}

#[test]
fn a_claim_expires_after_three_ticks_and_not_before() {
    let (data, mut main, mut worker) = (data(), Thread::default(), Thread::default());
    main.deliver(1, &data);
    worker.deliver(1, &data);
    main.tick(&data);
    worker.hold(1);
    worker.deliver(2, &data);
    data.advance(whole_micros(CLAIM_TTL) - 2);
    assert_eq!(worker.newest(&data), [1], "the main thread has not said that there is another");
    data.advance(2);
    assert_eq!(worker.newest(&data), [2], "the main thread says nothing");
}

#[test]
fn a_plugin_without_a_listener_is_passive_until_a_listener_has_it_again() {
    let (data, mut main, mut worker) = (data(), Thread::default(), Thread::default());
    main.deliver(1, &data);
    worker.deliver(1, &data);
    main.tick(&data);
    worker.hold(1);
    main.vm.remove(1, &data);
    main.roots.clear();
    data.advance(100 * SECOND);
    assert_eq!(worker.newest(&data), [0; 0]);
    main.deliver(1, &data);
    assert_eq!(main.tick(&data), [Claimed::Replaced]);
    assert_eq!(worker.newest(&data), [1]);
}

#[test]
fn a_vm_that_only_validates_a_configuration_claims_nothing() {
    let (data, mut main, mut trial) = (data(), Thread::default(), Thread::default());
    main.deliver(1, &data);
    main.tick(&data);
    trial.deliver(2, &data);
    trial.vm.remove(1, &data);
    assert_eq!(main.newest(&data), [1]);
    assert_eq!(main.tick(&data), [Claimed::Unchanged]);
}

#[test]
fn two_vms_with_different_code_agree_on_the_last_configuration() {
    let (data, mut before, mut after) = (data(), Thread::default(), Thread::default());
    before.deliver(1, &data);
    after.deliver(2, &data);
    for _ in 0..3 {
        before.tick(&data);
        after.tick(&data);
        assert_eq!((before.newest(&data), after.newest(&data)), (vec![], vec![2]));
        data.advance(SECOND);
    }
}

#[test]
fn plugins_of_different_names_or_namespaces_do_not_replace_each_other() {
    let (data, mut vm) = (data(), Generations::new());
    let other_name = PluginIdentity { name: b"another", ..identity(2) };
    let other_namespace = PluginIdentity { namespace: "another", ..identity(3) };
    for (root, identity) in [(1, identity(1)), (2, other_name), (3, other_namespace)] {
        vm.add(root, identity, now(&data));
    }
    for root in 1..=3 {
        assert_eq!(vm.claim(root, &data), Claimed::First);
        assert_eq!(vm.role(root, &data), Role::Newest);
    }
    assert_eq!(vm.role(4, &data), Role::Superseded, "an unknown root context");
}
