//! The native side of the MQTT 5 host: a packet codec over `mqtt-protocol-core`, percent coding for
//! header blocks, and a TOML reader. Like every NIF of this project, it is stateless.

mod atoms;
mod config_file;
mod decode;
mod encode;
mod percent;

rustler::init!("nats_gateway_mqtt_nif");
