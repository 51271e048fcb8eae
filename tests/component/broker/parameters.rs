//! Runtime parameters: kept over restarts and kills, bounded, and deleted with their virtual host.

use leveret_broker::{OperatorFault, PARAMETER_BYTES_MAX, ParameterNeeds};
use leveret_core::definition::Parameter;
use leveret_core::limits::Limits;

use crate::dead_letters::{BrokerRun, disk};
use crate::support::TestBroker;

const COMPONENT: &str = "shovel";

/// Returns the requirements of a value whose component connects to this virtual host.
fn needs_of(vhost: &str) -> ParameterNeeds {
    ParameterNeeds { vhost: vhost.to_string(), of_administrator: None }
}

fn set(node: &mut TestBroker, vhost: Option<&str>, name: &str, value: &str) -> Result<(), OperatorFault> {
    node.broker.set_shovel_places(8, 0);
    let component = if vhost.is_some() { COMPONENT } else { "" };
    let said = Parameter { vhost, component, name, value: value.as_bytes() };
    let needs = vhost.map(needs_of);
    node.broker.set_parameter(context!(node).pending_writes, &said, needs.as_ref(), None).map(drop)
}

fn clear(node: &mut TestBroker, vhost: Option<&str>, name: &str) -> Result<(), OperatorFault> {
    let component = if vhost.is_some() { COMPONENT } else { "" };
    node.broker.clear_parameter(context!(node).pending_writes, vhost, component, name).map(drop)
}

/// Returns virtual host, name and value of each parameter.
fn all(node: &TestBroker) -> Vec<String> {
    let shown = |view: Parameter<&str, &[u8]>| {
        let value = String::from_utf8_lossy(view.value).into_owned();
        format!("{} {} {value}", view.vhost.unwrap_or("-"), view.name)
    };
    let mut all: Vec<String> = node.broker.views().parameters().map(shown).collect();
    all.sort();
    all
}

#[test]
fn a_start_after_a_kill_finds_parameters_as_they_were_confirmed() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    run.node.admit("other", "v");
    for (vhost, name, value) in [
        (Some("/"), "s", "{\"a\":1}"),
        (Some("/"), "gone", "1"),
        (Some("v"), "s", "2"),
        (None, "g", "[1]"),
        (None, "cleared", "3"),
    ] {
        set(&mut run.node, vhost, name, value).expect("there is room");
    }
    run.store().expect("the disk is well");
    set(&mut run.node, Some("/"), "s", "{\"a\":2}").expect("there is room");
    clear(&mut run.node, Some("/"), "gone").expect("it is there");
    clear(&mut run.node, None, "cleared").expect("it is there");
    run.store().expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    assert_eq!(all(&run.node), ["- g [1]", "/ s {\"a\":2}", "v s 2"]);
    run.node.broker.delete_vhost(&mut context!(run.node), "v").expect("it is there");
    let at = run.at;
    run.node.turns(at);
    run.store().expect("the disk is well");
    drop(run);
    assert_eq!(all(&BrokerRun::begin(&disk).expect("it opens").node), ["- g [1]", "/ s {\"a\":2}"]);
}

#[test]
fn setting_the_same_value_again_is_no_change() {
    let mut node = TestBroker::new(64);
    set(&mut node, Some("/"), "s", "1").expect("there is room");
    let before = node.broker.parameters_version();
    set(&mut node, Some("/"), "s", "1").expect("it is so");
    assert_eq!(node.broker.parameters_version(), before);
    set(&mut node, Some("/"), "s", "2").expect("there is room");
    assert_ne!(node.broker.parameters_version(), before);
}

#[test]
fn invalid_parameters_are_refused_and_change_nothing() {
    let mut node = TestBroker::with(&Limits { connections_max: 16, parameters_max: 2, ..Limits::default() });
    let invalid = |why: &str| Err(OperatorFault::Invalid(why.to_string()));
    assert!(matches!(set(&mut node, Some("none"), "s", "1"), Err(OperatorFault::NoSuchVhost(_))));
    assert!(matches!(set(&mut node, Some("/"), "", "1"), Err(OperatorFault::BadName(..))));
    let long = "1".repeat(PARAMETER_BYTES_MAX + 1);
    assert!(matches!(set(&mut node, None, "g", &long), Err(OperatorFault::Invalid(_))));
    assert!(all(&node).is_empty());
    for name in ["a", "b"] {
        set(&mut node, None, name, &long[1..]).expect("there is room");
    }
    assert_eq!(set(&mut node, None, "c", "1"), Err(OperatorFault::NoCapacity("another parameter")));
    set(&mut node, None, "b", "1").expect("it has its place");
    assert_eq!(clear(&mut node, None, "c"), Err(OperatorFault::NoSuchParameter));
    assert_eq!(clear(&mut node, Some("none"), "a"), Err(OperatorFault::NoSuchParameter));
    clear(&mut node, None, "a").expect("it is there");
    set(&mut node, None, "c", "1").expect("there is room again");
    node.broker.set_shovel_places(0, 0);
    let said = Parameter { vhost: Some("/"), component: COMPONENT, name: "s", value: &b"1"[..] };
    let needs = needs_of("/");
    let refused = node.broker.set_parameter(context!(node).pending_writes, &said, Some(&needs), None);
    assert_eq!(refused.map(drop), Err(OperatorFault::TooManyShovels));
    node.broker.set_shovel_places(1, 0);
    let refused =
        node.broker.set_parameter(context!(node).pending_writes, &said, Some(&needs), Some("nobody"));
    assert_eq!(refused.map(drop), invalid("user \"nobody\" may not connect to vhost \"/\""));
}

#[test]
fn parameters_for_administrators_are_refused_to_other_users() {
    let mut node = TestBroker::new(64);
    node.admit("ann", "/");
    let needs = ParameterNeeds { of_administrator: Some("read files"), ..needs_of("/") };
    node.broker.set_shovel_places(8, 0);
    let set_as = |node: &mut TestBroker, user| {
        let said = Parameter { vhost: Some("/"), component: COMPONENT, name: "s", value: &b"1"[..] };
        node.broker.set_parameter(context!(node).pending_writes, &said, Some(&needs), user).map(drop)
    };
    let refused = set_as(&mut node, Some("ann"));
    assert_eq!(
        refused,
        Err(OperatorFault::Invalid("only an administrator may configure it to read files".into()))
    );
    set_as(&mut node, Some("guest")).expect("guest is one");
    set_as(&mut node, None).expect("so is who owns the machine");
}

#[test]
fn parameters_left_out_by_a_start_can_be_cleared_and_do_not_come_back() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    for name in ["a", "b", "c"] {
        set(&mut run.node, Some("/"), name, "1").expect("there is room");
    }
    run.store().expect("the disk is well");
    drop(run);
    let few = Limits { connections_max: 16, parameters_max: 1, ..Limits::default() };
    let mut run = BrokerRun::begin_with(&disk, &few).expect("it opens");
    assert_eq!(all(&run.node), ["/ a 1"]);
    assert!(run.node.broker.may_have_parameter("/", COMPONENT, "b"));
    clear(&mut run.node, Some("/"), "b").expect("the log has it");
    assert_eq!(clear(&mut run.node, Some("/"), "b"), Err(OperatorFault::NoSuchParameter));
    assert_eq!(clear(&mut run.node, Some("/"), "d"), Err(OperatorFault::NoSuchParameter));
    run.store().expect("the disk is well");
    drop(run);
    assert_eq!(all(&BrokerRun::begin(&disk).expect("it opens").node), ["/ a 1", "/ c 1"]);
}
