//! What the filter does, as scenarios that two hosts play: a real Envoy, and the hostile host of `tests/wasm-host`.
//!
//! A scenario is a function that starts a [`Gateway`] and says what a client has to see. It knows nothing of sockets,
//! threads or clocks: where it has to wait, it says for what, and the hostile host lets its clock run, while a test
//! with a real Envoy looks again until it is so. [`scenarios`] is the list; each host makes a test of every line.
//!
//! | end-to-end suite | here | only with a real Envoy, and why |
//! |---|---|---|
//! | `answers` | headers, their groups, an upstream's own copies, times | resets, timeouts and missing routes, which Envoy answers; a connection that goes on |
//! | `identity` | all but two | a NUL byte, which Envoy turns away itself; keys over HTTP/2 |
//! | `addresses` | grouping, prefixes, mapped addresses | whom Envoy trusts with `x-forwarded-for`; listeners for both families |
//! | `paths` | spellings where Envoy leaves paths alone, queries | what normalising makes of them; absolute targets; HTTP/2 |
//! | `exemptions`, `grpc`, `environment`, `health_switch` | all | |
//! | `endpoints` | every row of the specification's table | half a body, `100-continue` and trailers on a real connection |
//! | `brute_force` | counting, on every worker | guesses that come at once on many connections |
//! | `metrics` | counters and gauges | labels as Prometheus reads them, timings, lost races |
//! | `config_source` | [`documents`]: good, bad, late, broken off, gone | files that are saved, and Envoy that serves them |
//! | `ecds` | [`deliveries`]: good and bad | that Envoy tries each in a VM which it throws away |
//! | `redis::basics` | [`redis_buckets`]: names, prefixes, deletion | what a real Redis stores and expires; HTTP/2; clients that go away |
//! | `redis::deny_cache` | [`redis_buckets`]: who is refused, and what ends it | floods, and times told to the second |
//! | `redis::health` | [`redis_health`] | a Redis that is a replica, full or emptied; Envoys that start later |
//! | `redis::auth` | [`redis_outages`]: right and wrong passwords | users, ACLs and TLS of a real Redis |
//! | `redis::faults` | [`redis_outages`]: frozen, gone, back | every fault under load, on a wire that breaks |

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
pub mod health_switch;
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

