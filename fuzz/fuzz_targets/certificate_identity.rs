#![no_main]

#[path = "../properties/certificate_identity.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    property::check(input);
});
