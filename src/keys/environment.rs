//! Where secrets and keys are read: the environment, the files that its `NAME_FILE` variables name (as Docker does), and the
//! file or directory of `keys.file`. Each is known by one name; others' names for it are taken as well.
//!
//! What is given twice must be the same: two values mean that somebody believes in the other one.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};

/// Each by our name and then by others'.
const NAMES: [&[&str]; 16] = [
    &["ANTHROPIC_API_KEY", "CLAUDE_API_KEY"],
    &["ANTHROPIC_AUTH_TOKEN"],
    &["ANTHROPIC_BASE_URL"],
    &["CLAUDE_CODE_OAUTH_TOKEN"],
    &["USPARK_TOKEN"],
    &["AWS_ACCESS_KEY_ID"],
    &["AWS_SECRET_ACCESS_KEY"],
    &["AWS_SESSION_TOKEN"],
    &["AWS_REGION"],
    &["AWS_ROLE_ARN"],
    &["BEDROCK_MODEL_ID"],
    &["CLAUDE_CODE_USE_BEDROCK"],
    // From here on not for `.env.local`: a web app's has its own of these, and dev brings its own.
    &["E2B_API_KEY", "E2B_API_TOKEN", "TURNMILL_E2B__API_KEY"],
    &["DATABASE_URL"],
    &["TURNMILL_DATABASE__DIRECT_URL"],
    &["TURNMILL_KEYS__MASTER"],
];

/// How many of these `dev` may find in `.env.local`.
const FOR_DEV: usize = 12;

/// Most bytes of one file: a key is short, and this is not the file that was meant.
const FILE_MAX_BYTES: u64 = 65_536;

/// What was found, by our names.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    found: BTreeMap<&'static str, Found>,
}

#[derive(Debug, Clone)]
struct Found {
    value: SecretString,
    /// For people: the variable or the file.
    origin: String,
}

impl Environment {
    /// Reads what `variable` and the file or directory `file` have.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>, file: Option<&Path>) -> anyhow::Result<Self> {
        let kept = file.map(|path| read_kept(path).with_context(|| format!("reading keys.file {}", path.display()))).transpose()?;
        let mut found = BTreeMap::new();
        for names in NAMES {
            let mut all = Vec::new();
            for &name in names {
                let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
                all.extend(given(name).map(|value| found_in(value.trim(), name.to_owned())));
                if let Some(path) = given(&format!("{name}_FILE")) {
                    let value = read_secret(Path::new(&path)).with_context(|| format!("reading {name}_FILE"))?;
                    all.push(found_in(&value, format!("{name}_FILE ({path})")));
                }
                let kept = kept.as_ref().and_then(|kept| kept.get(name));
                all.extend(kept.map(|value| found_in(value, format!("{name} in {}", file.unwrap_or(Path::new("")).display()))));
            }
            if let Some(one) = agreed(all)? {
                found.insert(names[0], one);
            }
        }
        Ok(Self { found })
    }

    /// Fills in what is missing from a web app's `.env.local`, where most is none of ours. What is there already wins.
    pub fn fill_in_from(&mut self, path: &Path) -> anyhow::Result<()> {
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
        let lines: BTreeMap<String, String> = text.lines().filter_map(assignment).collect();
        for names in &NAMES[..FOR_DEV] {
            let given = names.iter().filter_map(|name| {
                let value = lines.get(*name).filter(|value| !value.is_empty())?;
                Some(found_in(value, format!("{name} in {}", path.display())))
            });
            if let Some(one) = agreed(given.collect())? {
                self.found.entry(names[0]).or_insert(one);
            }
        }
        Ok(())
    }

    /// The value under one of our names.
    pub fn get(&self, name: &str) -> Option<&SecretString> {
        self.found.get(name).map(|found| &found.value)
    }

    /// The same as a plain text, for what is no secret.
    pub fn plain(&self, name: &str) -> Option<String> {
        Some(self.get(name)?.expose_secret().to_owned())
    }

    /// Where it was found, for people: never the value.
    pub fn origin(&self, name: &str) -> Option<&str> {
        self.found.get(name).map(|found| found.origin.as_str())
    }

    /// Whether a variable of the process says where one of these is kept.
    pub fn names_a_file(variable: &str) -> bool {
        variable.strip_suffix("_FILE").is_some_and(|name| NAMES.iter().any(|names| names.contains(&name)))
    }
}

fn found_in(value: &str, origin: String) -> Found {
    Found { value: value.to_owned().into(), origin }
}

/// The first, if all say the same.
fn agreed(all: Vec<Found>) -> anyhow::Result<Option<Found>> {
    let mut all = all.into_iter();
    let Some(first) = all.next() else { return Ok(None) };
    if let Some(other) = all.find(|other| other.value.expose_secret() != first.value.expose_secret()) {
        anyhow::bail!("{} and {} have different values and mean the same; keep one of them", first.origin, other.origin);
    }
    Ok(Some(first))
}