/// Gives the list of all scenarios, by subject, to a macro of the caller: that makes a test of each.
#[macro_export]
macro_rules! scenarios {
    ($with:ident) => {
        $with! {
            answers {
                an_admitted_request_is_answered_with_every_header
                a_refused_request_is_answered_with_every_header_and_never_reaches_the_upstream
                a_refused_head_request_has_no_body
                the_upstreams_own_copies_are_replaced
                processing_time_runs_from_request_headers_to_response_headers
                header_groups_can_be_turned_off
                ietf_fields_are_there_when_asked_for
                the_health_header_and_the_limit_follow_a_switch
            }
            identity {
                a_known_key_has_its_own_tier_and_bucket
                a_key_may_be_configured_by_its_hash
                rotating_unknown_keys_share_the_address_bucket
                the_first_of_two_keys_counts
                the_header_name_has_no_case
                the_key_itself_has_case_and_may_be_256_bytes_long
                odd_keys_are_served_and_count_on_the_address
            }
            addresses {
                ipv6_clients_are_grouped_by_64_bits
                the_ipv6_prefix_is_configurable
                an_ipv4_mapped_address_is_the_ipv4_address
            }
            paths {
                where_envoy_leaves_paths_alone_another_spelling_is_another_path
                the_query_does_not_matter
            }
            exemptions {
                an_unlimited_tier_is_never_refused
                a_tier_without_capacity_is_blocked
                exempt_paths_are_neither_counted_nor_marked
                preflights_are_free_where_the_configuration_says_so
            }
            grpc {
                a_call_is_admitted_and_then_refused_with_resource_exhausted
                other_content_types_are_refused_with_429
            }
            endpoints {
                get_health_tells_how_the_filter_is
                get_system_health_tells_the_health
                post_system_health_with_the_token_switches
                a_body_may_come_in_chunks_with_any_white_space_and_up_to_one_kib
                every_wrong_token_gets_the_same_403
                a_body_that_says_nothing_usable_is_a_400_and_changes_nothing
                a_body_over_one_kib_is_a_413_and_changes_nothing
                another_method_is_a_405_that_says_which_are_allowed
                endpoints_cost_nothing_and_answer_a_caller_who_is_refused
                paths_can_be_moved_and_turned_off
                where_envoy_passes_no_bodies_the_answer_says_what_is_missing
                head_is_answered_like_get_without_the_body
            }
            environment {
                admin_token_comes_from_the_environment
                admin_token_works_without_any_json
                an_empty_admin_token_opens_nothing
                default_tier_comes_from_the_environment
                config_ttl_comes_from_the_environment
                a_wrong_value_is_refused_by_name
            }
            brute_force {
                five_wrong_tokens_a_minute_close_the_endpoint_to_that_address_on_every_worker
                right_tokens_never_close_the_endpoint
                ipv6_guessers_are_grouped_as_callers_are
            }
            metrics {
                requests_are_counted_by_tier_and_status
                tokens_remaining_is_the_last_seen
                the_degraded_gauge_follows_the_health
                admin_requests_are_counted_by_result
            }
            health_switch {
                the_very_next_request_on_every_worker_sees_a_switch
                where_envoy_keeps_no_stats_of_the_filter_a_switch_is_seen_all_the_same
                buckets_keep_their_tokens_across_a_switch_up_to_the_new_capacity
                the_degraded_rate_holds_while_degraded
                namespaces_keep_two_limiters_apart
            }
            documents {
                the_documents_replace_what_the_plugin_configuration_says
                buckets_keep_their_tokens_across_a_reload
                a_new_tier_and_its_first_key_may_be_saved_together
                a_bad_document_is_counted_and_logged_once_and_the_last_good_one_stays
                the_very_first_request_is_judged_by_the_documents
                an_upload_that_waits_for_documents_arrives_whole
                without_an_answer_requests_wait_a_second_and_then_the_plugin_configuration_decides
                documents_that_are_refused_are_not_waited_for
                a_response_that_breaks_off_is_a_document_that_did_not_come
                without_a_source_the_plugin_configuration_holds
            }
            deliveries {
                a_delivered_configuration_takes_hold_and_buckets_and_health_stay
                a_bad_configuration_is_refused_and_the_old_one_goes_on
                keys_and_groups_of_headers_follow_a_delivery
                a_delivery_without_a_source_ends_the_rule_of_its_documents
            }
            measured_health {
                clients_that_leave_a_hanging_upstream_are_measured_with_either_store
            }
            redis_buckets {
                every_kind_of_caller_has_a_bucket_under_the_name_that_is_documented
                key_prefix_is_what_every_bucket_begins_with
                namespaces_have_buckets_of_their_own
                deleting_a_bucket_frees_its_caller_within_a_second
                tiers_without_a_bucket_do_not_ask_redis
                a_worker_is_counted_and_logged_as_connected_once_it_is
                envoys_share_each_bucket_exactly
                waiting_retry_after_is_enough
                a_change_of_health_ends_a_refusal_at_once_here_and_within_a_second_elsewhere
                a_delivered_configuration_ends_a_refusal
                it_is_the_caller_alone_who_is_refused
            }
            redis_health {
                a_change_is_in_redis_before_it_is_answered_and_everywhere_within_a_second
                every_worker_learns_of_a_change_made_elsewhere
                what_an_operator_writes_into_redis_is_a_change_and_nonsense_is_none
                without_redis_every_envoy_keeps_the_health_it_knew
                a_switch_costs_no_bucket_its_tokens_and_holds_everywhere_at_its_own_limit
                before_first_contact_redis_is_disconnected
            }
            redis_outages {
                credentials_are_sent
                wrong_credentials_are_decided_by_policy
                an_outage_is_decided_by_policy_and_forgotten_when_it_is_over
            }
        }
    };
}

/// Something that filters run in.
pub trait Host {
    fn start(&self, setup: &Setup) -> Box<dyn Gateway>;

    /// Starts it with a configuration that it must refuse; gives its log.
    fn start_refused(&self, setup: &Setup) -> String;
}

pub trait Gateway {
    /// Sends one request and gives the answer. Any worker may get it.
    fn send(&mut self, request: &Request) -> Response;

    /// Sends the same request to every worker at least once.
    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response>;

    /// Sends so many copies at once, on connections of their own, and closes those after a time without an answer.
    fn send_and_leave(&mut self, request: &Request, copies: usize, after: Duration);

    fn pass(&mut self, time: Duration);

    /// Unix time in seconds.
    fn now(&self) -> f64;

    /// A counter or gauge, `None` where it is not there (yet). Workers report once a second.
    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64>;

    /// The names of all stats that the filter has.
    fn stats(&mut self) -> Vec<String>;

    /// The request targets that have reached the upstream so far.
    fn passed_on(&mut self) -> Vec<String>;

