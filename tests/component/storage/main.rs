//! The store alone: on the simulated disk, and on real files where necessary.

mod access;
mod bodies;
mod bytes;
mod carried;
mod changed_files;
mod claims;
mod clean;
mod damage;
mod defined;
mod far;
mod fetch;
mod files;
mod fill;
mod format;
mod full;
mod group;
mod meanwhile;
mod newest;
mod refused;
mod room;
mod sample;
mod sim;
mod small;

mod weight;
