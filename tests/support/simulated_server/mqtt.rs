//! An MQTT client of the simulated server, which a test drives packet by packet.

use std::collections::VecDeque;

use super::websocket::{FrameReader, frame, request_upgrade, upgrade_request};
use super::{Shape, Simulation};

/// A packet from the server: its first octet, and its content after the fixed header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromServer {
    pub first_octet: u8,
    pub body: Vec<u8>,
}

/// A message from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub packet_id: Option<u16>,
    pub is_duplicate: bool,
    pub retain: bool,
}

/// What CONNECT contains.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    /// 3, 4 or 5.
    pub level: u8,
    pub client_id: &'a str,
    pub clean_start: bool,
    pub keep_alive_s: u16,
    pub user: Option<&'a str>,
    pub password: Option<&'a str>,
    /// The encoded properties of MQTT 5, without their length.
    pub properties: &'a [u8],
    /// Topic, payload, QoS and RETAIN of the will.
    pub will: Option<(&'a str, &'a [u8], u8, bool)>,
    /// The encoded properties of the will with MQTT 5, without their length.
    pub will_properties: &'a [u8],
}

impl Default for Login<'_> {
    fn default() -> Self {
        Self {
            level: 4,
            client_id: "c",
            clean_start: true,
            keep_alive_s: 0,
            user: Some("guest"),
            password: Some("guest"),
            properties: &[],
            will: None,
            will_properties: &[],
        }
    }
}

/// A client. Its line is one of the operators' lines of the simulation.
#[derive(Debug)]
pub struct MqttClient {
    line: usize,
    level: u8,
    input: Vec<u8>,
    packets: VecDeque<FromServer>,
    /// The frames from the server, if the client uses WebSocket.
    frames: Option<FrameReader>,
}

fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

fn binary(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes()[..], octets].concat()
}

fn variable_int(mut number: usize) -> Vec<u8> {
    let mut octets = Vec::new();
    loop {
        let octet = (number % 128) as u8;
        number /= 128;
        if number == 0 {
            octets.push(octet);
            return octets;
        }
        octets.push(octet | 0x80);
    }
}

/// Returns a packet with this first octet.
pub fn packet(first_octet: u8, body: &[u8]) -> Vec<u8> {
    [&[first_octet][..], &variable_int(body.len()), body].concat()
}

impl Login<'_> {
    /// Returns CONNECT.
    pub fn packet(&self) -> Vec<u8> {
        let name = if self.level == 3 { "MQIsdp" } else { "MQTT" };
        let will_flags = self.will.map_or(0, |(_, _, qos, retain)| 4 | qos << 3 | u8::from(retain) << 5);
        let flags = u8::from(self.clean_start) << 1
            | will_flags
            | u8::from(self.password.is_some()) << 6
            | u8::from(self.user.is_some()) << 7;
        let mut body = string(name);
        body.extend([self.level, flags]);
        body.extend(self.keep_alive_s.to_be_bytes());
        if self.level == 5 {
            body.extend(variable_int(self.properties.len()));
            body.extend(self.properties);
        }
        body.extend(string(self.client_id));
        if let Some((topic, payload, ..)) = self.will {
            if self.level == 5 {
                body.extend(variable_int(self.will_properties.len()));
                body.extend(self.will_properties);
            }
            body.extend(string(topic));
            body.extend(binary(payload));
        }
        body.extend(self.user.into_iter().flat_map(string));
        body.extend(self.password.into_iter().flat_map(string));
        packet(0x10, &body)
    }
}

impl MqttClient {
    /// Connects, and returns the client with the CONNACK.
    pub fn connect(simulation: &mut Simulation, login: &Login<'_>) -> (Self, FromServer) {
        let mut client = Self::open(simulation, login.level);
        client.send(simulation, &login.packet());
        let connack = client.expect(simulation, 0x20);
        (client, connack)
    }

    /// Connects, which must succeed.
    pub fn log_in(simulation: &mut Simulation, login: &Login<'_>) -> Self {
        let (client, connack) = Self::connect(simulation, login);
        assert_eq!(connack.body[1], 0, "{connack:?}");
        client
    }

    /// Opens a connection without sending anything. `level` is the version of the protocol.
    pub fn open(simulation: &mut Simulation, level: u8) -> Self {
        let line = simulation.connect_mqtt();
        simulation.run();
        Self { line, level, input: Vec::new(), packets: VecDeque::new(), frames: None }
    }

    /// Opens a connection over WebSocket without sending a packet.
    pub fn open_websocket(simulation: &mut Simulation, level: u8, shape: Shape) -> Self {
        let (line, answer) = request_upgrade(simulation, shape, &upgrade_request(""));
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"), "{answer}");
        let frames = Some(FrameReader::default());
        Self { line, level, input: Vec::new(), packets: VecDeque::new(), frames }
    }

    /// Logs in over WebSocket, which must succeed.
    pub fn log_in_websocket(simulation: &mut Simulation, login: &Login<'_>, shape: Shape) -> Self {
        let mut client = Self::open_websocket(simulation, login.level, shape);
        client.send(simulation, &login.packet());
        let connack = client.expect(simulation, 0x20);
        assert_eq!(connack.body[1], 0, "{connack:?}");
        client
    }

