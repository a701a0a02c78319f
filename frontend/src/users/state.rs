//! Users and roles at one moment, and how a change makes the next moment of them. No I/O.

use super::AuthError;
use super::ranges::Ranges;
use crate::proto::authpb::{self, permission::Type};
use bytes::Bytes;
use polybolt::{Refusal, Span, TableEdit};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The user that cannot be deleted, and the role that may do everything, while authentication is on.
const ROOT: &str = "root";
const SETTING_TABLE: &str = "auth";
const USER_TABLE: &str = "auth-user";
const ROLE_TABLE: &str = "auth-role";
const ENABLED: &str = "enabled";
const REVISION: &str = "revision";

/// Users and roles. A copy shares what does not change.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) enabled: bool,
    /// Counts changes; not part of the keyspace's revision (AUTH-6).
    pub(crate) revision: u64,
    users: BTreeMap<Arc<str>, Arc<User>>,
    roles: BTreeMap<Arc<str>, Arc<authpb::Role>>,
}

#[derive(Debug)]
struct User {
    record: authpb::User,
    rights: Rights,
}

/// What the roles of a user allow together.
#[derive(Debug)]
enum Rights {
    Everything,
    Some { read: Ranges, write: Ranges },
}

/// What a right is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What an administrator asks for.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Enable,
    Disable,
    /// Without a password, nobody can log in as this user.
    AddUser {
        name: String,
        password: Option<Bytes>,
    },
    DeleteUser {
        name: String,
    },
    SetPassword {
        name: String,
        password: Bytes,
    },
    GrantRole {
        user: String,
        role: String,
    },
    RevokeRole {
        user: String,
        role: String,
    },
    AddRole {
        name: String,
    },
    DeleteRole {
        name: String,
    },
    GrantPermission {
        role: String,
        permission: Option<authpb::Permission>,
    },
    RevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// Whose tokens end with a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SignOut {
    Nobody,
    User(String),
    Everybody,
}

/// The next state, how it is stored, and who is signed out.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) state: State,
    pub(super) edits: Vec<TableEdit>,
    pub(super) sign_out: SignOut,
}

impl State {
    /// Reads the tables with `list`.
    pub(super) fn load(list: impl Fn(&str) -> polybolt::Result<Vec<(Bytes, Bytes)>>) -> Result<State, polybolt::Error> {
        let mut state = State { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() };
        for (key, value) in list(SETTING_TABLE)? {
            match &key[..] {
                key if key == ENABLED.as_bytes() => state.enabled = value[..] == [1],
                key if key == REVISION.as_bytes() => {
                    state.revision = value[..].try_into().map_or(state.revision, u64::from_be_bytes);
                }
                _ => {}
            }
        }
        for (_, value) in list(ROLE_TABLE)? {
            let role = authpb::Role::decode(value).map_err(|_| damaged(ROLE_TABLE))?;
            state.roles.insert(text(&role.name).into(), Arc::new(role));
        }
        for (_, value) in list(USER_TABLE)? {
            let record = authpb::User::decode(value).map_err(|_| damaged(USER_TABLE))?;
            let rights = state.rights_of(&record);
            state.users.insert(text(&record.name).into(), Arc::new(User { record, rights }));
        }
        Ok(state)
    }

    /// Judges an access of a user. A user that is not there any more may do nothing.
    pub(super) fn check(&self, user: &str, access: Access, span: &Span) -> Result<(), AuthError> {
        match self.users.get(user).map(|user| &user.rights) {
            Some(Rights::Everything) => Ok(()),
            Some(Rights::Some { read, .. }) if access == Access::Read && read.covers(span) => Ok(()),
            Some(Rights::Some { write, .. }) if access == Access::Write && write.covers(span) => Ok(()),
            _ => Err(AuthError::PermissionDenied),
        }
    }

