//! Tests of parameters alone: setting, clearing, and parameters without a place.

use super::*;
use crate::access::OperatorFault;
use leveret_core::command::VhostId;
use leveret_core::pending_writes::{Batch, LogEntry, PendingWrites};

/// A component that accepts every value but one, and reserves another for administrators.
fn check(parameter: &ParameterView<'_>) -> Result<ParameterNeeds, String> {
    let vhost = parameter.vhost.unwrap_or_default().to_string();
    match parameter.value {
        b"0" => Err("0 is not taken".to_string()),
        b"9" => Ok(ParameterNeeds { vhost, of_administrator: Some("read files") }),
        _ => Ok(ParameterNeeds { vhost, of_administrator: None }),
    }
}

/// The operator.
const OPERATOR: Setter<'_> = Setter { user: None, is_administrator: true, may_connect: true };
/// A user without tags.
const ANN: Setter<'_> = Setter { user: Some("ann"), is_administrator: false, ..OPERATOR };

fn vhost(index: usize) -> VhostId {
    VhostId::from_index(index)
}

fn shovel<'a>(name: &'a str, value: &'a str) -> ParameterView<'a> {
    ParameterView { vhost: Some("v"), component: SHOVEL, name, value: value.as_bytes() }
}

fn global<'a>(name: &'a str, value: &'a str) -> ParameterView<'a> {
    ParameterView { vhost: None, component: "", ..shovel(name, value) }
}

struct ParametersFixture {
    parameters: Parameters,
    pending_writes: PendingWrites,
}

impl ParametersFixture {
    /// Creates parameters with capacity for four, and for this many shovels.
    fn new(shovels_max: usize) -> Self {
        let mut pending_writes = PendingWrites::new(16);
        pending_writes.start(1, true, u64::MAX);
        let mut parameters = Parameters::with_capacity(4, 7);
        parameters.set_check(check);
        parameters.set_shovel_places(shovels_max);
        Self { parameters, pending_writes }
    }

    fn set(&mut self, parameter: ParameterView<'_>, setter: Setter<'_>) -> Result<Batch, OperatorFault> {
        let needs = self.parameters.needs(&parameter)?;
        let id = parameter.vhost.map(|_| vhost(0));
        self.parameters.set(&mut self.pending_writes, id, &parameter, needs.as_ref(), &setter)
    }

    fn clear(&mut self, parameter: ParameterView<'_>) -> Result<(), OperatorFault> {
        let id = parameter.vhost.map(|_| vhost(0));
        self.parameters.clear(&mut self.pending_writes, id, parameter.full_name()).map(drop)
    }

    /// Returns names and values of all parameters.
    fn all(&self) -> Vec<String> {
        let places = (0..self.parameters.places()).filter_map(|place| self.parameters.at(place, |_| "v"));
        places.map(|view| format!("{}={}", view.name, String::from_utf8_lossy(view.value))).collect()
    }

    /// Returns how many definitions were written since the last call, and how many of these delete a
    /// parameter.
    fn written(&mut self) -> [usize; 2] {
        let mut counts = [0; 2];
        while let Some(fact) = self.pending_writes.fact() {
            let LogEntry::Defined { value, .. } = fact else { panic!("no definition") };
            counts[usize::from(value.is_none())] += 1;
            self.pending_writes.pop_entry();
        }
        counts
    }
}

fn invalid(why: &str) -> Result<Batch, OperatorFault> {
    Err(OperatorFault::Invalid(why.to_string()))
}

#[test]
fn a_parameter_is_written_once_and_raises_the_version() {
    let mut world = ParametersFixture::new(8);
    assert!(world.set(shovel("s", "1"), OPERATOR).unwrap() > Batch::NONE);
    world.set(global("s", "2"), OPERATOR).unwrap();
    let version = world.parameters.version();
    world.set(global("s", "2"), OPERATOR).unwrap();
    assert_eq!((world.parameters.version(), world.written()), (version, [2, 0]), "nothing has changed");
    world.set(global("s", "3"), OPERATOR).unwrap();
    assert!(world.parameters.version() > version);
    assert_eq!(world.all(), ["s=1", "s=3"]);
    world.clear(global("s", "")).unwrap();
    assert_eq!(world.clear(global("s", "")), Err(OperatorFault::NoSuchParameter));
    assert_eq!((world.all(), world.written()), (vec!["s=1".to_string()], [1, 1]));
}

