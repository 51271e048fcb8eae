//! Reason codes (§2.4), and errors of parsing.

use core::fmt;

use super::Version;

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why something was done or refused. Values from 0x80 on are failures.
        ///
        /// MQTT 3.1.1 has codes only in CONNACK ([`ReasonCode::connect_return_code`]) and 0x80 in SUBACK.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $code,)*
        }

        impl ReasonCode {
            /// Returns the reason code with this number; `None` if MQTT does not define it.
            pub const fn from_octet(octet: u8) -> Option<Self> {
                match octet {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Returns the name of the code in the specification.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reason_codes! {
    /// Also "Normal disconnection" in DISCONNECT and "Granted QoS 0" in SUBACK.
    Success = 0x00, "Success";
    /// SUBACK.
    GrantedQos1 = 0x01, "Granted QoS 1";
    /// SUBACK.
    GrantedQos2 = 0x02, "Granted QoS 2";
    /// DISCONNECT of a client: the will is to be sent.
    DisconnectWithWill = 0x04, "Disconnect with Will Message";
    /// PUBACK and PUBREC.
    NoMatchingSubscribers = 0x10, "No matching subscribers";
    /// UNSUBACK.
    NoSubscriptionExisted = 0x11, "No subscription existed";
    /// AUTH.
    ContinueAuthentication = 0x18, "Continue authentication";
    /// AUTH.
    Reauthenticate = 0x19, "Re-authenticate";
    /// Refused for a reason that is not named.
    Unspecified = 0x80, "Unspecified error";
    /// The bytes are not a packet.
    MalformedPacket = 0x81, "Malformed Packet";
    /// The packet is not allowed here, or contradicts itself.
    ProtocolError = 0x82, "Protocol Error";
    /// The packet is valid, but this server does not accept it.
    ImplementationSpecific = 0x83, "Implementation specific error";
    /// CONNACK.
    UnsupportedProtocolVersion = 0x84, "Unsupported Protocol Version";
    /// CONNACK.
    ClientIdentifierNotValid = 0x85, "Client Identifier not valid";
    /// CONNACK.
    BadUserNameOrPassword = 0x86, "Bad User Name or Password";
    /// The user has no permission.
    NotAuthorized = 0x87, "Not authorized";
    /// CONNACK.
    ServerUnavailable = 0x88, "Server unavailable";
    /// CONNACK, DISCONNECT.
    ServerBusy = 0x89, "Server busy";
    /// CONNACK.
    Banned = 0x8A, "Banned";
    /// DISCONNECT.
    ServerShuttingDown = 0x8B, "Server shutting down";
    /// CONNACK, DISCONNECT.
    BadAuthenticationMethod = 0x8C, "Bad authentication method";
    /// DISCONNECT.
    KeepAliveTimeout = 0x8D, "Keep Alive timeout";
    /// DISCONNECT.
    SessionTakenOver = 0x8E, "Session taken over";
    /// SUBACK, UNSUBACK, DISCONNECT.
    TopicFilterInvalid = 0x8F, "Topic Filter invalid";
    /// CONNACK (the will's topic), PUBACK, PUBREC, DISCONNECT.
    TopicNameInvalid = 0x90, "Topic Name invalid";
    /// PUBACK, PUBREC, SUBACK, UNSUBACK.
    PacketIdentifierInUse = 0x91, "Packet Identifier in use";
    /// PUBREL, PUBCOMP.
    PacketIdentifierNotFound = 0x92, "Packet Identifier not found";
    /// DISCONNECT.
    ReceiveMaximumExceeded = 0x93, "Receive Maximum exceeded";
    /// DISCONNECT.
    TopicAliasInvalid = 0x94, "Topic Alias invalid";
    /// CONNACK, DISCONNECT.
    PacketTooLarge = 0x95, "Packet too large";
    /// DISCONNECT.
    MessageRateTooHigh = 0x96, "Message rate too high";
    /// A limit of this server is reached.
    QuotaExceeded = 0x97, "Quota exceeded";
    /// DISCONNECT.
    AdministrativeAction = 0x98, "Administrative action";
    /// The payload is not as its format indicator says.
    PayloadFormatInvalid = 0x99, "Payload format invalid";
    /// CONNACK, DISCONNECT.
    RetainNotSupported = 0x9A, "Retain not supported";
    /// CONNACK, DISCONNECT.
    QosNotSupported = 0x9B, "QoS not supported";
    /// CONNACK, DISCONNECT.
    UseAnotherServer = 0x9C, "Use another server";
    /// CONNACK, DISCONNECT.
    ServerMoved = 0x9D, "Server moved";
    /// SUBACK, DISCONNECT.
    SharedSubscriptionsNotSupported = 0x9E, "Shared Subscriptions not supported";
    /// CONNACK, DISCONNECT.
    ConnectionRateExceeded = 0x9F, "Connection rate exceeded";
    /// DISCONNECT.
    MaximumConnectTime = 0xA0, "Maximum connect time";
    /// SUBACK, DISCONNECT.
    SubscriptionIdentifiersNotSupported = 0xA1, "Subscription Identifiers not supported";
    /// SUBACK, DISCONNECT.
    WildcardSubscriptionsNotSupported = 0xA2, "Wildcard Subscriptions not supported";
}

impl ReasonCode {
    /// Returns whether the code is a failure.
    pub const fn is_failure(self) -> bool {
        self as u8 >= 0x80
    }

    /// Returns whether CONNACK may have this code (§3.2.2.2).
    const fn is_of_connack(self) -> bool {
        matches!(
            self,
            Self::Success
                | Self::Unspecified
                | Self::MalformedPacket
                | Self::ProtocolError
                | Self::ImplementationSpecific
                | Self::UnsupportedProtocolVersion
                | Self::ClientIdentifierNotValid
                | Self::BadUserNameOrPassword
                | Self::NotAuthorized
                | Self::ServerUnavailable
                | Self::ServerBusy
                | Self::Banned
                | Self::BadAuthenticationMethod
                | Self::TopicNameInvalid
                | Self::PacketTooLarge
                | Self::QuotaExceeded
                | Self::PayloadFormatInvalid
                | Self::RetainNotSupported
                | Self::QosNotSupported
                | Self::UseAnotherServer
                | Self::ServerMoved
                | Self::ConnectionRateExceeded
        )
    }

    /// Returns the code for CONNACK of this version. If CONNACK of MQTT 5 cannot have the code, returns a more
    /// general code. `None`: MQTT 3.1.1 (§3.2.2.3) has no code for this, and the
    /// connection is closed without CONNACK (MQTT-3.1.4-1, MQTT-3.2.2-6).
    pub const fn connect_return_code(self, version: Version) -> Option<u8> {
        if matches!(version, Version::V5) {
            return Some(match self {
                Self::ServerShuttingDown => Self::ServerUnavailable as u8,
                code if code.is_of_connack() => code as u8,
                _ => Self::Unspecified as u8,
            });
        }
        match self {
            Self::Success => Some(0),
            Self::UnsupportedProtocolVersion => Some(1),
            Self::ClientIdentifierNotValid => Some(2),
            Self::ServerUnavailable | Self::ServerBusy | Self::ServerShuttingDown | Self::QuotaExceeded => {
                Some(3)
            }
            Self::BadUserNameOrPassword => Some(4),
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => Some(5),
            _ => None,
        }
    }
}

/// Why received bytes are refused. The connection is closed after any such error: after some of them, it is not known
/// where the next packet begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketError {
    /// The code for CONNACK or DISCONNECT of MQTT 5.
    pub reason: ReasonCode,
    /// What is wrong, for the log and the reason string.
    pub text: &'static str,
}

impl PacketError {
    /// Returns the error of bytes that are not a packet.
    pub(crate) const fn malformed(text: &'static str) -> Self {
        Self { reason: ReasonCode::MalformedPacket, text }
    }

    /// Returns the error of a packet that contradicts itself or is not allowed.
    pub const fn protocol(text: &'static str) -> Self {
        Self { reason: ReasonCode::ProtocolError, text }
    }

    /// Returns an error with this reason.
    pub const fn new(reason: ReasonCode, text: &'static str) -> Self {
        Self { reason, text }
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.name(), self.text)
    }
}

impl core::error::Error for PacketError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_5_have_five_codes_for_a_refusal() {
        let code = |reason: ReasonCode| reason.connect_return_code(Version::V3_1_1);
        for (reason, octet) in [
            (ReasonCode::Success, Some(0)),
            (ReasonCode::UnsupportedProtocolVersion, Some(1)),
            (ReasonCode::ClientIdentifierNotValid, Some(2)),
            (ReasonCode::QuotaExceeded, Some(3)),
            (ReasonCode::BadUserNameOrPassword, Some(4)),
            (ReasonCode::NotAuthorized, Some(5)),
            (ReasonCode::MalformedPacket, None),
            (ReasonCode::TopicNameInvalid, None),
        ] {
            assert_eq!(code(reason), octet);
            assert_eq!(reason.connect_return_code(Version::V5), Some(reason as u8));
        }
    }

    #[test]
    fn every_code_is_found_by_its_number() {
        let known = (0..=255).filter_map(ReasonCode::from_octet);
        let mut count = 0;
        for code in known {
            assert_eq!(ReasonCode::from_octet(code as u8), Some(code));
            assert_eq!(code.is_failure(), code as u8 & 0x80 != 0);
            assert!(!code.name().is_empty());
            count += 1;
        }
        // §2.4, table 2-6.
        assert_eq!(count, 43);
    }

    #[test]
    fn connack_has_only_codes_of_its_table() {
        let table = [
            0, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97,
            0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
        ];
        for code in (0..=u8::MAX).filter_map(ReasonCode::from_octet) {
            let sent = code.connect_return_code(Version::V5).expect("MQTT 5 has a code for everything");
            assert!(table.contains(&sent), "{code:?} {sent:#x}");
            assert!(sent == code as u8 || !table.contains(&(code as u8)), "{code:?} {sent:#x}");
            assert!(code.connect_return_code(Version::V3_1_1).is_none_or(|code| code <= 5));
        }
        assert_eq!(ReasonCode::ServerShuttingDown.connect_return_code(Version::V5), Some(0x88));
    }
}