    /// True if a user has the role root.
    pub(super) fn is_root(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|user| matches!(user.rights, Rights::Everything))
    }

    /// What Authenticate compares with: the hash, or why there is none.
    pub(super) fn password(&self, user: &str) -> Result<Bytes, AuthError> {
        let user = self.users.get(user).ok_or(AuthError::Failed)?;
        if has_no_password(&user.record) { Err(AuthError::NoPasswordUser) } else { Ok(user.record.password.clone()) }
    }

    /// The names of all users, ascending.
    pub(crate) fn users(&self) -> Vec<String> {
        self.users.keys().map(|name| name.as_ref().to_owned()).collect()
    }

    /// The names of all roles, ascending.
    pub(crate) fn roles(&self) -> Vec<String> {
        self.roles.keys().map(|name| name.as_ref().to_owned()).collect()
    }

    /// The roles of a user, ascending.
    pub(crate) fn roles_of(&self, user: &str) -> Result<Vec<String>, AuthError> {
        self.users.get(user).map(|user| user.record.roles.clone()).ok_or(AuthError::UserNotFound)
    }

    /// The permissions of a role.
    pub(crate) fn permissions_of(&self, role: &str) -> Result<Vec<authpb::Permission>, AuthError> {
        Ok(self.role(role)?.key_permission)
    }

    /// What follows from a change; None if it is so already.
    pub(super) fn change(&self, change: Change) -> Result<Option<Draft>, AuthError> {
        let mut draft = Draft { state: self.clone(), edits: Vec::new(), sign_out: SignOut::Nobody };
        match change {
            Change::Enable => {
                if self.enabled {
                    return Ok(None);
                }
                self.users.get(ROOT).ok_or(AuthError::RootUserMissing)?;
                if !self.is_root(ROOT) {
                    return Err(AuthError::RootRoleMissing);
                }
                draft.set_enabled(true);
                // The one change that keeps the revision.
                return Ok(Some(draft));
            }
            Change::Disable => {
                if !self.enabled {
                    return Ok(None);
                }
                draft.set_enabled(false);
                draft.sign_out = SignOut::Everybody;
            }
            Change::AddUser { name, password } => draft.add_user(name, password)?,
            Change::DeleteUser { name } => {
                if self.enabled && name == ROOT {
                    return Err(AuthError::InvalidManagement);
                }
                self.users.get(&*name).ok_or(AuthError::UserNotFound)?;
                draft.set_user(&name, None);
                draft.sign_out = SignOut::User(name);
            }
            Change::SetPassword { name, password } => {
                let mut record = self.record(&name)?;
                if !has_no_password(&record) {
                    record.password = password;
                }
                draft.set_user(&name, Some(record));
                draft.sign_out = SignOut::User(name);
            }
            Change::GrantRole { user, role } => {
                let mut record = self.record(&user)?;
                if role != ROOT {
                    self.roles.get(&*role).ok_or(AuthError::RoleNotFound)?;
                }
                let Err(place) = record.roles.binary_search(&role) else {
                    return Ok(None);
                };
                record.roles.insert(place, role);
                draft.set_user(&user, Some(record));
            }
            Change::RevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(AuthError::InvalidManagement);
                }
                let mut record = self.record(&user)?;
                let place = record.roles.binary_search(&role).map_err(|_| AuthError::RoleNotGranted)?;
                record.roles.remove(place);
                draft.set_user(&user, Some(record));
            }
            Change::AddRole { name } => {
                if name.is_empty() {
                    return Err(AuthError::RoleEmpty);
                }
                if self.roles.contains_key(&*name) {
                    return Err(AuthError::RoleExists);
                }
                let role = authpb::Role { name: Bytes::from(name.clone()), key_permission: Vec::new() };
                draft.set_role(&name, Some(role));
            }
            Change::DeleteRole { name } => draft.delete_role(&name)?,
            Change::GrantPermission { role, permission } => draft.grant(&role, permission)?,
            Change::RevokePermission { role, key, range_end } => {
                let mut record = self.role(&role)?;
                let count = record.key_permission.len();
                record.key_permission.retain(|held| held.key != key || held.range_end != range_end);
                if record.key_permission.len() == count {
                    return Err(AuthError::PermissionNotGranted);
                }
                draft.set_role(&role, Some(record));
            }
        }
        draft.state.revision += 1;
        let revision = draft.state.revision.to_be_bytes();
        draft.edit(SETTING_TABLE, REVISION, Some(Bytes::copy_from_slice(&revision)));
        Ok(Some(draft))
    }

    fn record(&self, user: &str) -> Result<authpb::User, AuthError> {
        self.users.get(user).map(|user| user.record.clone()).ok_or(AuthError::UserNotFound)
    }

    fn role(&self, role: &str) -> Result<authpb::Role, AuthError> {
        self.roles.get(role).map(|role| authpb::Role::clone(role)).ok_or(AuthError::RoleNotFound)
    }

    fn rights_of(&self, user: &authpb::User) -> Rights {
        if user.roles.iter().any(|role| role == ROOT) {
            return Rights::Everything;
        }
        let (mut read, mut write) = (Vec::new(), Vec::new());
        let roles = user.roles.iter().filter_map(|role| self.roles.get(&**role));
        for permission in roles.flat_map(|role| &role.key_permission) {
            let span = Span::from_wire(permission.key.clone(), permission.range_end.clone());
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(span),
                Ok(Type::Write) => write.push(span),
                Ok(Type::Readwrite) => {
                    read.push(span.clone());
                    write.push(span);
                }
                // A type of a later version allows nothing here.
                Err(_) => {}
            }
        }
        Rights::Some { read: Ranges::new(&read), write: Ranges::new(&write) }
    }
}

