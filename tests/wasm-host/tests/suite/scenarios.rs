//! Every scenario of `tests/scenarios` in the hostile host. A real Envoy runs the same ones (`tests/e2e`).

use crate::gateway::HostileHost;

macro_rules! tests {
    ($($subject:ident { $($name:ident)* })*) => {
        $(mod $subject {
            $(#[test] fn $name() { ::scenarios::$subject::$name(&super::HostileHost) })*
        })*
    };
}

::scenarios::scenarios!(tests);