/// A directory with a file per name, as Kubernetes mounts a secret; or a file of `NAME=value` lines.
fn read_kept(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    if !std::fs::metadata(path)?.is_dir() {
        let text = read_private(path)?;
        return lines_of(&text);
    }
    let mut all = BTreeMap::new();
    for name in NAMES.into_iter().flatten() {
        let file = path.join(name);
        if file.exists() {
            all.insert((*name).to_owned(), read_secret(&file)?);
        }
    }
    anyhow::ensure!(!all.is_empty(), "no file in it has a name that is known here, as ANTHROPIC_API_KEY");
    Ok(all)
}

/// Strict: the file is ours, and a name that is wrong by a letter would be missed in silence. Errors repeat no value.
fn lines_of(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (nth, line) in text.lines().enumerate().filter(|(_, line)| !matches!(line.trim().chars().next(), None | Some('#'))) {
        let (name, value) = assignment(line).with_context(|| format!("line {} is not NAME=value", nth + 1))?;
        anyhow::ensure!(
            NAMES.iter().any(|names| names.contains(&name.as_str())),
            "line {} names nothing that is known here; docs/keys.md lists the names",
            nth + 1
        );
        anyhow::ensure!(all.insert(name, value).is_none(), "line {} gives a name for the second time", nth + 1);
    }
    Ok(all)
}

/// `NAME=value`, as shells and web frameworks write it.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let name = name.trim();
    let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let value = value.trim();
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].split_once(quote)?.0,
        _ => value.split_once(" #").map_or(value, |(value, _)| value.trim_end()),
    };
    good.then(|| (name.to_owned(), value.to_owned()))
}

/// One secret, alone in its file.
fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = read_private(path)?;
    let value = text.trim();
    anyhow::ensure!(!value.is_empty(), "{} is empty", path.display());
    anyhow::ensure!(!value.contains('\n'), "{} has more than one line; it must hold the secret and nothing else", path.display());
    Ok(value.to_owned())
}

/// A small file that not everybody may read.
fn read_private(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("{shown} can't be opened"))?;
    let meta = file.metadata().with_context(|| format!("{shown} can't be looked at"))?;
    anyhow::ensure!(meta.is_file(), "{shown} is no file");
    anyhow::ensure!(meta.len() <= FILE_MAX_BYTES, "{shown} is larger than {FILE_MAX_BYTES} bytes: that is no file of keys");
    let others_may_read = meta.permissions().mode() & 0o004 != 0;
    anyhow::ensure!(!others_may_read || is_mounted(path), "{shown} can be read by everybody on this machine; run: chmod o-r {shown}");
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).with_context(|| format!("{shown} can't be read"))?;
    String::from_utf8(bytes).ok().with_context(|| format!("{shown} is no text"))
}

