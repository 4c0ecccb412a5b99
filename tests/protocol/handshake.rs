//! The handshake machines, driven by any bytes.

use bytes::BytesMut;
use cairn::protocol::negotiate_client::{
    ClientAction, ClientHandshake, ClientTls, Goal, HandshakeError, Outcome, Wishes,
};
use cairn::protocol::negotiate_server::*;
use cairn::protocol::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::wire::{info_request, meta_context, option};

/// The names of contexts beyond `base:allocation`: `qemu:dirty-bitmap:0` and so on.
fn bitmaps(count: usize) -> Vec<WireString> {
    (0..count).map(|n| WireString::try_from(format!("qemu:dirty-bitmap:{n}")).unwrap()).collect()
}

/// All that a server says to these bytes, given in pieces; with the outcome.
fn server_says(tls: TlsPolicy, pieces: &[&[u8]]) -> (Vec<u8>, String) {
    let mut machine = ServerHandshake::new(HandshakePolicy { tls, maximum_option_bytes: 1024 });
    let (mut input, mut said) = (BytesMut::new(), Vec::new());
    let mut pieces = pieces.iter();
    let export = || ExportInfo {
        name: WireString::try_from("disk").unwrap(),
        description: WireString::default(),
        disk: DiskInfo { size_bytes: 1 << 20, flags: TransmissionFlags::all() },
        block_size: BlockSize::DEFAULT,
    };
    let named = |name: &str| match name {
        "" | "disk" => Ok(export()),
        _ => Err(Refusal::new(OptionError::Unknown, "none")),
    };
    loop {
        let action = machine.poll(&mut input);
        said.extend(machine.take_output());
        match action {
            ServerAction::NeedInput => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return (said, "waits".to_owned()),
            },
            ServerAction::List(ticket) => machine.handle_list(ticket, Ok(Vec::new())),
            ServerAction::Describe(ticket) => {
                let export = named(ticket.name());
                machine.handle_description(ticket, export);
            }
            ServerAction::Contexts(ticket) => {
                let offered = named(ticket.name()).map(|_| bitmaps(2));
                machine.handle_contexts(ticket, offered);
            }
            ServerAction::Open(ticket) => {
                let export = named(ticket.name());
                machine.handle_opened(ticket, export);
            }
            ServerAction::StartTls(ticket) => machine.handle_tls_started(ticket),
            ServerAction::Transmit(session) => return (said, format!("{session:?}")),
            ServerAction::Close(reason) => return (said, reason.to_string()),
        }
    }
}

/// Options as clients send them, and worse.
fn haggling() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(info_request("disk", &[1, 3])),
        Just(info_request("other", &[])),
        Just(meta_context("disk", &["base:allocation"])),
        Just(meta_context("disk", &["qemu:dirty-bitmap:1", "qemu:", "base:allocation"])),
        Just(meta_context("disk", &[])),
        vec(any::<u8>(), 0..64),
        vec(Just(0), 1000..1100),
    ];
    let one = (0_u32..13, data).prop_map(|(code, data)| option(code, &data));
    (any::<bool>(), vec(one, 0..8)).prop_map(|(fixed, options)| {
        let flags: [u8; 4] = if fixed { [0, 0, 0, 3] } else { [0, 0, 0, 0] };
        [&flags[..], &options.concat()].concat()
    })
}

fn tls() -> impl Strategy<Value = TlsPolicy> {
    prop_oneof![Just(TlsPolicy::Off), Just(TlsPolicy::Required)]
}

proptest! {
    #[test]
    fn a_server_survives_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        server_says(TlsPolicy::Allowed, &[&bytes]);
    }

    /// STARTTLS is left out: what comes with it in one piece is forgotten, which is its purpose.
    #[test]
    fn it_does_not_matter_how_bytes_are_cut_into_pieces(
        bytes in haggling(), cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(server_says(TlsPolicy::Off, &pieces), server_says(TlsPolicy::Off, &[&bytes]));
    }

    /// Every option that is read to its end is answered, and the answers are well-formed.
    #[test]
    fn every_option_is_answered_in_step(bytes in haggling(), tls in tls()) {
        let (said, _) = server_says(tls, &[&bytes]);
        let mut rest = &said[18..];
        while rest.len() >= OptionReplyHeader::LENGTH && rest.starts_with(b"\x00\x03\xe8\x89") {
            let header = OptionReplyHeader::decode(&rest[..OptionReplyHeader::LENGTH]).unwrap();
            let end = OptionReplyHeader::LENGTH + usize::try_from(header.length).unwrap();
            prop_assert!(rest.len() >= end);
            rest = &rest[end..];
        }
        // What may be left is the answer to EXPORT_NAME.
        prop_assert!(matches!(rest.len(), 0 | 10 | 134), "{} bytes are left", rest.len());
    }
}

