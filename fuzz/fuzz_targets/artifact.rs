//! An artifact file that a user gives, and the image in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::bytes::Bytes;
use wstate::runtime::singlepass::module::cache_image::CacheImage;
use wstate::runtime::singlepass::module::info::{Artifact, ModuleInfo};
use wstate::runtime::singlepass::find::route_artifact::image_of_artifact;

fuzz_target!(|data: &[u8]| {
    if let Ok(artifact) = Artifact::parse(data) {
        assert!(artifact.image.end <= data.len() && artifact.metadata.end <= data.len());
    }
    for image in [Some(data), image_of_artifact(data).ok()].into_iter().flatten() {
        if let Ok(parts) = CacheImage::of_bytes(image) {
            assert!(4 + parts.code_size <= image.len() as u64 && parts.msm_offset <= image.len() as u64);
            assert!(parts.function_offsets.iter().all(|&o| o < parts.code_size));
            let _ = parts.first_local();
        }
    }
    if let Ok(info) = ModuleInfo::read(&mut Bytes::new(data)) {
        let _ = (info.signature(0), info.signature(u32::MAX), info.function_names());
    }
});
