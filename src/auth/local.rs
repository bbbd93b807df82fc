//! The users of the admin socket. The kernel reports the user id of the client's process.

use super::identity::{Caller, Identity};

/// The setting that gives a local user its identity.
const RULE: &str = "[rewrap].admin_socket";

/// The user ids that may use the admin socket: root, and the user of this process.
#[derive(Debug, Clone, Copy)]
pub struct LocalUsers {
    own: Option<u32>,
}

impl LocalUsers {
    /// `overflow` is the id that the kernel gives in place of each id without a mapping in the user
    /// namespace of this process. It can be any user, so it identifies nobody, even if it is `own`.
    #[must_use]
    pub fn new(own: u32, overflow: u32) -> Self {
        Self {
            own: Some(own).filter(|own| *own != overflow),
        }
    }

    /// Whether the user of this process may use the socket. If not, only root may.
    #[must_use]
    pub fn include_own(&self) -> bool {
        self.own.is_some()
    }

    /// The caller with this user id. `None` if it may not use the socket.
    #[must_use]
    pub fn caller(&self, uid: u32) -> Option<Caller> {
        let accepted = uid == 0 || self.own == Some(uid);
        accepted.then(|| Caller {
            identity: Some(Identity::Local {
                name: format!("local:uid={uid}"),
            }),
            rule: RULE,
            ..Caller::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(users: LocalUsers, uids: &[u32]) -> Vec<Option<String>> {
        let caller = |uid: &u32| users.caller(*uid)?.identity;
        let name = |uid| Some(caller(uid)?.name().to_owned());
        uids.iter().map(name).collect()
    }

    #[test]
    fn root_and_the_own_user_are_accepted_and_nobody_else() {
        let users = LocalUsers::new(990, 65_534);
        assert!(users.include_own());
        let root = Some("local:uid=0".to_owned());
        let own = Some("local:uid=990".to_owned());
        let uids = [0, 990, 991, 1, 65_534, u32::MAX];
        assert_eq!(accepted(users, &uids), [root, own, None, None, None, None]);
    }

    #[test]
    fn the_id_of_all_unmapped_users_identifies_nobody() {
        let users = LocalUsers::new(65_534, 65_534);
        assert!(!users.include_own());
        let root = Some("local:uid=0".to_owned());
        assert_eq!(accepted(users, &[0, 65_534]), [root, None]);
    }
}
