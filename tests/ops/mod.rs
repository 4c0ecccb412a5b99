//! What operators use: the admin server, and the files under `deploy` and `helm`.

mod admin;
mod browser;
mod changes;
mod client;
mod crowd;
mod hostile;
mod house;
mod memory;
mod queries;
mod undelete;
