//! The behaviour of the filter, as scenarios that run in two hosts: a real Envoy, and the hostile host of
//! `tests/wasm-host`.
//!
//! A scenario is a function that starts a [`Gateway`] and checks responses to clients. It does not use sockets, threads
//! or clocks. It waits for conditions: the hostile host then advances its clock, a test with a real Envoy checks the
//! condition repeatedly. [`scenarios`] is the list; each host has a test for every scenario.
//!
//! | end-to-end suite | here | only with a real Envoy, and why |
//! |---|---|---|
//! | `answers` | headers, their groups, an upstream's own copies, times | resets, timeouts and missing routes, which Envoy answers; a connection that stays open |
//! | `identity` | all but two | a NUL byte, which Envoy rejects itself; keys over HTTP/2 |
//! | `addresses` | grouping, prefixes, mapped addresses | trusted hops in `x-forwarded-for`; listeners for both families |
//! | `paths` | spellings without normalisation, queries | normalisation; absolute targets; HTTP/2 |
//! | `exemptions`, `grpc`, `environment`, `health_change` | all | |
//! | `endpoints` | every row of the specification's table | half a body, `100-continue` and trailers on a real connection |
//! | `brute_force` | counting, on every worker | concurrent guesses on many connections |
//! | `metrics` | counters and gauges | timings, lost races |
//! | `config_source` | [`documents`]: valid, invalid, late, aborted, missing | files that are saved, and Envoy that serves them |
//! //! | `redis::basics` | [`redis_buckets`]: names, prefixes, deletion | contents and expiry in a real Redis; HTTP/2; clients that disconnect |
//! | `redis::deny_cache` | [`redis_buckets`]: refusals, and what clears them | floods, and exact seconds |
//! | `redis::health` | [`redis_health`] | a Redis that is a replica, full or flushed; Envoys that start later |
//! | `redis::auth` | [`redis_outages`]: valid and wrong passwords | users, ACLs and TLS of a real Redis |
//! | `redis::faults` | [`redis_outages`]: frozen, killed, recovered | every fault under load, with fault injection |

pub mod addresses;
pub mod answers;
pub mod brute_force;
pub mod deliveries;
pub mod documents;
pub mod endpoints;
pub mod environment;
pub mod exemptions;
pub mod facts;
pub mod grpc;
pub mod health_change;
pub mod identity;
pub mod measured_health;
pub mod metrics;
pub mod paths;
pub mod redis_buckets;
pub mod redis_health;
pub mod redis_outages;
pub mod support;

mod completeness;

mod message;

pub use completeness::assert_all_run;
pub use message::{Body, Request, Response};
use std::time::Duration;

use serde_json::Value;

