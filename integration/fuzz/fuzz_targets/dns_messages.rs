#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| integration::fuzz::dns_messages(bytes));
