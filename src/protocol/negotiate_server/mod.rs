//! The server's side of the handshake (NBD `doc/proto.md`, "Handshake"), as a state machine without I/O.
//!
//! The caller passes received bytes to [`ServerHandshake::poll`], which returns the next action. Before it
//! carries out the action, the caller sends the bytes that [`ServerHandshake::take_output`] returns. Anything
//! that needs exports or TLS is an action with a ticket; the caller passes the result and the ticket to a
//! `handle_` method. The handshake must not know exports, sockets or TLS.
//!
//! Invariant: whatever a client sends, the stream stays in step, or the connection is closed.

mod action;

use bytes::{Buf, Bytes, BytesMut};

use super::announcement::{Announcement, Negotiate, NegotiateResponse};
use super::codec::{DecodeError, MAXIMUM_STRING_BYTES, WireString};
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};
use super::info::{DiskInfo, ExportInfo, Info, InfoType, Padding};
use super::meta_context::{self, MAXIMUM_SELECTED};
use super::option::{ExportName, InfoRequest, MetaContextRequest, OptionCode, OptionRequestHeader};
use super::option_reply::{MetaContext, OptionError, OptionReply, Refusal, ServerEntry, encode_option_reply};
use super::request::HeaderStyle;

use action::ContextsPurpose;
pub use action::{
    CloseReason, ContextsTicket, DescribeTicket, HandshakePolicy, ListTicket, OpenTicket, ServerAction,
    Session, TlsPolicy, TlsTicket,
};

/// The id of `base:allocation` in the reply to SET_META_CONTEXT. Ids count from it, and this context is the
/// first.
pub const BASE_ALLOCATION_ID: u32 = 1;

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
    Data(OptionRequestHeader),
    /// Discards the data of an option, then continues with `then`.
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
    selection: Selection,
}

/// The metadata contexts that the client selected; none by default.
#[derive(Debug, Default)]
struct Selection {
    /// The export for which they were selected.
    export: WireString,
    contexts: Vec<MetaContext>,
}

impl ServerHandshake {
    /// Creates a newstyle handshake, whose output starts with the greeting.
    #[must_use]
    pub fn new(policy: HandshakePolicy) -> Self {
        let mut output = BytesMut::new();
        Announcement::V2.encode(&mut output);
        //= Handshake flags: MUST be set by servers that support the fixed newstyle protocol
        //= Handshake flags: The server MUST NOT set any other flags
        Negotiate::V2(HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).encode(&mut output);
        Self {
            policy,
            state: State::ClientFlags,
            output,
            client_flags: ClientFlags::empty(),
            tls_active: false,
            shutting_down: false,
            headers: HeaderStyle::Simple,
            selection: Selection::default(),
        }
    }

    /// Performs a whole oldstyle handshake. Transmission begins after the returned bytes are sent.
    #[must_use]
    pub fn oldstyle(mut export: ExportInfo) -> (Bytes, Session) {
        export.disk.flags = effective_flags(export.disk.flags, HeaderStyle::Simple, false);
        let mut output = BytesMut::new();
        Announcement::V1.encode(&mut output);
        let DiskInfo { size_bytes, flags } = export.disk;
        Negotiate::V1 { size_bytes, flags }.encode(&mut output);
        (output.freeze(), Session { export, headers: HeaderStyle::Simple, contexts: Vec::new() })
    }

    /// Returns the bytes to send before the action returned by [`Self::poll`] is carried out.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    /// Whether the connection uses TLS.
    #[must_use]
    pub fn is_tls_active(&self) -> bool {
        self.tls_active
    }

    /// Makes the server refuse every further option except ABORT with `NBD_REP_ERR_SHUTDOWN`.
    pub fn handle_shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// Consumes as much of `input` as possible and returns what to do next.
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

    /// Answers LIST with the exports, or with the reason why they cannot be listed.
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

    /// Answers INFO with an export's description, or with the reason why there is none.
    pub fn handle_description(&mut self, ticket: DescribeTicket, export: Result<ExportInfo, Refusal>) {
        let option = OptionCode::Info;
        match export {
            Ok(export) => {
                let export = self.as_told(&ticket.name, export);
                self.reply_info(option, &ticket.name, &ticket.requests, &export);
                self.acknowledge(option);
            }
            Err(refusal) => self.refuse(option, &self.fitting(option, refusal)),
        }
    }

