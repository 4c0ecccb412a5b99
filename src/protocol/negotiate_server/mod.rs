//! The handshake as the server sees it (NBD `doc/proto.md`, "Handshake"), without I/O.
//!
//! Bytes go in by [`ServerHandshake::poll`], which says what is to be done next; bytes to send come out of
//! [`ServerHandshake::take_output`], to be sent before the action is taken. What needs the world (exports,
//! TLS) is an action with a ticket; its result comes back with the ticket by a `handle_` method. Invariant:
//! the stream stays in step, whatever a client sends, or the connection is closed.

mod action;

use bytes::{Buf, Bytes, BytesMut};

use super::announcement::{Announcement, Negotiate, NegotiateResponse};
use super::codec::{DecodeError, MAXIMUM_STRING_BYTES, WireString};
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use super::info::{DiskInfo, ExportInfo, Info, InfoType};
use super::meta_context;
use super::option::{ExportName, InfoRequest, MetaContextRequest, OptionCode, OptionRequestHeader};
use super::option_reply::{MetaContext, OptionError, OptionReply, Refusal, ServerEntry, encode_option_reply};
use super::request::HeaderStyle;

use action::DescribePurpose;
pub use action::{
    CloseReason, DescribeTicket, HandshakePolicy, ListTicket, OpenTicket, ServerAction, Session, TlsPolicy,
    TlsTicket,
};

/// How the server numbers `base:allocation` in answer to SET_META_CONTEXT.
pub const BASE_ALLOCATION_ID: u32 = 1;

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
    Data(OptionRequestHeader),
    /// Passes over the data of an option without keeping it, then goes on.
    Skip {
        option: OptionCode,
        remaining: u32,
        then: AfterSkip,
    },
    Waiting,
    Ready(Box<Session>),
    Closed(CloseReason),
}

#[derive(Debug)]
enum AfterSkip {
    Refuse(Refusal),
    Abort,
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct ServerHandshake {
    policy: HandshakePolicy,
    state: State,
    output: BytesMut,
    client_flags: ClientFlags,
    tls_active: bool,
    shutting_down: bool,
    headers: HeaderStyle,
    /// The export for which `base:allocation` was selected.
    allocation_for: Option<WireString>,
}

impl ServerHandshake {
    /// A newstyle handshake; its output holds the greeting.
    #[must_use]
    pub fn new(policy: HandshakePolicy) -> Self {
        let mut output = BytesMut::new();
        Announcement::V2.encode(&mut output);
        Negotiate::V2(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).encode(&mut output);
        Self {
            policy,
            state: State::ClientFlags,
            output,
            client_flags: ClientFlags::empty(),
            tls_active: false,
            shutting_down: false,
            headers: HeaderStyle::Simple,
            allocation_for: None,
        }
    }

    /// All of an oldstyle handshake: the bytes to send, after which transmission begins.
    #[must_use]
    pub fn oldstyle(mut export: ExportInfo) -> (Bytes, Session) {
        export.disk.flags = effective_flags(export.disk.flags, HeaderStyle::Simple, false);
        let mut output = BytesMut::new();
        Announcement::V1.encode(&mut output);
        let DiskInfo { size_bytes, flags } = export.disk;
        Negotiate::V1 { size_bytes, flags }.encode(&mut output);
        (output.freeze(), Session { export, headers: HeaderStyle::Simple, base_allocation: None })
    }

    /// What is to be sent, before the action of [`Self::poll`] is taken.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Whether TLS is in use.
    #[must_use]
    pub fn is_tls_active(&self) -> bool {
        self.tls_active
    }

    /// From now on every option but ABORT is refused with `NBD_REP_ERR_SHUTDOWN`.
    pub fn handle_shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// Consumes what it can of `input` and tells what is to be done.
    pub fn poll(&mut self, input: &mut BytesMut) -> ServerAction {
        loop {
            let state = std::mem::replace(&mut self.state, State::Waiting);
            let action = match state {
                State::ClientFlags if input.len() >= NegotiateResponse::LENGTH => {
                    let flags = input.split_to(NegotiateResponse::LENGTH);
                    self.handle_client_flags(&flags)
                }
                State::Option if input.len() >= OptionRequestHeader::LENGTH => {
                    let header = input.split_to(OptionRequestHeader::LENGTH);
                    match OptionRequestHeader::decode(&header) {
                        Ok(header) => self.handle_header(header),
                        Err(error) => self.close(CloseReason::NotAnOption(error)),
                    }
                }
                State::Data(header) if input.len() >= wire_len(header.length) => {
                    let data = input.split_to(wire_len(header.length));
                    self.handle_option(header.option, &data, input)
                }
                State::Skip { option, remaining, then } if remaining == 0 || !input.is_empty() => {
                    let skipped = u32::try_from(input.len()).unwrap_or(u32::MAX).min(remaining);
                    input.advance(wire_len(skipped));
                    match remaining - skipped {
                        0 => self.handle_skipped(option, then),
                        remaining => {
                            self.state = State::Skip { option, remaining, then };
                            None
                        }
                    }
                }
                State::Ready(session) => {
                    self.state = State::Closed(CloseReason::Over);
                    Some(ServerAction::Transmit(*session))
                }
                State::Closed(reason) => self.close(reason),
                State::Waiting => self.close(CloseReason::Unanswered),
                unfinished => {
                    self.state = unfinished;
                    Some(ServerAction::NeedInput)
                }
            };
            if let Some(action) = action {
                return action;
            }
        }
    }