    /// Sends a packet, in a frame if the client uses WebSocket, and lets the server handle it.
    pub fn send(&mut self, simulation: &mut Simulation, packet: &[u8]) {
        match self.frames {
            None => self.send_octets(simulation, packet),
            Some(_) => self.send_octets(simulation, &frame(0x82, packet)),
        }
    }

    /// Sends octets as they are, and lets the server handle them.
    pub fn send_octets(&mut self, simulation: &mut Simulation, octets: &[u8]) {
        let mut rest = octets;
        while !rest.is_empty() {
            let count = simulation.operator(self.line).write_up(rest);
            rest = &rest[count..];
            simulation.run();
            self.read(simulation);
            if count == 0 && !simulation.operator(self.line).is_held {
                return;
            }
        }
    }

    /// Puts bytes on the line without letting the server run.
    pub fn send_without_turn(&mut self, simulation: &mut Simulation, octets: &[u8]) {
        assert_eq!(simulation.operator(self.line).write_up(octets), octets.len());
    }

    /// Returns the bytes that the server has sent, without letting it run.
    pub fn read_without_turn(&mut self, simulation: &mut Simulation) -> Vec<u8> {
        let mut octets = Vec::new();
        simulation.operator(self.line).read_down(usize::MAX, &mut octets);
        octets
    }

    /// Reads what the server has sent.
    pub fn read(&mut self, simulation: &mut Simulation) {
        loop {
            let buffer = self.frames.as_mut().map_or(&mut self.input, FrameReader::input);
            if simulation.operator(self.line).read_down(1 << 20, buffer) == 0 {
                break;
            }
            simulation.run();
        }
        if let Some(frames) = &mut self.frames {
            frames.take_payload(&mut self.input);
        }
        while let Some((packet, len)) = split_packet(&self.input) {
            self.input.drain(..len);
            self.packets.push_back(packet);
        }
    }

    /// Returns the next packet from the server; `None` if there is none.
    pub fn next(&mut self, simulation: &mut Simulation) -> Option<FromServer> {
        simulation.run();
        self.read(simulation);
        self.packets.pop_front()
    }

    /// Returns the next packet, which must have this first octet.
    pub fn expect(&mut self, simulation: &mut Simulation, first_octet: u8) -> FromServer {
        let packet = self.next(simulation).unwrap_or_else(|| panic!("no packet {first_octet:#x}"));
        assert_eq!(packet.first_octet, first_octet, "{packet:?}");
        packet
    }

    /// Subscribes to filters, and returns the codes of the SUBACK.
    pub fn subscribe(&mut self, simulation: &mut Simulation, filters: &[(&str, u8)]) -> Vec<u8> {
        self.subscribe_with(simulation, &[], filters)
    }

    /// Subscribes to filters with these encoded properties, without their length. Returns the codes of the SUBACK.
    pub fn subscribe_with(
        &mut self,
        simulation: &mut Simulation,
        properties: &[u8],
        filters: &[(&str, u8)],
    ) -> Vec<u8> {
        let mut body = vec![0, 7];
        if self.level == 5 {
            body.extend(variable_int(properties.len()));
            body.extend(properties);
        }
        for (filter, options) in filters {
            body.extend(string(filter));
            body.push(*options);
        }
        self.send(simulation, &packet(0x82, &body));
        let suback = self.expect(simulation, 0x90);
        assert_eq!(&suback.body[..2], [0, 7]);
        suback.body[if self.level == 5 { 3 } else { 2 }..].to_vec()
    }

    /// Unsubscribes from filters, and returns the codes of the UNSUBACK, which only MQTT 5 has.
    pub fn unsubscribe(&mut self, simulation: &mut Simulation, filters: &[&str]) -> Vec<u8> {
        let mut body = vec![0, 8];
        if self.level == 5 {
            body.push(0);
        }
        filters.iter().for_each(|filter| body.extend(string(filter)));
        self.send(simulation, &packet(0xA2, &body));
        let unsuback = self.expect(simulation, 0xB0);
        assert_eq!(&unsuback.body[..2], [0, 8]);
        unsuback.body.get(3..).unwrap_or_default().to_vec()
    }

    /// Returns a PUBLISH of this client. `flags` are DUP, QoS and RETAIN.
    pub fn publish_packet(&self, flags: u8, topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
        self.publish_packet_with(flags, (topic, packet_id), &[], payload)
    }

    /// Returns a PUBLISH of this client with these encoded properties, without their length.
    pub fn publish_packet_with(
        &self,
        flags: u8,
        (topic, packet_id): (&str, u16),
        properties: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let mut body = string(topic);
        if flags & 6 != 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.level == 5 {
            body.extend(variable_int(properties.len()));
            body.extend(properties);
        }
        body.extend(payload);
        packet(0x30 | flags, &body)
    }

