//! Every scenario of `tests/scenarios` in a real Envoy. The hostile host runs the same ones.

use e2e::gateway::RealEnvoy;

macro_rules! tests {
    ($($subject:ident { $($name:ident)* })*) => {
        $(mod $subject {
            $(#[test] fn $name() { ::scenarios::$subject::$name(&super::RealEnvoy) })*
        })*
    };
}

::scenarios::scenarios!(tests);
