//! A client survives any bytes of a server, and comes to the same however they are cut into pieces.
//!
//! The first byte of the input chooses the length of the pieces, the second what the client wishes; the rest is what the
//! server sends.
#![no_main]

use bytes::BytesMut;
use cairn::protocol::WireString;
use cairn::protocol::negotiate_client::{ClientAction, ClientHandshake, ClientTls, Goal, Wishes};
use libfuzzer_sys::fuzz_target;

fn wishes(choice: u8) -> Wishes {
    let name = WireString::try_from("disk").expect("a short name");
    let context = WireString::try_from("base:allocation").expect("a short name");
    Wishes {
        goal: match choice % 3 {
            0 => Goal::List,
            1 => Goal::Info(name),
            _ => Goal::Go(name),
        },
        tls: match choice / 3 % 3 {
            0 => ClientTls::Off,
            1 => ClientTls::Opportunistic,
            _ => ClientTls::Required,
        },
        structured_replies: choice & 64 != 0,
        extended_headers: choice & 128 != 0,
        contexts: vec![context],
    }
}

/// All that the client says, and what it comes to.
fn conversation(wishes: Wishes, sent: &[u8], piece: usize) -> (Vec<u8>, String) {
    let mut machine = ClientHandshake::new(wishes);
    let (mut input, mut said, mut pieces) = (BytesMut::new(), Vec::new(), sent.chunks(piece));
    loop {
        let action = machine.poll(&mut input);
        said.extend_from_slice(&machine.take_output());
        match action {
            ClientAction::NeedInput => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None => return (said, machine.handle_closed().to_string()),
            },
            // What was received before TLS is forgotten, and how much that is depends on the pieces.
            ClientAction::StartTls(_) => return (said, "starts TLS".to_owned()),
            ClientAction::Finish(outcome) => return (said, format!("{outcome:?}")),
            ClientAction::Fail(error) => return (said, error.to_string()),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    if let [length, choice, sent @ ..] = input {
        let whole = conversation(wishes(*choice), sent, sent.len().max(1));
        assert_eq!(conversation(wishes(*choice), sent, usize::from(*length).max(1)), whole);
    }
});
