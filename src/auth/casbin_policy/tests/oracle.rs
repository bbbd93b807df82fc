//! Compares our evaluation with the `casbin` crate, which nico-api uses.

use std::collections::BTreeSet;

use casbin::{CoreApi, DefaultModel, Enforcer, MgmtApi, StringAdapter};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// Fields with characters that a parser could handle wrongly.
fn field() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "p", "g", "a", " ", "\t", "*", "[", "{a,b}", ",", "\"", "\\", "#", "é", "\u{a0}",
        "\u{2028}",
    ]);
    let text = vec(piece, 0..4).prop_map(|pieces| pieces.concat());
    (text, any::<bool>(), 0..3usize).prop_map(|(text, quoted, spaces)| {
        let text = if quoted { format!("\"{text}\"") } else { text };
        format!("{text}{}", " ".repeat(spaces))
    })
}

fn lines() -> impl Strategy<Value = String> {
    let kind = select(vec!["p,", "p, ", "g, ", " g,\t", "# ", "q, ", "p", ""]);
    let line = (kind, field(), field(), select(vec!["", "\r", " "]));
    let line = line.prop_map(|(kind, a, b, end)| format!("{kind}{a},{b}{end}\n"));
    vec(line, 1..4).prop_map(|lines| lines.concat())
}

/// The policy as nico-api's engine reads it.
fn read_by_casbin(text: &str) -> Enforcer {
    const MODEL: &str = "
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
    let loading = async {
        let model = DefaultModel::from_str(MODEL).await?;
        Enforcer::new(model, StringAdapter::new(text)).await
    };
    // Everything is in memory, so that loading never waits.
    loading.now_or_never().unwrap().unwrap()
}

/// The pairs of the `g` lines, ordered by subject.
fn sorted(pairs: impl IntoIterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by(|a, b| a[0].cmp(&b[0]));
    pairs
}

const SUBJECTS: usize = 16;

/// Lines `p` and `g` over a few names: chains of roles that are longer than Casbin follows,
/// with branches, cycles and repetitions.
fn policies() -> impl Strategy<Value = String> {
    let any = 0..SUBJECTS;
    let next = (0..SUBJECTS - 1).prop_map(|from| (from, from + 1));
    let link = prop_oneof![8 => next, 1 => (any.clone(), any.clone())];
    let link = link.prop_map(|(from, to)| format!("g, s{from}, s{to}\n"));
    let rule = (any, globs()).prop_map(|(subject, glob)| format!("p, s{subject}, \"{glob}\"\n"));
    let whole_chain = (0..SUBJECTS - 1).map(|from| format!("g, s{from}, s{}\n", from + 1));
    let whole_chain = Just(whole_chain.collect::<Vec<_>>()).prop_shuffle();
    (
        prop_oneof![whole_chain, Just(Vec::new())],
        vec(link, 0..24),
        vec(rule, 1..4),
    )
        .prop_map(|(chain, links, rules)| [chain, links, rules].concat())
        .prop_shuffle()
        .prop_map(|lines| lines.concat())
}

fn globs() -> impl Strategy<Value = String> {
    let pieces = [
        "forge/",
        "Get",
        "Set",
        "*",
        "**",
        "**/",
        "/**",
        "?",
        "[A-S]",
        "[!G]",
        "{Get,Set}",
        "/",
        "\\*",
        "x",
        ".",
        "é",
        "",
    ];
    prop_oneof![
        2 => select(vec!["**", "forge/*", "forge/Get", "*"]).prop_map(str::to_owned),
        1 => vec(select(pieces.to_vec()), 1..5).prop_map(|pieces| pieces.concat()),
    ]
}

fn actions() -> impl Strategy<Value = String> {
    let pieces = [
        "forge/", "Get", "Set", "/", "x", ".", "*", "é", "\n", "{", "",
    ];
    prop_oneof![
        Just(ACTION.to_owned()),
        Just("forge/Get".to_owned()),
        vec(select(pieces.to_vec()), 0..4).prop_map(|pieces| pieces.concat()),
    ]
}

#[test]
fn with_branches_the_depth_limit_depends_on_the_order_of_lines_as_in_casbin() {
    let chain = |links: usize| -> String {
        let links = (0..links).map(|n| format!("g, r{n}, r{}\n", n + 1));
        links.collect()
    };
    // A second role on the way to r10 that Casbin takes before r1, or after it.
    let first = format!("{}g, r0, x\np, r10, **\n", chain(10));
    let last = format!("g, r0, x\n{}p, r10, **\n", chain(10));
    for text in [&first, &last] {
        let theirs = read_by_casbin(text).enforce(("r0", ACTION)).unwrap();
        assert_eq!(policy(text).allows("r0", ACTION), theirs, "{text}");
    }
    assert!(policy(&last).allows("r0", ACTION));
    assert!(!policy(&first).allows("r0", ACTION));
}

proptest! {
    /// Casbin reads the same rules, and the same roles in the same order.
    #[test]
    fn a_policy_is_parsed_as_by_casbin(text in lines()) {
        if let Ok(ours) = CasbinPolicy::parse(&text) {
            let theirs = read_by_casbin(&text);
            let rules: BTreeSet<_> = ours.rules.iter().map(|rule| {
                vec![rule.subject.clone(), rule.action.to_string()]
            }).collect();
            prop_assert_eq!(rules, theirs.get_policy().into_iter().collect());
            let links = sorted(theirs.get_grouping_policy());
            prop_assert_eq!(ours.roles.links(), links);
        }
    }

    /// nico-api decides with Casbin. Each policy is asked for every subject.
    #[test]
    fn a_policy_decides_as_casbin_does(text in policies(), actions in vec(actions(), 1..3)) {
        let ours = CasbinPolicy::parse(&text);
        // The only lines that cannot be read are bad globs, at which Casbin panics.
        prop_assume!(ours.is_ok());
        let (ours, theirs) = (ours.unwrap(), read_by_casbin(&text));
        let subjects = (0..=SUBJECTS).map(|n| format!("s{n}"));
        for subject in subjects.chain([String::new()]) {
            for action in &actions {
                let decision = theirs.enforce((&*subject, &**action)).unwrap();
                prop_assert_eq!(ours.allows(&subject, action), decision, "{:?} {:?}", subject, action);
            }
        }
    }
}
