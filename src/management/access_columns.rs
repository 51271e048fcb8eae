//! Users, what they may do, and what they may have, as columns.
//!
//! Always true: of a password its hash alone is shown, and that to who may see users.

use leveret_broker::{PermissionView, TopicPermissionView, UserLimits, UserView};

use super::columns::{Column, Kind, Pen, put_limits};
use super::request_context::ReadContext;

/// Users.
#[derive(Debug)]
pub(super) struct Users;

impl Kind for Users {
    type View<'a> = UserView<'a>;

    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |user, pen| pen.json.text(user.name)),
        ("name", |user, pen| pen.json.text(user.name)),
        ("tags", |user, pen| pen.json.texts(user.tags.split(',').filter(|tag| !tag.is_empty()))),
        ("password_hash", |user, pen| pen.json.text(&user.hash.export().1)),
        ("hashing_algorithm", |user, pen| pen.json.text(user.hash.export().0)),
        ("limits", user_limits),
    ];

    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.name.to_string())
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.access().user_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.access().user_at(place)
    }

    fn vhost<'a>(_: &Self::View<'a>) -> Option<&'a str> {
        None
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.name)
    }
}

/// Permissions.
#[derive(Debug)]
pub(super) struct Permissions;

impl Kind for Permissions {
    type View<'a> = PermissionView<'a>;

    const ORDER: &'static str = "vhost,user";
    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |it, pen| pen.json.text(it.user)),
        ("vhost", |it, pen| pen.json.text(it.vhost)),
        ("configure", |it, pen| pen.json.text(it.configure)),
        ("write", |it, pen| pen.json.text(it.write)),
        ("read", |it, pen| pen.json.text(it.read)),
    ];

    /// By the user: with the virtual host that names one.
    fn name(view: &Self::View<'_>) -> Option<String> {
        Some(view.user.to_string())
    }

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.access().permission_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.access().permission_at(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.user)
    }
}

/// Topic permissions.
#[derive(Debug)]
pub(super) struct TopicPermissions;

impl Kind for TopicPermissions {
    type View<'a> = TopicPermissionView<'a>;

    const ORDER: &'static str = "vhost,user";
    const COLUMNS: &'static [Column<Self>] = &[
        ("user", |it, pen| pen.json.text(it.user)),
        ("vhost", |it, pen| pen.json.text(it.vhost)),
        ("exchange", |it, pen| pen.json.text(it.exchange)),
        ("write", |it, pen| pen.json.text(it.write)),
        ("read", |it, pen| pen.json.text(it.read)),
    ];

    fn places(context: ReadContext<'_>) -> usize {
        context.broker.access().topic_permission_places()
    }

    fn at(context: ReadContext<'_>, place: usize) -> Option<Self::View<'_>> {
        context.broker.access().topic_permission_at(place)
    }

    fn vhost<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.vhost)
    }

    fn user<'a>(view: &Self::View<'a>) -> Option<&'a str> {
        Some(view.user)
    }
}

/// Writes the limits of a user.
pub(super) fn user_limits(user: &UserView<'_>, pen: &mut Pen<'_, '_>) {
    let UserLimits { connections_max, channels_max } = user.limits;
    put_limits([("max-channels", channels_max), ("max-connections", connections_max)], pen);
}
