//! rumqttd on 127.0.0.1, on the port that it is given; anybody may log in.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

fn main() {
    let port = std::env::args().nth(1).expect("a port");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().expect("a number")));
    // The other values are those of its example.
    let server = ServerSettings {
        name: "t".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 60_000,
            max_payload_size: 2 << 20,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let config = Config {
        router: RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 200,
            max_segment_size: 104_857_600,
            max_segment_count: 10,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("1".to_owned(), server)])),
        ..Config::default()
    };
    Broker::new(config).start().expect("a broker");
}