    /// The exports, or why they cannot be told.
    pub fn handle_list(&mut self, _ticket: ListTicket, exports: Result<Vec<ServerEntry>, Refusal>) {
        match exports {
            Ok(entries) => {
                for entry in entries {
                    self.reply(OptionCode::List, OptionReply::Server, |out| entry.encode(out));
                }
                self.acknowledge(OptionCode::List);
            }
            Err(refusal) => self.refuse(OptionCode::List, &self.fitting(OptionCode::List, refusal)),
        }
    }

    /// An export's description, or why it is not told.
    pub fn handle_description(&mut self, ticket: DescribeTicket, export: Result<ExportInfo, Refusal>) {
        let option = match ticket.purpose {
            DescribePurpose::Info(_) => OptionCode::Info,
            DescribePurpose::ListContexts(_) => OptionCode::ListMetaContext,
            DescribePurpose::SetContexts(_) => OptionCode::SetMetaContext,
        };
        let export = match export {
            Ok(export) => export,
            Err(refusal) => return self.refuse(option, &self.fitting(option, refusal)),
        };
        match ticket.purpose {
            DescribePurpose::Info(requests) => {
                let export = self.as_told(&ticket.name, export);
                self.reply_info(option, &ticket.name, &requests, &export);
            }
            DescribePurpose::ListContexts(queries) => {
                if meta_context::lists_base_allocation(&queries) {
                    self.reply_context(option, 0);
                }
            }
            DescribePurpose::SetContexts(queries) => {
                if meta_context::selects_base_allocation(&queries) {
                    self.reply_context(option, BASE_ALLOCATION_ID);
                    self.allocation_for = Some(ticket.name);
                }
            }
        }
        self.acknowledge(option);
    }

    /// The opened export, or why it cannot be had.
    pub fn handle_opened(&mut self, ticket: OpenTicket, export: Result<ExportInfo, Refusal>) {
        let export = match (export, &ticket.requests) {
            (Ok(export), _) => self.as_told(&ticket.name, export),
            (Err(refusal), Some(_)) => {
                let refusal = self.fitting(OptionCode::Go, refusal);
                return self.refuse(OptionCode::Go, &refusal);
            }
            (Err(refusal), None) => {
                self.state = State::Closed(CloseReason::ExportName(refusal));
                return;
            }
        };
        match &ticket.requests {
            Some(requests) => {
                self.reply_info(OptionCode::Go, &ticket.name, requests, &export);
                self.acknowledge(OptionCode::Go);
            }
            None => {
                let zeroes = !self.client_flags.contains(ClientFlags::NO_ZEROES);
                export.disk.encode(zeroes, &mut self.output);
            }
        }
        let base_allocation = self.selected_for(&ticket.name).then_some(BASE_ALLOCATION_ID);
        self.state = State::Ready(Box::new(Session { export, headers: self.headers, base_allocation }));
    }

    /// TLS is in use: all that was negotiated before is forgotten.
    pub fn handle_tls_started(&mut self, _ticket: TlsTicket) {
        self.tls_active = true;
        self.headers = HeaderStyle::Simple;
        self.allocation_for = None;
        self.state = State::Option;
    }

    fn handle_client_flags(&mut self, bytes: &[u8]) -> Option<ServerAction> {
        match NegotiateResponse::decode(bytes) {
            Ok(NegotiateResponse(flags)) if flags.unknown_bits() != 0 => {
                self.close(CloseReason::UnknownClientFlags(flags.unknown_bits()))
            }
            Ok(NegotiateResponse(flags)) => {
                self.client_flags = flags;
                self.state = State::Option;
                None
            }
            Err(error) => self.close(CloseReason::NotAnOption(error)),
        }
    }

