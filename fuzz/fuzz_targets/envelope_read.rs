#![no_main]

#[path = "../properties/envelope_read.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    property::check(input);
});
