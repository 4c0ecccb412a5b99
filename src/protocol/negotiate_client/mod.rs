//! The client's side of the handshake (NBD `doc/proto.md`, "Handshake"), as a state machine without I/O.
//!
//! It works like the server's side: the caller passes received bytes to [`ClientHandshake::poll`] and sends
//! the bytes that [`ClientHandshake::take_output`] returns. Must not know sockets or TLS. Invariant: whatever
//! a server sends, the memory used for it is bounded.

mod action;

use bytes::{Bytes, BytesMut};

pub use action::{ClientAction, ClientSession, ClientTls, Goal, HandshakeError, Outcome, TlsTicket, Wishes};

use super::announcement::{Announcement, Negotiate, NegotiateResponse};
use super::codec::{DecodeError, WireString};
use super::flags::{ClientFlags, HandshakeFlags};
use super::info::{BlockSize, DiskInfo, ExportInfo, Info, InfoType};
use super::option::{ExportName, InfoRequest, MetaContextRequest, OptionCode, encode_option};
use super::option_reply::{MetaContext, OptionError, OptionReply, OptionReplyHeader, Refusal, ServerEntry};
use super::request::HeaderStyle;

/// Maximum length of a reply's data in bytes: about twice that of a LIST entry with a name and a description
/// of maximum length.
const MAXIMUM_REPLY_BYTES: usize = 16 << 10;
/// Maximum number of exports in a list, and of contexts.
const MAXIMUM_ENTRIES: usize = 1 << 16;

/// The steps of the negotiation, in order. Each step except the last may be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    StartTls,
    ExtendedHeaders,
    StructuredReply,
    Contexts,
    Goal,
}

#[derive(Debug)]
enum State {
    Announcement,
    Negotiate(Announcement),
    /// Waiting for replies to the option of this step.
    Replies(Step, OptionCode),
    /// Waiting for the answer to EXPORT_NAME.
    DiskInfo,
    Tls,
    Finished(Box<Outcome>),
    Failed(HandshakeError),
}

/// The client's side of one handshake.
#[derive(Debug)]
pub struct ClientHandshake {
    wishes: Wishes,
    state: State,
    output: BytesMut,
    handshake_flags: HandshakeFlags,
    headers: HeaderStyle,
    contexts: Vec<MetaContext>,
    entries: Vec<ServerEntry>,
    infos: Infos,
}

/// What the server has said about the export so far.
#[derive(Debug, Default)]
struct Infos {
    disk: Option<DiskInfo>,
    name: Option<WireString>,
    description: WireString,
    block_size: Option<BlockSize>,
}

impl ClientHandshake {
    /// Creates a handshake that waits for the server's greeting.
    #[must_use]
    pub fn new(wishes: Wishes) -> Self {
        Self {
            wishes,
            state: State::Announcement,
            output: BytesMut::new(),
            handshake_flags: HandshakeFlags::empty(),
            headers: HeaderStyle::Simple,
            contexts: Vec::new(),
            entries: Vec::new(),
            infos: Infos::default(),
        }
    }

    /// Returns the bytes to send before the action returned by [`Self::poll`] is carried out.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Consumes as much of `input` as possible and returns what to do next.
    pub fn poll(&mut self, input: &mut BytesMut) -> ClientAction {
        loop {
            match self.advance(input) {
                Ok(Some(action)) => return action,
                Ok(None) => {}
                Err(error) => self.state = State::Failed(error),
            }
        }
    }

    /// Returns what it means that the server has closed the connection in the current state.
    #[must_use]
    pub fn handle_closed(self) -> HandshakeError {
        HandshakeError::Closed(matches!(self.state, State::DiskInfo))
    }

    /// Continues after the TLS handshake. From now on, all bytes travel over TLS.
    pub fn handle_tls_started(&mut self, _ticket: TlsTicket) {
        self.next_step(Some(Step::StartTls));
    }