    /// Answers LIST_META_CONTEXT or SET_META_CONTEXT. `offered` has the names of the contexts that the export
    /// offers besides `base:allocation`, each of them once, in the order in which they are listed; or the
    /// reason why there is no such export.
    pub fn handle_contexts(&mut self, ticket: ContextsTicket, offered: Result<Vec<WireString>, Refusal>) {
        let ContextsTicket { name: export, queries, purpose } = ticket;
        let option = match purpose {
            ContextsPurpose::List => OptionCode::ListMetaContext,
            ContextsPurpose::Select => OptionCode::SetMetaContext,
        };
        let mut contexts = vec![WireString::truncated(meta_context::BASE_ALLOCATION)];
        match offered {
            Ok(offered) => contexts.extend(offered),
            Err(refusal) => return self.refuse(option, &self.fitting(option, refusal)),
        }
        match purpose {
            ContextsPurpose::List => {
                for name in meta_context::listed(&queries, contexts) {
                    //= Option types: The metadata context ID in these replies is reserved and SHOULD be set
                    //# to zero; clients MUST disregard it.
                    self.reply_context(option, &MetaContext { id: 0, name });
                }
            }
            ContextsPurpose::Select => {
                let selected = meta_context::selected(&queries, contexts);
                //= Option types: The server MAY return `NBD_REP_ERR_TOO_BIG` if a request seeks to select too
                //# many contexts.
                if selected.len() > MAXIMUM_SELECTED {
                    let message = format!("a client may select {MAXIMUM_SELECTED} metadata contexts at most");
                    return self.refuse(option, &Refusal::new(OptionError::TooBig, &message));
                }
                //= Option types: one for each selected metadata context, each with a unique metadata context
                //# ID
                let numbered = (BASE_ALLOCATION_ID..).zip(selected);
                let contexts: Vec<_> = numbered.map(|(id, name)| MetaContext { id, name }).collect();
                contexts.iter().for_each(|context| self.reply_context(option, context));
                self.selection = Selection { export, contexts };
            }
        }
        self.acknowledge(option);
    }

    /// Answers GO or EXPORT_NAME with the opened export, or with the reason why it is not available.
    pub fn handle_opened(&mut self, ticket: OpenTicket, export: Result<ExportInfo, Refusal>) {
        let export = match (export, &ticket.requests) {
            (Ok(export), _) => self.as_told(&ticket.name, export),
            (Err(refusal), Some(_)) => {
                let refusal = self.fitting(OptionCode::Go, refusal);
                return self.refuse(OptionCode::Go, &refusal);
            }
            //= Newstyle negotiation: If the server is unwilling to allow the export, it MUST terminate the
            //# session.
            (Err(refusal), None) => {
                self.state = State::Closed(CloseReason::ExportName(refusal));
                return;
            }
        };
        match &ticket.requests {
            Some(requests) => {
                //= Option types: The server MUST NOT send any zero padding bytes after the `NBD_REP_ACK`
                //# data
                self.reply_info(OptionCode::Go, &ticket.name, requests, &export);
                self.acknowledge(OptionCode::Go);
            }
            None => {
                //= Client flags: If set, the server MUST NOT send the 124 bytes of zeroes when the client
                //# ends negotiation with `NBD_OPT_EXPORT_NAME`.
                let padding = match self.client_flags.contains(ClientFlags::NO_ZEROES) {
                    true => Padding::None,
                    false => Padding::Zeroes,
                };
                export.disk.encode(padding, &mut self.output);
            }
        }
        let contexts = self.selected_for(&ticket.name).to_vec();
        self.state = State::Ready(Box::new(Session { export, headers: self.headers, contexts }));
    }

    /// Continues after the TLS handshake. Everything that was negotiated before is reset.
    pub fn handle_tls_started(&mut self, _ticket: TlsTicket) {
        self.tls_active = true;
        //= Option types: When this command succeeds, the server MUST NOT preserve any negotiation state
        self.headers = HeaderStyle::Simple;
        self.selection = Selection::default();
        self.state = State::Option;
    }