/// What a client comes to that is told these bytes, and then the end.
fn client_hears(wishes: Wishes, bytes: &[u8]) -> Result<Outcome, HandshakeError> {
    let mut machine = ClientHandshake::new(wishes);
    let mut input = BytesMut::from(bytes);
    loop {
        match machine.poll(&mut input) {
            ClientAction::NeedInput => return Err(machine.handle_closed()),
            ClientAction::StartTls(ticket) => machine.handle_tls_started(ticket),
            ClientAction::Finish(outcome) => return Ok(outcome),
            ClientAction::Fail(error) => return Err(error),
        }
    }
}

/// What a client and a server come to.
fn converse(wishes: Wishes, policy: HandshakePolicy) -> (Result<Outcome, HandshakeError>, Option<Session>) {
    let (mut client, mut server) = (ClientHandshake::new(wishes), ServerHandshake::new(policy));
    let (mut to_client, mut to_server) = (BytesMut::new(), BytesMut::new());
    let (mut session, mut tls) = (None, None);
    let export = |name: &str| match name {
        "" | "disk" => Ok(ExportInfo {
            name: WireString::try_from("disk").unwrap(),
            description: WireString::try_from("a disk").unwrap(),
            disk: DiskInfo { size_bytes: 1 << 20, flags: TransmissionFlags::SEND_FLUSH },
            block_size: BlockSize { minimum: 1, preferred: 4096, maximum: 1 << 25 },
        }),
        _ => Err(Refusal::new(OptionError::Unknown, "none")),
    };
    loop {
        let action = if session.is_none() { Some(server.poll(&mut to_server)) } else { None };
        to_client.extend(server.take_output());
        match action {
            None | Some(ServerAction::NeedInput | ServerAction::Close(_)) => {}
            Some(ServerAction::List(ticket)) => {
                let entry =
                    ServerEntry { name: WireString::truncated("disk"), description: WireString::default() };
                server.handle_list(ticket, Ok(vec![entry]));
                continue;
            }
            Some(ServerAction::Describe(ticket)) => {
                let export = export(ticket.name());
                server.handle_description(ticket, export);
                continue;
            }
            Some(ServerAction::Contexts(ticket)) => {
                let offered = export(ticket.name()).map(|_| bitmaps(40));
                server.handle_contexts(ticket, offered);
                continue;
            }
            Some(ServerAction::Open(ticket)) => {
                let export = export(ticket.name());
                server.handle_opened(ticket, export);
                continue;
            }
            Some(ServerAction::StartTls(ticket)) => tls = Some(ticket),
            Some(ServerAction::Transmit(reached)) => {
                session = Some(reached);
                continue;
            }
        }
        let action = client.poll(&mut to_client);
        to_server.extend(client.take_output());
        match action {
            ClientAction::NeedInput => assert!(!to_server.is_empty(), "both wait"),
            ClientAction::StartTls(ticket) => {
                client.handle_tls_started(ticket);
                to_server.extend(client.take_output());
                server.handle_tls_started(tls.take().expect("the server starts TLS too"));
            }
            ClientAction::Finish(outcome) => return (Ok(outcome), session),
            ClientAction::Fail(error) => return (Err(error), session),
        }
    }
}

