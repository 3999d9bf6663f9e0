//! The compiled filter in a hostile host, one file a subject. One binary, so that the filter is compiled only once.

mod answers;
mod costs;
mod deny_cache;
mod differential;
mod documents;
mod facts;
mod fuzz;
mod gateway;
mod host_failures;
mod overload;
mod redis;
mod redis_health;
mod scenarios;
mod support;
mod token;
