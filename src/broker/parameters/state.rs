//! All parameters: set, cleared and restored.
//!
//! Always true: a change is written down before anybody is told of it; whatever changes raises the version.

use super::records::Parameter;
use super::unplaced::Unplaced;
use super::views::{
    PARAMETER_BYTES_MAX, ParameterCheck, ParameterName, ParameterNeeds, ParameterView, SHOVEL, Setter,
};
use crate::access::OperatorFault;
use crate::faults::{check_changeable, check_room};
use leveret_core::command::{NAME_BYTES_MAX, VhostId};
use leveret_core::journal::{Batch, Definition, Journal, Mode};
use leveret_core::mem::Slab;

type Changed = Result<Batch, OperatorFault>;

/// All parameters.
pub(crate) struct Parameters {
    records: Slab<Parameter>,
    /// Rises with each change of a parameter.
    version: u64,
    check: ParameterCheck,
    /// How many shovels there may be.
    shovels_max: usize,
    unplaced: Unplaced,
}

/// The check of a broker whose loop knows no components: it refuses every value.
fn check_none(said: &ParameterView<'_>) -> Result<ParameterNeeds, String> {
    Err(format!("component {} not found", said.component))
}

impl Parameters {
    /// Bytes of memory that a parameter takes with the longest names and value, each a piece of its own.
    pub(crate) const PARAMETER_BYTES: usize =
        Slab::<Parameter>::record_bytes() + PARAMETER_BYTES_MAX + 2 * 256 + 3 * 16;

    pub(crate) fn with_capacity(parameters: usize, seed: u64) -> Self {
        Self {
            records: Slab::with_capacity(parameters),
            version: 0,
            check: check_none,
            shovels_max: 0,
            unplaced: Unplaced::new(seed),
        }
    }

    /// Sets the check of whether a component takes a value.
    pub(crate) fn set_check(&mut self, check: ParameterCheck) {
        self.check = check;
    }

    /// Sets how many shovels there may be; shovels that exist stay.
    pub(crate) const fn set_shovel_places(&mut self, shovels_max: usize) {
        self.shovels_max = shovels_max;
    }

    // ---- what changes

    /// What a value of a component needs; `None` for a global parameter.
    ///
    /// # Errors
    /// The component does not take the value.
    pub(crate) fn needs(&self, said: &ParameterView<'_>) -> Result<Option<ParameterNeeds>, OperatorFault> {
        let needs = said.vhost.map(|_| (self.check)(said)).transpose();
        needs.map_err(OperatorFault::Invalid)
    }

