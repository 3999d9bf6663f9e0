//! Every host call that the filter imports, as Envoy implements it (proxy-wasm ABI 0.2.1).
//!
//! The calls record their effects outside of the VM in [`VmState::after`] and [`VmState::out`]; the world carries them
//! out. All calls are deterministic.

use dynamic_rate_limiter::shown::MAX_LINE_BYTES;
use wasmtime::{Linker, Result};

use crate::failures::status;
use crate::guest::{
    Host, Stop, bail, read, read_headers, read_text, return_bytes, status_of, write_u32, write_u64,
};
use crate::process::StatKind;
use crate::state::{After, Event, Headers, LocalReply, Out, Timer, VmState, header};

mod calls;
mod wasi;

/// Defines one import; its arguments are of type `u32` by default, and its failures are scripted by its name. It returns
/// `OK` unless its body ends early. An address outside of the guest's memory ends the test, unless the guest is the
/// probe, which tests how Envoy handles it.
macro_rules! import {
    ($linker:ident $module:ident $name:ident($host:ident $(, $argument:ident $(: $kind:ty)?)*) $body:block) => {
        let function = |mut host: Host<'_> $(, $argument: kind!($($kind)?))*| {
            if let Some(status) = host.data_mut().enter(stringify!($name)) {
                return Ok(status);
            }
            let is_forgiven = host.data().is_probe;
            #[allow(unused_mut, unreachable_code, reason = "some calls only read, one only fails")]
            let act = |mut $host: Host<'_>| -> Result<(), Stop> { $body Ok(()) };
            status_of(act(host), is_forgiven)
        };
        $linker.func_wrap(stringify!($module), stringify!($name), function)?;
    };
}

macro_rules! kind {
    () => {
        u32
    };
    ($kind:ty) => {
        $kind
    };
}

pub(crate) use {import, kind};

pub(crate) fn define(linker: &mut Linker<VmState>) -> Result<()> {
    proxy(linker)?;
    headers_and_bodies(linker)?;
    shared(linker)?;
    stats(linker)?;
    calls::define(linker)?;
    wasi::define(linker)
}

fn proxy(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_log(host, level, text, size) {
        let line = read_text(&host, text, size)?;
        let state = host.data_mut();
        let is_one_line = line.len() <= MAX_LINE_BYTES + 16 && !line.contains(char::is_control);
        assert!(
            is_one_line || state.is_probe,
            "a log line that contains control characters, or is too long: {line:?}"
        );
        state.note(Event::Logged(level, line.clone()));
        state.process.log.borrow_mut().push((level, line));
    } }
    import! { linker env proxy_get_log_level(host, to) {
        let level = host.data().process.log_level.get();
        write_u32(&mut host, to, level)?;
    } }
    import! { linker env proxy_get_current_time_nanoseconds(host, to) {
        let now = host.data().process.clock.wall_ns.get();
        write_u64(&mut host, to, now)?;
    } }
    import! { linker env proxy_set_tick_period_milliseconds(host, period_ms) {
        let now_us = host.data().process.clock.now_us();
        let period_us = u64::from(period_ms) * 1_000;
        let root = host.data().root();
        let timer = (period_us > 0).then_some(Timer { period_us, due_us: now_us + period_us });
        host.data_mut().roots.insert(root, timer);
    } }
    import! { linker env proxy_set_effective_context(host, context) {
        if !host.data().exists(context) {
            return Err(Stop::Status(status::BAD_ARGUMENT));
        }
        host.data_mut().effective = context;
    } }
    import! { linker env proxy_continue_stream(host, kind) {
        let context = host.data().context();
        let state = host.data_mut();
        match (kind, state.streams.get_mut(&context)) {
            (0, Some(stream)) => {
                stream.request_headers = None;
                stream.request_trailers = None;
                state.after.push_back(After::Continue(context));
            }
            (0 | 1, _) => {}
            _ => return Err(Stop::Status(status::BAD_ARGUMENT)),
        }
    } }
    import! { linker env proxy_send_local_response(
        host, code, _details, _details_size, body, body_size, headers, headers_size, grpc_status: i32
    ) {
        let body = read(&host, body, body_size)?;
        let headers = match read_headers(&read(&host, headers, headers_size)?) {
            Some(headers) => headers,
            // Envoy replies without headers.
            None if host.data().is_probe => Headers::new(),
            None => bail!("a local reply with invalid headers"),
        };
        let Ok(status) = u16::try_from(code) else {
            bail!("a local reply with status {code}");
        };
        let context = host.data().context();
        host.data_mut().replies += 1;
        if host.data().streams.contains_key(&context) {
            let reply = LocalReply { status, headers, body, grpc_status };
            host.data_mut().after.push_back(After::Reply(context, reply));
        }
    } }
    import! { linker env proxy_get_property(host, path, size, to, size_to) {
        let path = read(&host, path, size)?;
        let value = host.data().property(&path)?;
        return_bytes(&mut host, &value, to, size_to)?;
    } }
    Ok(())
}

