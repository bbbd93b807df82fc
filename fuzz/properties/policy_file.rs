//! `CasbinPolicy::parse` accepts any text without a panic. A parsed policy makes the same
//! decisions as the crate `casbin`, which nico-api uses.

use std::collections::BTreeSet;

use casbin::{CoreApi, DefaultModel, Enforcer, StringAdapter};
use futures_util::FutureExt;
use nico_rewrap::auth::casbin_policy::{CasbinPolicy, PolicyError};

const ACTION: &str = "forge/ReencryptTenantIdentitySecrets";

/// Subjects that every policy is asked about, in addition to the names in the policy.
const SUBJECTS: [&str; 4] = [
    "external-role/site-admins",
    "spiffe-service-id/nico-api",
    "trusted-certificate",
    "",
];

/// Maximum number of names of the policy that are subjects. Each one compiles all globs.
const MAX_SUBJECTS: usize = 12;

/// Checks the properties. Returns `allows` if the policy allows the call for a subject,
/// `denies` if it allows the call for no subject, and `refused` if `input` is not a policy.
pub(crate) fn check(input: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(input) else {
        return "refused";
    };
    let policy = match CasbinPolicy::parse(text) {
        Ok(policy) => policy,
        Err(problems) => {
            check_problems(text, &problems);
            return "refused";
        }
    };
    assert!(!policy.allows("is named by no policy", ACTION), "{text:?}");
    let casbin = read_by_casbin(text);
    let mut allowed = false;
    for subject in names(text).into_iter().chain(SUBJECTS) {
        let ours = policy.allows(subject, ACTION);
        let theirs = casbin.enforce((subject, ACTION));
        assert_eq!(Some(ours), theirs.ok(), "{subject:?} in {text:?}");
        assert!(!(ours && policy.allows_nothing()), "{text:?}");
        allowed |= ours;
    }
    if allowed { "allows" } else { "denies" }
}

/// There is at least one problem, at most one for each line, in the order of the lines. Each
/// text fits in one line of the log.
fn check_problems(text: &str, problems: &[PolicyError]) {
    let mut last = 0;
    for problem in problems {
        let line = problem.line;
        assert!(last < line && line <= text.lines().count(), "{problem:?}");
        last = line;
        let said = problem.to_string();
        assert!(!said.contains(char::is_control), "{said:?}");
    }
    assert_ne!(last, 0, "{text:?} without a problem");
}

fn read_by_casbin(text: &str) -> Enforcer {
    const MODEL: &str = "[request_definition]\nr = sub, act\n\
                         [policy_definition]\np = sub, act\n\
                         [role_definition]\ng = _, _\n\
                         [policy_effect]\ne = some(where (p.eft == allow))\n\
                         [matchers]\nm = g(r.sub, p.sub) && globMatch(r.act, p.act)\n";
    let loading = async {
        let model = DefaultModel::from_str(MODEL).await?;
        Enforcer::new(model, StringAdapter::new(text)).await
    };
    // The policy is in memory, so loading it never waits.
    let loaded = loading.now_or_never();
    loaded.expect("no waiting").expect("no error")
}

/// The fields of the policy, approximately: the texts between commas.
fn names(text: &str) -> BTreeSet<&str> {
    let fields = text.split([',', '\n']);
    let names = fields.map(|field| field.trim().trim_matches('"'));
    names.take(MAX_SUBJECTS).collect()
}