impl Draft {
    fn add_user(&mut self, name: String, password: Option<Bytes>) -> Result<(), AuthError> {
        if name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.state.users.contains_key(&*name) {
            return Err(AuthError::UserExists);
        }
        let options = authpb::UserAddOptions { no_password: password.is_none() };
        let record = authpb::User {
            name: Bytes::from(name.clone()),
            password: password.unwrap_or_default(),
            roles: Vec::new(),
            options: Some(options),
        };
        self.set_user(&name, Some(record));
        Ok(())
    }

    fn delete_role(&mut self, name: &str) -> Result<(), AuthError> {
        if self.state.enabled && name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        self.state.role(name)?;
        self.set_role(name, None);
        for user in self.state.holders(name) {
            let mut record = user.record.clone();
            record.roles.retain(|role| role != name);
            self.set_user(&text(&user.record.name), Some(record));
        }
        Ok(())
    }

    fn grant(&mut self, role: &str, permission: Option<authpb::Permission>) -> Result<(), AuthError> {
        let permission = permission.ok_or(AuthError::PermissionNotGiven)?;
        let open = permission.range_end.is_empty() || permission.range_end[..] == [0];
        if permission.key.is_empty() || !(open || permission.key < permission.range_end) {
            return Err(AuthError::InvalidManagement);
        }
        let mut record = self.state.role(role)?;
        let place = |held: &authpb::Permission| {
            (&held.key[..], &held.range_end[..]).cmp(&(&permission.key[..], &permission.range_end[..]))
        };
        match record.key_permission.binary_search_by(place) {
            Ok(same) => record.key_permission[same].perm_type = permission.perm_type,
            Err(place) => record.key_permission.insert(place, permission),
        }
        self.set_role(role, Some(record));
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) {
        self.state.enabled = enabled;
        self.edit(SETTING_TABLE, ENABLED, Some(Bytes::copy_from_slice(&[enabled.into()])));
    }

    fn set_user(&mut self, name: &str, record: Option<authpb::User>) {
        self.edit(USER_TABLE, name, record.as_ref().map(|record| record.encode_to_vec().into()));
        match record {
            Some(record) => {
                let rights = self.state.rights_of(&record);
                self.state.users.insert(name.into(), Arc::new(User { record, rights }));
            }
            None => drop(self.state.users.remove(name)),
        }
    }

    /// Also what it means for those who have the role.
    fn set_role(&mut self, name: &str, record: Option<authpb::Role>) {
        self.edit(ROLE_TABLE, name, record.as_ref().map(|record| record.encode_to_vec().into()));
        match record {
            Some(record) => drop(self.state.roles.insert(name.into(), Arc::new(record))),
            None => drop(self.state.roles.remove(name)),
        }
        for user in self.state.holders(name) {
            let rights = self.state.rights_of(&user.record);
            let record = user.record.clone();
            self.state.users.insert(text(&record.name).into(), Arc::new(User { record, rights }));
        }
    }

    fn edit(&mut self, table: &str, key: &str, value: Option<Bytes>) {
        self.edits.push(TableEdit { table: table.into(), key: Bytes::copy_from_slice(key.as_bytes()), value });
    }
}

impl State {
    /// The users that have a role.
    fn holders(&self, role: &str) -> Vec<Arc<User>> {
        let has = |user: &&Arc<User>| user.record.roles.iter().any(|held| held == role);
        self.users.values().filter(has).cloned().collect()
    }
}

fn damaged(table: &str) -> polybolt::Error {
    Refusal::Invalid { why: format!("the table {table:?} has an entry that is no record of it") }.into()
}

