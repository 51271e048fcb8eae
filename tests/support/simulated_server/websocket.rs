//! The client's side of WebSocket for [`MqttClient`](super::mqtt::MqttClient).

use super::{Shape, Simulation};

/// The mask of all frames of the client.
const MASK: [u8; 4] = [0x5a, 0x01, 0xfe, 0x77];

/// Returns the request for an upgrade, with further header lines.
pub fn upgrade_request(more: &str) -> String {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: localhost:15672\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: mqtt\r\n{more}\r\n"
    )
}

/// Sends this request from a new client of the management API. Returns the number of the client, and the answer.
pub fn request_upgrade(simulation: &mut Simulation, shape: Shape, request: &str) -> (usize, String) {
    let [_, a, b, c] = (simulation.operators.len() as u32 + 1).to_be_bytes();
    let line = simulation.connect_management(shape, [127, a, b, c]);
    simulation.operator(line).write_up(request.as_bytes());
    let mut answer = Vec::new();
    simulation.run();
    while simulation.operator(line).read_down(usize::MAX, &mut answer) > 0 {
        simulation.run();
    }
    (line, String::from_utf8(answer).expect("the answer is text"))
}

/// Returns a masked frame of the client, whose first octet has the flags and the opcode.
pub fn frame(first_octet: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first_octet];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(octet, mask)| octet ^ mask));
    frame
}

/// Frames from the server.
#[derive(Default, Debug)]
pub struct FrameReader {
    input: Vec<u8>,
    /// First octet and payload of the control frames that no test has taken yet.
    pub control: Vec<(u8, Vec<u8>)>,
    is_closed: bool,
}

impl FrameReader {
    /// Returns the buffer for octets from the server.
    pub fn input(&mut self) -> &mut Vec<u8> {
        &mut self.input
    }

    /// Appends the payload of the complete frames in the input to `payload`.
    pub fn take_payload(&mut self, payload: &mut Vec<u8>) {
        while let Some((first_octet, content, len)) = split_frame(&self.input) {
            assert!(!self.is_closed, "a frame follows CLOSE");
            match first_octet {
                0x82 => payload.extend(content),
                0x88 | 0x8a => {
                    self.is_closed = first_octet == 0x88;
                    self.control.push((first_octet, content));
                }
                other => panic!("the server sends a frame {other:#x}"),
            }
            self.input.drain(..len);
        }
    }
}

/// Returns first octet, payload and length of the frame at the start of `input`; `None` if it is incomplete.
fn split_frame(input: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (header, rest) = input.split_first_chunk::<2>()?;
    assert_eq!(header[1] & 0x80, 0, "the server does not mask");
    let (len, from) = match header[1] {
        126 => (u16::from_be_bytes(*rest.first_chunk()?).into(), 4),
        127 => (u64::from_be_bytes(*rest.first_chunk()?) as usize, 10),
        len => (len.into(), 2),
    };
    let payload = input.get(from..from + len)?.to_vec();
    assert!(header[0] & 8 == 0 || len <= 125, "an oversized control frame");
    Some((header[0], payload, from + len))
}