    /// Decides by an option's header alone whether its data is worth reading.
    fn handle_header(&mut self, header: OptionRequestHeader) -> Option<ServerAction> {
        let OptionRequestHeader { option, length } = header;
        if option == OptionCode::SetMetaContext {
            // Replaces what was selected before, even when it fails.
            self.allocation_for = None;
        }
        if !self.client_flags.contains(ClientFlags::FIXED_NEWSTYLE) && option != OptionCode::ExportName {
            return self.close(CloseReason::NotFixedNewstyle(option));
        }
        let refusal = match self.refusal_by_header(header) {
            None if option == OptionCode::Abort => {
                self.state = State::Skip { option, remaining: length, then: AfterSkip::Abort };
                return None;
            }
            None => {
                self.state = State::Data(header);
                return None;
            }
            Some(refusal) => refusal,
        };
        if option == OptionCode::ExportName {
            return self.close(CloseReason::ExportName(refusal));
        }
        self.state = State::Skip { option, remaining: length, then: AfterSkip::Refuse(refusal) };
        None
    }

    fn refusal_by_header(&self, header: OptionRequestHeader) -> Option<Refusal> {
        use OptionCode as Code;
        let OptionRequestHeader { option, length } = header;
        let refusal = |error, message| Some(Refusal::new(error, message));
        if option == Code::Abort {
            return None;
        }
        if self.shutting_down {
            return refusal(OptionError::Shutdown, "the server is shutting down");
        }
        if self.policy.tls == TlsPolicy::Required && !self.tls_active && option != Code::StartTls {
            return refusal(OptionError::TlsReqd, "TLS is required");
        }
        match option {
            Code::Unknown(_) | Code::PeekExport => refusal(OptionError::Unsup, "unknown option"),
            Code::List | Code::StartTls | Code::StructuredReply | Code::ExtendedHeaders if length != 0 => {
                refusal(OptionError::Invalid, "this option has no data")
            }
            Code::ExportName if self.headers == HeaderStyle::Extended => {
                refusal(OptionError::Invalid, "extended headers need GO")
            }
            Code::ExportName if wire_len(length) > MAXIMUM_STRING_BYTES => {
                refusal(OptionError::TooBig, "name longer than 4096 bytes")
            }
            _ if length > self.policy.maximum_option_bytes => {
                refusal(OptionError::TooBig, "option data is too long")
            }
            _ => None,
        }
    }

    fn handle_skipped(&mut self, option: OptionCode, then: AfterSkip) -> Option<ServerAction> {
        match then {
            AfterSkip::Refuse(refusal) => {
                self.refuse(option, &refusal);
                None
            }
            AfterSkip::Abort => {
                self.acknowledge(option);
                self.close(CloseReason::Aborted)
            }
        }
    }

    fn handle_option(
        &mut self,
        option: OptionCode,
        data: &[u8],
        input: &mut BytesMut,
    ) -> Option<ServerAction> {
        match option {
            OptionCode::List => return Some(ServerAction::List(ListTicket(()))),
            OptionCode::StartTls => return self.handle_start_tls(input),
            OptionCode::StructuredReply => self.handle_structured_reply(),
            OptionCode::ExtendedHeaders => {
                self.headers = HeaderStyle::Extended;
                self.acknowledge(option);
            }
            OptionCode::ExportName => {
                return Some(match ExportName::decode(data) {
                    Ok(ExportName(name)) => ServerAction::Open(OpenTicket { name, requests: None }),
                    Err(error) => return self.close(CloseReason::ExportName(malformed(error))),
                });
            }
            OptionCode::Info | OptionCode::Go => match InfoRequest::decode(data) {
                Ok(InfoRequest { name, requests }) if option == OptionCode::Go => {
                    return Some(ServerAction::Open(OpenTicket { name, requests: Some(requests) }));
                }
                Ok(InfoRequest { name, requests }) => {
                    let purpose = DescribePurpose::Info(requests);
                    return Some(ServerAction::Describe(DescribeTicket { name, purpose }));
                }
                Err(error) => self.refuse(option, &malformed(error)),
            },
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                match self.decode_meta_context(option, data) {
                    Ok(ticket) => return Some(ServerAction::Describe(ticket)),
                    Err(refusal) => self.refuse(option, &refusal),
                }
            }
            OptionCode::Abort | OptionCode::PeekExport | OptionCode::Unknown(_) => {
                self.refuse(option, &Refusal::new(OptionError::Unsup, "unknown option"));
            }
        }
        None
    }

    fn handle_start_tls(&mut self, input: &mut BytesMut) -> Option<ServerAction> {
        let refusal = if self.policy.tls == TlsPolicy::Off {
            Refusal::new(OptionError::Policy, "TLS is not configured")
        } else if self.tls_active {
            Refusal::new(OptionError::Invalid, "TLS is in use already")
        } else {
            // A client waits for the acknowledgement: what came before it was put there by someone else.
            input.clear();
            self.acknowledge(OptionCode::StartTls);
            self.state = State::Waiting;
            return Some(ServerAction::StartTls(TlsTicket(())));
        };
        self.refuse(OptionCode::StartTls, &refusal);
        None
    }

