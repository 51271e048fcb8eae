//! Runtime parameters: settings of components and of the whole broker, changed while it runs.
//!
//! ```text
//! set, clear ──→ Parameters ──→ the log
//!                    └─ version ──→ components reread them when it has changed
//! ```
//!
//! A component is a part of the server outside of this crate, for example the shovels. This module only
//! stores its parameters. Parameters for which there is no capacity at a start stay in the log.
//!
//! # Invariants
//! - A value is JSON of a bounded size that its component has accepted. The server sets the function for this
//!   check ([`Parameters::set_check`]).
//! - No error here shows a value, because it may contain a password.
//! - The parameters of a virtual host are deleted together with the virtual host.
//! - A change is acknowledged only when it is durable. Every change raises the version.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use leveret_core::batch::Batch;
use leveret_core::command::{NAME_BYTES_MAX, VhostId};
use leveret_core::definition::{Definition, Parameter};
use leveret_core::mem::{ALLOCATION_BYTES, Class, Memory, Slab};
use leveret_storage::PendingWrites;

use crate::operator_fault::{OperatorFault, check_changeable, check_definition_space};

/// One parameter. Its value is never part of an error or log text, because it may contain a password.
struct ParameterRecord {
    /// The virtual host; `None` if the parameter is global.
    vhost: Option<VhostId>,
    component: Box<str>,
    name: Box<str>,
    value: Box<[u8]>,
}

impl ParameterRecord {
    /// Returns whether the parameter has this virtual host, component and name.
    fn has_full_name(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> bool {
        self.vhost == vhost && (&*self.component, &*self.name) == (name.component, name.name)
    }

    fn is_shovel(&self) -> bool {
        self.vhost.is_some() && &*self.component == SHOVEL
    }

    /// Returns the parameter as shown to operators. `vhost` is the name of its virtual host.
    const fn view<'a>(&'a self, vhost: Option<&'a str>) -> Parameter<&'a str, &'a [u8]> {
        Parameter { vhost, component: &self.component, name: &self.name, value: &self.value }
    }
}

/// All parameters.
pub(crate) struct Parameters {
    records: Slab<ParameterRecord>,
    /// Rises whenever a parameter is set, changed or cleared.
    version: u64,
    /// Maximum number of shovels.
    shovels_max: usize,
    /// Memory that a shovel takes, in bytes.
    shovel_bytes: usize,
    /// The memory in which the server starts shovels.
    memory: Memory,
    unplaced: Unplaced,
}