    /// Makes a parameter, or changes the one of that name; `setter` is who sets it, [`Self::needs`] has told
    /// what the value needs.
    ///
    /// # Errors
    /// The setter may not set it, or there is no room.
    pub(crate) fn set(
        &mut self,
        journal: &mut Journal,
        vhost: Option<VhostId>,
        said: &ParameterView<'_>,
        needs: Option<&ParameterNeeds>,
        setter: &Setter<'_>,
    ) -> Changed {
        assert_eq!(needs.is_some(), vhost.is_some(), "what a virtual host has was checked");
        if said.name.is_empty() || said.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("parameter", "have from 1 to 255 bytes"));
        }
        if let Some(needs) = needs {
            setter.check(needs)?;
        }
        if said.value.len() > PARAMETER_BYTES_MAX {
            let why = format!("its value is longer than {PARAMETER_BYTES_MAX} bytes of JSON");
            return Err(OperatorFault::Invalid(why));
        }
        check_changeable(journal)?;
        let old = self.find(vhost, said.full_name());
        if old.is_some_and(|old| &*self.records[old].value == said.value) {
            return Ok(journal.await_facts());
        }
        check_room(journal)?;
        let is_shovel = vhost.is_some() && said.component == SHOVEL;
        if old.is_none() && is_shovel && self.count(Parameter::is_shovel) >= self.shovels_max {
            return Err(OperatorFault::NoRoom("bridges_max"));
        }
        self.put(vhost, said)?;
        Ok(append(journal, said, true))
    }

    /// At a start: puts a parameter back from the log.
    ///
    /// # Errors
    /// There is no place for the parameter; it can be cleared nonetheless.
    pub(crate) fn restore(
        &mut self,
        vhost: Option<VhostId>,
        said: &ParameterView<'_>,
    ) -> Result<(), OperatorFault> {
        self.put(vhost, said).inspect_err(|_| self.unplaced.add(said.full_name()))
    }

    fn put(&mut self, vhost: Option<VhostId>, said: &ParameterView<'_>) -> Result<(), OperatorFault> {
        assert_eq!(vhost.is_some(), said.vhost.is_some(), "a virtual host has a name");
        self.version += 1;
        let value = said.value.into();
        if let Some(old) = self.find(vhost, said.full_name()) {
            self.records[old].value = value;
            return Ok(());
        }
        let parameter = Parameter { vhost, component: said.component.into(), name: said.name.into(), value };
        self.records.insert(parameter).map_err(|_| OperatorFault::NoRoom("parameters_max"))?;
        self.unplaced.remove(said.full_name());
        Ok(())
    }

    /// Clears a parameter, also one that only the log has.
    ///
    /// # Errors
    /// There is no parameter of that name, or the store cannot be written.
    pub(crate) fn clear(
        &mut self,
        journal: &mut Journal,
        vhost: Option<VhostId>,
        name: ParameterName<'_>,
    ) -> Changed {
        assert_eq!(vhost.is_some(), name.vhost.is_some(), "a virtual host has a name");
        let found = self.find(vhost, name);
        if found.is_none() && !self.unplaced.has(name) {
            return Err(OperatorFault::NoSuchParameter);
        }
        check_changeable(journal)?;
        match found {
            Some(index) => self.drop_at(journal, index, name.vhost),
            None => {
                self.unplaced.remove(name);
                let ParameterName { vhost, component, name } = name;
                append(journal, &ParameterView { vhost, component, name, value: &[] }, false);
            }
        }
        Ok(journal.await_facts())
    }

    /// Clears all parameters of a virtual host that is deleted.
    pub(crate) fn drop_of_vhost(&mut self, journal: &mut Journal, vhost: VhostId, vhost_name: &str) {
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|it| it.vhost == Some(vhost)) {
                self.drop_at(journal, index, Some(vhost_name));
            }
        }
    }

    fn drop_at(&mut self, journal: &mut Journal, index: usize, vhost_name: Option<&str>) {
        append(journal, &self.records.remove(index).view(vhost_name), false);
        self.version += 1;
    }

    /// Notes that the log may have parameters that cannot be read.
    pub(crate) const fn doubt(&mut self) {
        self.unplaced.doubt();
    }

    // ---- all parameters

    fn find(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> Option<usize> {
        self.records.iter().find(|(_, parameter)| parameter.is(vhost, name)).map(|(index, _)| index)
    }

    fn count(&self, is_counted: impl Fn(&Parameter) -> bool) -> usize {
        self.records.iter().filter(|(_, parameter)| is_counted(parameter)).count()
    }

    /// Whether the log has a parameter of a virtual host, or may have it, even without a place in memory.
    /// `vhost` is the virtual host of that name, if there is one.
    pub(crate) fn may_have(&self, vhost: Option<VhostId>, name: ParameterName<'_>) -> bool {
        vhost.is_some_and(|vhost| self.find(Some(vhost), name).is_some()) || self.unplaced.may_have(name)
    }

    /// A number that changes whenever a parameter is set, changed or cleared.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    /// Parameters that have a place.
    pub(crate) const fn len(&self) -> usize {
        self.records.len()
    }

    /// The most parameters there may be.
    pub(crate) const fn most(&self) -> usize {
        self.records.len() + self.records.room()
    }

    /// Places of parameters ever used.
    pub(crate) const fn places(&self) -> usize {
        self.records.places()
    }

    /// The parameter in a place; `name_of` tells the name of its virtual host.
    pub(crate) fn at<'a>(
        &'a self,
        place: usize,
        name_of: impl Fn(VhostId) -> &'a str,
    ) -> Option<ParameterView<'a>> {
        let parameter = self.records.get(place)?;
        Some(parameter.view(parameter.vhost.map(name_of)))
    }
}

impl Setter<'_> {
    /// Whether the setter of a parameter may have what its value needs.
    fn check(&self, needs: &ParameterNeeds) -> Result<(), OperatorFault> {
        if let Some(what) = needs.of_administrator.filter(|_| !self.is_administrator) {
            return Err(OperatorFault::Invalid(format!("only an administrator may have it {what}")));
        }
        if self.may_connect {
            return Ok(());
        }
        // A user without permissions is told the same whether the virtual host exists or not.
        let vhost = &needs.vhost;
        Err(OperatorFault::Invalid(match self.user {
            Some(user) => format!("user \"{user}\" may not connect to vhost \"{vhost}\""),
            None => format!("there is no vhost \"{vhost}\" in this broker"),
        }))
    }
}

/// Writes down that a parameter exists, or is gone.
fn append(journal: &mut Journal, view: &ParameterView<'_>, exists: bool) -> Batch {
    if journal.mode() != Mode::On {
        return Batch::NONE;
    }
    let ParameterView { vhost, component, name, value } = *view;
    let definition = Definition::Parameter { vhost, component, name, value };
    journal.define(definition.key(), exists.then(|| definition.value()))
}
