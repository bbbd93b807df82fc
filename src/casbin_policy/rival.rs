//! The same decisions as the `casbin` crate with nico-api's model, which reads the file by itself here.

use casbin::{CoreApi, DefaultModel, Enforcer, StringAdapter};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::select};

use super::CasbinPolicy;

const MODEL: &str = "\
[request_definition]
r = sub, act
[policy_definition]
p = sub, act
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.sub, p.sub) && globMatch(r.act, p.act)
";

fn casbin(text: &str) -> Enforcer {
    let loading = async {
        let model = DefaultModel::from_str(MODEL).await?;
        Enforcer::new(model, StringAdapter::new(text)).await
    };
    // Nothing in it ever waits.
    loading.now_or_never().unwrap().unwrap()
}

/// Few enough that no role is too far away for either.
fn name() -> impl Strategy<Value = &'static str> {
    select(vec![
        "a",
        "A",
        "external-role/a",
        "external-role/a b",
        "spiffe-service-id/nico-api",
        "trusted-certificate",
        "anonymous",
        "\"a, b\"",
    ])
}

fn glob() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "forge",
        "/",
        "A",
        "B",
        "*",
        "**",
        "**/",
        "?",
        "[AB]",
        "[!A]",
        "\\*",
        "{A,B}",
        "{A,{B,*}}",
        " ",
        ".",
        "é",
    ]);
    vec(piece, 1..5).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn line() -> impl Strategy<Value = String> {
    let space = select(vec!["", " ", "\t", "  "]);
    prop_oneof![
        3 => (name(), glob(), space.clone()).prop_map(|(name, glob, s)| format!("{s}p,{s}{name},{s}{glob}{s}")),
        3 => (name(), name(), space).prop_map(|(a, b, s)| format!("{s}g{s},{s}{a},{s}{b}{s}")),
        1 => select(vec!["", "# p, a, **", "  # x", " "]).prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn decides_as_casbin_does(
        lines in vec(line(), 0..12),
        requests in vec((name(), "(forge/)?[AB*. é/]{0,3}"), 4),
    ) {
        let text = lines.join("\n");
        if let Ok(ours) = CasbinPolicy::parse(&text) {
            let casbin = casbin(&text);
            for (subject, action) in requests {
                let subject = subject.trim_matches('"');
                let theirs = casbin.enforce((subject, &action)).unwrap();
                prop_assert_eq!(ours.allows(subject, &action), theirs, "{:?} {:?}", subject, action);
            }
        }
    }
}
