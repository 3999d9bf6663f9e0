//! The filter in a real Envoy, seen from outside. One module per subject, one binary for all.

mod addresses;
mod answers;
mod boot;
mod brute_force;
mod config_errors;
mod config_source;
mod ecds;
mod endpoints;
mod environment;
mod exactness;
mod exemptions;
mod grpc;
mod health_switch;
mod hostile_clients;
mod identity;
mod logs;
mod memory;
mod metrics;
mod paths;
mod protocols;
mod redis;
mod reload_under_load;
mod secrets;
mod shipped;
mod support;
mod timing;
