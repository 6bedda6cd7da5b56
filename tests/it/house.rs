//! The shape of the house: imports point one way, and each role's `--help` is what its file says.

use std::fs;
use std::path::{Path, PathBuf};

/// What each top-level module may import of ours; `*` is anything.
const MAY_IMPORT: [(&str, &[&str]); 24] = [
    ("main", &["cdnwarm"]),
    ("lib", &["*"]),
    ("cli", &["bridge", "check", "consume_direct", "demo", "produce", "serve", "setup", "telemetry"]),
    ("bridge", &["adaptive_limit", "http", "kafka", "pubsub", "redact", "retry", "telemetry", "usage"]),
    ("serve", &["http", "outcome", "request", "telemetry", "usage", "verdict", "warm"]),
    ("check", &["outcome", "output", "request", "telemetry", "usage", "verdict", "warm"]),
    ("produce", &["kafka", "request", "usage"]),
    ("consume_direct", &["http", "kafka", "outcome", "request", "telemetry", "usage", "verdict", "warm"]),
    ("setup", &["kafka", "output", "pubsub", "retry", "usage"]),
    ("demo", &["*"]),
    ("kafka", &["telemetry"]),
    ("pubsub", &[]),
    ("http", &["telemetry"]),
    ("warm", &["adaptive_limit", "outcome", "redact", "request", "retry", "telemetry", "verdict", "version"]),
    ("telemetry", &["outcome", "verdict"]),
    ("adaptive_limit", &[]),
    ("retry", &[]),
    ("shutdown", &[]),
    ("request", &["redact", "version"]),
    ("outcome", &["redact", "verdict"]),
    ("output", &[]),
    ("redact", &[]),
    ("verdict", &[]),
    ("version", &[]),
];

#[test]
fn imports_point_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    for path in rust_files(&src) {
        files += 1;
        let relative = path.strip_prefix(&src).unwrap();
        let module =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "usage" {
            continue;
        }
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no place in the house yet"));
        let text = fs::read_to_string(&path).unwrap();
        // Tests at the foot of a file may look further.
        let code = text.split("#[cfg(test)]").next().unwrap();
        for imported in imports(code) {
            let fine = imported == module || allowed.contains(&"*") || allowed.contains(&imported.as_str());
            assert!(fine, "{} imports {imported}, which {module} may not", relative.display());
        }
    }
    assert!(files > 20, "the walk found the sources");
}

#[test]
fn every_file_says_first_why_it_exists() {
    for path in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}

/// After a wanted change: `TRYCMD=overwrite cargo test --test it help`.
#[test]
fn help_is_what_its_golden_file_says() {
    trycmd::TestCases::new().case("tests/help/*.trycmd");
}

/// The top-level modules that stand behind `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let name =
        |text: &str| text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            None => vec![name(rest)],
            // A comma inside a nested group starts a name that is not a module of ours; no such group exists here.
            Some(group) => group.split('}').next().unwrap().split(',').map(name).collect(),
        })
        .filter(|name: &String| !name.is_empty())
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}