impl Parameters {
    /// Maximum bytes that a parameter takes besides its record: the longest names and value, each a separate allocation, and its
    /// definition in the index of the log.
    const SIDE_BYTES: usize =
        PARAMETER_BYTES_MAX + 2 * 256 + 3 * ALLOCATION_BYTES + leveret_storage::DEFINITION_BYTES;
    /// Maximum bytes of memory that a parameter takes.
    pub(crate) const PARAMETER_BYTES: usize = Slab::<ParameterRecord>::record_bytes() + Self::SIDE_BYTES;

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.records.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.records.trim();
    }

    pub(crate) fn with_capacity(parameters: usize, memory: &Memory, seed: u64) -> Self {
        Self {
            records: Slab::in_memory(parameters, memory, Class::Definitions)
                .with_side_bytes(Self::SIDE_BYTES),
            version: 0,
            shovels_max: 0,
            shovel_bytes: 0,
            memory: memory.clone(),
            unplaced: Unplaced::new(seed),
        }
    }

    /// Sets the maximum number of shovels, and the memory that each takes. Existing shovels stay even if there are more.
    pub(crate) const fn set_shovel_places(&mut self, shovels_max: usize, bytes_each: usize) {
        (self.shovels_max, self.shovel_bytes) = (shovels_max, bytes_each);
    }

    // ---- changes

    /// Creates a parameter, or changes the value of an existing one. `needs` are the requirements of the value; `None` for
    /// a global parameter. Returns the batch of the change.
    ///
    /// # Errors
    /// The setter does not fulfil the requirements, the name or the value is too long, or there is no
    /// capacity.
    pub(crate) fn set(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: Option<VhostId>,
        view: &Parameter<&str, &[u8]>,
        needs: Option<&ParameterNeeds>,
        setter: &Setter<'_>,
    ) -> Result<Batch, OperatorFault> {
        assert_eq!(needs.is_some(), vhost.is_some(), "what a virtual host has was checked");
        if view.name.is_empty() || view.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("parameter", "have from 1 to 255 bytes"));
        }
        if let Some(needs) = needs {
            setter.check(needs)?;
        }
        if view.value.len() > PARAMETER_BYTES_MAX {
            let why = format!("its value is longer than {PARAMETER_BYTES_MAX} bytes of JSON");
            return Err(OperatorFault::Invalid(why));
        }
        check_changeable(pending_writes)?;
        let old = self.find(vhost, ParameterName::of(view));
        if old.is_some_and(|old| &*self.records[old].value == view.value) {
            return Ok(pending_writes.last_entry_batch());
        }
        check_definition_space(pending_writes)?;
        let is_shovel = vhost.is_some() && view.component == SHOVEL;
        if old.is_none() && is_shovel {
            if self.count(ParameterRecord::is_shovel) >= self.shovels_max {
                return Err(OperatorFault::TooManyShovels);
            }
            if self.memory.free_bytes(Class::Clients) < self.shovel_bytes {
                return Err(OperatorFault::NoCapacity("another shovel"));
            }
        }
        self.put(vhost, view)?;
        Ok(pending_writes.write_definition(&Definition::Parameter(*view), true))
    }

    /// Restores a parameter from the log at start.
    ///
    /// # Errors
    /// There is no capacity. The parameter stays in the log and can be cleared.
    pub(crate) fn restore(
        &mut self,
        vhost: Option<VhostId>,
        view: &Parameter<&str, &[u8]>,
    ) -> Result<(), OperatorFault> {
        self.put(vhost, view).inspect_err(|_| self.unplaced.add(ParameterName::of(view)))
    }

    fn put(&mut self, vhost: Option<VhostId>, view: &Parameter<&str, &[u8]>) -> Result<(), OperatorFault> {
        assert_eq!(vhost.is_some(), view.vhost.is_some(), "a virtual host has a name");
        self.version += 1;
        let value = view.value.into();
        if let Some(old) = self.find(vhost, ParameterName::of(view)) {
            self.records[old].value = value;
            return Ok(());
        }
        let parameter =
            ParameterRecord { vhost, component: view.component.into(), name: view.name.into(), value };
        self.records.insert(parameter).map_err(|_| OperatorFault::NoCapacity("another parameter"))?;
        self.unplaced.remove(ParameterName::of(view));
        Ok(())
    }

    /// Clears a parameter, even if it is only in the log. Returns the batch of the change.
    ///
    /// # Errors
    /// There is no parameter of that name, or the storage cannot be written.
    pub(crate) fn clear(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: Option<VhostId>,
        name: ParameterName<'_>,
    ) -> Result<Batch, OperatorFault> {
        assert_eq!(vhost.is_some(), name.vhost.is_some(), "a virtual host has a name");
        let found = self.find(vhost, name);
        if found.is_none() && !self.unplaced.has(name) {
            return Err(OperatorFault::NoSuchParameter);
        }
        check_changeable(pending_writes)?;
        match found {
            Some(index) => self.clear_at(pending_writes, index, name.vhost),
            None => {
                self.unplaced.remove(name);
                let ParameterName { vhost, component, name } = name;
                let cleared = Parameter { vhost, component, name, value: &[][..] };
                pending_writes.write_definition(&Definition::Parameter(cleared), false);
            }
        }
        Ok(pending_writes.last_entry_batch())
    }

    /// Clears all parameters of a virtual host, when it is deleted.
    pub(crate) fn clear_all_of_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        vhost_name: &str,
    ) {
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|it| it.vhost == Some(vhost)) {
                self.clear_at(pending_writes, index, Some(vhost_name));
            }
        }
    }

    fn clear_at(&mut self, pending_writes: &mut PendingWrites, index: usize, vhost_name: Option<&str>) {
        let removed = self.records.remove(index);
        pending_writes.write_definition(&Definition::Parameter(removed.view(vhost_name)), false);
        self.version += 1;
    }

    /// Notes that the log may have unreadable parameters.
    pub(crate) const fn note_unreadable(&mut self) {
        self.unplaced.note_unreadable();
    }

    // ---- all parameters

    fn find(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> Option<usize> {
        self.records
            .iter()
            .find(|(_, parameter)| parameter.has_full_name(vhost, name))
            .map(|(index, _)| index)
    }

    fn count(&self, predicate: impl Fn(&ParameterRecord) -> bool) -> usize {
        self.records.iter().filter(|(_, parameter)| predicate(parameter)).count()
    }

    /// Returns whether a parameter of a virtual host exists or may exist, in memory or only in the log.
    ///
    /// `vhost` is the virtual host that `name` contains, if it exists.
    pub(crate) fn may_have(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> bool {
        vhost.is_some_and(|vhost| self.find(Some(vhost), name).is_some()) || self.unplaced.may_have(name)
    }

    /// Returns a number that rises whenever a parameter is set, changed or cleared.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// Returns the number of parameters in memory.
    pub(crate) const fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the maximum number of parameters.
    pub(crate) const fn max(&self) -> usize {
        self.records.capacity()
    }

    /// Returns the number of places that parameters have used since the start.
    pub(crate) const fn places(&self) -> usize {
        self.records.places()
    }

    /// Returns the parameter in a place; `None` if the place is empty. `name_of` returns the name of a
    /// virtual host.
    pub(crate) fn at<'a>(
        &'a self,
        place: usize,
        name_of: impl Fn(VhostId) -> &'a str,
    ) -> Option<Parameter<&'a str, &'a [u8]>> {
        let parameter = self.records.get(place)?;
        Some(parameter.view(parameter.vhost.map(name_of)))
    }
}