#[test]
fn client_and_server_come_to_the_same_session() {
    for structured_replies in [false, true] {
        for extended_headers in [false, true] {
            for tls in [TlsPolicy::Off, TlsPolicy::Allowed, TlsPolicy::Required] {
                let (one, two) = ("base:allocation", "qemu:dirty-bitmap:7");
                for (queries, expected) in [
                    (&[][..], &[][..]),
                    (&[one][..], &[(1_u32, one)][..]),
                    (&["base:", "x-other:thing", "qemu:"][..], &[][..]),
                    (&[two, "qemu:dirty-bitmap:40", one][..], &[(1, one), (2, two)][..]),
                    (&[two][..], &[(1, two)][..]),
                ] {
                    let query = |text: &&str| WireString::try_from(*text).unwrap();
                    let wishes = Wishes {
                        tls: ClientTls::Opportunistic,
                        structured_replies,
                        extended_headers,
                        contexts: queries.iter().map(query).collect(),
                        ..Wishes::new(Goal::Go(WireString::default()))
                    };
                    let policy = HandshakePolicy { tls, maximum_option_bytes: 1024 };
                    let (outcome, session) = converse(wishes, policy);
                    let (Ok(Outcome::Transmit(client)), Some(server)) = (outcome, session) else {
                        panic!("no session for {queries:?} with {tls:?}");
                    };
                    assert_eq!(client.export, server.export);
                    assert_eq!(client.headers, server.headers);
                    assert_eq!(client.contexts, server.contexts);
                    let expected = if server.headers > HeaderStyle::Simple { expected } else { &[] };
                    let names: Vec<(u32, &str)> =
                        server.contexts.iter().map(|context| (context.id, context.name.as_str())).collect();
                    assert_eq!(names, expected);
                }
            }
        }
    }
}

/// Contexts are selected up to the limit; with one more, none are.
#[test]
fn a_client_may_select_a_limited_number_of_contexts() {
    let policy = HandshakePolicy { tls: TlsPolicy::Off, maximum_option_bytes: 1024 };
    let most = meta_context::MAXIMUM_SELECTED;
    for (asked, selected) in [(most, most), (most + 1, 0)] {
        let mut wishes = Wishes::new(Goal::Go(WireString::default()));
        wishes.contexts = bitmaps(asked);
        let (outcome, session) = converse(wishes, policy);
        let (Ok(Outcome::Transmit(client)), Some(server)) = (outcome, session) else { panic!("no session") };
        assert_eq!((client.contexts.len(), server.contexts.len()), (selected, selected));
    }
}

#[test]
fn a_client_without_tls_is_told_that_it_is_required() {
    let policy = HandshakePolicy { tls: TlsPolicy::Required, maximum_option_bytes: 1024 };
    for goal in [Goal::List, Goal::Info(WireString::default()), Goal::Go(WireString::default())] {
        match converse(Wishes::new(goal), policy).0 {
            Err(HandshakeError::Refused { refusal, .. }) => assert_eq!(refusal.error, OptionError::TlsReqd),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn lists_and_descriptions_end_the_session() {
    let policy = HandshakePolicy { tls: TlsPolicy::Off, maximum_option_bytes: 1024 };
    let (listed, session) = converse(Wishes::new(Goal::List), policy);
    assert!(matches!(listed, Ok(Outcome::Listed(entries)) if entries.len() == 1));
    assert_eq!(session, None);
    let mut wishes = Wishes::new(Goal::Info(WireString::try_from("disk").unwrap()));
    wishes.contexts = vec![WireString::try_from("base:").unwrap()];
    let (described, session) = converse(wishes, policy);
    let Ok(Outcome::Described(export, contexts)) = described else { panic!("{described:?}") };
    assert_eq!((export.description.as_str(), contexts[0].name.as_str()), ("a disk", "base:allocation"));
    assert_eq!(session, None);
}

proptest! {
    #[test]
    fn a_client_survives_any_bytes(
        replies in vec((0_u32..12, prop_oneof![1_u32..6, 0x8000_0000_u32..0x8000_000b], vec(any::<u8>(), 0..40)), 0..8),
        garbage in vec(any::<u8>(), 0..200), fixed: bool,
    ) {
        let flags = if fixed { b"\x00\x03" } else { b"\x00\x00" };
        let mut bytes = [&b"NBDMAGICIHAVEOPT"[..], flags].concat();
        for (option, reply, data) in replies {
            bytes.extend(b"\x00\x03\xe8\x89\x04\x55\x65\xa9");
            bytes.extend(option.to_be_bytes());
            bytes.extend(reply.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        bytes.extend(&garbage);
        for goal in [Goal::List, Goal::Info(WireString::default()), Goal::Go(WireString::default())] {
            let wishes = Wishes { tls: ClientTls::Opportunistic, ..Wishes::new(goal) };
            drop(client_hears(wishes.clone(), &bytes));
            drop(client_hears(wishes, &garbage));
        }
    }
}
