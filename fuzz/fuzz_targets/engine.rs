//! A whole core to the whole answer, in every format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;
use wstate::report::{escape, text};
use wstate::session::{Options, Session, Source};
use wstate::process::core::CoreTarget;
use wstate::process::objects::SearchPaths;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("core.fuzz");
    let Ok(core) = CoreTarget::from_bytes(path, Arc::new(data.to_vec()), &SearchPaths::default()) else { return };
    let mut options = Options::new(Source::Core { core: path.into(), executable: None });
    // A damaged chain of frames can be as long as the stack; its start has all that there is to go wrong.
    options.limit = Some(200);
    options.verbose = data.len() % 2 == 0;
    let Ok(mut outcome) = Session::on(&core, &options).stacks() else { return };
    let text = outcome.report.to_text(text::TextOptions { verbose: options.verbose, ..Default::default() });
    assert!(!text.chars().any(|c| c != '\n' && escape::is_unprintable(c)), "{text:?}");
    let whole = outcome.report.to_json(options.verbose);
    assert!(whole.starts_with('{'));
    let completeness = outcome.report.completeness();
    assert_eq!(completeness, outcome.report.completeness());
    outcome.report.select(true, true);
    let _ = outcome.report.to_text(text::TextOptions { brief: true, wasm_only: true, ..Default::default() });
    options.image = true;
    let _ = Session::on(&core, &options).stacks().map(|o| (o.classic, o.image));
});
