//! The path benchmark runs, from the hosts it makes to the files it writes. How fast anything is
//! says nothing here: it runs beside other tests, for a blink.

use std::{fs, process::Command};

#[test]
fn the_path_benchmark_measures_and_writes_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (json, plot) = (dir.path().join("path.json"), dir.path().join("path.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_path"))
        .args(["--rounds", "1", "--seconds", "0.2", "--only", "raw,vxlan,weft-sealed"])
        .args(["--figures", "tcp1,rr64,rtt"])
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let tables = String::from_utf8(output.stdout).unwrap();
    assert!(tables.contains("sleeve, cipher aes-256-gcm"), "{tables}{said}");
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let results = written["runs"][0]["results"].as_array().unwrap();
    // Not every kernel has VXLAN; then it is named as absent.
    for contestant in ["raw", "weft-sealed"] {
        for figure in ["tcp1", "cpu", "rr64", "rtt-p50"] {
            let found = results.iter().find(|r| r["contestant"] == contestant && r["figure"] == figure);
            let found = found.unwrap_or_else(|| panic!("no {figure} of {contestant}: {said}"));
            let value = found["value"]["median"].as_f64().unwrap();
            assert!(value.is_finite() && value > 0.0, "{figure} of {contestant} is {value}");
        }
    }
    let drawn = fs::read_to_string(&plot).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("weft-sealed"), "{drawn}");
}