    fn advance(&mut self, input: &mut BytesMut) -> Result<Option<ClientAction>, HandshakeError> {
        let needed = match self.state {
            State::Announcement => Announcement::LENGTH,
            State::Negotiate(announcement) => Negotiate::length(announcement),
            State::DiskInfo if self.sends_zeroes() => DiskInfo::LENGTH_WITH_ZEROES,
            State::DiskInfo => DiskInfo::LENGTH,
            State::Replies(..) => match reply_length(input)? {
                Some(length) => length,
                None => return Ok(Some(ClientAction::NeedInput)),
            },
            State::Tls | State::Finished(_) | State::Failed(_) => 0,
        };
        if input.len() < needed {
            return Ok(Some(ClientAction::NeedInput));
        }
        let message = input.split_to(needed);
        match self.state {
            State::Announcement => self.state = State::Negotiate(Announcement::decode(&message)?),
            State::Negotiate(announcement) => match Negotiate::decode(announcement, &message)? {
                Negotiate::V1 { size_bytes, flags } => {
                    self.infos.disk = Some(DiskInfo { size_bytes, flags });
                    self.handle_oldstyle()?;
                }
                Negotiate::V2(flags) => self.handle_newstyle(flags)?,
            },
            State::DiskInfo => {
                self.infos.disk = Some(DiskInfo::decode(&message)?);
                self.transmit()?;
            }
            State::Replies(step, option) => {
                let (header, data) = message.split_at(OptionReplyHeader::LENGTH);
                let header = OptionReplyHeader::decode(header)?;
                if header.option != option {
                    return Err(invalid("reply to an option that was not sent").into());
                }
                return self.handle_reply(step, option, header.reply, data, input);
            }
            State::Tls => return Err(HandshakeError::Over),
            State::Finished(_) => {
                let over = State::Failed(HandshakeError::Over);
                if let State::Finished(outcome) = std::mem::replace(&mut self.state, over) {
                    return Ok(Some(ClientAction::Finish(*outcome)));
                }
            }
            State::Failed(ref error) => return Ok(Some(ClientAction::Fail(error.clone()))),
        }
        Ok(None)
    }

    fn handle_oldstyle(&mut self) -> Result<(), HandshakeError> {
        if self.wishes.tls == ClientTls::Required {
            return Err(HandshakeError::NoTls);
        }
        match self.wishes.goal {
            Goal::List => Err(HandshakeError::TooOld(OptionCode::List)),
            Goal::Info(_) => Err(HandshakeError::TooOld(OptionCode::Info)),
            Goal::Go(_) => self.transmit(),
        }
    }

