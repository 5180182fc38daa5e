//! The fuzzer's entry to `nats_gateway_fuzz::decode`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nats_gateway_fuzz::decode(bytes));
