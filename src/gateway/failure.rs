//! How an error of a volume appears to clients and in logs.
//!
//! Owns the choice of error values, and must not know which export an error came from. Invariant: one
//! exhaustive match converts every error of a volume into an error value.

use crate::protocol::Error;
use crate::server::{ExportError, OpenError};
use crate::volume;

/// Formats an error and its causes. Each text appears once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Converts the error of opening a volume for a client.
pub(super) fn open_error(name: &str, error: &volume::OpenError) -> OpenError {
    use volume::OpenError as Why;
    match error {
        // A client need not learn the other name of a volume.
        Why::NoSuchVolume(_) | Why::Renamed { .. } | Why::NoSuchSnapshot(_) | Why::BadName(_) => {
            OpenError::Unknown(name.to_owned())
        }
        Why::Held { .. } | Why::Lost(_) | Why::Unclear { .. } | Why::LeaseOver | Why::Deleting => {
            OpenError::Refused(chain(error))
        }
        Why::Exists(_)
        | Why::HasClones { .. }
        | Why::MayHaveClones { .. }
        | Why::NoSuchId(_)
        | Why::NotDeleted(_)
        | Why::Ambiguous { .. }
        | Why::Taken(_)
        | Why::Unkeepable { .. }
        | Why::Contended(_)
        | Why::Incomplete { .. }
        | Why::SizeDiffers { .. }
        | Why::Damaged { .. }
        | Why::BrokenJournal { .. }
        | Why::Geometry(_)
        | Why::Store(_) => OpenError::Failed(chain(error)),
    }
}

/// Converts the error of a command for a client. `beyond` is the error value for a range that ends beyond the
/// volume; it depends on the kind of command.
pub(super) fn command_error(error: &volume::Error, beyond: Error) -> ExportError {
    use volume::Error as Why;
    let value = match error {
        Why::OutOfRange { .. } => beyond,
        Why::Stopped(_) => Error::Shutdown,
        Why::Damaged { .. }
        | Why::Lost { .. }
        | Why::TableFull { .. }
        | Why::NameTaken { .. }
        | Why::Deadline { .. }
        | Why::Store(_) => Error::Io,
    };
    ExportError::new(value, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::error::Error as Why;

    #[test]
    fn each_failure_has_its_error_value() {
        let stored = crate::store::Error::NotFound { key: "volume/x/head".to_owned() };
        for (error, value) in [
            (Why::OutOfRange { offset: 1, length: 1, size: 1 }, Error::NoSpc),
            (Why::Stopped("fenced".to_owned()), Error::Shutdown),
            (Why::Damaged { key: "k".to_owned(), why: "checksum".to_owned(), at: None }, Error::Io),
            (Why::Lost { key: "k".to_owned(), at: Some(1) }, Error::Io),
            (Why::TableFull { key: "k".to_owned() }, Error::Io),
            (Why::NameTaken { key: "k".to_owned() }, Error::Io),
            (Why::Deadline { after_ms: 1 }, Error::Io),
            (Why::Store(stored), Error::Io),
        ] {
            let failure = command_error(&error, Error::NoSpc);
            assert_eq!(failure.error, value, "{failure}");
            assert_eq!(failure.message, error.to_string());
        }
        let beyond = Why::OutOfRange { offset: 1, length: 1, size: 1 };
        assert_eq!(command_error(&beyond, Error::Inval).error, Error::Inval);
    }
}