/// Passes the list of all scenarios, by subject, to a macro of the caller, which defines a test for each.
#[macro_export]
macro_rules! scenarios {
    ($with:ident) => {
        $with! {
            answers {
                an_admitted_request_is_answered_with_every_header
                a_refused_request_is_answered_with_every_header_and_not_sent_to_the_upstream
                a_refused_head_request_has_no_body
                the_upstreams_copies_of_headers_are_replaced
                processing_time_runs_from_request_headers_to_response_headers
                header_groups_can_be_turned_off
                ietf_fields_are_sent_if_configured
                the_health_header_and_the_limit_follow_a_change_of_health
            }
            identity {
                a_known_key_has_its_own_tier_and_bucket
                a_key_may_be_configured_by_its_hash
                rotating_unknown_keys_share_the_address_bucket
                the_first_of_two_keys_is_used
                the_header_name_is_case_insensitive
                the_key_is_case_sensitive_and_may_be_256_bytes_long
                unusual_keys_are_served_and_counted_by_address
            }
            addresses {
                ipv6_clients_are_grouped_by_64_bits
                the_ipv6_prefix_is_configurable
                an_ipv4_mapped_address_is_the_ipv4_address
            }
            paths {
                without_normalisation_another_spelling_is_another_path
                the_query_does_not_matter
            }
            exemptions {
                an_unlimited_tier_is_never_refused
                a_tier_without_capacity_is_blocked
                exempt_paths_cost_no_tokens_and_get_no_headers
                preflights_are_exempt_if_configured
            }
            grpc {
                a_call_is_admitted_and_then_refused_with_resource_exhausted
                other_content_types_are_refused_with_429
            }
            endpoints {
                get_health_reports_the_state_of_the_filter
                get_system_health_reports_the_health
                post_system_health_with_the_token_sets_the_health
                a_body_may_be_chunked_with_any_white_space_and_up_to_one_kib
                every_wrong_token_gets_the_same_403
                an_invalid_body_is_a_400_and_changes_nothing
                a_body_over_one_kib_is_a_413_and_changes_nothing
                another_method_is_a_405_with_the_allowed_methods
                endpoints_cost_no_tokens_and_answer_a_refused_caller
                paths_can_be_moved_and_turned_off
                if_envoy_passes_no_bodies_the_response_names_the_missing_setting
                head_is_answered_like_get_without_a_body
            }
            environment {
                admin_token_is_read_from_the_environment
                admin_token_works_without_any_json
                an_empty_admin_token_is_never_valid
                default_tier_is_read_from_the_environment
                config_ttl_is_read_from_the_environment
                an_invalid_value_is_refused_by_name
            }
            brute_force {
                after_five_wrong_tokens_a_minute_every_worker_refuses_that_address
                valid_tokens_are_never_throttled
                ipv6_addresses_of_guesses_are_grouped_like_callers
            }
            metrics {
                requests_are_counted_by_tier_and_status
                tokens_remaining_is_the_last_seen
                the_degraded_gauge_follows_the_health
                admin_requests_are_counted_by_result
            }
            health_change {
                a_change_applies_to_the_next_request_on_every_worker
                a_change_applies_if_envoy_keeps_no_stats_of_the_filter
                buckets_keep_their_tokens_up_to_the_new_capacity
                the_degraded_rate_applies_while_degraded
                namespaces_keep_two_limiters_apart
            }
            documents {
                the_documents_replace_the_plugin_configuration
                buckets_keep_their_tokens_across_a_reload
                a_new_tier_and_its_first_key_may_be_saved_together
                an_invalid_document_is_counted_and_logged_once_and_the_last_valid_one_applies
                the_documents_apply_to_the_first_request
                an_upload_that_waits_for_documents_arrives_complete
                without_documents_requests_wait_a_second_and_then_the_plugin_configuration_applies
                requests_do_not_wait_for_invalid_documents
                an_aborted_response_is_a_missing_document
                without_a_source_the_plugin_configuration_applies
            }
            deliveries {
                a_delivered_configuration_applies_and_keeps_buckets_and_health
                an_invalid_configuration_is_rejected_and_the_old_one_stays_active
                keys_and_groups_of_headers_follow_a_delivery
                after_a_delivery_without_a_source_its_documents_do_not_apply
            }
            measured_health {
                requests_aborted_at_a_hanging_upstream_are_measured_with_either_store
                requests_aborted_at_a_hanging_upstream_are_measured_if_redis_does_not_decide
            }
            redis_buckets {
                every_kind_of_caller_has_a_bucket_with_the_documented_name
                key_prefix_is_the_prefix_of_every_bucket
                namespaces_have_separate_buckets
                deleting_a_bucket_frees_its_caller_within_a_second
                tiers_without_a_bucket_send_no_command_to_redis
                a_connected_worker_is_counted_and_logged
                envoys_share_each_bucket_exactly
                a_request_after_retry_after_is_admitted
                a_change_of_health_clears_the_deny_cache_at_once_and_of_other_envoys_within_a_second
                a_delivered_configuration_clears_the_deny_cache
                only_the_empty_caller_is_refused
            }
            redis_health {
                a_change_is_in_redis_before_it_is_answered_and_reaches_every_envoy_within_a_second
                a_change_by_another_envoy_reaches_every_worker
                a_health_that_an_operator_writes_into_redis_applies_and_invalid_ones_are_ignored
                during_an_outage_every_envoy_keeps_its_health
                after_a_change_every_envoy_applies_its_limit_and_buckets_keep_their_tokens
                before_the_first_connection_redis_is_disconnected_and_the_policy_decides
            }
            redis_outages {
                credentials_are_sent
                with_wrong_credentials_the_policy_decides
                during_an_outage_the_policy_decides_and_afterwards_redis
            }
        }
    };
}

/// A host of the filter.
pub trait Host {
    fn start(&self, setup: &Setup) -> Box<dyn Gateway>;

    /// Starts it with a configuration that it must reject; returns its log.
    fn start_refused(&self, setup: &Setup) -> String;
}

pub trait Gateway {
    /// Sends one request, to any worker.
    fn send(&mut self, request: &Request) -> Response;

    /// Sends the same request to every worker at least once.
    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response>;

    /// Sends `copies` at once, each on its own connection, and closes the connections after `after`.
    fn send_and_disconnect(&mut self, request: &Request, copies: usize, after: Duration);

    fn advance(&mut self, time: Duration);

    /// Unix time in seconds.
    fn now(&self) -> f64;

    /// A counter or gauge, `None` if it does not exist (yet). Workers report once a second.
    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64>;

    /// The names of all stats of the filter.
    fn stats(&mut self) -> Vec<String>;

    /// The targets of the requests that the upstream has received.
    fn upstream_targets(&mut self) -> Vec<String>;

    /// Sets the response of the cluster `config_files` to this path.
    fn serve(&mut self, path: &str, served: Served);

    /// How often the filter has fetched a document.
    fn fetch_count(&mut self, path: &str) -> usize;

    /// The values of a metric for all labels.
    fn values(&mut self, name: &str) -> Vec<f64>;

    /// The log lines at `info` or above.
    fn log(&mut self) -> Vec<String>;

    /// The warnings and errors in the log.
    fn warnings(&mut self) -> Vec<String>;

    /// Sends one request to another listener of the setup.
    fn send_to_listener(&mut self, listener: &str, request: &Request) -> Response;

