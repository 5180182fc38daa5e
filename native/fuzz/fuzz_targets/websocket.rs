//! The fuzzer's entry to `nats_gateway_fuzz::websocket`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nats_gateway_fuzz::websocket(bytes));