impl Setter<'_> {
    /// Checks whether the setter fulfils the requirements of a value.
    fn check(&self, needs: &ParameterNeeds) -> Result<(), OperatorFault> {
        if let Some(what) = needs.of_administrator.filter(|_| matches!(self.role, SetterRole::User(_))) {
            return Err(OperatorFault::Invalid(format!("only an administrator may configure it to {what}")));
        }
        if self.may_connect {
            return Ok(());
        }
        // A user receives the same error whether the virtual host does not exist or the user has no
        // permissions there. So the user cannot find out which virtual hosts exist.
        let vhost = &needs.vhost;
        Err(OperatorFault::Invalid(match self.role {
            SetterRole::Administrator(user) | SetterRole::User(user) => {
                format!("user \"{user}\" may not connect to vhost \"{vhost}\"")
            }
            SetterRole::Operator => format!("there is no vhost \"{vhost}\" in this broker"),
        }))
    }
}

/// Maximum number of unplaced parameters that are known by name.
const UNPLACED_MAX: usize = 64;

/// The unplaced parameters: those that are in the log but found no capacity in memory at start.
///
/// This happens after `memory_limit` was lowered. Operators can clear unplaced parameters, and components
/// must not act as if they had been cleared. Only [`UNPLACED_MAX`] of them are known by name. If there are
/// more, or if the log has unreadable parameters, any name may be that of a parameter in the log.
#[derive(Debug)]
struct Unplaced {
    /// Hashes of the parameters' virtual hosts, components and names.
    hashes: Vec<u64>,
    /// The log may have more parameters, of unknown names.
    has_unknown_names: bool,
    hasher: FixedState,
}

impl Unplaced {
    const fn new(seed: u64) -> Self {
        Self { hashes: Vec::new(), has_unknown_names: false, hasher: FixedState::with_seed(seed) }
    }

    /// Notes that the log may have unreadable parameters.
    const fn note_unreadable(&mut self) {
        self.has_unknown_names = true;
    }

    /// Adds a parameter for which there is no capacity.
    fn add(&mut self, name: ParameterName<'_>) {
        if self.hashes.len() < UNPLACED_MAX {
            self.hashes.push(self.hasher.hash_one(name));
        } else {
            self.note_unreadable();
        }
    }