    /// Publishes a message with QoS 0.
    pub fn publish(&mut self, simulation: &mut Simulation, topic: &str, payload: &[u8]) {
        let packet = self.publish_packet(0, topic, 0, payload);
        self.send(simulation, &packet);
    }

    /// Publishes a message with QoS 1, and returns the code of the PUBACK.
    pub fn publish_1(
        &mut self,
        simulation: &mut Simulation,
        topic: &str,
        packet_id: u16,
        payload: &[u8],
    ) -> u8 {
        let packet = self.publish_packet(2, topic, packet_id, payload);
        self.send(simulation, &packet);
        let puback = self.expect(simulation, 0x40);
        assert_eq!(puback.body[..2], packet_id.to_be_bytes());
        puback.body.get(2).copied().unwrap_or(0)
    }

    /// Returns the next message from the server, which has no properties and is not acknowledged; `None` if there is
    /// none.
    pub fn receive(&mut self, simulation: &mut Simulation) -> Option<Received> {
        let (message, properties) = self.receive_with_properties(simulation)?;
        assert_eq!(properties, [0_u8; 0], "no properties are expected");
        Some(message)
    }

    /// Returns the next message from the server, and its encoded properties without their length; `None` if there is
    /// none.
    pub fn receive_with_properties(&mut self, simulation: &mut Simulation) -> Option<(Received, Vec<u8>)> {
        let packet = self.next(simulation)?;
        assert_eq!(packet.first_octet >> 4, 3, "{packet:?}");
        Some(self.parse_publish(&packet))
    }

    /// Returns the message of a PUBLISH, and its encoded properties without their length.
    pub fn parse_publish(&self, packet: &FromServer) -> (Received, Vec<u8>) {
        let flags = packet.first_octet & 15;
        let (topic_len, rest) = packet.body.split_first_chunk::<2>().unwrap();
        let (topic, mut rest) = rest.split_at(usize::from(u16::from_be_bytes(*topic_len)));
        let qos = flags >> 1 & 3;
        let packet_id = (qos > 0).then(|| {
            let (id, behind) = rest.split_first_chunk::<2>().unwrap();
            rest = behind;
            u16::from_be_bytes(*id)
        });
        let mut properties = &[][..];
        if self.level == 5 {
            let (len, len_octets) = read_variable_int(rest).expect("the length of the properties");
            (properties, rest) = rest[len_octets..].split_at(len);
        }
        let message = Received {
            topic: String::from_utf8(topic.to_vec()).unwrap(),
            payload: rest.to_vec(),
            qos,
            packet_id,
            is_duplicate: flags & 8 != 0,
            retain: flags & 1 != 0,
        };
        (message, properties.to_vec())
    }

    /// Sends PUBACK.
    pub fn acknowledge(&mut self, simulation: &mut Simulation, packet_id: u16) {
        self.send(simulation, &packet(0x40, &packet_id.to_be_bytes()));
    }

    /// Returns first octet and payload of the control frames of WebSocket since the last call.
    pub fn take_control_frames(&mut self, simulation: &mut Simulation) -> Vec<(u8, Vec<u8>)> {
        simulation.run();
        self.read(simulation);
        core::mem::take(&mut self.frames.as_mut().expect("the client uses WebSocket").control)
    }

    /// Sends DISCONNECT, and checks that the server closes the connection.
    pub fn disconnect(mut self, simulation: &mut Simulation) {
        self.send(simulation, &[0xE0, 0]);
        self.assert_closed(simulation);
    }

    /// Loses the connection without DISCONNECT.
    pub fn lose(self, simulation: &mut Simulation) {
        simulation.operator(self.line).lose();
        simulation.run();
    }

    /// Closes the connection: what was sent before still arrives.
    pub fn hang_up(self, simulation: &mut Simulation) {
        simulation.operator(self.line).hang_up();
        simulation.run();
    }

    /// Checks that the server sends nothing more and closes the connection.
    pub fn assert_closed(&mut self, simulation: &mut Simulation) {
        assert_eq!(self.next(simulation), None);
        assert!(simulation.operator(self.line).broker_is_done, "the connection is still open");
        simulation.operator(self.line).hang_up();
        simulation.run();
    }

    /// Returns whether the server has closed the connection.
    pub fn is_closed(&self, simulation: &Simulation) -> bool {
        simulation.operator(self.line).broker_is_done
    }
}

/// Returns the first packet in `input`, and its length.
pub fn split_packet(input: &[u8]) -> Option<(FromServer, usize)> {
    let (len, len_octets) = read_variable_int(input.get(1..)?)?;
    let at = 1 + len_octets;
    let body = input.get(at..at + len)?.to_vec();
    Some((FromServer { first_octet: input[0], body }, at + len))
}

/// Returns the variable byte integer at the start of `octets`, and its number of octets; `None` if it is incomplete.
fn read_variable_int(octets: &[u8]) -> Option<(usize, usize)> {
    let mut number = 0;
    for (at, octet) in octets.iter().enumerate() {
        number |= usize::from(octet & 0x7F) << (7 * at);
        if octet & 0x80 == 0 {
            return Some((number, at + 1));
        }
    }
    None
}
