//! `keys generate`: unused ids, and keys that the command adds to the secrets file without printing
//! them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::leaks;
use crate::process::temp_dir;
use crate::seal::key;
use crate::site::{BINARY, Exit, Site, run_binary};

const TARGET: &str = "kv1";

async fn generate(args: &[&str]) -> Exit {
    let args = [&["keys", "generate"], args].concat();
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    let exit = run_binary(&args, &[]).await;
    leaks::assert_none(&exit.stderr);
    exit
}

/// The error message of a command that changes nothing and prints no key.
async fn refused(args: &[&str]) -> String {
    let exit = generate(args).await;
    assert_eq!((exit.code, exit.stdout.as_str()), (4, ""), "{exit:?}");
    exit.stderr
}

fn text(id: &str) -> String {
    BASE64_STANDARD.encode(key(id))
}

/// Whether the id is `kv`, a date and `suffix`.
fn is_of_today(id: &str, suffix: &str) -> bool {
    let date = id
        .strip_prefix("kv20")
        .and_then(|rest| rest.strip_suffix(suffix));
    date.is_some_and(|date| date.len() == 6 && date.bytes().all(|b| b.is_ascii_digit()))
}

/// The keys in a file, as JSON.
fn keys_in(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap();
    let content: Value = serde_json::from_str(&text).unwrap();
    content["machine_identity"]["encryption_keys"].clone()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The id and the check value in the only line of standard output.
fn id_and_check_value(exit: &Exit) -> (String, String) {
    assert_eq!((exit.code, exit.stdout.lines().count()), (0, 1), "{exit:?}");
    let line = exit.stdout.trim();
    let (id, check_value) = line.split_once(": key check value ").unwrap();
    (serde_json::from_str(id).unwrap(), check_value.to_owned())
}

#[tokio::test]
async fn the_suggested_id_is_not_in_the_secrets() {
    let site = Site::with_url("postgres://x@127.0.0.1:1/x");
    let config = site.write("serve")[2].clone();
    let suggested = || async {
        let exit = generate(&["--config", &config]).await;
        assert_eq!(exit.code, 0, "{exit:?}");
        assert!(!exit.stderr.contains("not compared"), "{exit:?}");
        let member: Value = serde_json::from_str(&format!("{{{}}}", exit.stdout)).unwrap();
        member.as_object().unwrap().keys().next().unwrap().clone()
    };
    let first = suggested().await;
    assert!(is_of_today(&first, ""), "{first}");

    let file = site.dir().join("secrets.json");
    let with = |ids: &[&str]| {
        let keys: serde_json::Map<_, _> = ids
            .iter()
            .map(|&id| (id.to_owned(), text("kv1").into()))
            .collect();
        let secrets = json!({"machine_identity": {"encryption_keys": keys}});
        fs::write(&file, secrets.to_string()).unwrap();
    };
    with(&[TARGET, &first]);
    let second = suggested().await;
    assert!(is_of_today(&second, "-2"), "{second}");
    with(&[TARGET, &first.to_uppercase(), &second]);
    let third = suggested().await;
    assert!(is_of_today(&third, "-3"), "{third}");

    // The ids of keys in the environment are not suggested either.
    with(&[TARGET]);
    let variable = format!("CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__{first}");
    let environment = [
        ("CARBIDE_CREDENTIALS_ENV_ENABLED".to_owned(), "true".into()),
        (variable, text("kv1").into()),
    ];
    let args = ["keygen", "--config", &config].map(str::to_owned);
    let exit = run_binary(&args, &environment).await;
    assert!(
        exit.stdout.starts_with(&format!("\"{first}-2\": ")),
        "{exit:?}"
    );

    with(&[TARGET, &second]);
    for taken in [TARGET, &second] {
        let said = refused(&["--config", &config, "--id", taken]).await;
        assert!(said.contains(&format!("a key {taken:?} already")), "{said}");
    }
    fs::write(&file, "[").unwrap();
    let exit = generate(&["--config", &config]).await;
    assert_eq!((exit.code, exit.stdout.as_str()), (78, ""), "{exit:?}");
    assert!(
        exit.stderr
            .contains("secrets.json is not the expected JSON or YAML"),
        "{exit:?}"
    );
}

#[tokio::test]
async fn a_key_is_added_to_the_file_and_not_printed() {
    let dir = temp_dir("keys");
    let file = dir.path().join("secrets.json");
    let old = format!(
        "{{\n  \"bmc\": {{\"n\": 1.0}},\n  \"machine_identity\": {{\"encryption_keys\": {{\n    \"kv1\": \"{}\"\n  }}}}\n}}\n",
        text("kv1")
    );
    fs::write(&file, &old).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    // Only root can change the owner of a file.
    let _ = chown(&file, Some(4711), Some(4712));
    let owner = |file: &Path| fs::metadata(file).map(|m| (m.uid(), m.gid())).unwrap();
    let old_owner = owner(&file);
    let into = file.to_str().unwrap();

    let exit = generate(&["--into", into]).await;
    let (id, check_value) = id_and_check_value(&exit);
    assert!(is_of_today(&id, ""), "{id}");
    let key = keys_in(&file)[&id].as_str().unwrap().to_owned();
    let bytes = BASE64_STANDARD.decode(&key).unwrap();
    assert_eq!(bytes.len(), 32);
    for form in leaks::forms(&bytes) {
        assert!(
            !exit.stdout.contains(&form) && !exit.stderr.contains(&form),
            "{exit:?}"
        );
    }
    let new = fs::read_to_string(&file).unwrap();
    let inserted = format!(",\n    \"{id}\": \"{key}\"");
    assert_eq!(new.replace(&inserted, ""), old);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(owner(&file), old_owner);
    assert_eq!(names(dir.path()), ["secrets.json"]);

    // Compute the check value as the reference says.
    let label = b"nico-rewrap key check value v1\0";
    let digest = ring::digest::digest(&ring::digest::SHA256, &[label, &*bytes].concat());
    let hex: String = digest.as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(check_value, hex);

    let exit = generate(&["--into", into]).await;
    let (second, _) = id_and_check_value(&exit);
    assert!(is_of_today(&second, "-2"), "{second}");
    assert_eq!(keys_in(&file).as_object().unwrap().len(), 3);
}

#[tokio::test]
async fn a_new_file_is_readable_by_its_owner_alone() {
    let dir = temp_dir("keys");
    for name in ["new.json", "new.yaml"] {
        let file = dir.path().join(name);
        let exit = generate(&["--id", "kv1", "--into", file.to_str().unwrap()]).await;
        assert_eq!(id_and_check_value(&exit).0, "kv1");
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o600, 1));
    }
    assert!(keys_in(&dir.path().join("new.json"))["kv1"].is_string());
    let yaml = fs::read_to_string(dir.path().join("new.yaml")).unwrap();
    assert!(yaml.starts_with("machine_identity:\n  encryption_keys:\n    \"kv1\": \""));
    assert_eq!(names(dir.path()).len(), 2);
}