    /// From now on the cluster `config_files` answers this path so.
    fn serve(&mut self, path: &str, served: Served);

    /// How often the filter has asked for a document.
    fn times_asked(&mut self, path: &str) -> usize;

    /// All values of a metric, whatever its labels.
    fn values(&mut self, name: &str) -> Vec<f64>;

    /// What has been logged at `info` or above.
    fn log(&mut self) -> Vec<String>;

    /// What the filter has warned of, or called an error.
    fn warnings(&mut self) -> Vec<String>;

    /// Sends one request to another listener of the setup.
    fn send_to_listener(&mut self, listener: &str, request: &Request) -> Response;

    /// Sends one request to another Envoy of the setup; the first is 0.
    fn send_via(&mut self, envoy: usize, request: &Request) -> Response;

    /// Delivers a plugin configuration to all workers; says whether it was taken.
    fn deliver(&mut self, config: &Value) -> bool;

    /// The Redis of the setup.
    fn redis(&mut self) -> &mut dyn Redis;
}

/// A Redis that the filter uses.
pub trait Redis {
    /// The names of all buckets.
    fn buckets(&mut self) -> Vec<String>;

    fn delete_bucket(&mut self, name: &str);

    /// The health that is in it.
    fn health(&mut self) -> Option<String>;

    /// Whether the health stays there until somebody changes it.
    fn keeps_health(&mut self) -> bool;

    /// Writes a health into it, as an operator would.
    fn set_health(&mut self, health: &str);

    /// How often a script was run.
    fn scripts(&mut self) -> u64;

    /// It takes connections and says nothing.
    fn freeze(&mut self);

    /// It goes on after it was frozen.
    fn thaw(&mut self);

    /// It is gone: its connections break, and it takes no other.
    fn kill(&mut self);

    fn restart(&mut self);
}

/// What the cluster `config_files` does about a document.
#[derive(Clone, Debug)]
pub enum Served {
    /// `200` with this body.
    Document(Vec<u8>),
    /// This status without a body.
    Status(u16),
    /// It breaks off in the middle of the body.
    BreaksOff,
    /// It does not answer at all.
    Never,
}

/// Where the cluster `config_files` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It serves the setup's documents.
    Serves,
    Refuses,
    /// Envoy has no such cluster.
    Missing,
}

/// How a gateway is to be: two workers, one client, an upstream that says `ok`.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The plugin configuration, if there is any.
    pub config: Option<Value>,
    pub workers: u32,
    /// What the VM's environment holds.
    pub variables: Vec<(String, String)>,
    /// Whether requests say which address they come from.
    pub has_addresses: bool,
    /// Whether bodies reach a filter that waits for one: `allow_on_headers_stop_iteration`.
    pub passes_bodies: bool,
    /// Whether Envoy keeps the filter's stats.
    pub keeps_stats: bool,
    /// Whether the upstream speaks gRPC.
    pub is_grpc: bool,
    /// What the upstream answers to these paths.
    pub answers: Vec<(String, Answer)>,
    /// What the cluster `config_files` does about a path.
    pub documents: Vec<(String, Served)>,
    pub source: Source,
    /// Whether configurations can be delivered while it serves.
    pub takes_deliveries: bool,
    /// Other listeners, each with a plugin configuration of its own.
    pub listeners: Vec<(String, Value)>,
    /// How many Envoys, all with the same Redis.
    pub envoys: usize,
    /// Whether there is a Redis; the configuration names the cluster [`REDIS_CLUSTER`].
    pub has_redis: bool,
    /// Whether it is there from the beginning.
    pub is_redis_up: bool,
    /// The password that it asks for.
    pub redis_password: Option<&'static str>,
}

/// The Envoy cluster that a scenario's `store` names.
pub const REDIS_CLUSTER: &str = "redis";

/// An answer of the upstream.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// How long the upstream takes.
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

    /// With another variable in the VM's environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Requests say which address they come from.
    pub fn addresses(self) -> Self {
        Self { has_addresses: true, ..self }
    }

    /// The upstream answers this path so.
    pub fn answer(mut self, path: &str, answer: Answer) -> Self {
        self.answers.push((path.to_owned(), answer));
        self
    }

    /// The cluster `config_files` answers this path so.
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

    /// What the upstream answers to a request target.
    pub fn answer_to(&self, target: &str) -> Answer {
        let known = self.answers.iter().find(|(path, _)| path == target);
        known.map_or_else(|| Answer::ok("ok"), |(_, answer)| answer.clone())
    }
}