    /// Removes a parameter that is in memory now, or is deleted.
    fn remove(&mut self, name: ParameterName<'_>) {
        let hash = self.hasher.hash_one(name);
        self.hashes.retain(|other| *other != hash);
    }

    /// Returns whether the parameter of this name is unplaced for certain.
    fn has(&self, name: ParameterName<'_>) -> bool {
        self.hashes.contains(&self.hasher.hash_one(name))
    }

    /// Returns whether the parameter of this name is or may be unplaced.
    fn may_have(&self, name: ParameterName<'_>) -> bool {
        self.has_unknown_names || self.has(name)
    }
}

/// Maximum length of a value in bytes of JSON.
pub const PARAMETER_BYTES_MAX: usize = 2048;

/// The component whose parameters are shovels: each takes the memory of a bridge.
pub const SHOVEL: &str = "shovel";

/// The requirements of a parameter's value: what its setter must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterNeeds {
    /// The virtual host of this broker to which the component will connect. The setter needs permissions
    /// there.
    pub vhost: String,
    /// The part of the value, if any, that only an administrator may set: the end of the error text "only an
    /// administrator may configure it to …".
    pub of_administrator: Option<&'static str>,
}

/// The full name of a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ParameterName<'a> {
    /// The virtual host; `None` if the parameter is global.
    pub(crate) vhost: Option<&'a str>,
    pub(crate) component: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> ParameterName<'a> {
    const fn of(parameter: &Parameter<&'a str, &'a [u8]>) -> Self {
        Self { vhost: parameter.vhost, component: parameter.component, name: parameter.name }
    }
}

/// What decides whether a parameter may be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setter<'a> {
    pub(crate) role: SetterRole<'a>,
    /// The virtual host to which the component will connect exists, and the user has permissions there.
    pub(crate) may_connect: bool,
}

