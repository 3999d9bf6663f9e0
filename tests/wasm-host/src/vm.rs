//! One VM: calls its callbacks with a fuel bound; a trap fails the test and prints the history.

use std::fmt::Write;

use wasmtime::{InstancePre, Store, StoreLimitsBuilder, Val};

use crate::failures::Failure;
use crate::state::{Event, Guest, MAX_MEMORY_BYTES, VmState};

/// The fuel bound of a callback. The most expensive valid callback, a configuration with thousands of keys, needs some
/// tens of millions; a callback that exceeds the bound hangs.
const MAX_FUEL: u64 = 2_000_000_000;

/// The maximum of requests that a callback may answer or continue: Envoy does each inside the one before, and some
/// hundreds overflow its stack.
const MAX_ANSWERS: usize = 32;

/// One instance of the filter.
pub struct Vm {
    store: Store<VmState>,
    instance: wasmtime::Instance,
    /// The fuel of all callbacks.
    pub total_fuel: u64,
    /// The fuel of the most expensive callback.
    pub most_fuel: u64,
    pub callbacks: u64,
}

impl Vm {
    /// A new instance, initialised, without a context.
    pub(crate) fn new(module: &InstancePre<VmState>, mut state: VmState) -> Self {
        state.limits =
            StoreLimitsBuilder::new().memory_size(MAX_MEMORY_BYTES).trap_on_grow_failure(true).build();
        let mut store = Store::new(module.module().engine(), state);
        store.limiter(|state| &mut state.limits);
        store.set_fuel(MAX_FUEL).expect("an engine that counts fuel");
        let instance = module.instantiate(&mut store).expect("an instance of a module that is linked");
        let memory = instance.get_memory(&mut store, "memory").expect("a memory");
        let allocate = instance.get_typed_func(&mut store, "proxy_on_memory_allocate").expect("an allocator");
        store.data_mut().guest = Some(Guest { memory, allocate });
        let mut vm = Self { store, instance, total_fuel: 0, most_fuel: 0, callbacks: 0 };
        vm.call("_initialize", &[]);
        vm
    }

    pub(crate) fn state(&self) -> &VmState {
        self.store.data()
    }

    pub(crate) fn state_mut(&mut self) -> &mut VmState {
        self.store.data_mut()
    }

    /// Scripts these failures, and removes earlier ones.
    pub fn script(&mut self, failures: impl IntoIterator<Item = Failure>) {
        self.store.data_mut().failures = failures.into_iter().collect();
    }

    /// Whether a scripted failure has occurred.
    pub fn has_failed_a_call(&self) -> bool {
        self.store.data().has_failed_a_call
    }

    /// The size of its memory.
    pub fn memory_bytes(&mut self) -> usize {
        let guest = self.store.data().guest.clone().expect("an instance");
        guest.memory.data_size(&self.store)
    }

    pub(crate) fn has_export(&mut self, name: &str) -> bool {
        self.instance.get_func(&mut self.store, name).is_some()
    }

    /// Calls an export; the first argument is the context. Returns its result, or 0 if it has none. Panics if it traps,
    /// runs out of fuel or takes too much memory.
    pub(crate) fn call(&mut self, name: &'static str, arguments: &[u32]) -> u32 {
        let function = self
            .instance
            .get_func(&mut self.store, name)
            .unwrap_or_else(|| panic!("the filter does not export {name}"));
        let parameters: Vec<Val> =
            arguments.iter().map(|argument| Val::I32(argument.cast_signed())).collect();
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        let state = self.store.data_mut();
        state.note(Event::Callback(name, arguments.to_vec()));
        let outer = (state.current, state.effective);
        (state.current, state.effective) = (arguments.first().copied().unwrap_or_default(), 0);
        let before = state.after.len();
        self.callbacks += 1;
        self.store.set_fuel(MAX_FUEL).expect("an engine that counts fuel");
        let ended = function.call(&mut self.store, &parameters, &mut results);
        let fuel = MAX_FUEL - self.store.get_fuel().unwrap_or_default();
        self.total_fuel += fuel;
        self.most_fuel = self.most_fuel.max(fuel);
        let state = self.store.data_mut();
        (state.current, state.effective) = outer;
        let answers = state.after.len() - before;
        let bytes = self.memory_bytes();
        match ended {
            Ok(()) if bytes > MAX_MEMORY_BYTES => self.fail(&format!("{name} left {bytes} bytes of memory")),
            Ok(()) if answers > MAX_ANSWERS => self.fail(&format!("{name} answered {answers} requests")),
            Ok(()) => results.first().map_or(0, |result| result.unwrap_i32().cast_unsigned()),
            Err(error) => self.fail(&format!("{name} trapped: {error:?}")),
        }
    }

    /// Panics with the history of callbacks and host calls, oldest first.
    fn fail(&self, message: &str) -> ! {
        let state = self.store.data();
        let mut text =
            format!("VM {} ({}): {message}\nbefore that, oldest first:\n", state.index, state.vm_id);
        for line in &state.history {
            let _ = writeln!(text, "  {line}");
        }
        if state.is_quiet {
            std::panic::resume_unwind(Box::new(text));
        }
        panic!("{text}");
    }
}