    fn handle_newstyle(&mut self, flags: HandshakeFlags) -> Result<(), HandshakeError> {
        self.handshake_flags = flags;
        //= Client flags: Clients MUST NOT set any other flags
        let mut response = ClientFlags::empty();
        response.set(ClientFlags::FIXED_NEWSTYLE, flags.contains(HandshakeFlags::FIXED_NEWSTYLE));
        //= Client flags: MUST NOT be set if the server did not set `NBD_FLAG_NO_ZEROES`.
        response.set(ClientFlags::NO_ZEROES, flags.contains(HandshakeFlags::NO_ZEROES));
        NegotiateResponse(response).encode(&mut self.output);
        //= Client-side requirements: The client MUST NOT issue `NBD_OPT_STARTTLS` unless the server set
        //# flag `NBD_FLAG_FIXED_NEWSTYLE` and the client replied with `NBD_FLAG_C_FIXED_NEWSTYLE` in the
        //# fixed newstyle negotiation.
        if flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            self.next_step(None);
            return Ok(());
        }
        if self.wishes.tls == ClientTls::Required {
            return Err(HandshakeError::NoTls);
        }
        match self.wishes.goal {
            Goal::List => Err(HandshakeError::TooOld(OptionCode::List)),
            Goal::Info(_) => Err(HandshakeError::TooOld(OptionCode::Info)),
            Goal::Go(_) => {
                self.send_export_name();
                Ok(())
            }
        }
    }

    /// Sends the option of the next step after `done`. Skips steps that are not asked for or have become
    /// useless.
    fn next_step(&mut self, done: Option<Step>) {
        const ORDER: [Step; 5] =
            [Step::StartTls, Step::ExtendedHeaders, Step::StructuredReply, Step::Contexts, Step::Goal];
        let next = done.map_or(0, |done| 1 + ORDER.iter().position(|step| *step == done).unwrap_or(0));
        let transmits = matches!(self.wishes.goal, Goal::Go(_));
        let lists = self.wishes.goal == Goal::List;
        let wanted = |step: &Step| match step {
            Step::StartTls => self.wishes.tls != ClientTls::Off,
            Step::ExtendedHeaders => self.wishes.extended_headers && !lists,
            Step::StructuredReply => {
                self.wishes.structured_replies && !lists && self.headers == HeaderStyle::Simple
            }
            Step::Contexts => !self.wishes.contexts.is_empty() && self.headers != HeaderStyle::Simple,
            Step::Goal => true,
        };
        let step = ORDER.into_iter().skip(next).find(wanted).unwrap_or(Step::Goal);
        let mut data = BytesMut::new();
        let option = match (step, &self.wishes.goal) {
            (Step::StartTls, _) => OptionCode::StartTls,
            (Step::ExtendedHeaders, _) => OptionCode::ExtendedHeaders,
            (Step::StructuredReply, _) => OptionCode::StructuredReply,
            (Step::Goal, Goal::List) | (Step::Contexts, Goal::List) => OptionCode::List,
            (Step::Contexts, Goal::Info(name) | Goal::Go(name)) => {
                let request =
                    MetaContextRequest { export: name.clone(), queries: self.wishes.contexts.clone() };
                request.encode(&mut data);
                if transmits { OptionCode::SetMetaContext } else { OptionCode::ListMetaContext }
            }
            (Step::Goal, Goal::Info(name) | Goal::Go(name)) => {
                let requests = vec![InfoType::Name, InfoType::Description, InfoType::BlockSize];
                InfoRequest { name: name.clone(), requests }.encode(&mut data);
                if transmits { OptionCode::Go } else { OptionCode::Info }
            }
        };
        encode_option(option, &data, &mut self.output);
        self.state = State::Replies(step, option);
    }

    fn handle_reply(
        &mut self,
        step: Step,
        option: OptionCode,
        reply: OptionReply,
        data: &[u8],
        input: &mut BytesMut,
    ) -> Result<Option<ClientAction>, HandshakeError> {
        match reply {
            OptionReply::Ack => return self.handle_ack(step, input),
            OptionReply::Error(error) => self.handle_refusal(step, option, Refusal::decode(error, data)),
            OptionReply::Server => push_bounded(&mut self.entries, ServerEntry::decode(data)?)?,
            OptionReply::MetaContext => push_bounded(&mut self.contexts, MetaContext::decode(data)?)?,
            OptionReply::Info => match Info::decode(data)? {
                Info::Export(disk) => self.infos.disk = Some(disk),
                Info::Name(name) => self.infos.name = Some(name),
                Info::Description(description) => self.infos.description = description,
                Info::BlockSize(sizes) => self.infos.block_size = Some(sizes),
                //= Option types: The client MUST ignore information replies it does not understand.
                Info::Unknown { .. } => {}
            },
            OptionReply::Unknown(_) => return Err(invalid("reply of an unknown type").into()),
        }
        Ok(None)
    }

    fn handle_ack(
        &mut self,
        step: Step,
        input: &mut BytesMut,
    ) -> Result<Option<ClientAction>, HandshakeError> {
        match step {
            Step::StartTls => {
                //= Client-side requirements: If the client receives `NBD_REP_ACK` in response, it MUST
                //# immediately upgrade the session to TLS.
                // No plaintext may follow before TLS starts, so any remaining input was injected by an
                // attacker.
                input.clear();
                self.state = State::Tls;
                return Ok(Some(ClientAction::StartTls(TlsTicket(()))));
            }
            Step::ExtendedHeaders => self.headers = HeaderStyle::Extended,
            Step::StructuredReply => self.headers = HeaderStyle::Structured,
            Step::Contexts => {}
            Step::Goal => {
                match self.wishes.goal {
                    Goal::Go(_) => self.transmit()?,
                    Goal::List => {
                        let entries = std::mem::take(&mut self.entries);
                        self.finish(Outcome::Listed(entries));
                    }
                    Goal::Info(_) => {
                        let (export, contexts) = (self.export()?, std::mem::take(&mut self.contexts));
                        self.finish(Outcome::Described(export, contexts));
                    }
                }
                return Ok(None);
            }
        }
        self.next_step(Some(step));
        Ok(None)
    }

    /// Continues without what was refused, if possible.
    fn handle_refusal(&mut self, step: Step, option: OptionCode, refusal: Refusal) {
        let leave = matches!(refusal.error, OptionError::Shutdown | OptionError::TlsReqd);
        match step {
            Step::StartTls if self.wishes.tls == ClientTls::Required => {
                self.abort(HandshakeError::Refused { option, refusal });
            }
            Step::Goal if refusal.error == OptionError::Unsup && option == OptionCode::Go => {
                if self.headers == HeaderStyle::Extended {
                    self.abort(HandshakeError::Refused { option, refusal });
                } else {
                    self.send_export_name();
                }
            }
            Step::Goal => self.abort(HandshakeError::Refused { option, refusal }),
            //= Termination of the session during option haggling: If the client receives
            //# `NBD_REP_ERR_SHUTDOWN` it MUST initiate a soft disconnect.
            _ if leave => self.abort(HandshakeError::Refused { option, refusal }),
            Step::Contexts => {
                // The error invalidates the contexts that were received before it.
                self.contexts.clear();
                self.next_step(Some(step));
            }
            Step::StartTls | Step::ExtendedHeaders | Step::StructuredReply => self.next_step(Some(step)),
        }
    }

    fn send_export_name(&mut self) {
        if let Goal::Go(name) = &self.wishes.goal {
            let mut data = BytesMut::new();
            ExportName(name.clone()).encode(&mut data);
            encode_option(OptionCode::ExportName, &data, &mut self.output);
            self.state = State::DiskInfo;
        }
    }

    /// Whether the answer to EXPORT_NAME ends with reserved zeroes.
    fn sends_zeroes(&self) -> bool {
        !self.handshake_flags.contains(HandshakeFlags::NO_ZEROES)
    }

    /// Returns what the server said about the export, with the specification's defaults for the rest.
    fn export(&mut self) -> Result<ExportInfo, HandshakeError> {
        let infos = std::mem::take(&mut self.infos);
        let asked = match &self.wishes.goal {
            Goal::Info(name) | Goal::Go(name) => name.clone(),
            Goal::List => WireString::default(),
        };
        Ok(ExportInfo {
            name: infos.name.unwrap_or(asked),
            description: infos.description,
            disk: infos.disk.ok_or(invalid("success without NBD_INFO_EXPORT"))?,
            block_size: infos.block_size.unwrap_or(BlockSize::DEFAULT),
        })
    }

    fn transmit(&mut self) -> Result<(), HandshakeError> {
        let (export, contexts) = (self.export()?, std::mem::take(&mut self.contexts));
        let session = ClientSession { export, headers: self.headers, contexts };
        self.state = State::Finished(Box::new(Outcome::Transmit(session)));
        Ok(())
    }

    /// Ends the session in an orderly way with this result.
    fn finish(&mut self, outcome: Outcome) {
        encode_option(OptionCode::Abort, &[], &mut self.output);
        self.state = State::Finished(Box::new(outcome));
    }

    /// Ends the session in an orderly way with this error.
    fn abort(&mut self, error: HandshakeError) {
        encode_option(OptionCode::Abort, &[], &mut self.output);
        self.state = State::Failed(error);
    }
}

/// Returns the length of the reply at the start of `input` in bytes, including its header. Returns `None`
/// until the header is complete.
fn reply_length(input: &BytesMut) -> Result<Option<usize>, DecodeError> {
    let Some(header) = input.get(..OptionReplyHeader::LENGTH) else { return Ok(None) };
    let header = OptionReplyHeader::decode(header)?;
    match usize::try_from(header.length) {
        Ok(length) if length <= MAXIMUM_REPLY_BYTES => Ok(Some(OptionReplyHeader::LENGTH + length)),
        _ => Err(invalid("reply is too long")),
    }
}

fn push_bounded<T>(list: &mut Vec<T>, entry: T) -> Result<(), DecodeError> {
    if list.len() == MAXIMUM_ENTRIES {
        return Err(invalid("more than 65,536 replies to one option"));
    }
    list.push(entry);
    Ok(())
}

const fn invalid(message: &'static str) -> DecodeError {
    DecodeError::Invalid(message)
}