    /// Sends one request to another Envoy of the setup; the first is 0.
    fn send_via(&mut self, envoy: usize, request: &Request) -> Response;

    /// Delivers a plugin configuration to all workers; returns whether it was accepted.
    fn deliver(&mut self, config: &Value) -> bool;

    fn redis(&mut self) -> &mut dyn Redis;
}

/// A Redis that the filter uses.
pub trait Redis {
    /// The names of all buckets.
    fn buckets(&mut self) -> Vec<String>;

    fn delete_bucket(&mut self, name: &str);

    /// The stored health.
    fn health(&mut self) -> Option<String>;

    /// Whether the stored health does not expire.
    fn keeps_health(&mut self) -> bool;

    /// Writes the health, as an operator would.
    fn set_health(&mut self, health: &str);

    /// How often a script was run.
    fn scripts(&mut self) -> u64;

    /// It accepts connections, but does not reply.
    fn freeze(&mut self);

    /// Ends [`Redis::freeze`].
    fn thaw(&mut self);

    /// Its connections break, and it refuses new ones.
    fn kill(&mut self);

    fn restart(&mut self);
}

/// The response of the cluster `config_files` for a document.
#[derive(Clone, Debug)]
pub enum Served {
    /// `200` with this body.
    Document(Vec<u8>),
    /// This status without a body.
    Status(u16),
    /// It aborts in the middle of the body.
    BreaksOff,
    /// It does not answer at all.
    Never,
}

/// The state of the cluster `config_files`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It serves the setup's documents.
    Serves,
    Refuses,
    /// Envoy has no such cluster.
    Missing,
}

/// The configuration of a gateway. Defaults: two workers, one client, an upstream that answers `ok`.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Option<Value>,
    pub workers: u32,
    /// The VM's environment.
    pub variables: Vec<(String, String)>,
    /// Whether a request sets the address of its client.
    pub has_addresses: bool,
    /// Whether bodies reach a filter that waits for one: `allow_on_headers_stop_iteration`.
    pub passes_bodies: bool,
    /// Whether Envoy keeps the filter's stats.
    pub keeps_stats: bool,
    /// Whether the upstream speaks gRPC.
    pub is_grpc: bool,
    /// The answers of the upstream by path.
    pub answers: Vec<(String, Answer)>,
    /// The responses of the cluster `config_files` by path.
    pub documents: Vec<(String, Served)>,
    pub source: Source,
    /// Whether configurations can be delivered by ECDS.
    pub takes_deliveries: bool,
    /// Other listeners, each with a plugin configuration of its own.
    pub listeners: Vec<(String, Value)>,
    /// The number of Envoys, all with the same Redis.
    pub envoys: usize,
    /// Whether there is a Redis; the configuration names the cluster [`REDIS_CLUSTER`].
    pub has_redis: bool,
    /// Whether it runs from the start.
    pub is_redis_up: bool,
    /// The password that it requires.
    pub redis_password: Option<&'static str>,
}

/// The Envoy cluster in a scenario's `store`.
pub const REDIS_CLUSTER: &str = "redis";

/// An answer of the upstream.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The latency of the upstream.
    pub after: Duration,
}

impl Answer {
    /// `200` with this body.
    pub fn ok(body: &str) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.to_owned(), after: Duration::ZERO }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// The filter without any configuration.
    pub fn new() -> Self {
        Self {
            config: None,
            workers: 2,
            variables: Vec::new(),
            has_addresses: false,
            passes_bodies: true,
            keeps_stats: true,
            is_grpc: false,
            answers: Vec::new(),
            documents: Vec::new(),
            source: Source::Serves,
            takes_deliveries: false,
            listeners: Vec::new(),
            envoys: 1,
            has_redis: false,
            is_redis_up: true,
            redis_password: None,
        }
    }

    pub fn config(self, config: &Value) -> Self {
        Self { config: Some(config.clone()), ..self }
    }

    pub fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// Adds a variable to the VM's environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Requests set the address of their client.
    pub fn addresses(self) -> Self {
        Self { has_addresses: true, ..self }
    }

    /// Sets the upstream's answer to this path.
    pub fn answer(mut self, path: &str, answer: Answer) -> Self {
        self.answers.push((path.to_owned(), answer));
        self
    }

    /// Sets the document that the cluster `config_files` serves at this path.
    pub fn document(mut self, path: &str, document: &str) -> Self {
        self.documents.push((path.to_owned(), Served::Document(document.into())));
        self
    }

    pub fn listener(mut self, name: &str, config: &Value) -> Self {
        self.listeners.push((name.to_owned(), config.clone()));
        self
    }

    pub fn redis(self) -> Self {
        Self { has_redis: true, ..self }
    }

    /// The upstream's answer to a request target.
    pub fn answer_to(&self, target: &str) -> Answer {
        let known = self.answers.iter().find(|(path, _)| path == target);
        known.map_or_else(|| Answer::ok("ok"), |(_, answer)| answer.clone())
    }
}
