//! Programs that validate the files that we ship: Prometheus with promtool, and validators with schemas.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output_of, run};
use crate::tools::{make_python, program};
use crate::{step, workspace};

/// Python packages with schemas and validators: for Compose files and GitHub's workflows, for SBOMs, for Kubernetes'
/// own objects.
const PACKAGES: [&str; 3] = [
    "check-jsonschema==0.39.0",
    "cyclonedx-python-lib[json-validation]==11.12.0",
    "kubernetes-validate==1.37.0",
];

/// Prometheus and promtool: installed ones if there are any, else Debian's.
pub(crate) fn prometheus() -> Result<[PathBuf; 2]> {
    let find = |variable, name| program(variable, &[name], "prometheus");
    Ok([find("PROMETHEUS", "prometheus")?.0, find("PROMTOOL", "promtool")?.0])
}

/// The validator of JSON schemas, in a virtual environment whose Python also reads YAML, and that of Kubernetes' own
/// objects.
pub(crate) fn of_schemas() -> Result<[PathBuf; 2]> {
    let programs = environment()?.join("bin");
    Ok([programs.join("check-jsonschema"), programs.join("kubernetes-validate")])
}

/// Validates a CycloneDX document with the strict schema of its specification.
pub(crate) fn check_sbom(path: &Path) -> Result<()> {
    const CHECK: &str = "import sys\n\
        from cyclonedx.schema import SchemaVersion\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        sys.exit(error and str(error))";
    let python = environment()?.join("bin/python");
    output_of(Command::new(python).args(["-c", CHECK]).arg(path))?;
    Ok(())
}

/// The virtual environment with all of [`PACKAGES`].
fn environment() -> Result<PathBuf> {
    let environment = workspace::target().join("tools/validators");
    // An environment cannot be moved, so this file shows that it is complete, and with which packages.
    let complete = environment.join("complete");
    let wanted = PACKAGES.join("\n");
    if !fs::read_to_string(&complete).is_ok_and(|made| made == wanted) {
        step(format!("installing {} into {}", PACKAGES.join(", "), workspace::shown(&environment)));
        make_python(&environment).context("the validators need Python 3 with venv")?;
        let mut pip = Command::new(environment.join("bin/pip"));
        run(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES))?;
        fs::write(complete, wanted)?;
    }
    Ok(environment)
}
