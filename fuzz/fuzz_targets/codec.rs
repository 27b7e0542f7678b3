//! Decoders of state maps and images: what decodes encodes again, and to the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::cli::image_text::ImageFile;
use wstate::state::codec::{decode_bincode, decode_borsh, decode_borsh_prefix, encode_bincode, encode_borsh};
use wstate::state::{AnyImage, ExecutionStateImage, InstanceImage, ModuleStateMap};

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    match which % 5 {
        0 => {
            if let Ok((map, used)) = decode_borsh_prefix(data) {
                assert!(used <= data.len());
                let bytes = encode_borsh(&map).expect("what was decoded has lengths that fit");
                // Repeated keys make the new encoding shorter, never longer.
                assert!(bytes.len() <= used);
                assert_eq!(decode_borsh::<ModuleStateMap>(&bytes).expect("decodes"), map);
            }
        }
        1 => {
            if let Ok(map) = decode_bincode::<ModuleStateMap>(data) {
                let bytes = encode_bincode(&map).expect("encodes");
                assert_eq!(decode_bincode::<ModuleStateMap>(&bytes).expect("decodes"), map);
                // Both formats hold the same.
                let other = encode_borsh(&map).expect("encodes");
                assert_eq!(decode_borsh::<ModuleStateMap>(&other).expect("decodes"), map);
            }
        }
        2 => {
            if let Ok(image) = ExecutionStateImage::from_bytes(data) {
                // Bytes after an encoding are ignored, as by the runtime.
                assert!(data.starts_with(&image.to_bytes().expect("encodes")));
                assert!(image.output().len() < 64 + 1024 * data.len());
                let _ = image.backtrace_text(Some("1"));
            }
        }
        3 => {
            if let Ok(image) = InstanceImage::from_bytes(data) {
                // Bytes after an encoding are ignored, as by the runtime.
                assert!(data.starts_with(&image.to_bytes().expect("encodes")));
            }
        }
        _ => files(data),
    }
});

/// What `wstate image` does with one file and with two, the first of which ends where the first two bytes say.
fn files(data: &[u8]) {
    let Some(([low, high], data)) = data.split_first_chunk() else { return };
    let split = usize::from(u16::from_le_bytes([*low, *high])).min(data.len());
    let read = |bytes: &[u8]| {
        let file = ImageFile::from_bytes(bytes.to_vec()).ok()?;
        // A file holds an image and nothing else.
        let again = match &file.image {
            AnyImage::Instance(view) => view.to_image(bytes).to_bytes(),
            AnyImage::ExecutionState(state) => state.to_bytes(),
        };
        assert_eq!(again.expect("encodes"), bytes);
        assert!(file.text().len() < 1024 + 1024 * bytes.len());
        assert!(file.json().len() < 1024 + 1024 * bytes.len());
        assert!(file.difference(&file).is_empty());
        Some(file)
    };
    let (a, b) = data.split_at(split);
    if let (Some(left), Some(right)) = (read(a), read(b)) {
        let difference = left.difference(&right);
        assert_eq!(difference.is_empty(), a == b);
        assert!(difference.text().len() < 1024 + 1024 * data.len());
        let _ = difference.json();
    }
}
