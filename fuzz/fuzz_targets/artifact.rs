//! An artifact file that a user gives, and the image in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wstate::bytes::Bytes;
use wstate::runtime::singlepass::module_info::{Artifact, CacheImageLayout, ModuleInfo};
use wstate::runtime::singlepass::route_artifact::image_of_artifact;

fuzz_target!(|data: &[u8]| {
    if let Ok(artifact) = Artifact::parse(data) {
        assert!(artifact.code().end <= data.len() && artifact.msm() <= data.len());
    }
    for image in [Some(data), image_of_artifact(data).ok()].into_iter().flatten() {
        if let Ok(layout) = CacheImageLayout::parse(image) {
            assert!(layout.code.end <= image.len() && layout.msm <= image.len());
            assert!(layout.function_offsets.iter().all(|&o| o < layout.code.len() as u64));
            let _ = layout.local_function_offsets();
        }
    }
    if let Ok(info) = ModuleInfo::read(&mut Bytes::new(data)) {
        let _ = (info.signature(0), info.signature(u32::MAX), info.function_names());
    }
});