fn headers_and_bodies(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_get_header_map_value(host, map, name, size, to, size_to) {
        let name = read_text(&host, name, size)?.to_lowercase();
        let headers = host.data_mut().map(map).ok_or(status::BAD_ARGUMENT)?;
        let value = header(headers, &name).map(<[u8]>::to_vec).ok_or(status::NOT_FOUND)?;
        return_bytes(&mut host, &value, to, size_to)?;
    } }
    import! { linker env proxy_replace_header_map_value(host, map, name, name_size, value, size) {
        let name = read_text(&host, name, name_size)?.to_lowercase();
        let value = read(&host, value, size)?;
        let headers = host.data_mut().map(map).ok_or(status::BAD_ARGUMENT)?;
        let index = headers.iter().position(|(known, _)| *known == name).unwrap_or(headers.len());
        headers.retain(|(known, _)| *known != name);
        headers.insert(index, (name, value));
    } }
    import! { linker env proxy_add_header_map_value(host, map, name, name_size, value, size) {
        let name = read_text(&host, name, name_size)?.to_lowercase();
        let value = read(&host, value, size)?;
        host.data_mut().map(map).ok_or(status::BAD_ARGUMENT)?.push((name, value));
    } }
    import! { linker env proxy_get_buffer_bytes(host, kind, start, length, to, size_to) {
        let buffer = host.data_mut().buffer(kind).ok_or(status::NOT_FOUND)?;
        let start = (start as usize).min(buffer.len());
        let end = (start + length as usize).min(buffer.len());
        let bytes = buffer[start..end].to_vec();
        return_bytes(&mut host, &bytes, to, size_to)?;
    } }
    import! { linker env proxy_set_buffer_bytes(host, kind, start, length, bytes, size) {
        let bytes = read(&host, bytes, size)?;
        let buffer = host.data_mut().buffer(kind).ok_or(status::NOT_FOUND)?;
        // Envoy supports three cases: prepend, replace, append.
        match (start, length) {
            (0, 0) => drop(buffer.splice(0..0, bytes)),
            (0, length) if length as usize >= buffer.len() => *buffer = bytes,
            (start, _) if start as usize >= buffer.len() && start > 0 => buffer.extend(bytes),
            _ => return Err(Stop::Status(status::BAD_ARGUMENT)),
        }
    } }
    Ok(())
}

fn shared(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_get_shared_data(host, key, key_size, to, size_to, cas_to) {
        let key = read(&host, key, key_size)?;
        let state = host.data();
        let (value, cas) = state.process.get_shared(&state.vm_id, &key).ok_or(status::NOT_FOUND)?;
        write_u32(&mut host, cas_to, cas)?;
        return_bytes(&mut host, &value, to, size_to)?;
    } }
    import! { linker env proxy_set_shared_data(host, key, key_size, value, size, cas) {
        let (key, value) = (read(&host, key, key_size)?, read(&host, value, size)?);
        if let Some(act) = host.data_mut().another_worker.take() {
            act(&host.data().process);
        }
        let state = host.data();
        if !state.process.set_shared(&state.vm_id, &key, &value, cas) {
            return Err(Stop::Status(status::CAS_MISMATCH));
        }
    } }
    import! { linker env proxy_register_shared_queue(host, name, size, to) {
        let name = read(&host, name, size)?;
        let state = host.data();
        let token = state.process.register_queue(&state.vm_id, &name, state.index, state.root());
        write_u32(&mut host, to, token)?;
    } }
    import! { linker env proxy_resolve_shared_queue(host, vm_id, vm_id_size, name, size, to) {
        let (vm_id, name) = (read_text(&host, vm_id, vm_id_size)?, read(&host, name, size)?);
        let token = host.data().process.resolve_queue(&vm_id, &name).ok_or(status::NOT_FOUND)?;
        write_u32(&mut host, to, token)?;
    } }
    import! { linker env proxy_enqueue_shared_queue(host, token, data, size) {
        let data = read(&host, data, size)?;
        let state = host.data();
        state.process.queues.borrow_mut().get_mut(&token).ok_or(status::NOT_FOUND)?.items.push_back(data);
        host.data_mut().out.push_back(Out::Enqueued(token));
    } }
    import! { linker env proxy_dequeue_shared_queue(host, token, to, size_to) {
        let state = host.data();
        let item = state.process.queues.borrow_mut().get_mut(&token).map(|queue| queue.items.pop_front());
        let item = item.ok_or(status::NOT_FOUND)?.ok_or(status::EMPTY)?;
        return_bytes(&mut host, &item, to, size_to)?;
    } }
    Ok(())
}

fn stats(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_define_metric(host, kind, name, size, to) {
        let name = read_text(&host, name, size)?;
        let kind = match kind {
            0 => StatKind::Counter,
            1 => StatKind::Gauge,
            2 => StatKind::Histogram,
            _ => return Err(Stop::Status(status::BAD_ARGUMENT)),
        };
        let state = host.data_mut();
        let id = (state.metrics.len() as u32) << 2 | kind as u32;
        state.process.define_stat(kind, &name);
        state.metrics.insert(id, (kind, name));
        write_u32(&mut host, to, id)?;
    } }
    import! { linker env proxy_increment_metric(host, id, offset: i64) {
        let (kind, name) = host.data().metrics.get(&id).ok_or(status::NOT_FOUND)?;
        if *kind == StatKind::Histogram || *kind == StatKind::Counter && offset <= 0 {
            return Err(Stop::Status(status::BAD_ARGUMENT));
        }
        host.data().process.change_stat(*kind, name, |value| value.wrapping_add_signed(offset));
    } }
    import! { linker env proxy_record_metric(host, id, value: u64) {
        let (kind, name) = host.data().metrics.get(&id).ok_or(status::NOT_FOUND)?;
        let change = |old: u64| match kind {
            StatKind::Counter => old.wrapping_add(value),
            StatKind::Gauge => value,
            StatKind::Histogram => old + 1,
        };
        host.data().process.change_stat(*kind, name, change);
    } }
    import! { linker env proxy_get_metric(host, id, to) {
        let (kind, name) = host.data().metrics.get(&id).ok_or(status::NOT_FOUND)?;
        if *kind == StatKind::Histogram {
            return Err(Stop::Status(status::BAD_ARGUMENT));
        }
        let value = host.data().process.stat(name);
        write_u64(&mut host, to, value)?;
    } }
    Ok(())
}
