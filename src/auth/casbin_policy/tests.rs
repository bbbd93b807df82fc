use std::collections::BTreeSet;

use casbin::{CoreApi, DefaultModel, Enforcer, MgmtApi, StringAdapter};
use futures_util::FutureExt;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

const ACTION: &str = "forge/ReencryptTenantIdentitySecrets";

/// As sites have it: services and machines in roles, some anonymous methods, groups of people.
const SITE: &str = "\
# Which principals have which roles.
g, spiffe-service-id/nico-api, site-controller
  # An indented comment.
g, spiffe-machine-id, machine\r
g,external-role/site-admins,site-admin
g, external-role/viewers , viewer
g, external-role/Chefs & Söhne, viewer
g, external-role/operators, site-operator
g, site-operator, viewer
g, site-operator, rewrapper

p, site-controller, forge/Reencrypt*
p, rewrapper, \"forge/{ReencryptTenantIdentitySecrets,GetTenantIdentity*}\"
p, spiffe-service-id/nico-dhcp, *
p, spiffe-service-id/nico-dns, forge/*
p, machine, forge/DiscoverMachine
p, site-admin, forge/*
p, viewer, forge/GetMachine
p, viewer, \"forge/{ListMachines,ListInstances}\"
p, anonymous, forge/Version
p, trusted-certificate, forge/Echo
";

fn policy(text: &str) -> CasbinPolicy {
    CasbinPolicy::parse(text).unwrap()
}

fn faults(text: &str) -> Vec<(usize, LineError)> {
    let faults = CasbinPolicy::parse(text).unwrap_err();
    let faults = faults.into_iter();
    faults.map(|fault| (fault.line, fault.what)).collect()
}

#[test]
fn a_policy_like_those_of_sites() {
    let site = policy(SITE);
    for (subject, action, allowed) in [
        ("spiffe-service-id/nico-api", ACTION, true),
        ("spiffe-service-id/nico-ap", ACTION, false),
        ("spiffe-service-id/nico-api", "forge/Version", false),
        ("external-role/site-admins", ACTION, true),
        ("external-role/site-admin", ACTION, false),
        ("external-role/SITE-ADMINS", ACTION, false),
        // A role is a name like any other: nico-api looks it up in the same way.
        ("site-admin", ACTION, true),
        ("external-role/viewers", ACTION, false),
        ("external-role/viewers", "forge/GetMachine", true),
        ("external-role/viewers", "forge/ListInstances", true),
        ("spiffe-machine-id", "forge/DiscoverMachine", true),
        ("spiffe-machine-id", ACTION, false),
        // A role over two others.
        ("external-role/operators", ACTION, true),
        (
            "external-role/operators",
            "forge/GetTenantIdentityConfig",
            true,
        ),
        ("external-role/operators", "forge/ListMachines", true),
        ("external-role/operators", "forge/SetMachine", false),
        ("external-role/Chefs & Söhne", "forge/ListMachines", true),
        ("external-role/Chefs & Sohne", "forge/ListMachines", false),
        ("spiffe-service-id/nico-dhcp", ACTION, false),
        ("spiffe-service-id/nico-dhcp", "Version", true),
        ("spiffe-service-id/nico-dns", ACTION, true),
        ("spiffe-service-id/nico-dns", "nico/Version", false),
        ("anonymous", "forge/Version", true),
        ("anonymous", ACTION, false),
        ("trusted-certificate", ACTION, false),
        ("trusted-certificate", "forge/Version", false),
        ("trusted-certificate", "forge/Echo", true),
        // Nobody is a subject of casbin's own making.
        ("", ACTION, false),
        ("p", ACTION, false),
        ("r.sub", ACTION, false),
        ("external-role/viewers, site-admin", ACTION, false),
        ("\"external-role/site-admins\"", ACTION, false),
        ("external-role/site-admins\0", ACTION, false),
        ("external-role/*", ACTION, false),
        ("*", ACTION, false),
    ] {
        assert_eq!(
            site.allows(subject, action),
            allowed,
            "{subject:?} {action}"
        );
    }
}

#[test]
fn globs_match_as_in_nico_api() {
    for (glob, matches) in [
        ("forge/*", true),
        ("forge/Reencrypt*", true),
        ("forge/ReencryptTenantIdentitySecret?", true),
        ("forge/[A-R]*", true),
        ("**", true),
        (ACTION, true),
        // Not over a slash, not in another case, not by a beginning alone.
        ("*", false),
        ("forge*", false),
        ("nico/*", false),
        ("Forge/*", false),
        ("forge/reencrypt*", false),
        ("forge/Reencrypt", false),
        ("forge/[!R]*", false),
        ("forge/* # all of it", false),
    ] {
        let policy = policy(&format!("p, x, {glob}"));
        assert_eq!(policy.allows("x", ACTION), matches, "{glob}");
    }
}

#[test]
fn roles_are_followed_in_one_direction_and_out_of_circles() {
    let text = "g, a, b\ng, b, c\ng, c, a\ng, d, c\np, c, forge/*\np, x, x";
    let circle = policy(text);
    for (subject, allowed) in [("a", true), ("b", true), ("d", true), ("x", false)] {
        assert_eq!(circle.allows(subject, ACTION), allowed, "{subject}");
    }
    let upwards = policy("g, a, b\np, a, forge/*");
    assert!(upwards.allows("a", ACTION));
    assert!(!upwards.allows("b", ACTION));
}

#[test]
fn roles_are_followed_only_so_far() {
    let chain = |links: usize| {
        let links = (0..links).map(|n| format!("g, r{n}, r{}\n", n + 1));
        policy(&format!(
            "{}p, r{}, **\n",
            links.clone().collect::<String>(),
            links.len()
        ))
    };
    // What Casbin has built in, and nico-api with it.
    assert!(chain(9).allows("r0", ACTION));
    assert!(!chain(10).allows("r0", ACTION));
}

#[test]
fn a_policy_without_rules_allows_nothing() {
    for text in ["", "\n", "# p, trusted-certificate, forge/*", "g, a, b"] {
        let policy = policy(text);
        assert!(policy.allows_nothing());
        assert!(!policy.allows("trusted-certificate", ACTION), "{text:?}");
        assert!(!policy.allows("", ""), "{text:?}");
    }
    assert!(!policy("p, a, b").allows_nothing());
}

#[test]
fn what_is_no_rule_is_named_with_its_line() {
    for (text, line, words) in [
        ("p, a, b\nP, a, b", 2, "is no rule"),
        ("p2, a, b", 1, "is no rule"),
        ("\u{feff}p, a, b", 1, "is no rule"),
        ("allow everybody", 1, "is no rule"),
        ("<<<<<<< ours", 1, "is no rule"),
        (", a, b", 1, "is no rule"),
        ("p", 1, "has 1 fields"),
        ("p, a", 1, "has 2 fields"),
        ("# x\n\np, a, forge/A, forge/B", 3, "has 4 fields"),
        ("p, a, forge/{A,B}", 1, "has 4 fields"),
        ("p, a, b, allow", 1, "has 4 fields"),
        ("g, a, b,", 1, "has 4 fields"),
        ("p, , b", 1, "empty field"),
        ("p, a,", 1, "empty field"),
        ("g, a, \"\"", 1, "empty field"),
        ("p, a, \"b", 1, "quotes"),
        ("p, a, \"b\" c", 1, "quotes"),
        ("p, \"a\" , b", 1, "quotes"),
        ("p, a, b\"c\"", 1, "quotes"),
        ("p, a, [", 1, "not a glob"),
        ("p, a, {b", 1, "not a glob"),
        ("p, a, [z-a]", 1, "'z' > 'a'"),
        ("p, a, [z-\u{7}]", 1, "'z' > '?'"),
        ("p, a, [\u{202e}-z]", 1, "'?' > 'z'"),
    ] {
        let found = CasbinPolicy::parse(text).unwrap_err();
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        let said = found[0].to_string();
        assert!(
            said.starts_with(&format!("line {line} ")) && said.contains(words),
            "{said}"
        );
    }
    let lines = faults("p\np, a, b\nq, a, b")
        .into_iter()
        .map(|(line, _)| line);
    assert_eq!(lines.collect::<Vec<_>>(), [1, 3], "all at once");
}

/// A glob that cannot be compiled must never reach a single matcher, which would panic.
#[test]
fn what_is_long_or_nested_is_a_fault_or_can_be_matched() {
    let long = |piece: &str| piece.repeat(MAX_FIELD / piece.len());
    let nested = |depth: usize| format!("{}x{}", "{".repeat(depth), "}".repeat(depth));
    for glob in [
        long("x"),
        long("[!a]"),
        long("é"),
        long("*"),
        long("**/"),
        long("?"),
        long("{a}"),
        nested(100),
    ] {
        let _ = policy(&format!("p, a, {glob}")).allows("a", ACTION);
    }
    let found = faults(&format!("p, a, {}x", long("x")));
    assert_eq!(found, [(1, LineError::TooLong)]);
    let found = faults(&format!("p, a, {}", nested(101)));
    assert!(matches!(found[..], [(1, LineError::Glob(_))]), "{found:?}");
}

