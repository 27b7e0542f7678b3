//! Bytes of a linear memory as text.

/// The text of `bytes`, with sixteen bytes on each line. `address` is the address of the first byte in the linear
/// memory.
pub fn lines(address: u64, bytes: &[u8]) -> String {
    let mut out = String::new();
    for (i, line) in bytes.chunks(16).enumerate() {
        let digits: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        let letters: String =
            line.iter().map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '.' }).collect();
        out += &format!("{:#010x}  {:<47}  {letters}\n", address.wrapping_add(16 * i as u64), digits.join(" "));
    }
    out
}
