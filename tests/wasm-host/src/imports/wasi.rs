//! The WASI calls of Rust's standard library: clocks, randomness from the seed, the environment, and the output of a
//! panic.

use wasmtime::{Linker, Result};

use super::{import, kind};
use crate::guest::{Host, Stop, bail, read, read_u32, status_of, write, write_u32, write_u64};
use crate::state::{Event, VmState};

pub(super) fn define(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker wasi_snapshot_preview1 clock_time_get(host, clock, _precision: u64, to) {
        const INVALID: u32 = 28;
        let clocks = &host.data().process.clock;
        clocks.is_read();
        let now = match clock {
            0 => clocks.wall_ns.get(),
            1 => clocks.monotonic_ns.get(),
            _ => return Err(Stop::Status(INVALID)),
        };
        write_u64(&mut host, to, now)?;
    } }
    import! { linker wasi_snapshot_preview1 random_get(host, to, size) {
        let bytes: Vec<u8> = (0..size).map(|_| host.data_mut().next_random() as u8).collect();
        write(&mut host, to, &bytes)?;
    } }
    import! { linker wasi_snapshot_preview1 environ_sizes_get(host, count_to, size_to) {
        let variables = environment(&host);
        write_u32(&mut host, count_to, variables.len() as u32)?;
        write_u32(&mut host, size_to, variables.iter().map(Vec::len).sum::<usize>() as u32)?;
    } }
    import! { linker wasi_snapshot_preview1 environ_get(host, list, buffer) {
        let mut at = buffer;
        for (index, variable) in environment(&host).iter().enumerate() {
            write_u32(&mut host, list + index as u32 * 4, at)?;
            write(&mut host, at, variable)?;
            at += variable.len() as u32;
        }
    } }
    import! { linker wasi_snapshot_preview1 fd_write(host, _file, list, count, to) {
        let mut text = Vec::new();
        for index in 0..count {
            let slice = list + index * 8;
            let (at, size) = (read_u32(&host, slice)?, read_u32(&host, slice + 4)?);
            text.extend(read(&host, at, size)?);
        }
        write_u32(&mut host, to, text.len() as u32)?;
        let line = String::from_utf8_lossy(&text).into_owned();
        host.data_mut().note(Event::Logged(4, line.clone()));
        host.data().process.log.borrow_mut().push((4, line));
    } }
    linker.func_wrap("wasi_snapshot_preview1", "proc_exit", |code: u32| -> Result<()> {
        bail!("the filter ended itself with code {code}")
    })?;
    Ok(())
}

fn environment(host: &Host<'_>) -> Vec<Vec<u8>> {
    let variables = host.data().process.environment.iter();
    variables.map(|(name, value)| [name.as_bytes(), b"=", value, b"\0"].concat()).collect()
}
