//! The types of the OCaml package `nbd`, whose successor this is: each has its like here, under the specification's name.

use std::any::type_name;

use cairn::protocol;

/// What that package calls it, and what it is here.
fn names() -> Vec<(&'static str, &'static str)> {
    vec![
        ("Error", type_name::<protocol::Error>()),
        ("Command", type_name::<protocol::Command>()),
        ("PerExportFlag", type_name::<protocol::TransmissionFlags>()),
        ("GlobalFlag", type_name::<protocol::HandshakeFlags>()),
        ("ClientFlag", type_name::<protocol::ClientFlags>()),
        ("Option", type_name::<protocol::OptionCode>()),
        ("OptionResponse", type_name::<protocol::OptionReply>()),
        ("Announcement", type_name::<protocol::Announcement>()),
        ("Negotiate", type_name::<protocol::Negotiate>()),
        ("NegotiateResponse", type_name::<protocol::NegotiateResponse>()),
        ("OptionRequestHeader", type_name::<protocol::OptionRequestHeader>()),
        ("ExportName", type_name::<protocol::ExportName>()),
        ("DiskInfo", type_name::<protocol::DiskInfo>()),
        ("OptionResponseHeader", type_name::<protocol::OptionReplyHeader>()),
        ("Server", type_name::<protocol::ServerEntry>()),
        ("Request", type_name::<protocol::Request>()),
        ("Reply", type_name::<protocol::Reply>()),
    ]
}

/// Users of that package find their way by the table in the documentation of [`cairn::protocol`].
#[test]
fn the_documentation_says_what_became_of_each_type() {
    let documentation = include_str!("../../src/protocol/mod.rs");
    for (before, now) in names() {
        let now = now.rsplit("::").next().unwrap();
        let row = format!("//! | `{before}` | [`{now}`] |");
        assert!(documentation.lines().any(|line| line == row), "no line {row}");
    }
}

/// The errors of the predecessor, and all that came since.
#[test]
fn every_error_of_the_specification_has_its_name_and_value() {
    use protocol::Error;
    for (error, value) in [
        (Error::Perm, 1),
        (Error::Io, 5),
        (Error::NoMem, 12),
        (Error::Inval, 22),
        (Error::NoSpc, 28),
        (Error::Overflow, 75),
        (Error::NotSup, 95),
        (Error::Shutdown, 108),
        (Error::Unknown(77), 77),
    ] {
        assert_eq!((error.value(), Error::check(value)), (value, Err(error)));
    }
}