#[test]
fn invalid_values_and_missing_permissions_are_refused() {
    let mut world = ParametersFixture::new(8);
    assert_eq!(world.set(shovel("s", "0"), OPERATOR), invalid("0 is not taken"));
    assert!(matches!(world.set(shovel("", "1"), OPERATOR), Err(OperatorFault::BadName("parameter", _))));
    assert_eq!(world.set(shovel("s", "9"), ANN), invalid("only an administrator may have it read files"));
    let nowhere = Setter { may_connect: false, ..ANN };
    let why = "user \"ann\" may not connect to vhost \"v\"";
    assert_eq!(world.set(shovel("s", "1"), nowhere), invalid(why));
    let nowhere = Setter { may_connect: false, ..OPERATOR };
    assert_eq!(world.set(shovel("s", "1"), nowhere), invalid("there is no vhost \"v\" in this broker"));
    let long = "1".repeat(PARAMETER_BYTES_MAX + 1);
    assert!(matches!(world.set(global("g", &long), OPERATOR), Err(OperatorFault::Invalid(_))));
    world.pending_writes.set_log_free_bytes((0, 1 << 20), true);
    assert_eq!(world.set(global("g", "1"), OPERATOR), Err(OperatorFault::FileSystemFull));
    world.pending_writes.start(2, false, u64::MAX);
    assert!(matches!(world.set(global("g", "1"), OPERATOR), Err(OperatorFault::Store(_))));
    assert!(world.all().is_empty());
}

#[test]
fn shovels_and_parameters_are_limited_and_existing_ones_can_change() {
    let mut world = ParametersFixture::new(1);
    world.set(shovel("a", "1"), ANN).expect("there is a place");
    assert_eq!(world.set(shovel("b", "1"), ANN), Err(OperatorFault::NoCapacity("bridges_max")));
    for name in ["b", "c", "d"] {
        world.set(global(name, "1"), OPERATOR).expect("global ones are no shovels");
    }
    assert_eq!(world.set(global("e", "1"), OPERATOR), Err(OperatorFault::NoCapacity("parameters_max")));
    world.set(shovel("a", "2"), ANN).expect("it has its place");
}

#[test]
fn a_parameter_without_a_place_can_be_cleared_once() {
    let mut world = ParametersFixture::new(8);
    for name in ["a", "b", "c", "d"] {
        world.parameters.restore(Some(vhost(0)), &shovel(name, "1")).unwrap();
    }
    for name in ["e", "f"] {
        assert!(world.parameters.restore(Some(vhost(0)), &shovel(name, "1")).is_err());
    }
    let may_have =
        |world: &ParametersFixture, id, name| world.parameters.may_have(id, shovel(name, "").full_name());
    assert!(may_have(&world, Some(vhost(0)), "a") && may_have(&world, Some(vhost(0)), "e"));
    assert!(!may_have(&world, None, "a"), "there is no such virtual host");
    world.clear(shovel("e", "")).unwrap();
    assert_eq!(world.clear(shovel("e", "")), Err(OperatorFault::NoSuchParameter));
    assert_eq!(world.written(), [0, 1]);
    world.clear(shovel("a", "")).unwrap();
    world.set(shovel("f", "2"), OPERATOR).expect("it has a place now");
    world.clear(shovel("f", "")).unwrap();
    assert!(!may_have(&world, Some(vhost(0)), "f"), "it is gone with its place");
    world.parameters.doubt();
    assert!(may_have(&world, None, "f"));
}

#[test]
fn parameters_beyond_the_list_may_have_any_name() {
    let mut world = ParametersFixture::new(8);
    let names: Vec<String> = (0..4 + 64).map(|at| at.to_string()).collect();
    for name in &names {
        drop(world.parameters.restore(None, &global(name, "1")));
    }
    let other = global("other", "").full_name();
    assert!(!world.parameters.may_have(None, other));
    assert!(world.parameters.restore(None, &global("one more", "1")).is_err());
    assert!(world.parameters.may_have(None, other));
}

#[test]
fn parameters_are_deleted_with_their_virtual_host() {
    let mut world = ParametersFixture::new(8);
    world.set(shovel("a", "1"), OPERATOR).unwrap();
    world.set(global("g", "1"), OPERATOR).unwrap();
    world.parameters.restore(Some(vhost(1)), &shovel("a", "2")).unwrap();
    world.written();
    world.parameters.drop_of_vhost(&mut world.pending_writes, vhost(0), "v");
    assert_eq!((world.all(), world.written()), (vec!["g=1".to_string(), "a=2".to_string()], [0, 1]));
}

#[test]
#[should_panic(expected = "what a virtual host has was checked")]
fn an_unchecked_value_panics() {
    let ParametersFixture { mut parameters, mut pending_writes } = ParametersFixture::new(8);
    drop(parameters.set(&mut pending_writes, Some(vhost(0)), &shovel("s", "1"), None, &OPERATOR));
}