fn has_no_password(user: &authpb::User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

/// A name; the wire has it as bytes in records and as text in requests.
fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The tables, as changes leave them.
    #[derive(Debug, Default)]
    struct Tables(BTreeMap<(String, Bytes), Bytes>);

    impl Tables {
        fn load(&self) -> State {
            let list = |table: &str| {
                let of_table = self.0.iter().filter(|((name, _), _)| name == table);
                Ok(of_table.map(|((_, key), value)| (key.clone(), value.clone())).collect())
            };
            State::load(list).unwrap()
        }

        fn change(&mut self, change: Change) -> Result<SignOut, AuthError> {
            let before = self.load();
            let Some(draft) = before.change(change)? else {
                return Ok(SignOut::Nobody);
            };
            for TableEdit { table, key, value } in draft.edits {
                match value {
                    Some(value) => drop(self.0.insert((table, key), value)),
                    None => drop(self.0.remove(&(table, key))),
                }
            }
            // What is stored is what is in effect.
            let loaded = self.load();
            assert_eq!(format!("{loaded:?}"), format!("{:?}", draft.state));
            Ok(draft.sign_out)
        }
    }

    fn permission(perm_type: Type, key: &'static str, range_end: &'static str) -> Option<authpb::Permission> {
        Some(authpb::Permission { perm_type: perm_type.into(), key: key.into(), range_end: range_end.into() })
    }

    fn user(tables: &mut Tables, name: &str) {
        let password = Some(Bytes::from_static(b"hash"));
        tables.change(Change::AddUser { name: name.into(), password }).unwrap();
    }

    #[test]
    fn rights_are_those_of_all_roles_together() {
        let mut tables = Tables::default();
        user(&mut tables, "alice");
        for (role, key, end) in [("low", "a", "c"), ("high", "c", "e")] {
            tables.change(Change::AddRole { name: role.into() }).unwrap();
            let permission = permission(Type::Read, key, end);
            tables.change(Change::GrantPermission { role: role.into(), permission }).unwrap();
            tables.change(Change::GrantRole { user: "alice".into(), role: role.into() }).unwrap();
        }
        let may = |tables: &Tables, access| tables.load().check("alice", access, &Span::range("b", "d")).is_ok();
        assert!(may(&tables, Access::Read) && !may(&tables, Access::Write));
        // The same interval again changes what it is for; another one from the same key is one of its own.
        for end in ["e", "d"] {
            let permission = permission(Type::Write, "c", end);
            tables.change(Change::GrantPermission { role: "high".into(), permission }).unwrap();
        }
        assert_eq!(tables.load().permissions_of("high").unwrap().len(), 2);
        assert!(!may(&tables, Access::Read));
        let check = |span: &Span| tables.load().check("alice", Access::Write, span);
        assert_eq!(check(&Span::range("c", "e")), Ok(()));
        assert_eq!(check(&Span::from_key("c")), Err(AuthError::PermissionDenied));
        // The role goes, and with it what it allowed; a role of that name later is another one.
        tables.change(Change::DeleteRole { name: "high".into() }).unwrap();
        tables.change(Change::AddRole { name: "high".into() }).unwrap();
        assert_eq!(tables.load().roles_of("alice").unwrap(), ["low"]);
    }

    #[test]
    fn each_change_counts_but_those_that_change_nothing_and_turning_it_on() {
        let mut tables = Tables::default();
        let count = |tables: &Tables| tables.load().revision;
        assert_eq!(count(&tables), 1);
        tables.change(Change::Disable).unwrap();
        assert_eq!(count(&tables), 1);
        assert_eq!(tables.change(Change::Enable), Err(AuthError::RootUserMissing));
        user(&mut tables, "root");
        assert_eq!(count(&tables), 2);
        let grant = Change::GrantRole { user: "root".into(), role: "root".into() };
        for _ in 0..2 {
            tables.change(grant.clone()).unwrap();
            assert_eq!(count(&tables), 3);
        }
        tables.change(Change::Enable).unwrap();
        tables.change(Change::Enable).unwrap();
        assert!(tables.load().enabled && count(&tables) == 3);
        for forbidden in [
            Change::DeleteUser { name: "root".into() },
            Change::DeleteRole { name: "root".into() },
            Change::RevokeRole { user: "root".into(), role: "root".into() },
        ] {
            assert_eq!(tables.change(forbidden), Err(AuthError::InvalidManagement));
        }
        assert_eq!(tables.change(Change::Disable), Ok(SignOut::Everybody));
        assert_eq!(count(&tables), 4);
        let set = Change::SetPassword { name: "root".into(), password: Bytes::from_static(b"other") };
        assert_eq!(tables.change(set), Ok(SignOut::User("root".into())));
        assert_eq!(tables.load().password("root"), Ok(Bytes::from_static(b"other")));
        assert_eq!(tables.change(Change::DeleteUser { name: "root".into() }), Ok(SignOut::User("root".into())));
        assert_eq!(tables.load().password("root"), Err(AuthError::Failed));
        let tables: BTreeSet<_> = tables.0.keys().map(|(table, _)| table.clone()).collect();
        assert_eq!(tables.into_iter().collect::<Vec<_>>(), [SETTING_TABLE]);
    }
}
