//! LEB128 numbers, as the address map and postcard write them.

use crate::bytes::Bytes;

/// Reads an unsigned number of up to 64 bits. `None` if the input ends, or if the number is larger.
pub fn unsigned(b: &mut Bytes<'_>) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = b.u8().ok()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Reads a signed number of up to 64 bits. `None` if the input ends, or if the number needs more bits.
pub fn signed(b: &mut Bytes<'_>) -> Option<i64> {
    let mut value = 0i64;
    for shift in (0..70).step_by(7) {
        let byte = b.u8().ok()?;
        let bits = i64::from(byte & 0x7f);
        // The tenth byte repeats the sign.
        if shift == 63 && bits != 0 && bits != 0x7f {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            let unused = 64 - (shift + 7).min(64);
            return Some(value << unused >> unused);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u(bytes: &[u8]) -> Option<u64> {
        unsigned(&mut Bytes::new(bytes))
    }

    fn s(bytes: &[u8]) -> Option<i64> {
        signed(&mut Bytes::new(bytes))
    }

    #[test]
    fn numbers_at_the_borders() {
        assert_eq!((u(&[0]), u(&[0x7f]), u(&[0x80, 1])), (Some(0), Some(127), Some(128)));
        let mut max = [0xff; 10];
        max[9] = 1;
        assert_eq!(u(&max), Some(u64::MAX));
        max[9] = 2;
        assert_eq!(u(&max), None, "65 bits");
        assert_eq!((u(&[]), u(&[0x80]), u(&[0xff; 11])), (None, None, None));
        assert_eq!((s(&[0x7f]), s(&[0x3f]), s(&[0x40]), s(&[0x80, 0x7f])), (Some(-1), Some(63), Some(-64), Some(-128)));
        let min = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f];
        assert_eq!(s(&min), Some(i64::MIN));
        assert_eq!((s(&[]), s(&[0xff; 11])), (None, None));
    }
}
