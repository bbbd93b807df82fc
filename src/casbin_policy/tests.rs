use proptest::prelude::*;

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

p, site-controller, forge/Reencrypt*
p, machine, forge/DiscoverMachine
p, site-admin, forge/*
p, viewer, forge/GetMachine
p, viewer, \"forge/{ListMachines,ListInstances}\"
p, anonymous, forge/Version
";

fn policy(text: &str) -> CasbinPolicy {
    CasbinPolicy::parse(text).unwrap()
}

fn fault(text: &str) -> PolicyFault {
    let mut faults = CasbinPolicy::parse(text).unwrap_err();
    assert_eq!(faults.len(), 1, "{text:?}: {faults:?}");
    faults.remove(0)
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
        ("trusted-certificate", ACTION, false),
        ("trusted-certificate", "forge/Version", false),
        ("", ACTION, false),
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
    assert!(chain(MAX_ROLE_DEPTH).allows("r0", ACTION));
    assert!(!chain(MAX_ROLE_DEPTH + 1).allows("r0", ACTION));
}

#[test]
fn a_policy_without_rules_allows_nothing() {
    for text in ["", "\n", "# p, trusted-certificate, forge/*", "g, a, b"] {
        let policy = policy(text);
        assert!(policy.allows_nothing());
        assert!(!policy.allows("trusted-certificate", ACTION), "{text:?}");
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
        ("p, a, b\"c\"", 1, "quotes"),
        ("p, a, [", 1, "not a glob"),
        ("p, a, {b", 1, "not a glob"),
        ("p, a, [z-a]", 1, "not a glob"),
    ] {
        let fault = fault(text);
        assert_eq!(fault.line, line, "{text:?}");
        let said = fault.to_string();
        assert!(
            said.starts_with(&format!("line {line} ")) && said.contains(words),
            "{said}"
        );
    }
    let faults = CasbinPolicy::parse("p\np, a, b\nq, a, b").unwrap_err();
    let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 3], "all at once");
}

#[test]
fn what_is_long_or_nested_is_a_fault_and_no_panic() {
    let with = |action: &str| CasbinPolicy::parse(&format!("p, a, {action}"));
    with(&"x".repeat(MAX_FIELD)).unwrap();
    let faults = with(&"x".repeat(MAX_FIELD + 1)).unwrap_err();
    assert_eq!(faults[0].what, LineFault::TooLong);
    assert!(with(&"[!a]".repeat(MAX_FIELD / 4)).is_ok());
    let nested = format!("{}{}", "{".repeat(400), "}".repeat(400));
    let faults = with(&nested).unwrap_err();
    assert!(matches!(faults[0].what, LineFault::Glob(_)), "{faults:?}");
}

#[test]
fn its_debug_form_is_short() {
    let text = format!("{:?}", policy(SITE));
    assert_eq!(text, "CasbinPolicy { rules: 6, subjects_with_roles: 4 }");
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_has_faults(text in "[pg,\"#\\[\\]{}*/\\\\ \\n\\PC]{0,80}", subject in ".{0,5}") {
        if let Ok(policy) = CasbinPolicy::parse(&text) {
            let _ = policy.allows(&subject, ACTION);
        }
    }

    #[test]
    fn only_a_rule_for_the_subject_allows_it(names in proptest::collection::vec("[a-d]", 0..8)) {
        let links = names.chunks_exact(2).map(|pair| format!("g, {}, {}\n", pair[0], pair[1]));
        let policy = policy(&format!("{}p, a, forge/*\n", links.collect::<String>()));
        // What is linked to nothing is allowed nothing.
        prop_assert!(policy.allows("a", ACTION));
        prop_assert!(!policy.allows("e", ACTION));
        prop_assert!(!policy.allows("a", "other/Method"));
    }
}
