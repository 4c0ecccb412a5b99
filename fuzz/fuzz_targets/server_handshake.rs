//! A server survives any bytes of a client, and says the same however they are cut into pieces.
//!
//! The first byte of the input chooses the length of the pieces; the rest is what the client sends.
#![no_main]

use bytes::BytesMut;
use cairn::protocol::negotiate_server::{HandshakePolicy, ServerAction, ServerHandshake, TlsPolicy};
use cairn::protocol::{BlockSize, DiskInfo, ExportInfo, OptionError, Refusal, TransmissionFlags, WireString};
use libfuzzer_sys::fuzz_target;

fn export(name: &str) -> Result<ExportInfo, Refusal> {
    if !matches!(name, "" | "disk") {
        return Err(Refusal::new(OptionError::Unknown, "there is none"));
    }
    Ok(ExportInfo {
        name: WireString::try_from("disk").expect("a short name"),
        description: WireString::default(),
        disk: DiskInfo { size_bytes: 1 << 20, flags: TransmissionFlags::all() },
        block_size: BlockSize::DEFAULT,
    })
}

/// All that the server says, and how it ends.
fn conversation(sent: &[u8], piece: usize) -> (Vec<u8>, String) {
    let policy = HandshakePolicy { tls: TlsPolicy::Off, maximum_option_bytes: 1024 };
    let mut machine = ServerHandshake::new(policy);
    let (mut input, mut said, mut pieces) = (BytesMut::new(), Vec::new(), sent.chunks(piece));
    loop {
        let action = machine.poll(&mut input);
        said.extend_from_slice(&machine.take_output());
        match action {
            ServerAction::NeedInput => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return (said, "waits".to_owned()),
            },
            ServerAction::List(ticket) => machine.handle_list(ticket, Ok(Vec::new())),
            ServerAction::Describe(ticket) => {
                let export = export(ticket.name());
                machine.handle_description(ticket, export);
            }
            ServerAction::Contexts(ticket) => {
                let bitmap = WireString::try_from("qemu:dirty-bitmap:a").expect("a short name");
                let offered = export(ticket.name()).map(|_| vec![bitmap]);
                machine.handle_contexts(ticket, offered);
            }
            ServerAction::Open(ticket) => {
                let export = export(ticket.name());
                machine.handle_opened(ticket, export);
            }
            ServerAction::StartTls(ticket) => machine.handle_tls_started(ticket),
            ServerAction::Transmit(session) => return (said, format!("{session:?}")),
            ServerAction::Close(reason) => return (said, reason.to_string()),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    if let Some((length, sent)) = input.split_first() {
        let whole = conversation(sent, sent.len().max(1));
        assert_eq!(conversation(sent, usize::from(*length).max(1)), whole);
    }
});
