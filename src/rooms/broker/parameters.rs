//! Runtime parameters: what components are told while the broker runs, by their names, and what the whole
//! broker is told.
//!
//! ```text
//! set, clear ──→ Parameters ──→ the log
//!                    └─ version ──→ whoever goes by them looks again when it has changed
//! ```
//!
//! Always true: a value is JSON that its component has found right (whoever owns the component hands in the
//! check) and has a bounded size; nothing here says a value in an error, for it may hold a password; those of
//! a virtual host go with it.

use core::hash::BuildHasher;

use crate::command::{NAME_BYTES_MAX, VhostId};
use crate::journal::{Batch, Definition, Journal, Mode};

use super::Broker;
use super::access::OperatorFault;
use super::definable::check_room;
use super::parameter::{
    LEFT_OUT_MAX, PARAMETER_BYTES_MAX, Parameter, ParameterCheck, ParameterNeeds, ParameterView, SHOVEL,
};
use super::restored::Restored;

type Changed = Result<Batch, OperatorFault>;

impl Broker {
    /// Who says whether a component takes a value, from now on.
    pub fn set_parameter_check(&mut self, check: ParameterCheck) {
        self.parameters.check = check;
    }

    /// There may be so many shovels from now on; those that there are stay.
    pub const fn set_shovel_places(&mut self, shovels_max: usize) {
        self.parameters.shovels_max = shovels_max;
    }

    /// Another number whenever a parameter was set, changed or cleared.
    pub const fn parameters_version(&self) -> u64 {
        self.parameters.version
    }

    /// Places of parameters that were ever used, for who lists them one by one.
    pub const fn parameter_places(&self) -> usize {
        self.parameters.records.places()
    }

