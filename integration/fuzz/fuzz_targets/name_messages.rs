#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| integration::fuzz::name_messages(bytes));
