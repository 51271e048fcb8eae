//! Users, virtual hosts and permissions: which logins are accepted, and what each user may do.
//!
//! Virtual hosts separate names. Users may see and change only what they have permissions for.
//!
//! | file | content |
//! |---|---|
//! | `login` | from credentials to a user; the identity of a connection; why a change cannot be made |
//! | `users` | users, virtual hosts and their limits; views for operators |
//! | `rights` | permissions of a user in a virtual host, and the checks |
//! | `pattern` | patterns of names: compiled ones, plain ones, and the memory that they take |
//! | `state` | all records; writing them to the log and restoring them |
//!
//! This module does not know the connections, shares and queues of a user or a virtual host: the code that
//! deletes one handles them.
//!
//! # Invariants
//! - A user without a permission for a virtual host cannot open it, and may do nothing there once the
//!   permission is cleared.
//! - A change is made completely or not at all. It returns the [`Batch`](leveret_core::pending_writes::Batch) that
//!   must be durable before the change is acknowledged.
//! - Every change raises the revision, so nothing that a channel caches outlives the permission it was based
//!   on.

mod login;
mod pattern;
mod rights;
mod state;
mod users;

pub(super) use login::Identity;
pub(super) use login::Login;
pub(super) use login::check_name;
pub(super) use pattern::Pattern;
pub(super) use pattern::PatternBytes;
pub(super) use rights::Topic;
pub(super) use state::{
    FIRST_VHOST, PERMISSION_BYTES, PREDECLARED, PREDECLARED_EXCHANGES, USER_BYTES, VHOST_BYTES,
};
pub(super) use state::{Resource, Right};
pub(super) use users::Load;

pub use login::OperatorFault;
pub use pattern::PATTERN_BYTES_MAX;
pub use state::Access;
pub use state::{UserLimits, VHOST_METADATA_BYTES_MAX, VhostChange, VhostLimits};
pub use users::{PermissionView, TopicPermissionView, UserView, VhostView};

#[cfg(test)]
mod tests {
    // Tests of access alone: creating and deleting users and virtual hosts, their permissions, and what is
    // written.

    use super::*;
    use crate::context::Work;
    use leveret_core::limits::Limits;
    use leveret_core::password::PasswordHash;
    use leveret_core::pending_writes::PendingWrites;

    /// Returns the users and virtual hosts of a new store, with pending writes that are not read.
    fn access() -> (Access, PendingWrites) {
        let limits = Limits::default();
        let mut entropy: crate::Entropy = Box::new(|bytes| bytes.fill(7));
        let mut access = Access::new(&limits, &mut entropy, 1);
        access.add_vhost(FIRST_VHOST).unwrap();
        access.begin_guest().unwrap();
        (access, PendingWrites::new(64))
    }

    fn named(access: &Access, name: &str) -> Identity {
        access.login_external(&PendingWrites::new(64), name, true).unwrap()
    }