#[test]
fn a_line_that_is_there_twice_is_there_once() {
    let twice = policy("g, a, b\ng, a, b\np, b, forge/*\np, b, forge/*\np, b, x");
    assert!(twice.allows("a", ACTION));
    assert!(twice.allows("a", "x"));
}

#[test]
fn its_debug_form_is_short() {
    let text = format!("{:?}", policy(SITE));
    assert_eq!(text, "CasbinPolicy { rules: 10, .. }");
}

/// Fields with everything in them that a reader may stumble over.
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

/// Every pair of a line `g`, with the subjects in the order of their names.
fn sorted(pairs: impl IntoIterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by(|a, b| a[0].cmp(&b[0]));
    pairs
}

const SUBJECTS: usize = 16;

/// Lines `p` and `g` over a few names: chains of roles that are longer than Casbin follows,
/// with branches, circles and repetitions.
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
fn branches_let_casbin_follow_roles_further_and_the_order_of_lines_decides() {
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
    fn what_is_read_is_what_casbin_reads(text in lines()) {
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
    fn decisions_are_those_of_casbin(text in policies(), actions in vec(actions(), 1..3)) {
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

    #[test]
    fn any_text_is_a_policy_or_has_faults(text in "[pg,\"#\\[\\]{}*/\\\\ \\n\\PC]{0,80}", subject in ".{0,5}") {
        if let Ok(policy) = CasbinPolicy::parse(&text) {
            let _ = policy.allows(&subject, ACTION);
        }
    }

    #[test]
    fn only_a_rule_for_the_subject_allows_it(names in vec("[a-d]", 0..8)) {
        let links = names.chunks_exact(2).map(|pair| format!("g, {}, {}\n", pair[0], pair[1]));
        let policy = policy(&format!("{}p, a, forge/*\n", links.collect::<String>()));
        // What is linked to nothing is allowed nothing.
        prop_assert!(policy.allows("a", ACTION));
        prop_assert!(!policy.allows("e", ACTION));
        prop_assert!(!policy.allows("a", "other/Method"));
    }
}