    fn handle_client_flags(&mut self, bytes: &[u8]) -> Option<ServerAction> {
        match NegotiateResponse::decode(bytes) {
            //= Client flags: the server MUST drop the TCP connection if the client sets an unknown flag
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

    /// Decides from an option's header whether its data is read or skipped.
    fn handle_header(&mut self, header: OptionRequestHeader) -> Option<ServerAction> {
        let OptionRequestHeader { option, length } = header;
        if option == OptionCode::SetMetaContext {
            //= Option types: replaces all previously-set metadata contexts (including when this command
            //# fails)
            // A SET_META_CONTEXT replaces the previous selection even if it fails.
            self.selection = Selection::default();
        }
        //= Option types: A server which wishes to use any other option MUST support fixed newstyle.
        if !self.client_flags.contains(ClientFlags::FIXED_NEWSTYLE) && option != OptionCode::ExportName {
            //= Server-side requirements: The server MUST operate in NOTLS mode unless the server set flag
            //# `NBD_FLAG_FIXED_NEWSTYLE` and the client replied with `NBD_FLAG_C_FIXED_NEWSTYLE` in the
            //# fixed newstyle negotiation.
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
        //= FORCEDTLS mode: then as this request cannot error, it MUST terminate the session
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
        //= Termination of the session during option haggling: In the server's case it MUST (save where set
        //# out above) simply error inbound options until the client gets the hint that it is unwelcome
        if self.shutting_down {
            return refusal(OptionError::Shutdown, "the server is shutting down");
        }
        //= FORCEDTLS mode: it MUST reply with `NBD_REP_ERR_TLS_REQD` if TLS has not been initiated
        if self.policy.tls == TlsPolicy::Required && !self.tls_active && option != Code::StartTls {
            return refusal(OptionError::TlsReqd, "TLS is required");
        }
        match option {
            //= Baseline: Servers that receive messages which they do not implement MUST reply to them with
            //# `NBD_REP_ERR_UNSUP`, and MUST NOT fail to parse the next message received.
            Code::Unknown(_) | Code::PeekExport => refusal(OptionError::Unsup, "unknown option"),
            //= Option types: The client MUST NOT send any additional data with the option, and the server
            //# SHOULD reject a request that includes data with `NBD_REP_ERR_INVALID`.
            Code::List | Code::StartTls | Code::StructuredReply | Code::ExtendedHeaders if length != 0 => {
                refusal(OptionError::Invalid, "this option must not have data")
            }
            //= Option types: a client that has used `NBD_OPT_EXTENDED_HEADERS` to negotiate extended
            //# headers MUST NOT use this option
            Code::ExportName if self.headers == HeaderStyle::Extended => {
                refusal(OptionError::Invalid, "extended headers require GO")
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
            //= Option types: The server MUST reply with `NBD_REP_ACK`.
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
                    return Some(ServerAction::Describe(DescribeTicket { name, requests }));
                }
                Err(error) => self.refuse(option, &malformed(error)),
            },
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                match self.decode_meta_context(option, data) {
                    Ok(ticket) => return Some(ServerAction::Contexts(ticket)),
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
        //= NOTLS mode: If the server receives `NBD_OPT_STARTTLS` it MUST respond with `NBD_REP_ERR_POLICY`
        let refusal = if self.policy.tls == TlsPolicy::Off {
            Refusal::new(OptionError::Policy, "TLS is not configured")
        } else if self.tls_active {
            //= SELECTIVETLS mode: MUST reply with `NBD_REP_ERR_INVALID`
            Refusal::new(OptionError::Invalid, "TLS is already in use")
        } else {
            //= FORCEDTLS mode: the server MUST be prepared for a TLS handshake, and all further data MUST
            //# be sent and received over TLS
            // A client sends nothing until it receives the acknowledgement, so bytes that arrived before were
            // injected by an attacker.
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
            //= Option types: When successful, this option takes precedence over structured replies, and the
            //# server MUST also support `NBD_OPT_GO`.
            let message = "extended headers take precedence";
            self.refuse(option, &Refusal::new(OptionError::ExtHeaderReqd, message));
        } else {
            self.headers = HeaderStyle::Structured;
            self.acknowledge(option);
        }
    }

    fn decode_meta_context(&self, option: OptionCode, data: &[u8]) -> Result<ContextsTicket, Refusal> {
        //= Option types: This option MUST NOT be requested unless structured replies or extended headers
        //# have been negotiated first.
        if self.headers == HeaderStyle::Simple {
            return Err(Refusal::new(OptionError::Invalid, "structured replies must be negotiated first"));
        }
        let MetaContextRequest { export: name, queries } =
            MetaContextRequest::decode(data).map_err(malformed)?;
        meta_context::check_queries(&queries).map_err(malformed)?;
        let purpose = match option {
            OptionCode::SetMetaContext => ContextsPurpose::Select,
            _ => ContextsPurpose::List,
        };
        Ok(ContextsTicket { name, queries, purpose })
    }

    /// The contexts that the client selected for an export.
    fn selected_for(&self, name: &WireString) -> &[MetaContext] {
        //= Metadata querying: used the same export name for the subsequent `NBD_OPT_GO` (or
        //# `NBD_OPT_EXPORT_NAME`)
        if self.selection.export == *name { &self.selection.contexts } else { &[] }
    }

    /// Returns the export with the flags that are sent to this client.
    fn as_told(&self, name: &WireString, mut export: ExportInfo) -> ExportInfo {
        let selects = !self.selected_for(name).is_empty();
        export.disk.flags = effective_flags(export.disk.flags, self.headers, selects);
        export
    }

    fn reply_info(
        &mut self,
        option: OptionCode,
        asked_name: &WireString,
        requests: &[InfoType],
        export: &ExportInfo,
    ) {
        //= Option reply types: The server MUST send an `NBD_INFO_EXPORT` information type at some point
        //# before sending an `NBD_REP_ACK`
        let mut infos = vec![Info::Export(export.disk), Info::BlockSize(export.block_size)];
        //= Option types: The server MUST ignore any information requests it does not understand.
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

    fn reply_context(&mut self, option: OptionCode, context: &MetaContext) {
        self.reply(option, OptionReply::MetaContext, |out| context.encode(out));
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

    /// Makes a refusal fit its option. "The server MUST NOT send `NBD_REP_ERR_TLS_REQD` in response to any
    /// option other than `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`", nor "if TLS has already
    /// been negotiated", nor without TLS at all. In these cases, an export that requires TLS looks as if it
    /// did not exist.
    fn fitting(&self, option: OptionCode, refusal: Refusal) -> Refusal {
        //= SELECTIVETLS mode: The server MUST NOT send `NBD_REP_ERR_TLS_REQD` in response to any option
        //# other than `NBD_OPT_INFO`, `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`
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

/// Combines the flags of an export with those of the server itself.
fn effective_flags(
    mut flags: TransmissionFlags,
    headers: HeaderStyle,
    contexts_selected: bool,
) -> TransmissionFlags {
    use TransmissionFlags as Flags;
    //= Transmission flags: `NBD_FLAG_HAS_FLAGS`: MUST always be 1.
    flags.insert(Flags::HAS_FLAGS);
    //= Transmission flags: MUST leave this flag clear if neither structured replies nor extended headers
    //# have been negotiated
    flags.set(Flags::SEND_DF, headers != HeaderStyle::Simple);
    //= Transmission flags: Servers MUST NOT advertise this bit unless the client successfully negotiates
    //# extended headers via `NBD_OPT_EXTENDED_HEADERS`
    flags.set(Flags::BLOCK_STATUS_PAYLOAD, headers == HeaderStyle::Extended && contexts_selected);
    flags.remove(Flags::SEND_RESIZE);
    //= Transmission flags: MUST set this transmission flag to 0 if `NBD_FLAG_SEND_WRITE_ZEROES` is not set
    if !flags.contains(Flags::SEND_WRITE_ZEROES) {
        flags.remove(Flags::SEND_FAST_ZERO);
    }
    flags
}

fn malformed(error: DecodeError) -> Refusal {
    let kind = match error {
        DecodeError::StringTooLong(_) => OptionError::TooBig,
        //= Option types: the server MUST fail the request with `NBD_REP_ERR_INVALID`
        _ => OptionError::Invalid,
    };
    Refusal::new(kind, &error.to_string())
}

fn wire_len(length: u32) -> usize {
    usize::try_from(length).expect("32 bits fit a usize")
}
