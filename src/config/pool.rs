//! `JOB_POOL`.

use super::{Config, JobConfig, Reader, to_name};
use crate::contract::Topics;
use crate::host_name;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

/// Where the pools of a drive are, below `JOB_ROOT`.
pub const POOLS: &str = ".job-worker";

/// A pool: any number of workers that serve one queue.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// MQTT client id of the session that is the queue.
    pub name: String,
    /// `JOB_ROOT`, which holds the pool's directory.
    pub root: PathBuf,
}

impl Config {
    /// Makes the default name of a member one that no other member on this host has: processes and containers with the host's
    /// network have the host's name, too. The name is ours as long as the socket is there: the kernel gives an address to one
    /// process, and takes it back from a dead one. `supervise` has it for all its workers. docs/reference.md, "Configuration", `WORKER_ID`.
    pub fn take_name(&mut self) -> Option<UnixDatagram> {
        self.pool.as_ref()?;
        let is_given = self.worker_id != host_name();
        for number in 1.. {
            let name = match number {
                1 => self.worker_id.clone(),
                _ => format!("{}-{number}", host_name()),
            };
            let topics = Topics::new(self.topics.root(), &name);
            let (broker, topic) = (&self.broker, &topics.presence);
            let address = format!("job-worker {} {topic}", broker.hosts[0]);
            match SocketAddr::from_abstract_name(address)
                .and_then(|address| UnixDatagram::bind_addr(&address))
            {
                Ok(socket) => {
                    (self.worker_id, self.topics) = (name, topics);
                    return Some(socket);
                }
                Err(error) if error.kind() != ErrorKind::AddrInUse => break, // too long an address
                Err(_) if is_given => {
                    log::warn!(
                        "another member on this host has the name {name:?}: give each its own WORKER_ID"
                    );
                    break;
                }
                Err(_) => {}
            }
        }
        None
    }
}

impl Reader<'_> {
    pub(super) fn pool(&mut self, job: &JobConfig) -> Option<PoolConfig> {
        // no file system takes a longer one
        let is_directory_name = |name: &String| !matches!(&**name, "." | "..") && name.len() <= 255;
        let name = self.value("JOB_POOL", |name| to_name(name).filter(is_directory_name))?;
        if self.is_unset("JOB_ROOT") {
            let error =
                "JOB_POOL is set without JOB_ROOT: set it to the directory that all members share";
            self.errors.push(error.to_owned());
        }
        // the kernel's own name of the directory, as that of a workDir is
        let root = job.root.as_ref()?;
        let root = root.canonicalize().unwrap_or(root.clone());
        Some(PoolConfig { name, root })
    }
}
