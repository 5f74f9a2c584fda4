//! The rules of the house that a reader relies on.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn files(dir: &Path, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn sql_is_in_the_store_only() {
    let elsewhere: Vec<_> = files(&root().join("src"), ".rs")
        .into_iter()
        .filter(|(name, _)| !name.starts_with("src/store/"))
        .filter(|(_, text)| text.contains("sqlx::query") || text.contains("query!(") || text.contains("raw_sql"))
        .map(|(name, _)| name)
        .collect();
    // The bench measures raw Postgres beside us: that is its purpose.
    assert_eq!(
        elsewhere,
        [
            "src/cli/bench/crowd.rs",
            "src/cli/bench/mod.rs",
            "src/cli/bench/pages.rs",
            "src/cli/bench/pauses.rs",
            "src/cli/bench/seed.rs",
            "src/cli/bench/starts.rs"
        ]
    );
}

#[test]
fn one_file_names_the_worker_runtime() {
    let names: Vec<_> = files(&root().join("src/worker"), ".rs")
        .into_iter()
        .filter(|(_, text)| text.contains("apalis::") || text.contains("apalis_core::"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["src/worker/runtime.rs"]);
}

#[test]
fn every_file_fits_a_mind() {
    let long: Vec<_> =
        files(&root().join("src"), ".rs").into_iter().filter(|(_, text)| text.lines().count() > 420).map(|(name, _)| name).collect();
    assert!(long.is_empty(), "split these: {long:?}");
}

#[test]
fn every_setting_is_explained_where_it_is_set() {
    let text = std::fs::read_to_string(root().join("config/default.toml")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (nth, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with('#')) {
        assert!(lines[nth - 1].starts_with('#'), "{line} has no comment");
    }
}

#[test]
fn every_error_code_of_an_agent_is_explained() {
    let codes = std::fs::read_to_string(root().join("src/agent/codes.rs")).unwrap();
    let docs = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let codes: Vec<_> =
        codes.lines().filter_map(|line| line.trim().split_once(" = \"")?.1.split_once("\", ")).map(|(code, _)| code).collect();
    assert!(codes.len() > 25, "{codes:?}");
    let unsaid: Vec<_> = codes.iter().filter(|code| !docs.contains(&format!("`{code}`"))).collect();
    assert!(unsaid.is_empty(), "docs/errors.md says nothing of {unsaid:?}");
}

#[test]
fn every_guarantee_of_the_readme_names_a_test_that_exists() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let guarantees = readme.split("## What holds").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section is there");
    let tests: Vec<_> = ["tests/it", "tests/browser", "tests/claude"].iter().flat_map(|dir| files(&root().join(dir), ".rs")).collect();
    let mut named = 0;
    for name in guarantees.split('`').filter(|word| word.contains("::") && !word.contains(' ')) {
        let (file, function) = name.split_once("::").unwrap();
        let paths = ["it", "browser", "claude"].map(|dir| format!("tests/{dir}/{file}.rs"));
        let (_, text) = tests.iter().find(|(path, _)| paths.contains(path)).unwrap_or_else(|| panic!("{name}: no such file"));
        assert!(text.contains(&format!("fn {function}(")), "{name} is in no file");
        named += 1;
    }
    assert!(named >= 8, "each guarantee names its test");
}