#[tokio::test]
async fn a_file_that_cannot_be_changed_safely_stays_as_it_is() {
    let dir = temp_dir("keys");
    let at = |name: &str| dir.path().join(name);
    let good = format!(
        "machine_identity:\n  encryption_keys:\n    kv1: {}\n",
        text("kv1")
    );
    let put = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    put("good.yaml", &good);
    symlink("good.yaml", at("link.yaml")).unwrap();
    symlink("nothing.yaml", at("dangling.yaml")).unwrap();
    put("hard.yaml", &good);
    fs::hard_link(at("hard.yaml"), at("hard2.yaml")).unwrap();
    fs::create_dir(at("..2026_11_30")).unwrap();
    put("..2026_11_30/mounted.yaml", &good);
    symlink("..2026_11_30", at("..data")).unwrap();
    put("bad.yaml", "machine_identity: [");
    put(
        "short.yaml",
        "machine_identity: {encryption_keys: {kv1: dG9vIHNob3J0}}",
    );
    put(
        "alias.yaml",
        &format!(
            "k: &k {{kv1: {}}}\nmachine_identity: {{encryption_keys: *k}}\n",
            text("kv1")
        ),
    );
    let before = names(dir.path()).len();

    for (name, words) in [
        ("link.yaml", "is a symbolic link to good.yaml"),
        ("dangling.yaml", "is a symbolic link to nothing.yaml"),
        ("..data/mounted.yaml", "in a volume that Kubernetes writes"),
        ("hard.yaml", "2 hard links"),
        ("bad.yaml", "is not the expected JSON or YAML"),
        ("short.yaml", "key \"kv1\" decodes to 9 bytes"),
        ("alias.yaml", "without --into"),
        (".", "is not a regular file"),
        ("nowhere/new.yaml", "there is no directory"),
        ("/proc/new.yaml", "--into: /proc/new.yaml cannot be changed"),
    ] {
        let said = refused(&["--into", at(name).to_str().unwrap()]).await;
        assert!(
            said.contains(words) && said.contains("--into: "),
            "{name}: {said}"
        );
    }
    let good_file = at("good.yaml");
    let good_path = good_file.to_str().unwrap();
    let said = refused(&["--into", good_path, "--id", "kv1"]).await;
    assert!(said.contains("a key \"kv1\" already"), "{said}");
    assert_eq!(fs::read_to_string(good_path).unwrap(), good);
    assert_eq!(names(dir.path()).len(), before, "nothing is left behind");
}

#[tokio::test]
async fn keys_added_at_the_same_time_are_all_kept_or_refused() {
    let dir = temp_dir("keys");
    let file = dir.path().join("secrets.json");
    fs::write(&file, "{}").unwrap();
    let add = |n: usize| {
        let file = file.to_str().unwrap().to_owned();
        async move {
            generate(&["--id", &format!("kv{n}"), "--into", &file])
                .await
                .code
        }
    };
    let added: Vec<_> = (0..8).map(|n| tokio::spawn(add(n))).collect();
    let mut done = Vec::new();
    for (n, added) in added.into_iter().enumerate() {
        match added.await.unwrap() {
            0 => done.push(format!("kv{n}")),
            code => assert_eq!(code, 4),
        }
    }
    let keys = keys_in(&file);
    assert!(!done.is_empty());
    assert_eq!(
        keys.as_object().unwrap().keys().collect::<Vec<_>>(),
        done.iter().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_key_on_a_terminal_comes_with_a_warning_about_the_scrollback() {
    let dir = temp_dir("keys");
    let said = dir.path().join("stderr");
    for (command, warns) in [("keys generate", true), ("keygen --into new.json", false)] {
        // `script` gives the command a terminal.
        let shell = format!("{BINARY} {command} 2>{}", said.display());
        let status = tokio::process::Command::new("script")
            .args(["-qec", &shell, "/dev/null"])
            .current_dir(dir.path())
            .stdout(std::process::Stdio::null())
            .status()
            .await;
        assert!(status.unwrap().success());
        let said = fs::read_to_string(&said).unwrap();
        assert_eq!(said.contains("scrollback"), warns, "{said}");
    }
    let piped = generate(&[]).await;
    assert!(!piped.stderr.contains("scrollback"), "{piped:?}");
}