    /// The parameter in a place.
    pub fn parameter_at(&self, place: usize) -> Option<ParameterView<'_>> {
        let it = self.parameters.records.get(place)?;
        let vhost = it.vhost.map(|vhost| self.vhost_name(vhost));
        Some(ParameterView { vhost, component: &it.component, name: &it.name, value: &it.value })
    }

    /// The parameters.
    pub fn parameters(&self) -> impl Iterator<Item = ParameterView<'_>> {
        (0..self.parameter_places()).filter_map(|place| self.parameter_at(place))
    }

    /// Makes a parameter, or changes the one of that name. `user`: who says it, if it is not the operator of
    /// this machine; he has to have permissions where the component would connect to.
    ///
    /// # Errors
    /// There is no such virtual host or component, it does not take the value, or there is no room.
    pub fn set_parameter(
        &mut self,
        journal: &mut Journal,
        said: &ParameterView<'_>,
        user: Option<&str>,
    ) -> Changed {
        // As in RabbitMQ, what is said is looked at before where it is said.
        let local = match said.vhost {
            Some(_) => Some((self.parameters.check)(said).map_err(OperatorFault::Invalid)?),
            None => None,
        };
        let vhost = said.vhost.map(|name| self.require_vhost(name)).transpose()?;
        if said.name.is_empty() || said.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("parameter", "have from 1 to 255 bytes"));
        }
        let is_administrator = user.is_none_or(|user| self.is_administrator(user));
        if let Some(ParameterNeeds { vhost: local, of_administrator }) = local {
            if let Some(what) = of_administrator.filter(|_| !is_administrator) {
                return Err(OperatorFault::Invalid(format!("only an administrator may have it {what}")));
            }
            let may = user.is_none_or(|user| self.has_permission(user, &local));
            if !may || self.find_vhost(&local).is_none() {
                // Who may not know whether it is there is told the same of both.
                return Err(OperatorFault::Invalid(match user {
                    Some(user) => format!("user \"{user}\" may not connect to vhost \"{local}\""),
                    None => format!("there is no vhost \"{local}\" in this broker"),
                }));
            }
        }
        if said.value.len() > PARAMETER_BYTES_MAX {
            let why = format!("its value is longer than {PARAMETER_BYTES_MAX} bytes of JSON");
            return Err(OperatorFault::Invalid(why));
        }
        self.check_changeable(journal)?;
        let old = self.parameters.find(vhost, said.component, said.name);
        if old.is_some_and(|old| &*self.parameters.records[old].value == said.value) {
            return Ok(journal.await_facts());
        }
        check_room(journal)?;
        let is_shovel = vhost.is_some() && said.component == SHOVEL;
        if old.is_none() && is_shovel && self.parameters.shovels() >= self.parameters.shovels_max {
            return Err(OperatorFault::NoRoom("bridges_max"));
        }
        if let Some(vhost) = vhost.filter(|_| old.is_none() && !is_administrator) {
            self.check_parameter_share(vhost, is_shovel)?;
        }
        let index = self.put_parameter(vhost, said)?;
        Ok(self.append_parameter(journal, index, true))
    }

    /// Of what all virtual hosts share one may have, by those who are no administrators, as much as it leaves
    /// to others, and one in any case.
    fn check_parameter_share(&self, vhost: VhostId, is_shovel: bool) -> Result<(), OperatorFault> {
        let it = &self.parameters;
        let all = (it.records.len(), it.records.len() + it.records.room(), false, "parameters_max");
        let shovels = is_shovel.then(|| (it.shovels(), it.shovels_max, true, "bridges_max"));
        for (used, max, of_shovels, key) in [Some(all), shovels].into_iter().flatten() {
            let held = it.of_vhost(vhost, of_shovels);
            if self.vhosts().count() > 1 && held > 0 && held + 1 > max.saturating_sub(used + 1) {
                let why = format!("this virtual host has its share of {key}: an administrator can set more");
                return Err(OperatorFault::Invalid(why));
            }
        }
        Ok(())
    }

    /// Whether the log has such a parameter, with a place or without, or may have it.
    pub fn may_have_parameter(&self, vhost: &str, component: &str, name: &str) -> bool {
        let is_here = self
            .find_vhost(vhost)
            .is_some_and(|id| self.parameters.find(Some(id), component, name).is_some());
        is_here
            || self.parameters.is_in_doubt
            || self.parameters.left_out.contains(&self.left_out_hash(Some(vhost), component, name))
    }

    /// At a start: the log may have parameters that nobody can read.
    pub const fn doubt_parameters(&mut self) {
        self.parameters.is_in_doubt = true;
    }

    fn left_out_hash(&self, vhost: Option<&str>, component: &str, name: &str) -> u64 {
        self.left_out.hasher.hash_one((vhost, component, name))
    }

    /// Takes a parameter out of the log for which there is no place.
    fn clear_left_out(
        &mut self,
        journal: &mut Journal,
        (vhost, component, name): (Option<&str>, &str, &str),
    ) -> Changed {
        let hash = self.left_out_hash(vhost, component, name);
        let at = self.parameters.left_out.iter().position(|other| *other == hash);
        let at = at.ok_or(OperatorFault::NoSuchParameter)?;
        self.check_changeable(journal)?;
        self.parameters.left_out.swap_remove(at);
        if journal.mode() == Mode::On {
            journal.define(Definition::Parameter { vhost, component, name, value: &[] }.key(), None);
        }
        Ok(journal.await_facts())
    }

    /// Takes a parameter away.
    ///
    /// # Errors
    /// There is none of that name, or the store cannot be written.
    pub fn clear_parameter(
        &mut self,
        journal: &mut Journal,
        vhost: Option<&str>,
        component: &str,
        name: &str,
    ) -> Changed {
        let said = (vhost, component, name);
        let vhost = match vhost {
            Some(vhost) => Some(self.find_vhost(vhost).ok_or(OperatorFault::NoSuchParameter)?),
            None => None,
        };
        let Some(index) = self.parameters.find(vhost, component, name) else {
            return self.clear_left_out(journal, said);
        };
        self.check_changeable(journal)?;
        self.drop_parameter(journal, index);
        Ok(journal.await_facts())
    }

    /// The virtual host is deleted, and all its parameters with it.
    pub(super) fn drop_parameters_of(&mut self, journal: &mut Journal, vhost: VhostId) {
        for index in 0..self.parameters.records.places() {
            if self.parameters.records.get(index).is_some_and(|it| it.vhost == Some(vhost)) {
                self.drop_parameter(journal, index);
            }
        }
    }

    fn drop_parameter(&mut self, journal: &mut Journal, index: usize) {
        self.append_parameter(journal, index, false);
        self.parameters.records.remove(index);
        self.parameters.version += 1;
    }

    fn put_parameter(
        &mut self,
        vhost: Option<VhostId>,
        said: &ParameterView<'_>,
    ) -> Result<usize, OperatorFault> {
        self.parameters.version += 1;
        let (component, name, value) = (said.component.into(), said.name.into(), said.value.into());
        if let Some(old) = self.parameters.find(vhost, said.component, said.name) {
            self.parameters.records[old].value = value;
            return Ok(old);
        }
        let parameter = Parameter { vhost, component, name, value };
        let index =
            self.parameters.records.insert(parameter).map_err(|_| OperatorFault::NoRoom("parameters_max"))?;
        let hash = self.left_out_hash(said.vhost, said.component, said.name);
        self.parameters.left_out.retain(|other| *other != hash);
        Ok(index)
    }

    fn append_parameter(&self, journal: &mut Journal, index: usize, exists: bool) -> Batch {
        if journal.mode() != Mode::On {
            return Batch::NONE;
        }
        let Some(ParameterView { vhost, component, name, value }) = self.parameter_at(index) else {
            unreachable!("what is appended was found a moment ago");
        };
        let definition = Definition::Parameter { vhost, component, name, value };
        journal.define(definition.key(), exists.then(|| definition.value()))
    }

    pub(super) fn restore_parameter(&mut self, said: &ParameterView<'_>) -> Restored {
        let vhost = match said.vhost {
            Some(vhost) => match self.find_vhost(vhost) {
                Some(vhost) => Some(vhost),
                None => return self.orphaned(),
            },
            None => None,
        };
        match self.put_parameter(vhost, said) {
            Ok(_) => Restored::Exists(None),
            Err(_) => {
                if self.parameters.left_out.len() < LEFT_OUT_MAX {
                    let hash = self.left_out_hash(said.vhost, said.component, said.name);
                    self.parameters.left_out.push(hash);
                } else {
                    self.doubt_parameters();
                }
                Restored::NoRoom
            }
        }
    }
}
