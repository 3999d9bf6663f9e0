//! This host and a real Envoy agree on the facts that the limiter rests on: the same probe filter and the same table
//! as `e2e` asks of Envoy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use wasm_host::{Request, Setup, World};

/// Groups of facts that need nothing but one plugin and one request.
const GROUPS: &[&str] =
    &["shared_data", "queues", "metrics", "headers", "contexts", "clocks", "replies", "plugin"];

/// Facts of these groups that this host does not model, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("shared_data/out_of_bounds", "memory that is not the filter's own fails the test here"),
    ("replies/bad_header_block", "headers in no known form fail the test here"),
    ("clocks/time_passes_within_a_callback", "time passes when a test says so"),
    ("plugin/source_address_ipv6", "the address is the test's, and no header's"),
    ("headers/count_and_end", "Envoy adds headers of its own"),
    ("contexts/deleted", "the limiter exports neither `proxy_on_done` nor `proxy_on_log`"),
];

fn ask(fact: &Value) -> Vec<String> {
    let mut setup =
        Setup { is_probe: true, is_quiet: true, log_level: 2, ..Setup::new("{\"some\": \"text\"}") };
    setup.environment = vec![
        ("PROBE_SET".to_owned(), b"yes".to_vec()),
        ("PROBE_EMPTY".to_owned(), Vec::new()),
        ("PROBE_OF_THE_HOST".to_owned(), b"handed on".to_vec()),
    ];
    let mut world = World::start(setup);
    let mut found = Vec::new();
    for step in fact["steps"].as_array().expect("steps") {
        let path = format!(
            "/{}/{}",
            fact["group"].as_str().expect("a group"),
            fact["name"].as_str().expect("a name")
        );
        let method = step["method"].as_str().unwrap_or("GET");
        let mut request =
            Request::new(method, step["path"].as_str().unwrap_or(&path)).from("127.0.0.1:40000");
        for (name, values) in step["headers"].as_object().into_iter().flatten() {
            for value in values.as_array().expect("values") {
                let value: Vec<u8> = value.as_str().expect("a text").chars().map(|byte| byte as u8).collect();
                request = request.with(&name.to_lowercase(), value);
            }
        }
        let response = world.get(0, &request);
        let status = step["status"].as_u64().unwrap_or(200);
        if u64::from(response.status) != status {
            found.push(format!("status {}, and Envoy {status}", response.status));
        }
        if let Some(answer) = step["answer"].as_str()
            && response.text() != answer
        {
            found.push(format!("{:?}, and Envoy {answer:?}", response.text()));
        }
    }
    found
}

#[test]
fn this_host_answers_the_probe_as_envoy_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../probe-filter/facts.json");
    let table: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the table")).expect("JSON");
    let mut asked = 0;
    let mut differ = Vec::new();
    for fact in table["facts"].as_array().expect("facts") {
        let name =
            format!("{}/{}", fact["group"].as_str().unwrap_or(""), fact["name"].as_str().unwrap_or(""));
        let needs_more = fact["steps"].as_array().is_some_and(|steps| {
            let known = ["answer", "path", "headers", "method", "status"];
            steps.iter().any(|step| {
                step.as_object().is_none_or(|step| step.keys().any(|key| !known.contains(&&**key)))
            })
        });
        let is_ours = GROUPS.iter().any(|group| fact["group"] == *group) && !needs_more;
        if !is_ours || LEFT_OUT.iter().any(|(known, _)| *known == name) {
            continue;
        }
        asked += 1;
        match catch_unwind(AssertUnwindSafe(|| ask(fact))) {
            Ok(found) => differ.extend(found.into_iter().map(|found| format!("{name}: {found}"))),
            Err(panic) => differ.push(format!("{name}: {:?}", panic.downcast_ref::<String>())),
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(asked >= 25, "{asked} facts are too few");
}
