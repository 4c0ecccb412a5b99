//! The handshake machines, driven by any bytes.

use bytes::BytesMut;
use cairn::protocol::negotiate_server::*;
use cairn::protocol::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::wire::{info_request, meta_context, option};

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
