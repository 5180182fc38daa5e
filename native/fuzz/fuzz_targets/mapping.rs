//! The fuzzer's entry to `nats_gateway_fuzz::mapping`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nats_gateway_fuzz::mapping(bytes));