/// The origin of a request to set a parameter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SetterRole<'a> {
    /// The operator on this machine (`leveret ctl`), who may set everything.
    Operator,
    /// A user with the tag `administrator`.
    Administrator(&'a str),
    /// Another user.
    User(&'a str),
}

#[cfg(test)]
mod tests {
    // Tests of parameters alone: setting, clearing, and parameters without a place.

    use super::*;
    use crate::operator_fault::OperatorFault;
    use leveret_core::batch::Batch;
    use leveret_core::command::VhostId;
    use leveret_storage::{LogEntry, PendingWrites};

    /// The requirements of a component that reserves one value for administrators.
    fn needs_of(parameter: &Parameter<&str, &[u8]>) -> ParameterNeeds {
        let vhost = parameter.vhost.unwrap_or_default().to_string();
        ParameterNeeds { vhost, of_administrator: (parameter.value == b"9").then_some("read files") }
    }

    /// The operator.
    const OPERATOR: Setter<'_> = Setter { role: SetterRole::Operator, may_connect: true };
    /// A user without tags.
    const ANN: Setter<'_> = Setter { role: SetterRole::User("ann"), may_connect: true };

    fn vhost(index: usize) -> VhostId {
        VhostId::from_index(index)
    }

    fn shovel<'a>(name: &'a str, value: &'a str) -> Parameter<&'a str, &'a [u8]> {
        Parameter { vhost: Some("v"), component: SHOVEL, name, value: value.as_bytes() }
    }

    fn global<'a>(name: &'a str, value: &'a str) -> Parameter<&'a str, &'a [u8]> {
        Parameter { vhost: None, component: "", ..shovel(name, value) }
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
            let mut parameters = Parameters::with_capacity(4, &Memory::unlimited(), 7);
            parameters.set_shovel_places(shovels_max, 0);
            Self { parameters, pending_writes }
        }

        fn set(
            &mut self,
            parameter: Parameter<&str, &[u8]>,
            setter: Setter<'_>,
        ) -> Result<Batch, OperatorFault> {
            let needs = parameter.vhost.map(|_| needs_of(&parameter));
            let id = parameter.vhost.map(|_| vhost(0));
            self.parameters.set(&mut self.pending_writes, id, &parameter, needs.as_ref(), &setter)
        }

        fn clear(&mut self, parameter: Parameter<&str, &[u8]>) -> Result<(), OperatorFault> {
            let id = parameter.vhost.map(|_| vhost(0));
            self.parameters.clear(&mut self.pending_writes, id, ParameterName::of(&parameter)).map(drop)
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
            while let Some(fact) = self.pending_writes.next_entry() {
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
        assert!(matches!(world.set(shovel("", "1"), OPERATOR), Err(OperatorFault::BadName("parameter", _))));
        assert_eq!(
            world.set(shovel("s", "9"), ANN),
            invalid("only an administrator may configure it to read files")
        );
        let nowhere = Setter { may_connect: false, ..ANN };
        let why = "user \"ann\" may not connect to vhost \"v\"";
        assert_eq!(world.set(shovel("s", "1"), nowhere), invalid(why));
        let nowhere = Setter { may_connect: false, ..OPERATOR };
        assert_eq!(world.set(shovel("s", "1"), nowhere), invalid("there is no vhost \"v\" in this broker"));
        let long = "1".repeat(PARAMETER_BYTES_MAX + 1);
        assert!(matches!(world.set(global("g", &long), OPERATOR), Err(OperatorFault::Invalid(_))));
        world.pending_writes.set_log_free_bytes(0, 1 << 20, true);
        assert_eq!(world.set(global("g", "1"), OPERATOR), Err(OperatorFault::FileSystemFull));
        world.pending_writes.start(2, false, u64::MAX);
        assert!(matches!(world.set(global("g", "1"), OPERATOR), Err(OperatorFault::Store(_))));
        assert!(world.all().is_empty());
    }

    #[test]
    fn shovels_and_parameters_are_limited_and_existing_ones_can_change() {
        let mut world = ParametersFixture::new(1);
        world.set(shovel("a", "1"), ANN).expect("there is a place");
        assert_eq!(world.set(shovel("b", "1"), ANN), Err(OperatorFault::TooManyShovels));
        for name in ["b", "c", "d"] {
            world.set(global(name, "1"), OPERATOR).expect("global ones are no shovels");
        }
        assert_eq!(
            world.set(global("e", "1"), OPERATOR),
            Err(OperatorFault::NoCapacity("another parameter"))
        );
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
        let may_have = |world: &ParametersFixture, id, name| {
            world.parameters.may_have(id, ParameterName::of(&shovel(name, "")))
        };
        assert!(may_have(&world, Some(vhost(0)), "a") && may_have(&world, Some(vhost(0)), "e"));
        assert!(!may_have(&world, None, "a"), "there is no such virtual host");
        world.clear(shovel("e", "")).unwrap();
        assert_eq!(world.clear(shovel("e", "")), Err(OperatorFault::NoSuchParameter));
        assert_eq!(world.written(), [0, 1]);
        world.clear(shovel("a", "")).unwrap();
        world.set(shovel("f", "2"), OPERATOR).expect("it has a place now");
        world.clear(shovel("f", "")).unwrap();
        assert!(!may_have(&world, Some(vhost(0)), "f"), "it is gone with its place");
        world.parameters.note_unreadable();
        assert!(may_have(&world, None, "f"));
    }

    #[test]
    fn parameters_beyond_the_list_may_have_any_name() {
        let mut world = ParametersFixture::new(8);
        let names: Vec<String> = (0..4 + 64).map(|at| at.to_string()).collect();
        for name in &names {
            drop(world.parameters.restore(None, &global(name, "1")));
        }
        let other = ParameterName::of(&global("other", ""));
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
        world.parameters.clear_all_of_vhost(&mut world.pending_writes, vhost(0), "v");
        assert_eq!((world.all(), world.written()), (vec!["g=1".to_string(), "a=2".to_string()], [0, 1]));
    }

    #[test]
    #[should_panic(expected = "what a virtual host has was checked")]
    fn an_unchecked_value_panics() {
        let ParametersFixture { mut parameters, mut pending_writes } = ParametersFixture::new(8);
        drop(parameters.set(&mut pending_writes, Some(vhost(0)), &shovel("s", "1"), None, &OPERATOR));
    }
}
