//! Policies and decisions by example, and properties of any text.

mod oracle;

use proptest::{collection::vec, prelude::*};

use super::*;

const ACTION: &str = "forge/ReencryptTenantIdentitySecrets";

/// Like the policy of a site: services and machines in roles, anonymous methods, groups of
/// administrators.
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

fn problems(text: &str) -> Vec<(usize, LineError)> {
    let problems = CasbinPolicy::parse(text).unwrap_err();
    let problems = problems.into_iter();
    problems
        .map(|problem| (problem.line, problem.what))
        .collect()
}

#[test]
fn a_policy_with_services_machines_roles_and_groups_decides_as_expected() {
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
        // Casbin's own syntax is not a subject.
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
        // A wildcard does not match a slash, case counts, and a prefix is not enough.
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
fn roles_are_inherited_in_one_direction_and_may_form_a_cycle() {
    let text = "g, a, b\ng, b, c\ng, c, a\ng, d, c\np, c, forge/*\np, x, x";
    let cycle = policy(text);
    for (subject, allowed) in [("a", true), ("b", true), ("d", true), ("x", false)] {
        assert_eq!(cycle.allows(subject, ACTION), allowed, "{subject}");
    }
    let upwards = policy("g, a, b\np, a, forge/*");
    assert!(upwards.allows("a", ACTION));
    assert!(!upwards.allows("b", ACTION));
}

#[test]
fn roles_are_inherited_over_at_most_nine_links() {
    let chain = |links: usize| {
        let links = (0..links).map(|n| format!("g, r{n}, r{}\n", n + 1));
        policy(&format!(
            "{}p, r{}, **\n",
            links.clone().collect::<String>(),
            links.len()
        ))
    };
    // The limit of Casbin, and so of nico-api.
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
fn the_error_for_a_line_that_is_not_a_rule_has_the_line_number() {
    for (text, line, words) in [
        ("p, a, b\nP, a, b", 2, "is not a rule"),
        ("p2, a, b", 1, "is not a rule"),
        ("\u{feff}p, a, b", 1, "is not a rule"),
        ("allow everybody", 1, "is not a rule"),
        ("<<<<<<< ours", 1, "is not a rule"),
        (", a, b", 1, "is not a rule"),
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
    let lines = problems("p\np, a, b\nq, a, b")
        .into_iter()
        .map(|(line, _)| line);
    assert_eq!(lines.collect::<Vec<_>>(), [1, 3], "all at once");
}

/// A glob that cannot be compiled must never reach a single matcher, which would panic.
#[test]
fn a_long_or_nested_glob_is_an_error_or_can_be_matched() {
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
    let found = problems(&format!("p, a, {}x", long("x")));
    assert_eq!(found, [(1, LineError::TooLong)]);
    let found = problems(&format!("p, a, {}", nested(101)));
    assert!(matches!(found[..], [(1, LineError::Glob(_))]), "{found:?}");
}

#[test]
fn a_repeated_line_has_no_effect() {
    let twice = policy("g, a, b\ng, a, b\np, b, forge/*\np, b, forge/*\np, b, x");
    assert!(twice.allows("a", ACTION));
    assert!(twice.allows("a", "x"));
}

#[test]
fn debug_shows_the_number_of_rules_only() {
    let debug = format!("{:?}", policy(SITE));
    assert!(debug.contains("rules: 10"), "{debug}");
    assert!(!debug.contains("site-admin"), "{debug}");
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_an_error(text in "[pg,\"#\\[\\]{}*/\\\\ \\n\\PC]{0,80}", subject in ".{0,5}") {
        if let Ok(policy) = CasbinPolicy::parse(&text) {
            let _ = policy.allows(&subject, ACTION);
        }
    }

    #[test]
    fn only_a_rule_for_the_subject_allows_it(names in vec("[a-d]", 0..8)) {
        let links = names.chunks_exact(2).map(|pair| format!("g, {}, {}\n", pair[0], pair[1]));
        let policy = policy(&format!("{}p, a, forge/*\n", links.collect::<String>()));
        // No line links "e" to "a".
        prop_assert!(policy.allows("a", ACTION));
        prop_assert!(!policy.allows("e", ACTION));
        prop_assert!(!policy.allows("a", "other/Method"));
    }
}