    #[test]
    fn only_what_the_patterns_of_a_permission_match_is_allowed() {
        let (mut access, mut pending_writes) = access();
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "").unwrap();
        let (vhost, who) = (access.find_vhost("/").unwrap(), named(&access, "sensor"));
        let mut work = Work::default();
        let mut may = |access: &Access, right, name| {
            access.check(&mut work, &who, vhost, right, Resource::Queue(name)).is_ok()
        };
        assert!(!may(&access, Right::Read, "t-1"));
        let before = access.revision();
        access.set_permissions(&mut pending_writes, "sensor", "/", "^$", "^t-", ".*").unwrap();
        assert!(access.revision() > before, "what a channel remembers must not outlive a permission");
        let allowed = [Right::Configure, Right::Write, Right::Read].map(|right| may(&access, right, "t-1"));
        assert_eq!(allowed, [false, true, true]);
        assert!(!may(&access, Right::Write, "other"));
        access.clear_permissions(&mut pending_writes, "sensor", "/").unwrap();
        assert!(!may(&access, Right::Write, "t-1"));
    }

    #[test]
    fn a_deleted_user_may_do_nothing_and_a_new_one_of_its_name_is_another() {
        let (mut access, mut pending_writes) = access();
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "impersonator").unwrap();
        access.set_permissions(&mut pending_writes, "sensor", "/", ".*", ".*", ".*").unwrap();
        access.set_topic_permissions(&mut pending_writes, "sensor", "/", "amq.topic", "^a", "^a").unwrap();
        let mut who = named(&access, "sensor");
        assert!(access.may_impersonate(&who) && access.limits_topics(&who));
        let serial = access.user_serials().last();
        let place = access.delete_user(&mut pending_writes, "sensor").unwrap();
        who.forget_user(place);
        let vhost = access.find_vhost("/").unwrap();
        let refused = access.check(&mut Work::default(), &who, vhost, Right::Read, Resource::Queue("q"));
        assert!(refused.unwrap_err().text.contains("refused for user 'sensor'"));
        assert_eq!((access.permissions().count(), access.topic_permissions().count()), (1, 0));
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "").unwrap();
        assert_ne!(access.user_serials().last(), serial);
        assert!(!access.has_permission("sensor", "/"));
    }

    #[test]
    fn a_deleted_virtual_host_keeps_its_place_until_nothing_refers_to_it() {
        let (mut access, mut pending_writes) = access();
        let vhost = access.add_vhost("tenant").unwrap();
        access.hold_vhost(vhost);
        access.count_queue(vhost, true);
        access
            .set_vhost_limits(
                &mut pending_writes,
                "tenant",
                VhostLimits { queues_max: Some(1), connections_max: None },
            )
            .unwrap();
        assert!(access.check_queue_limit(vhost, "q").is_err());
        access.retire_vhost(vhost);
        assert!(access.find_vhost("tenant").is_none() && access.is_being_deleted("tenant"));
        assert!(access.check_vhost_alive(vhost).is_err() && access.vhost_name(vhost) == "tenant");
        access.note_swept(vhost);
        access.count_queue(vhost, false);
        assert!(!access.is_vhost_done(vhost));
        access.release_vhost(vhost);
        assert!(access.is_vhost_done(vhost));
        access.remove_vhost(vhost);
    }

    #[test]
    fn limits_of_users_and_of_virtual_hosts_are_distinguished() {
        let (mut access, mut pending_writes) = access();
        let limits = UserLimits { connections_max: Some(2), channels_max: Some(3) };
        access.set_user_limits(&mut pending_writes, "guest", limits).unwrap();
        let who = named(&access, "guest");
        let open = |access: &Access, connections_in: u32, connections: u32| {
            let load = Load { connections, channels: 3 };
            access.check_open(&who, "/", |_| connections_in, load).map_err(|fault| fault.text.to_string())
        };
        assert!(open(&access, 9, 1).is_ok());
        assert!(open(&access, 9, 2).unwrap_err().contains("user connection limit (2)"));
        let limits = VhostLimits { queues_max: None, connections_max: Some(9) };
        access.set_vhost_limits(&mut pending_writes, "/", limits).unwrap();
        assert!(open(&access, 9, 1).unwrap_err().contains("connection limit (9)"));
        assert!(access.check_user_channels(&who, Load { connections: 1, channels: 3 }).is_err());
    }

    #[test]
    fn logins_are_refused_until_doubtful_users_are_confirmed() {
        let (mut access, mut pending_writes) = access();
        access.doubt_users("a block is damaged", Vec::new());
        let refused = access.check_admission(&pending_writes, "guest", true).unwrap_err();
        assert!(refused.text.contains("a block is damaged"), "{}", refused.text);
        assert!(!access.forget_first_users(), "what lies in the first virtual host is to be found again");
        access.confirm_access(&mut pending_writes).unwrap();
        assert!(access.check_admission(&pending_writes, "guest", true).is_ok());
    }
}
