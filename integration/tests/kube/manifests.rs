//! The manifest and the chart, against the published schemas of Kubernetes, by `scripts/check-manifests`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{Case, harness::Must as _};

pub(crate) const CASES: &[Case] = &[
    ("the_manifest_keeps_to_the_schemas_and_the_chart_makes_the_same", manifest),
    ("each_value_of_the_chart_keeps_to_the_schemas", values),
    ("what_the_schemas_do_not_know_is_refused", unknown),
    ("the_manifest_gives_the_image_what_it_has", programs),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest_path() -> PathBuf {
    root().join("packaging/kubernetes/weft.yaml")
}

fn check(file: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts/check-manifests"));
    command.arg(file).args(args).current_dir(root()).output().must("run scripts/check-manifests (by scripts/setup)")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn manifest() {
    let output = check(&manifest_path(), &["--chart", "packaging/kubernetes/chart", "--same"]);
    assert!(output.status.success(), "{}", said(&output));
    let other = ["--chart", "packaging/kubernetes/chart", "--same", "--set", "image=other"];
    assert!(!check(&manifest_path(), &other).status.success(), "a difference is noticed");
}

fn values() {
    let sets = [
        "secretName=",
        "privileged=true",
        "nodeSelector.role=edge",
        "router.WEFT_MTU=1400",
        "conflistName=05-weft.conflist",
    ];
    let args = sets.iter().flat_map(|set| ["--set", set]);
    let args: Vec<_> = ["--chart", "packaging/kubernetes/chart"].into_iter().chain(args).collect();
    let output = check(&manifest_path(), &args);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    for there in [
        "privileged: true",
        "kubernetes.io/os=linux,role=edge",
        "WEFT_MTU",
        "--conflist=/etc/weft/cni/05-weft.conflist",
    ] {
        assert!(text.contains(there), "{there}: {text}");
    }
    assert!(!text.contains("secret-file") && !text.contains("secretName"), "{text}");
}

fn unknown() {
    let dir = tempfile::tempdir().must("a directory");
    let text = fs::read_to_string(manifest_path()).must("the manifest");
    for (right, wrong, named) in [
        ("hostNetwork: true", "hostNetwrok: true", "hostNetwrok"),
        ("maxUnavailable: 1", "maxUnavailable: [1]", "maxUnavailable"),
        ("port: 6785", "port: {}", "port"),
    ] {
        assert!(text.contains(right), "{right}");
        let file = dir.path().join("wrong.yaml");
        fs::write(&file, text.replacen(right, wrong, 1)).must("write");
        let output = check(&file, &[]);
        assert!(!output.status.success() && said(&output).contains(named), "{wrong}: {}", said(&output));
    }
}

/// Programs and flags that the manifest calls are there, and the files that it names are those of the programs.
fn programs() {
    let text = fs::read_to_string(manifest_path()).must("the manifest");
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).must("the Dockerfile");
    for program in ["/usr/bin/weft", "/usr/bin/weft-kube"] {
        assert!(text.contains(program) && dockerfile.contains(&format!("/out{program}")), "{program}");
    }
    let exe = std::env::current_exe().must("find this binary");
    for (variable, command, flags) in [
        (crate::KUBE, "init", &["--cni-bin-dir", "--cni-conf-dir"][..]),
        (crate::KUBE, "run", &["--health"][..]),
        (crate::ROUTER, "up", &["--config", "--secret-file"][..]),
    ] {
        let help = Command::new(&exe).env(variable, "1").args([command, "--help"]).output().must("ask for help");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for flag in flags {
            assert!(help.contains(flag), "{command} {flag}: {help}");
        }
        if variable == crate::KUBE {
            for default in ["/var/lib/weft/kubernetes.toml", "kubernetes.io/os=linux"] {
                assert!(help.contains(default) && text.contains(&default.replace('=', ": ")), "{default}: {help}");
            }
        }
    }
    let example = fs::read_to_string(root().join("examples/cni/10-weft.conflist")).must("the example");
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    assert!(squeeze(&text).contains(&squeeze(&example)), "the configuration is the example's");
}
