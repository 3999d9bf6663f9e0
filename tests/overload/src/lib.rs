//! An upstream that can be overloaded, callers of three tiers that try again, and between them the filter's own switch,
//! controller and shedding, in a closed loop under a virtual clock. Every world follows from a scenario's name and a seed.
//!
//! What is judged, and how exactly ([`judge`]):
//!
//! - **Goodput.** In each phase in which load and upstream stay the same, calls that are served, against what the upstream
//!   can do: the calls that their buckets let pass, or its capacity, whichever is less. Nobody can have all of that, since
//!   requests come by chance and callers are let through for half a second at a time. So each world is run a second time
//!   with a limiter that is told at each moment what the upstream can do ([`world::run_told`]), and what that has is what
//!   can be had. Wanted is 0.95, and those between are counted; a run fails under 0.8 of what the upstream can do, or 0.7 of
//!   what can be had where it is ill and asked for more than it can do. With an upstream of 100 requests a second or fewer
//!   much of what is seen is chance, and a run fails under 0.6 and 0.4.
//! - **The important.** Of enterprise calls, their retries included, 99.9 % are served while that tier alone asks for
//!   less than 0.8 of capacity. Where the upstream has next to no queue it is 98 %: it refuses a part of what comes in
//!   bursts, the specification bears that up to `error_ratio`, and some calls meet a refusal four times. With few requests it
//!   is 99 %.
//! - **Order.** Within what one worker knows, no tier is shed while a less important one is served beyond its
//!   `min_share`; at every request.
//! - **Switching.** Two changes of health a disturbance at most. `NORMAL` within `recover_after_seconds` and one window
//!   after it is over; calls of it that come again are part of it for as long as they ask for more than there is room for. With
//!   few requests ten seconds more.
//! - **Sparing.** Nothing is shed while less than 0.9 of capacity is asked for.
//!
//! A phase is judged from one window after its begin, or after a queue first builds up in it, and twice the time that the
//! upstream's queue takes: the specification lets nothing be shed earlier, and a queue full of requests that nobody waits for
//! has to be worked off.
//!
//! With an upstream that is slow by itself, has lost servers or fails, the second and last of these do not hold in every run,
//! and the way back may take longer: whether shedding helps there can only be found out by shedding. Such shortfalls are
//! printed, beside how many there are with a limiter that is told. A run fails where they are gross: 0.3 of what is asked for
//! shed without need, or a half of few requests; ten seconds too late; or 3 % of enterprise calls not served, but for few.
//! Goodput, order and the number of changes are judged as ever.
//!
//! In reading order: [`scenario`], [`upstream`], [`envoy`], [`world`], [`judge`].

pub mod chance;
pub mod envoy;
pub mod judge;
pub mod scenario;
pub mod upstream;
pub mod world;