    fn handle_structured_reply(&mut self) {
        let option = OptionCode::StructuredReply;
        if self.headers == HeaderStyle::Extended {
            let message = "extended headers take precedence";
            self.refuse(option, &Refusal::new(OptionError::ExtHeaderReqd, message));
        } else {
            self.headers = HeaderStyle::Structured;
            self.acknowledge(option);
        }
    }

    fn decode_meta_context(&self, option: OptionCode, data: &[u8]) -> Result<DescribeTicket, Refusal> {
        if self.headers == HeaderStyle::Simple {
            return Err(Refusal::new(OptionError::Invalid, "structured replies must be negotiated first"));
        }
        let MetaContextRequest { export: name, queries } =
            MetaContextRequest::decode(data).map_err(malformed)?;
        meta_context::check_queries(&queries).map_err(malformed)?;
        let purpose = if option == OptionCode::SetMetaContext {
            DescribePurpose::SetContexts(queries)
        } else {
            DescribePurpose::ListContexts(queries)
        };
        Ok(DescribeTicket { name, purpose })
    }

    fn selected_for(&self, name: &WireString) -> bool {
        self.allocation_for.as_ref() == Some(name)
    }

    /// The export with the flags that this client is told.
    fn as_told(&self, name: &WireString, mut export: ExportInfo) -> ExportInfo {
        export.disk.flags = effective_flags(export.disk.flags, self.headers, self.selected_for(name));
        export
    }

    fn reply_info(
        &mut self,
        option: OptionCode,
        asked_name: &WireString,
        requests: &[InfoType],
        export: &ExportInfo,
    ) {
        let mut infos = vec![Info::Export(export.disk), Info::BlockSize(export.block_size)];
        if requests.contains(&InfoType::Name) || export.name != *asked_name {
            infos.push(Info::Name(export.name.clone()));
        }
        if requests.contains(&InfoType::Description) && !export.description.is_empty() {
            infos.push(Info::Description(export.description.clone()));
        }
        for info in infos {
            self.reply(option, OptionReply::Info, |out| info.encode(out));
        }
    }

    fn reply_context(&mut self, option: OptionCode, id: u32) {
        let name = WireString::truncated(meta_context::BASE_ALLOCATION);
        self.reply(option, OptionReply::MetaContext, |out| MetaContext { id, name }.encode(out));
    }

    fn reply(&mut self, option: OptionCode, reply: OptionReply, encode_data: impl FnOnce(&mut BytesMut)) {
        encode_option_reply(option, reply, &mut self.output, encode_data);
    }

    fn acknowledge(&mut self, option: OptionCode) {
        self.reply(option, OptionReply::Ack, |_| {});
        self.state = State::Option;
    }

    fn refuse(&mut self, option: OptionCode, refusal: &Refusal) {
        refusal.encode(option, &mut self.output);
        self.state = State::Option;
    }

    /// The refusal as this option may be refused. "The server MUST NOT send `NBD_REP_ERR_TLS_REQD` in
    /// response to any option other than `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`", nor "if TLS
    /// has already been negotiated", nor without TLS at all. An export that needs TLS then looks as one that
    /// does not exist.
    fn fitting(&self, option: OptionCode, refusal: Refusal) -> Refusal {
        let may_start = self.policy.tls != TlsPolicy::Off && !self.tls_active;
        if refusal.error != OptionError::TlsReqd
            || may_start && matches!(option, OptionCode::Info | OptionCode::Go)
        {
            return refusal;
        }
        Refusal::new(OptionError::Unknown, "no such export")
    }

    fn close(&mut self, reason: CloseReason) -> Option<ServerAction> {
        self.state = State::Closed(reason.clone());
        Some(ServerAction::Close(reason))
    }
}

/// The flags of an export together with those of the server itself.
fn effective_flags(
    mut flags: TransmissionFlags,
    headers: HeaderStyle,
    contexts_selected: bool,
) -> TransmissionFlags {
    use TransmissionFlags as Flags;
    flags.insert(Flags::HAS_FLAGS);
    flags.set(Flags::SEND_DF, headers != HeaderStyle::Simple);
    flags.set(Flags::BLOCK_STATUS_PAYLOAD, headers == HeaderStyle::Extended && contexts_selected);
    flags.remove(Flags::SEND_RESIZE);
    if !flags.contains(Flags::SEND_WRITE_ZEROES) {
        flags.remove(Flags::SEND_FAST_ZERO);
    }
    flags
}

fn malformed(error: DecodeError) -> Refusal {
    let kind = match error {
        DecodeError::StringTooLong(_) => OptionError::TooBig,
        _ => OptionError::Invalid,
    };
    Refusal::new(kind, &error.to_string())
}

fn wire_len(length: u32) -> usize {
    usize::try_from(length).expect("32 bits fit a usize")
}
