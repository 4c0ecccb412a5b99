//! The cells of the matrix: which file system, which workload, and where.

use std::fmt;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

/// What runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Postgres,
    Sqlite,
    Fio,
    Fsx,
}

/// Where it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine, by nbdfuse and a loop device.
    Host,
    /// In a virtual machine, by QEMU's NBD driver and virtio.
    Guest,
}

/// One of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) file_system: FileSystem,
    pub(crate) workload: Workload,
    pub(crate) place: Place,
}

/// Workloads and where each runs.
const WORK: [(Workload, Place); 8] = [
    (Workload::Sqlite, Place::Guest),
    (Workload::Postgres, Place::Host),
    (Workload::Fsx, Place::Guest),
    (Workload::Sqlite, Place::Host),
    (Workload::Fio, Place::Guest),
    (Workload::Fsx, Place::Host),
    (Workload::Postgres, Place::Guest),
    (Workload::Fio, Place::Host),
];

impl Cell {
    /// All cells, in the order in which they take their turns.
    pub(crate) fn all() -> Vec<Self> {
        let file_systems = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
        let cells = (0..file_systems.len() * WORK.len()).map(|number| {
            let (workload, place) = WORK[number % WORK.len()];
            // Coprime counts: each pair comes once.
            Self { file_system: file_systems[number % file_systems.len()], workload, place }
        });
        cells.collect()
    }

    /// The cells that a text asks for: names with commas between, or `all`.
    pub(crate) fn asked(text: &str) -> Vec<Self> {
        if text == "all" {
            return Self::all();
        }
        let named = |name: &str| {
            let cell = Self::all().into_iter().find(|cell| cell.to_string() == name);
            cell.unwrap_or_else(|| panic!("there is no cell {name}"))
        };
        text.split(',').map(named).collect()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}-{:?}-{:?}", self.file_system, self.workload, self.place);
        f.write_str(&name.to_lowercase())
    }
}

impl FileSystem {
    /// As `mount` knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The command that makes one on an image.
    pub(crate) fn maker(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["/sbin/mkfs.ext4", "-q", "-F"],
            Self::Xfs => &["/sbin/mkfs.xfs", "-q"],
            Self::Btrfs => &["/sbin/mkfs.btrfs", "-q"],
        }
    }
}

impl Workload {
    /// The scripts that run it and that check what it left.
    pub(crate) fn scripts(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Postgres => (&["postgres.sh"], &["postgres-check.sh"]),
            Self::Sqlite => (&["sqlite.sh"], &["sqlite-check.sh"]),
            Self::Fio => (&["fio-job.sh", "fio.sh"], &["fio-job.sh", "fio-check.sh"]),
            Self::Fsx => (&["fsx.sh"], &["fsx-check.sh"]),
        }
    }

    /// The scripts that put on a new file system what it starts from.
    pub(crate) fn makers(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["postgres-make.sh"],
            Self::Sqlite | Self::Fio | Self::Fsx => &[],
        }
    }

    /// Answers after which the power is cut at the earliest and the latest.
    pub(crate) fn answers(self, place: Place) -> std::ops::Range<usize> {
        match (self, place) {
            (Self::Postgres, Place::Host) => 50..500,
            (Self::Postgres, Place::Guest) => 20..200,
            (Self::Sqlite, _) => 20..150,
            (Self::Fsx, Place::Host) => 30..400,
            (Self::Fsx, Place::Guest) => 20..200,
            (Self::Fio, Place::Host) => 4..20,
            (Self::Fio, Place::Guest) => 3..8,
        }
    }

    /// Programs and files that it needs in a guest.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &[
                "/usr/lib/postgresql/15/bin/postgres",
                "/usr/lib/postgresql/15/bin/pg_ctl",
                "pgbench=/usr/lib/postgresql/15/bin/pgbench",
                "/usr/lib/postgresql/15/lib/plpgsql.so",
                "/usr/share/postgresql/15/timezonesets",
                "/usr/bin/setpriv",
                "/etc/passwd",
                "/etc/group",
            ],
            Self::Sqlite => &["sqlite3=/usr/bin/sqlite3"],
            Self::Fio => &["fio=/usr/bin/fio"],
            Self::Fsx => &[],
        }
    }
}

#[test]
fn every_cell_comes_once() {
    let mut names: Vec<String> = Cell::all().iter().map(Cell::to_string).collect();
    assert_eq!(names.len(), 24);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 24);
    assert_eq!(Cell::asked("all"), Cell::all());
    assert_eq!(Cell::asked(&names[3])[0].to_string(), names[3]);
}