/// Docker and Kubernetes bring secrets into a container that is one program's alone, readable by whatever user that has.
fn is_mounted(path: &Path) -> bool {
    let of_docker = |path: &Path| ["/run/secrets", "/var/run/secrets"].iter().any(|dir| path.starts_with(dir));
    // NAME → ..data/NAME, ..data → ..2026_01_01_…/
    let of_kubernetes = || path.parent().is_some_and(|dir| dir.join("..data").is_symlink());
    of_docker(path) || path.canonicalize().is_ok_and(|path| of_docker(&path)) || of_kubernetes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], file: Option<&Path>) -> anyhow::Result<Environment> {
        Environment::read(&|name| Some((*variables.iter().find(|(known, _)| *known == name)?.1).to_owned()), file)
    }

    fn refused(variables: &[(&str, &str)], file: Option<&Path>) -> String {
        format!("{:#}", read(variables, file).unwrap_err())
    }

    fn write(dir: &Path, name: &str, text: &str, mode: u32) -> std::path::PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn others_names_mean_the_same_and_two_values_are_an_error_that_repeats_neither() {
        let found = read(&[("CLAUDE_API_KEY", "sk-ant-one"), ("E2B_API_TOKEN", "e2b_one"), ("USPARK_TOKEN", " ")], None).unwrap();
        assert_eq!(found.plain("ANTHROPIC_API_KEY").unwrap(), "sk-ant-one");
        assert_eq!((found.origin("ANTHROPIC_API_KEY"), found.origin("E2B_API_KEY")), (Some("CLAUDE_API_KEY"), Some("E2B_API_TOKEN")));
        assert!(found.get("USPARK_TOKEN").is_none(), "empty is not set");
        assert!(!format!("{found:?}").contains("sk-ant"));
        assert!(read(&[("CLAUDE_API_KEY", "sk-ant-one"), ("ANTHROPIC_API_KEY", "sk-ant-one")], None).is_ok());
        let error = refused(&[("CLAUDE_API_KEY", "sk-ant-one"), ("ANTHROPIC_API_KEY", "sk-ant-two")], None);
        assert_eq!(error, "ANTHROPIC_API_KEY and CLAUDE_API_KEY have different values and mean the same; keep one of them");
        let error = refused(&[("E2B_API_TOKEN", "one"), ("TURNMILL_E2B__API_KEY", "two")], None);
        assert!(error.contains("E2B_API_TOKEN and TURNMILL_E2B__API_KEY"), "{error}");
    }

    #[test]
    fn files_are_read_as_docker_and_kubernetes_bring_them() {
        let dir = tempfile::tempdir().unwrap();
        let one = write(dir.path(), "one", "sk-ant-file\n", 0o600);
        let found = read(&[("ANTHROPIC_API_KEY_FILE", one.to_str().unwrap())], None).unwrap();
        assert_eq!(found.plain("ANTHROPIC_API_KEY").unwrap(), "sk-ant-file");
        assert_eq!(found.origin("ANTHROPIC_API_KEY").unwrap(), format!("ANTHROPIC_API_KEY_FILE ({})", one.display()));

        let lines = write(dir.path(), "keys", "# ours\nexport CLAUDE_API_KEY='sk-ant-file' # old\n\nUSPARK_TOKEN=tok_12345\n", 0o640);
        let found = read(&[("ANTHROPIC_API_KEY", "sk-ant-file")], Some(&lines)).unwrap();
        assert_eq!(found.plain("USPARK_TOKEN").unwrap(), "tok_12345");
        assert_eq!(found.origin("ANTHROPIC_API_KEY"), Some("ANTHROPIC_API_KEY"));
        assert!(refused(&[("ANTHROPIC_API_KEY", "sk-ant-other")], Some(&lines)).contains("CLAUDE_API_KEY in "));

        let mount = dir.path().join("mount");
        std::fs::create_dir_all(mount.join("..2026")).unwrap();
        write(&mount, "..2026/ANTHROPIC_API_KEY", "sk-ant-mounted", 0o644);
        std::os::unix::fs::symlink("..2026", mount.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/ANTHROPIC_API_KEY", mount.join("ANTHROPIC_API_KEY")).unwrap();
        assert_eq!(read(&[], Some(&mount)).unwrap().plain("ANTHROPIC_API_KEY").unwrap(), "sk-ant-mounted");
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_what_to_do_and_without_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode| write(dir.path(), name, text, mode);
        let cases = [
            (file("open", "ANTHROPIC_API_KEY=sk-ant-x", 0o644), "can be read by everybody on this machine; run: chmod o-r"),
            (file("typo", "ANTHROPIC_API_KEI=sk-ant-x", 0o600), "line 1 names nothing that is known here"),
            (file("words", "# x\nsk-ant-x", 0o600), "line 2 is not NAME=value"),
            (file("quote", "USPARK_TOKEN=\"sk-ant-x", 0o600), "line 1 is not NAME=value"),
            (file("twice", "USPARK_TOKEN=a\nUSPARK_TOKEN=sk-ant-x", 0o600), "line 2 gives a name for the second time"),
            (file("large", &"x".repeat(70_000), 0o600), "larger than 65536 bytes"),
            (dir.path().join("none"), "No such file"),
            (dir.path().to_owned(), "no file in it has a name that is known here"),
        ];
        for (path, words) in cases {
            let error = refused(&[], Some(&path));
            assert!(error.contains(words) && error.contains("keys.file") && !error.contains("sk-ant"), "{error}");
        }
        let empty = file("empty", "\n", 0o600);
        assert!(refused(&[("USPARK_TOKEN_FILE", empty.to_str().unwrap())], None).contains("is empty"));
        let two = file("two", "sk-ant-x\nsk-ant-y\n", 0o600);
        let error = refused(&[("USPARK_TOKEN_FILE", two.to_str().unwrap())], None);
        assert!(
            error.contains("reading USPARK_TOKEN_FILE") && error.contains("more than one line") && !error.contains("sk-ant"),
            "{error}"
        );
    }

    #[test]
    fn dev_fills_in_from_env_local_what_is_missing_and_takes_nothing_else_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = "DATABASE_URL=postgres://theirs\nNEXT_PUBLIC_X=1\nnonsense\nCLAUDE_API_KEY=sk-ant-local\nUSPARK_TOKEN=tok_local\n";
        let path = write(dir.path(), ".env.local", text, 0o644);
        let mut found = read(&[("USPARK_TOKEN", "tok_mine")], None).unwrap();
        found.fill_in_from(&path).unwrap();
        assert_eq!(found.plain("ANTHROPIC_API_KEY").unwrap(), "sk-ant-local");
        assert_eq!(found.plain("USPARK_TOKEN").unwrap(), "tok_mine");
        assert!(found.get("DATABASE_URL").is_none());
        assert!(found.origin("ANTHROPIC_API_KEY").unwrap().contains("CLAUDE_API_KEY in "));
        found.fill_in_from(&dir.path().join("none")).unwrap();
    }
}
